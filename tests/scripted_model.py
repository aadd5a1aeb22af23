"""A model that says what a test has written down, in one of the ways in which models stream it.

The Responses API announces an item, sends what is in it piece by piece, and repeats it when it is
done and once more at the end. Gateways and adapters leave out most of that; the Runner needs only
the last event, or the items that are done.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agents import Model, ModelResponse, Usage
from agents.models.fake_id import FAKE_RESPONSES_ID
from openai.types.responses import (
    Response,
    ResponseCodeInterpreterToolCall,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFileSearchToolCall,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseFunctionWebSearch,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseOutputText,
    ResponseOutputTextAnnotationAddedEvent,
    ResponseReasoningItem,
    ResponseReasoningSummaryTextDeltaEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)
from openai.types.responses.response_function_web_search import ActionSearch
from openai.types.responses.response_output_item import (
    ImageGenerationCall,
    McpApprovalRequest,
    McpCall,
)
from openai.types.responses.response_output_text import (
    AnnotationContainerFileCitation,
    AnnotationURLCitation,
)
from openai.types.responses.response_reasoning_item import Summary

CITED = AnnotationURLCitation(
    type="url_citation", url="https://a.example", title="A", start_index=0, end_index=1
)
CITED_FILE = AnnotationContainerFileCitation(
    type="container_file_citation",
    container_id="c",
    file_id="f",
    filename="plot.png",
    start_index=0,
    end_index=1,
)
"""What a code interpreter's files are cited as; MLflow's messages do not know it."""


def message(*texts: str, annotations: Sequence[Any] = ()) -> ResponseOutputMessage:
    return ResponseOutputMessage(
        id=_id("msg"),
        type="message",
        role="assistant",
        status="completed",
        content=[
            ResponseOutputText(type="output_text", text=text, annotations=list(annotations))
            for text in texts
        ],
    )


def refusal(text: str) -> ResponseOutputMessage:
    part = ResponseOutputRefusal(type="refusal", refusal=text)
    return message().model_copy(update={"content": [part]})


def reasoning(*texts: str) -> ResponseReasoningItem:
    summary = [Summary(type="summary_text", text=text) for text in texts]
    return ResponseReasoningItem(id=_id("rs"), type="reasoning", summary=summary)


def call(name: str, arguments: str = "{}") -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=_id("fc"), call_id=_id("call"), type="function_call", name=name, arguments=arguments
    )


def code_interpreter() -> ResponseCodeInterpreterToolCall:
    return ResponseCodeInterpreterToolCall(
        id=_id("ci"),
        type="code_interpreter_call",
        code="1 + 1",
        container_id="c",
        status="completed",
        outputs=[],
    )


def web_search() -> ResponseFunctionWebSearch:
    return ResponseFunctionWebSearch(
        id=_id("ws"),
        type="web_search_call",
        status="completed",
        action=ActionSearch(type="search", query="weather"),
    )


def file_search() -> ResponseFileSearchToolCall:
    return ResponseFileSearchToolCall(
        id=_id("fs"), type="file_search_call", status="completed", queries=["weather"]
    )


def mcp_call() -> McpCall:
    return McpCall(id=_id("mcp"), type="mcp_call", name="n", arguments="{}", server_label="s")


def mcp_approval() -> McpApprovalRequest:
    return McpApprovalRequest(
        id=_id("mcpr"), type="mcp_approval_request", name="n", arguments="{}", server_label="s"
    )


def image() -> ImageGenerationCall:
    return ImageGenerationCall(
        id=_id("ig"), type="image_generation_call", status="completed", result="aGk="
    )


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Style:
    """What a model sends of a response. As it stands: as the Responses API does."""

    created: bool = True
    added: bool = True
    content: bool = True
    done: bool = True
    output: bool = True
    """Whether the last event repeats the items."""
    indices: bool = True
    """Whether items are numbered; else all are 0."""
    together: bool = False
    """All items are begun before the first of them is done, which the last one is."""
    ids: str = "own"
    """`own`; `placeholder`: all the same; `repeated`: by their place in the response;
    `made up`: another one in each event."""


class ScriptedModel(Model):
    """Gives one response a call, in order, and a plain message when there is none left."""

    def __init__(self, *script: Sequence[Any], style: Style = Style()) -> None:
        self._responses = iter(script)
        self._style = style

    async def get_response(self, *_arguments: Any, **_options: Any) -> ModelResponse:
        return ModelResponse(output=self._items(), usage=Usage(), response_id=None)

    async def stream_response(self, *_arguments: Any, **_options: Any) -> AsyncIterator[Any]:
        for number, event in enumerate(events(self._items(), self._style)):
            event.sequence_number = number
            yield event

    def _items(self) -> list[Any]:
        items = next(self._responses, [message("That is all.")])
        return [
            _again(item.model_copy(update={"id": _id_of(item, place, self._style)}), self._style)
            for place, item in enumerate(items)
        ]


def as_response(items: Sequence[Any]) -> Response:
    return Response(
        id="resp",
        created_at=0,
        model="scripted",
        object="response",
        output=list(items),
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
    )


def _id_of(item: Any, place: int, style: Style) -> str:
    if style.ids == "placeholder":
        return FAKE_RESPONSES_ID
    return f"item-{place}" if style.ids == "repeated" else str(item.id)


def events(items: list[Any], style: Style) -> Iterator[Any]:
    """Those of one response; sequence numbers are filled in by whoever sends them."""
    response = as_response([])
    if style.created:
        yield ResponseCreatedEvent(type="response.created", response=response, sequence_number=0)
    begun, ended = [], []
    for place, item in enumerate(items):
        where = {"output_index": place if style.indices else 0, "sequence_number": 0}
        begun.append(_begin(item, where, style))
        ended.append(_end(item, where, style))
    if style.together and style.indices:
        yield from itertools.chain(*begun, *reversed(ended))
    else:
        for first, then in zip(begun, ended, strict=True):
            yield from first
            yield from then
    yield ResponseCompletedEvent(
        type="response.completed",
        response=as_response(items if style.output else []),
        sequence_number=0,
    )


def _begin(item: Any, where: dict[str, Any], style: Style) -> Iterator[Any]:
    if style.added:
        empty: dict[str, Any] = {"message": {"content": []}, "function_call": {"arguments": ""}}
        yield ResponseOutputItemAddedEvent(
            type="response.output_item.added",
            item=_again(item, style, status="in_progress", **empty.get(item.type, {})),
            **where,
        )
    if style.content:
        for event in _content(item, where):
            event.item_id = _again(item, style).id
            yield event


def _end(item: Any, where: dict[str, Any], style: Style) -> Iterator[Any]:
    if style.done:
        yield ResponseOutputItemDoneEvent(
            type="response.output_item.done", item=_again(item, style), **where
        )


def _again(item: Any, style: Style, **changes: Any) -> Any:
    if style.ids == "made up":
        changes["id"] = _id("made_up")
    return item.model_copy(update=changes)


def _content(item: Any, where: dict[str, Any]) -> Iterator[Any]:
    where = where | {"item_id": item.id}
    if isinstance(item, ResponseReasoningItem):
        for number, summary in enumerate(item.summary):
            yield ResponseReasoningSummaryTextDeltaEvent(
                type="response.reasoning_summary_text.delta",
                delta=summary.text,
                summary_index=number,
                **where,
            )
    elif isinstance(item, ResponseFunctionToolCall):
        yield ResponseFunctionCallArgumentsDeltaEvent(
            type="response.function_call_arguments.delta", delta=item.arguments, **where
        )
        yield ResponseFunctionCallArgumentsDoneEvent(
            type="response.function_call_arguments.done",
            arguments=item.arguments,
            name=item.name,
            **where,
        )
    elif isinstance(item, ResponseOutputMessage):
        for number, part in enumerate(item.content):
            yield from _part(part, where | {"content_index": number})


def _part(part: Any, where: dict[str, Any]) -> Iterator[Any]:
    yield ResponseContentPartAddedEvent(type="response.content_part.added", part=part, **where)
    if isinstance(part, ResponseOutputText):
        for word in part.text.split():
            yield ResponseTextDeltaEvent(
                type="response.output_text.delta", delta=word, logprobs=[], **where
            )
        for number, annotation in enumerate(part.annotations):
            yield ResponseOutputTextAnnotationAddedEvent(
                type="response.output_text.annotation.added",
                annotation=annotation.model_dump(),
                annotation_index=number,
                **where,
            )
        yield ResponseTextDoneEvent(
            type="response.output_text.done", text=part.text, logprobs=[], **where
        )
    yield ResponseContentPartDoneEvent(type="response.content_part.done", part=part, **where)
