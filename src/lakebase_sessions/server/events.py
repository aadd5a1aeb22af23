"""What one response is made of: the events and the items of a turn."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from agents import ToolApprovalItem
from agents.models.fake_id import FAKE_RESPONSES_ID
from mlflow.types.responses import ResponsesAgentStreamEvent
from mlflow.types.responses_helpers import Annotation, OutputItem
from pydantic import BaseModel

from lakebase_sessions.server.approvals import REQUEST

if TYPE_CHECKING:
    from agents import RunItem
    from agents.result import RunResult, RunResultStreaming

    from lakebase_sessions.server.approvals import Approvals

logger = logging.getLogger(__name__)

_CONTENT = (
    "response.content_part.",
    "response.output_text.",
    "response.refusal.",
    "response.function_call_arguments.",
    "response.reasoning",
)
"""Beginnings of the types of events about what is in an item. Other events are about one model
response, of which a turn may have several; a client sees one response a turn."""

_WITH_CUSTOM_OUTPUTS = ("response.created", "response.output_item.done", "response.completed")

_Fields = dict[str, Any]


def output_of(result: RunResult, approvals: Approvals) -> list[OutputItem]:
    """What the response holds of the items that a run has added, and of what it asks."""
    items = _Items()
    run_items = approvals.new_items(result)
    for item in run_items:
        items.of_the_run(item)
    sent = [*items.output(run_items), *approvals.requests(result)]
    return [OutputItem(**item) for item in sent]


async def as_one_response(
    result: RunResultStreaming,
    response_id: str,
    custom_outputs: Callable[[], dict[str, Any]],
    approvals: Approvals,
) -> AsyncGenerator[ResponsesAgentStreamEvent, None]:
    """The events of a run as those of one response, which ends as `output_of` has it.

    Args:
        result: The run.
        response_id: The response's.
        custom_outputs: Makes those of the first event, of every item that is done, and of the last
            event: what is known at that time.
        approvals: What the run was told and asks.
    """
    numbers = itertools.count()
    response: _Fields = {
        "id": response_id,
        "object": "response",
        "created_at": time.time(),
        "model": "agent",
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }

    waits: _Fields = {}  # for an approval, known at the end

    def numbered(event: _Fields) -> ResponsesAgentStreamEvent:
        event["sequence_number"] = next(numbers)
        if event["type"] in _WITH_CUSTOM_OUTPUTS:
            event["custom_outputs"] = custom_outputs() | waits
        return ResponsesAgentStreamEvent(**event)

    # It waits until the model answers: then the history has been read, and there is a stream.
    waiting: list[_Fields] = [{"type": "response.created", "response": response}]
    items = _Items()
    async with _events(result) as events:
        async for event in events:
            if event.type == "raw_response_event":
                found = items.of_the_model(event.data)
            elif event.type == "run_item_stream_event":
                found = items.of_the_run(event.item)
            else:
                continue
            for passed_on in (*waiting, *found):
                yield numbered(passed_on)
            waiting = []
    # Of a repeated call, say, the Runner tells twice and keeps one: in the end its list counts.
    run_items = approvals.new_items(result)
    left = [event for item in run_items for event in items.of_the_run(item)]
    waits = approvals.custom_outputs(result)
    asked = approvals.requests(result)
    left += [event for request in asked for event in items.of_nobody(request)]
    output = [*items.output(run_items), *asked]
    response = response | {"status": "completed", "output": output}
    for last in (*waiting, *left, {"type": "response.completed", "response": response}):
        yield numbered(last)


def is_for_the_end(event: ResponsesAgentStreamEvent) -> bool:
    """Whether it tells of what has to be stored before somebody can build on it."""
    if event.type == "response.completed":
        return True
    item = getattr(event, "item", None)
    return isinstance(item, dict) and item.get("type") == REQUEST


@asynccontextmanager
async def _events(result: RunResultStreaming) -> AsyncGenerator[AsyncGenerator[Any, None], None]:
    """The run's events; whoever leaves before their end has cancelled the run."""
    # Closed by name: a generator that is only dropped ends some time later, in a task of its own.
    async with aclosing(cast("AsyncGenerator[Any, None]", result.stream_events())) as events:
        try:
            yield events
        except BaseException:
            result.cancel()  # else closing waits until the model has said all it has to say
            raise


@dataclass(eq=False)
class _Item:
    """An item on its way to the client."""

    fields: _Fields
    """As it was announced."""
    place: int | None = None
    """Its index in the model's response; None if the model has not announced it."""
    index: int | None = None
    """Its index in the turn; None until it was added."""
    id: str = ""
    """Its own, from when it was added."""
    done: bool = False


