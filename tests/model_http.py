"""The SDK's own models on a script: what they ask over HTTP is answered in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
from agents import Model, OpenAIChatCompletionsModel, OpenAIResponsesModel
from openai.types.responses import ResponseFunctionToolCall
from scripted_model import Style, as_response, events

Script = Sequence[Sequence[Any]]


def responses_model(*script: Sequence[Any]) -> Model:
    """The Responses API."""

    def answer(items: Sequence[Any], stream: bool) -> Any:
        if stream:
            return [event.model_dump() for event in events(list(items), Style())]
        return as_response(items).model_dump()

    return OpenAIResponsesModel("scripted", _client(script, answer))


def chat_model(*script: Sequence[Any]) -> Model:
    """The Chat Completions API, which is what Databricks serves most models by."""
    return OpenAIChatCompletionsModel("scripted", _client(script, _chat))


def _client(script: Script, answer: Any) -> openai.AsyncOpenAI:
    left = iter(script)

    def handle(request: httpx.Request) -> httpx.Response:
        stream = json.loads(request.content).get("stream") is True
        body = answer(next(left), stream)
        if not stream:
            return httpx.Response(200, json=body)
        lines = [f"event: {part.get('type')}\ndata: {json.dumps(part)}\n\n" for part in body]
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, text="".join([*lines, "data: [DONE]\n\n"]))

    transport = httpx.MockTransport(handle)
    return openai.AsyncOpenAI(
        api_key="unused",
        base_url="http://model.invalid",
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
    )


def _chat(items: Sequence[Any], stream: bool) -> Any:
    whole: dict[str, Any] = {"id": "chat", "created": 0, "model": "scripted"}
    calls = [
        {
            "id": item.call_id,
            "type": "function",
            "function": {"name": item.name, "arguments": item.arguments},
        }
        for item in items
        if isinstance(item, ResponseFunctionToolCall)
    ]
    text = "".join(item.content[0].text for item in items if item.type == "message")
    if not stream:
        said = {"role": "assistant", "content": text or None, "tool_calls": calls or None}
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        return whole | {"object": "chat.completion", "choices": [choice]}
    return [
        whole
        | {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        for delta in _deltas(text, calls)
    ]


def _deltas(text: str, calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant"}
    for word in re.findall(r"\S+\s*", text):
        yield {"content": word}
    for index, call in enumerate(calls):
        function = call["function"]
        yield {"tool_calls": [call | {"index": index, "function": function | {"arguments": ""}}]}
        arguments = {"arguments": function["arguments"]}
        yield {"tool_calls": [{"index": index, "function": arguments}]}
