"""A small model that runs offline and knows only what it is handed.

It answers from the items of the conversation and from nothing else, and says so when they do not
hold the answer: whoever sees it remember sees the session at work. It understands "I live in …",
"my … is …", and questions about them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from agents import Model, ModelResponse, TResponseInputItem, Usage
from agents.items import TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

_LIVES_IN = re.compile(r"\bI live in ([^.!?,;\n]+)", re.IGNORECASE)
_MY_IS = re.compile(r"\bmy ([\w ]+?) is ([^.!?,;\n]+)", re.IGNORECASE)


class OfflineModel(Model):
    """Answers from the items it is given, or says that it does not know."""

    async def get_response(
        self,
        system_instructions: str | None,  # noqa: ARG002
        input: str | list[TResponseInputItem],  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        """Answer at once."""
        return ModelResponse(output=[_message(answer(input))], usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,  # noqa: ARG002
        input: str | list[TResponseInputItem],  # noqa: A002 - the interface's name
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Answer word by word, with the events that the Responses API sends."""
        for number, event in enumerate(_events(answer(input))):
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


def _message(text: str) -> ResponseOutputMessage:
    return ResponseOutputMessage(
        id=f"msg_{uuid.uuid4().hex}",
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(type="output_text", text=text, annotations=[])],
    )


def _events(text: str) -> Iterator[Any]:
    """The events of one message; sequence numbers are filled in by whoever sends them."""
    done = _message(text)
    begun = done.model_copy(update={"status": "in_progress", "content": []})
    part = done.content[0]
    response = Response(
        id=f"resp_{uuid.uuid4().hex}",
        created_at=0,
        model="offline",
        object="response",
        output=[],
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
    )
    where: dict[str, Any] = {"item_id": done.id, "output_index": 0, "content_index": 0}
    yield ResponseCreatedEvent(type="response.created", response=response, sequence_number=0)
    yield ResponseOutputItemAddedEvent(
        type="response.output_item.added", item=begun, output_index=0, sequence_number=0
    )
    yield ResponseContentPartAddedEvent(
        type="response.content_part.added",
        part=ResponseOutputText(type="output_text", text="", annotations=[]),
        sequence_number=0,
        **where,
    )
    for word in re.findall(r"\S+\s*", text):
        yield ResponseTextDeltaEvent(
            type="response.output_text.delta", delta=word, logprobs=[], sequence_number=0, **where
        )
    yield ResponseTextDoneEvent(
        type="response.output_text.done", text=text, logprobs=[], sequence_number=0, **where
    )
    yield ResponseContentPartDoneEvent(
        type="response.content_part.done", part=part, sequence_number=0, **where
    )
    yield ResponseOutputItemDoneEvent(
        type="response.output_item.done", item=done, output_index=0, sequence_number=0
    )
    yield ResponseCompletedEvent(
        type="response.completed",
        response=response.model_copy(update={"output": [done]}),
        sequence_number=0,
    )
