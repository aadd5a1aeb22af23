"""What one response is made of: the events and the items of a turn."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from agents.models.fake_id import FAKE_RESPONSES_ID
from mlflow.types.responses_helpers import OutputItem

if TYPE_CHECKING:
    from agents.result import RunResultStreaming

logger = logging.getLogger(__name__)

_PASSED_ON = (
    "response.output_item.",
    "response.content_part.",
    "response.output_text.",
    "response.refusal.",
    "response.function_call_arguments.",
    "response.reasoning",
)
"""Beginnings of the event types that are about items. The others are about one model response,
of which a turn may have several; a client sees one response a turn."""


async def as_one_response(
    result: RunResultStreaming, session_id: str
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a run as those of one response."""
    numbers = itertools.count()
    response: dict[str, Any] = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": time.time(),
        "model": "agent",
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
    custom_outputs = {"session_id": session_id}
    items = _Items()
    begun = False
    async with _events(result) as events:
        async for event in events:
            if event.type == "raw_response_event":
                found = items.of_the_model(event.data.model_dump(exclude_none=True))
            elif event.type == "run_item_stream_event" and event.name == "tool_output":
                found = items.of_a_tool(dict(event.item.to_input_item()))
            else:
                continue
            if not begun:  # the model answers, so the history has been read: this is no error
                begun = True
                yield {
                    "type": "response.created",
                    "response": dict(response),
                    "sequence_number": next(numbers),
                    "custom_outputs": custom_outputs,
                }
            for passed_on in found:
                passed_on["sequence_number"] = next(numbers)
                if passed_on["type"] == "response.output_item.done":
                    passed_on["custom_outputs"] = custom_outputs
                yield passed_on
    yield {
        "type": "response.completed",
        "response": response | {"status": "completed", "output": items.done},
        "sequence_number": next(numbers),
        "custom_outputs": custom_outputs,
    }


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


class _Items:
    """The items of a turn, numbered through, each with one id of its own."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._count = 0
        self._here: dict[int, tuple[int, str]] = {}  # a model response's index -> ours, id

    def of_the_model(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """A model's event, with the turn's index and the item's id; none if it is not passed on."""
        kind = event["type"]
        if kind == "response.created":
            self._here.clear()
        if not kind.startswith(_PASSED_ON):
            return []
        item = event.get("item")
        place = event.get("output_index", 0)
        if place not in self._here:
            own = (item or event).get("id" if item else "item_id")
            self._here[place] = self._count, _real(own)
            self._count += 1
        index, own = self._here[place]
        event["output_index"] = index
        if "item_id" in event:
            event["item_id"] = own
        if item is not None:
            item["id"] = own
            if kind == "response.output_item.done":
                if not is_output(item):
                    return []
                self.done.append(item)
        return [event]

    def of_a_tool(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """A tool's output as an item that is added and done."""
        item = with_id(item)
        if not is_output(item):
            return []
        index = self._count
        self._count += 1
        self.done.append(item)
        return [
            {"type": f"response.output_item.{step}", "item": item, "output_index": index}
            for step in ("added", "done")
        ]


def with_id(item: Any) -> dict[str, Any]:
    """The item as a dict, with an id that is one."""
    fields = dict(item)
    return fields | {"id": _real(fields.get("id"))}


def _real(item_id: str | None) -> str:
    """An id that is one: models behind the Chat Completions API all share a placeholder."""
    return item_id if item_id and item_id != FAKE_RESPONSES_ID else f"item_{uuid.uuid4().hex}"


def is_output(item: dict[str, Any]) -> bool:
    """Whether MLflow's response takes such an item; a turn that is stored must not fail on one."""
    try:
        OutputItem(**item)
    except ValueError:
        logger.debug("An item of type %s is stored but not sent.", item.get("type"))
        return False
    return True
