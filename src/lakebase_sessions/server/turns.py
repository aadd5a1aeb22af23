"""A turn of an MLflow ResponsesAgent in one line: invoke_turn and stream_turn."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import mlflow
from agents import RunConfig, Runner
from mlflow.genai.agent_server import get_request_headers
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

from lakebase_sessions.conversation.history import merge
from lakebase_sessions.errors import InvalidUser, LakebaseSessionsError
from lakebase_sessions.factory import session_for
from lakebase_sessions.server.approvals import Approvals
from lakebase_sessions.server.events import as_one_response, is_for_the_end, output_of
from lakebase_sessions.workspace.background import settled

if TYPE_CHECKING:
    from agents import Agent
    from agents.result import RunResultStreaming

    from lakebase_sessions.conversation.atomic import AtomicTurn
    from lakebase_sessions.lakebase import Lakebase

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT_SECONDS = 10.0
"""How long a stream that was given up may take to settle what it was storing."""


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
    turn = _Turn(request, user, lakebase, history_limit, run_kwargs)
    async with turn.conversation(atomic=atomic) as session:
        begin = await turn.approvals.begin(agent, session, turn.items)
        result = await Runner.run(agent, begin, session=session, **turn.run_kwargs)
        await turn.approvals.keep(result, session)
    return ResponsesAgentResponse(
        output=output_of(result, turn.approvals),
        custom_outputs=turn.custom_outputs | turn.approvals.custom_outputs(result),
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
        user: Keeps users apart, as for `invoke_turn`.
        lakebase: Where to store; None is the process-wide default.
        history_limit: The model sees at most the latest so many items.
        atomic: Store the turn whole, at its end, or not at all.
        **run_kwargs: Passed to `Runner.run_streamed`.

    Example:
        >>> @stream()
        ... async def handle(request: ResponsesAgentRequest):
        ...     async for event in stream_turn(agent, request):
        ...         yield event
    """
    try:
        turn = _Turn(request, user, lakebase, history_limit, run_kwargs)
        async with turn.conversation(atomic=atomic) as session:
            begin = await turn.approvals.begin(agent, session, turn.items)
            result = Runner.run_streamed(agent, begin, session=session, **turn.run_kwargs)
            events = as_one_response(result, turn.custom_outputs, turn.approvals)
            last: list[ResponsesAgentStreamEvent] = []
            try:
                async for event in events:
                    if last or is_for_the_end(event):
                        last.append(event)
                    else:
                        yield event
            finally:
                await _settle(result, events)
            await turn.approvals.keep(result, session)
        for event in last:  # only now it is stored
            yield event
    except LakebaseSessionsError as error:
        logger.warning("The stream ends with %s: %s", error.code, error)
        said: dict[str, Any] = {"type": "error", "code": error.code, "message": str(error)}
        yield ResponsesAgentStreamEvent(**said)


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


class _Turn:
    """A turn of a request: what it needs, whether it is streamed or not."""

    def __init__(
        self,
        request: ResponsesAgentRequest,
        user: str | Callable[[], str | None] | None,
        lakebase: Lakebase | None,
        history_limit: int | None,
        run_kwargs: dict[str, Any],
    ) -> None:
        self.session = session_for(
            request,
            user=user() if callable(user) else user,
            lakebase=lakebase,
            history_limit=history_limit,
        )
        self.approvals = Approvals(request)
        self.items: list[Any] = self.approvals.items
        merging = partial(merge, session_id=self.session.session_id)
        self.run_kwargs = run_kwargs | {
            "run_config": _merging(run_kwargs.get("run_config"), merging)
        }
        self.custom_outputs = {"session_id": self.session.session_id}
        if mlflow.get_current_active_span() is not None:
            mlflow.update_current_trace(metadata={"mlflow.trace.session": self.session.session_id})

    def conversation(self, *, atomic: bool) -> AtomicTurn:
        """What the run reads and adds to; at the end of the block it is stored."""
        return self.session.turn() if atomic else self.session.stepped_turn()


def _merging(
    config: RunConfig | dict[str, Any] | None, merging: Callable[..., Any]
) -> RunConfig | dict[str, Any]:
    """`config` with `merging`, unless the caller merges in a way of their own."""
    if isinstance(config, dict):
        return {"session_input_callback": merging} | config
    config = config or RunConfig()
    if config.session_input_callback is not None:
        return config
    return dataclasses.replace(config, session_input_callback=merging)


async def _settle(
    result: RunResultStreaming, events: AsyncGenerator[ResponsesAgentStreamEvent, None]
) -> None:
    """Leave no task behind; a write that has begun is finished first."""
    task = result.run_loop_task
    with anyio.CancelScope(shield=True):
        if task is not None and not task.done():
            result.cancel()
            await settled(task, CANCEL_TIMEOUT_SECONDS)
            if not task.done():  # closing would wait for it without an end
                logger.warning("A run goes on %g s after it was cancelled.", CANCEL_TIMEOUT_SECONDS)
                return
        await events.aclose()
