"""A turn of an MLflow ResponsesAgent in one line: invoke_turn and stream_turn."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import mlflow
from agents import RunConfig, Runner
from agents.models.fake_id import FAKE_RESPONSES_ID
from mlflow.genai.agent_server import get_request_headers
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)
from mlflow.types.responses_helpers import OutputItem

from lakebase_sessions.conversation.history import merge_history
from lakebase_sessions.errors import InvalidUser, LakebaseSessionsError
from lakebase_sessions.factory import session_for

if TYPE_CHECKING:
    from agents import Agent, TResponseInputItem
    from agents.result import RunResultStreaming

    from lakebase_sessions.conversation.session import LakebaseSession
    from lakebase_sessions.lakebase import Lakebase

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT_SECONDS = 10.0
"""How long a stream that was given up may take to settle what it was storing."""

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


async def invoke_turn(
    agent: Agent[Any],
    request: ResponsesAgentRequest,
    *,
    user: str | Callable[[], str | None] | None = None,
    lakebase: Lakebase | None = None,
    history_limit: int | None = None,
    atomic: bool = False,
    **run_kwargs: Any,
) -> ResponsesAgentResponse:
    """Run one turn of the request's conversation, for MLflow's `@invoke`.

    The session is the request's (`session_for`); what a client resends of the history is not
    stored twice (`merge_history`); the session id comes back in `custom_outputs`.

    Args:
        agent: The agent to run.
        request: What the client sent. With an empty `input` the agent goes on from the history.
        user: Keeps users apart: a user, or what says who it is, `user=current_user`. What that
            raises reaches the client with its own status, in a stream too.
        lakebase: Where to store; None is the process-wide default.
        history_limit: The model sees at most the latest so many items.
        atomic: Store the turn whole, at its end, or not at all (`LakebaseSession.turn`).
        **run_kwargs: Passed to `Runner.run`: `context`, `max_turns`, `hooks`, `run_config`, …

    Raises:
        ConversationConflict: Of an atomic turn, when somebody else wrote meanwhile.
        LakebaseSessionsError: The class says why; `add_error_handlers` makes HTTP of it.

    Example:
        >>> @invoke()
        ... async def handle(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        ...     return await invoke_turn(agent, request)
    """
    session = _session(request, user, lakebase, history_limit)
    async with session.turn() if atomic else nullcontext(session) as turn:
        result = await Runner.run(agent, _items(request), session=turn, **_merging(run_kwargs))
    output = [_with_id(item.to_input_item()) for item in result.new_items]
    return ResponsesAgentResponse(
        output=[OutputItem(**item) for item in output if _is_output(item)],
        custom_outputs={"session_id": session.session_id},
    )


async def stream_turn(
    agent: Agent[Any],
    request: ResponsesAgentRequest,
    *,
    user: str | Callable[[], str | None] | None = None,
    lakebase: Lakebase | None = None,
    history_limit: int | None = None,
    atomic: bool = False,
    **run_kwargs: Any,
) -> AsyncGenerator[ResponsesAgentStreamEvent, None]:
    """Run one turn of the request's conversation as a stream, for MLflow's `@stream`.

    The events are those of one OpenAI response, whatever the number of model calls and tool
    steps: `response.created`, the items with their deltas, `response.completed`. An item has one
    id from `added` to `done`; tool calls and their outputs are items. `session_id` is in the
    `custom_outputs` of the first event, of every `response.output_item.done` and of the last.

    An error of this package ends the stream with an `error` event that has its code. Where a
    client goes away, the run is cancelled and has settled before this generator ends.

    Args:
        agent: The agent to run.
        request: What the client sent.
        user: Keeps users apart: a user, or what says who it is, `user=current_user`. What that
            raises reaches the client with its own status, in a stream too.
        lakebase: Where to store; None is the process-wide default.
        history_limit: The model sees at most the latest so many items.
        atomic: Store the turn whole, at its end, or not at all (`LakebaseSession.turn`).
        **run_kwargs: Passed to `Runner.run_streamed`.

    Example:
        >>> @stream()
        ... async def handle(request: ResponsesAgentRequest):
        ...     async for event in stream_turn(agent, request):
        ...         yield event
    """
    try:
        session = _session(request, user, lakebase, history_limit)
        async with session.turn() if atomic else nullcontext(session) as turn:
            result = Runner.run_streamed(
                agent, _items(request), session=turn, **_merging(run_kwargs)
            )
            try:
                async with aclosing(_as_one_response(result, session.session_id)) as events:
                    async for event in events:
                        if event["type"] == "response.completed":
                            break
                        yield ResponsesAgentStreamEvent(**event)
            finally:
                await _settle(result)
        # Only now it is stored.
        yield ResponsesAgentStreamEvent(**event)
    except LakebaseSessionsError as error:
        logger.warning("The stream ends with %s: %s", error.code, error)
        event = {"type": "error", "code": error.code, "message": str(error)}
        yield ResponsesAgentStreamEvent(**event)


def current_user(headers: Mapping[str, str] | None = None) -> str | None:
    """Who Databricks Apps authenticated: the `X-Forwarded-User` of the request.

    For `user=`. The identifier does not change when somebody's e-mail address does. Outside an
    app (`DATABRICKS_APP_NAME` is not set) nobody vouches for such a header, and it is None.

    Args:
        headers: The request's headers, of any case; None: those that MLflow's AgentServer keeps
            for the current request.

    Raises:
        InvalidUser: Inside an app, a request without an authenticated user.
    """
    if not os.environ.get("DATABRICKS_APP_NAME"):
        return None
    found = headers if headers is not None else get_request_headers()
    named = {name.lower(): value for name, value in found.items()}
    user = named.get("x-forwarded-user") or named.get("x-forwarded-email")
    if not user:
        raise InvalidUser(
            "The request has no X-Forwarded-User header, so it is not known whose conversation "
            "this is. Databricks Apps set it; a request that does not come through their proxy "
            "has none."
        )
    return user


def _session(
    request: ResponsesAgentRequest,
    user: str | Callable[[], str | None] | None,
    lakebase: Lakebase | None,
    history_limit: int | None,
) -> LakebaseSession:
    session = session_for(
        request,
        user=user() if callable(user) else user,
        lakebase=lakebase,
        history_limit=history_limit,
    )
    if mlflow.get_current_active_span() is not None:
        mlflow.update_current_trace(metadata={"mlflow.trace.session": session.session_id})
    return session


def _items(request: ResponsesAgentRequest) -> list[TResponseInputItem]:
    items: Any = [item.model_dump(exclude_none=True) for item in request.input]
    return list(items)


def _merging(run_kwargs: dict[str, Any]) -> dict[str, Any]:
    """`run_kwargs` with merge_history, unless the caller merges in a way of their own."""
    config = run_kwargs.get("run_config") or RunConfig()
    if config.session_input_callback is None:
        config = dataclasses.replace(config, session_input_callback=merge_history)
    return run_kwargs | {"run_config": config}


async def _settle(result: RunResultStreaming) -> None:
    """Leave no task behind; a write that has begun is finished first."""
    task = result.run_loop_task
    if task is None or task.done():
        return
    result.cancel()
    await asyncio.wait({task}, timeout=CANCEL_TIMEOUT_SECONDS)


async def _as_one_response(
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
                if not _is_output(item):
                    return []
                self.done.append(item)
        return [event]

    def of_a_tool(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """A tool's output as an item that is added and done."""
        item = _with_id(item)
        if not _is_output(item):
            return []
        index = self._count
        self._count += 1
        self.done.append(item)
        return [
            {"type": f"response.output_item.{step}", "item": item, "output_index": index}
            for step in ("added", "done")
        ]


def _with_id(item: Any) -> dict[str, Any]:
    fields = dict(item)
    return fields | {"id": _real(fields.get("id"))}


def _real(item_id: str | None) -> str:
    """An id that is one: models behind the Chat Completions API all share a placeholder."""
    return item_id if item_id and item_id != FAKE_RESPONSES_ID else f"item_{uuid.uuid4().hex}"


def _is_output(item: dict[str, Any]) -> bool:
    """Whether MLflow's response takes such an item; a turn that is stored must not fail on one."""
    try:
        OutputItem(**item)
    except ValueError:
        logger.debug("An item of type %s is stored but not sent.", item.get("type"))
        return False
    return True