class _Items:
    """The items of a turn, numbered through, each with one id of its own.

    A model announces items in its events; which items there are in the end, and how they look, the
    Runner says. Each of these is added and done once, whatever the model has left out.
    """

    def __init__(self) -> None:
        self._indices = itertools.count()
        self._ids: set[str] = set()
        self._here: list[_Item] = []  # announced in the model's response that is under way
        self._expected: list[_Item] = []  # announced in the latest that is complete
        self._names: set[str | None] = set()  # of all items of that response
        self._of_the_run: dict[int, tuple[RunItem, _Fields | None]] = {}  # by identity

    def of_the_model(self, event: Any) -> list[_Fields]:
        """What is passed on of a model's event, with the turn's indices and ids."""
        kind: str = event.type
        if kind == "response.created":  # of a second try, perhaps
            self._here = []
        elif kind == "response.completed":
            self._expected, self._here = self._here, []
            self._names = {_name(_fields(item)) for item in event.response.output or ()}
        elif kind == "response.output_item.added":
            item = self._announced(_fields(event.item), event.output_index)
            # A message is none before its first words, and some items MLflow does not know.
            return self._added(item) if _as_output(item.fields) else []
        elif kind == "response.output_item.done":
            return self._done_by_the_model(event)
        elif kind.startswith(_CONTENT):
            return self._content(event)
        return []

    def of_the_run(self, run_item: RunItem) -> list[_Fields]:
        """What is left to say of an item that the run has added: all of it, or nothing."""
        if id(run_item) in self._of_the_run:
            return []
        news: list[_Fields] = []
        output = None
        if not isinstance(run_item, ToolApprovalItem):  # which is about a call, an item itself
            fields = _fields(run_item.raw_item)
            item = self._taken(fields) or _Item(fields)
            output = _as_output(fields)
            if output is None:
                logger.debug("An item of type %s is stored but not sent.", fields.get("type"))
            else:
                news = [] if item.done else self._finished(item, output)
                output = output | {"id": item.id}
        self._of_the_run[id(run_item)] = run_item, output
        return news

    def of_nobody(self, fields: _Fields) -> list[_Fields]:
        """An item that neither the model nor the run has, from added to done."""
        return self._finished(_Item(fields), fields)

    def output(self, run_items: Sequence[RunItem]) -> list[_Fields]:
        """What is sent of items that were given to `of_the_run`."""
        found = (self._of_the_run[id(run_item)][1] for run_item in run_items)
        return [fields for fields in found if fields is not None]

    def _content(self, event: Any) -> list[_Fields]:
        kind: str = event.type
        item = self._at(event.output_index)
        if item is None or (item.done and item.fields.get("id") != event.item_id):
            if kind.startswith("response.function_call_arguments."):
                return []  # nobody knows yet which tool it is; the call will come whole
            empty: _Fields = (
                {"type": "reasoning", "summary": []}
                if kind.startswith("response.reasoning")
                else {"type": "message", "role": "assistant", "content": []}
            )
            item = self._announced(empty | {"id": event.item_id}, event.output_index)
        content = event.model_dump(exclude_none=True)
        if kind == "response.output_text.annotation.added" and not _known(content["annotation"]):
            return []
        added = self._added(item)
        return [*added, content | {"item_id": item.id, "output_index": item.index}]

    def _done_by_the_model(self, event: Any) -> list[_Fields]:
        fields = _as_output(_fields(event.item))
        if fields is None:
            return []
        item = self._at(event.output_index)
        if item is not None and item.done and _name(item.fields) == _name(fields) is not None:
            return []
        if item is None or item.done or item.fields.get("type") != fields["type"]:
            item = self._announced(fields, event.output_index)
        return self._finished(item, fields)

    def _at(self, place: int) -> _Item | None:
        return next((item for item in reversed(self._here) if item.place == place), None)

    def _taken(self, fields: _Fields) -> _Item | None:
        """The announced item that this one is: that of its name, or the next that has no other."""
        kind, name = fields.get("type"), _name(fields)
        alike = [item for item in self._expected if item.fields.get("type") == kind]
        if _as_output(fields) is None:  # a message without words, whose announcement was kept back
            alike = [item for item in alike if item.index is None]
        named = [item for item in alike if _name(item.fields) == name]
        # Some gateways make up an id for each event. A call with another call_id is another call.
        others = [item for item in alike if _name(item.fields) not in self._names]
        for item in named or ([] if "call_id" in fields else others):
            self._expected.remove(item)
            return item
        return None

    def _announced(self, fields: _Fields, place: int) -> _Item:
        item = _Item(fields, place)
        self._here.append(item)
        return item

    def _added(self, item: _Item) -> list[_Fields]:
        if item.index is not None:
            return []
        item.index = next(self._indices)
        item.id = item.fields.get("id") or FAKE_RESPONSES_ID
        # Models behind the Chat Completions API give all items the same placeholder.
        if item.id == FAKE_RESPONSES_ID or item.id in self._ids:
            item.id = f"item_{uuid.uuid4().hex}"
        self._ids.add(item.id)
        return [_item_event("added", item, item.fields)]

    def _finished(self, item: _Item, fields: _Fields) -> list[_Fields]:
        added = self._added(item)
        item.done = True
        return [*added, _item_event("done", item, fields)]


def _item_event(step: str, item: _Item, fields: _Fields) -> _Fields:
    return {
        "type": f"response.output_item.{step}",
        "item": fields | {"id": item.id},
        "output_index": item.index,
    }


def _fields(raw_item: Any) -> _Fields:
    if isinstance(raw_item, BaseModel):
        return raw_item.model_dump(exclude_unset=True, exclude_none=True)
    return {name: value for name, value in raw_item.items() if value is not None}


def _name(fields: _Fields) -> str | None:
    """What the model calls an item."""
    name: str | None = fields.get("call_id") or fields.get("id")
    return None if name == FAKE_RESPONSES_ID else name


def _as_output(item: _Fields) -> _Fields | None:
    """The item as MLflow's response takes it; None if it takes none such, which is no failure."""
    for fields in (item, _without_unknown_annotations(item)):
        try:
            OutputItem(**fields)
        except ValueError:
            continue
        return fields
    return None


def _without_unknown_annotations(item: _Fields) -> _Fields:
    """A message must not be lost for a file that a code interpreter has cited."""
    parts = item.get("content")
    if not isinstance(parts, list):
        return item
    return item | {
        "content": [
            part | {"annotations": [a for a in part["annotations"] if _known(a)]}
            if isinstance(part, dict) and part.get("annotations")
            else part
            for part in parts
        ]
    }


def _known(annotation: _Fields) -> bool:
    try:
        Annotation(**annotation)
    except ValueError:
        return False
    return True
