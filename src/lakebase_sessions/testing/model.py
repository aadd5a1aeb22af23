"""A small model that runs offline and knows only what it is handed.

It answers from the items of the conversation and from nothing else, and says so when they do not
hold the answer: whoever sees it remember sees the session at work. It understands "I live in …",
"my … is …", and questions about them. Where the agent has a tool whose name the message mentions
("weather" for `get_weather`), it calls that with what stands behind "in" or "for", and then reports
the output.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from agents import FunctionTool, Model, ModelResponse, Tool, TResponseInputItem, Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)

if TYPE_CHECKING:
    from agents.items import TResponseStreamEvent

_LIVES_IN = re.compile(r"\bI live in ([^.!?,;\n]+)", re.IGNORECASE)
_MY_IS = re.compile(r"\bmy ([\w ]+?) is ([^.!?,;\n]+)", re.IGNORECASE)


class OfflineModel(Model):
    """A model without a network: it answers from the items it is given, or says it does not know.

    It has no state, so what an agent with it remembers, the session has remembered. It tells what
    it was told as "I live in …" and "my … is …", and calls a tool whose name, but for the first
    word, is in the message: "What is the weather in Rome?" calls `get_weather` with `"Rome"`.

    Example::

        agent = Agent(name="Assistant", model=OfflineModel())
        await Runner.run(agent, "Hello, I live in SF!", session=session)
        result = await Runner.run(agent, "Where do I live?", session=session)
        assert result.final_output == "You said that you live in SF."

    Args:
        usage: What each answer is said to take; None says nothing, as some gateways do. It counts
            no tokens itself, because it has none.
    """

    model = "offline"
    """What it is called."""
    usage: Usage | None = None
    """Of each answer."""

    def __init__(self, *, usage: Usage | None = None) -> None:
        self.usage = usage

    async def get_response(
        self,
        system_instructions: str | None,  # noqa: ARG002
        input: str | list[TResponseInputItem],  # noqa: A002 - the interface's name
        model_settings: object,  # noqa: ARG002
        tools: list[Tool],
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        """Answer at once."""
        usage = Usage()
        if self.usage is not None:
            usage.add(self.usage)
        return ModelResponse(output=[_respond(input, tools)], usage=usage, response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,  # noqa: ARG002
        input: str | list[TResponseInputItem],  # noqa: A002 - the interface's name
        model_settings: object,  # noqa: ARG002
        tools: list[Tool],
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Answer word by word, with the events that the Responses API sends."""
        for number, event in enumerate(_events(_respond(input, tools), self.model, self.usage)):
            event.sequence_number = number
            yield event


def answer(items: str | list[TResponseInputItem]) -> str:
    """What can be said to the last user message from `items` alone.

    Example:
        >>> answer([
        ...     {"role": "user", "content": "Hello, I live in SF!"},
        ...     {"role": "user", "content": "What city did I say I live in?"},
        ... ])
        'You said that you live in SF.'
        >>> answer("What city did I say I live in?")
        'I do not know: nothing I was told says so.'
    """
    said = _user_texts(items)
    last = said[-1] if said else ""
    facts = dict(_facts(said))
    if not last.rstrip().endswith("?"):
        learned = ", ".join(f"{about} {value}" for about, value in _facts([last]))
        return f"Hello! I will remember: {learned}." if learned else "I see."
    asked = re.sub(r"\W+", " ", last.lower())
    if "live" in asked and "you live in" in facts:
        return f"You said that you live in {facts['you live in']}."
    for about, value in facts.items():
        if about.startswith("your ") and about[5:-3] in asked:
            return f"You said that {about} {value}."
    return "I do not know: nothing I was told says so."


def _facts(texts: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        for place in _LIVES_IN.findall(text):
            if not text.rstrip().endswith("?"):
                yield "you live in", place.strip()
        for thing, value in _MY_IS.findall(text):
            yield f"your {thing.strip().lower()} is", value.strip()


def _user_texts(items: str | list[TResponseInputItem]) -> list[str]:
    if isinstance(items, str):
        return [items]
    texts = []
    for item in items:
        fields: dict[str, Any] = dict(item)
        if fields.get("role") != "user":
            continue
        content = fields.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts.append(" ".join(str(part.get("text", "")) for part in content))
    return texts


def _respond(
    items: str | list[TResponseInputItem], tools: list[Tool]
) -> ResponseOutputMessage | ResponseFunctionToolCall:
    """A message, or the call of a tool that the last message asks for."""
    last: dict[str, Any] = dict(items[-1]) if isinstance(items, list) and items else {}
    if last.get("type") == "function_call_output":
        return _message(str(last.get("output")))
    texts = _user_texts(items)
    words = set(re.findall(r"\w+", texts[-1].lower())) if texts else set()
    for tool in tools:
        if isinstance(tool, FunctionTool) and words & set(tool.name.split("_")[1:]):
            return _call(tool, texts[-1])
    return _message(answer(items))


def _call(tool: FunctionTool, text: str) -> ResponseFunctionToolCall:
    about = re.search(r"\b(?:in|for) ([^.!?,;\n]+)", text)
    value = about[1].strip() if about else text
    parameters = tool.params_json_schema.get("required", [])
    return ResponseFunctionToolCall(
        id=f"fc_{uuid.uuid4().hex}",
        call_id=f"call_{uuid.uuid4().hex}",
        type="function_call",
        name=tool.name,
        arguments=json.dumps(dict.fromkeys(parameters, value)),
        status="completed",
    )


def _message(text: str) -> ResponseOutputMessage:
    return ResponseOutputMessage(
        id=f"msg_{uuid.uuid4().hex}",
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(type="output_text", text=text, annotations=[])],
    )


def _events(
    done: ResponseOutputMessage | ResponseFunctionToolCall,
    model: str = OfflineModel.model,
    usage: Usage | None = None,
) -> Iterator[Any]:
    """The events of one item; sequence numbers are filled in by whoever sends them."""
    response = Response(
        id=f"resp_{uuid.uuid4().hex}",
        created_at=0,
        model=model,
        object="response",
        output=[],
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
    )
    empty: dict[str, Any] = (
        {"content": []} if isinstance(done, ResponseOutputMessage) else {"arguments": ""}
    )
    yield ResponseCreatedEvent(type="response.created", response=response, sequence_number=0)
    yield ResponseOutputItemAddedEvent(
        type="response.output_item.added",
        item=done.model_copy(update={"status": "in_progress", **empty}),
        output_index=0,
        sequence_number=0,
    )
    if isinstance(done, ResponseOutputMessage):
        yield from _text_events(done)
    else:
        yield from _argument_events(done)
    yield ResponseOutputItemDoneEvent(
        type="response.output_item.done", item=done, output_index=0, sequence_number=0
    )
    yield ResponseCompletedEvent(
        type="response.completed",
        response=response.model_copy(update={"output": [done], "usage": _reported(usage)}),
        sequence_number=0,
    )


def _reported(usage: Usage | None) -> ResponseUsage | None:
    if usage is None:
        return None
    return ResponseUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=usage.input_tokens_details,
        output_tokens=usage.output_tokens,
        output_tokens_details=usage.output_tokens_details,
        total_tokens=usage.total_tokens,
    )


def _text_events(done: ResponseOutputMessage) -> Iterator[Any]:
    where: dict[str, Any] = {
        "item_id": done.id,
        "output_index": 0,
        "content_index": 0,
        "sequence_number": 0,
    }
    part = done.content[0]
    text = part.text if isinstance(part, ResponseOutputText) else ""
    yield ResponseContentPartAddedEvent(
        type="response.content_part.added",
        part=ResponseOutputText(type="output_text", text="", annotations=[]),
        **where,
    )
    for word in re.findall(r"\S+\s*", text):
        yield ResponseTextDeltaEvent(
            type="response.output_text.delta", delta=word, logprobs=[], **where
        )
    yield ResponseTextDoneEvent(type="response.output_text.done", text=text, logprobs=[], **where)
    yield ResponseContentPartDoneEvent(type="response.content_part.done", part=part, **where)


def _argument_events(done: ResponseFunctionToolCall) -> Iterator[Any]:
    where: dict[str, Any] = {"item_id": done.id, "output_index": 0, "sequence_number": 0}
    yield ResponseFunctionCallArgumentsDeltaEvent(
        type="response.function_call_arguments.delta", delta=done.arguments, **where
    )
    yield ResponseFunctionCallArgumentsDoneEvent(
        type="response.function_call_arguments.done",
        arguments=done.arguments,
        name=done.name,
        **where,
    )
