"""A turn of an MLflow ResponsesAgent in one line: invoke_turn and stream_turn."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from agents import Runner
from mlflow.genai.agent_server import get_request_headers
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

from lakebase_sessions.conversation.edits import Edit, OnEdit, named_turn
from lakebase_sessions.conversation.history import merge
from lakebase_sessions.errors import InvalidUser, LakebaseSessionsError
from lakebase_sessions.factory import session_for
from lakebase_sessions.server.approvals import Approvals
from lakebase_sessions.server.events import as_one_response, is_for_the_end, output_of
from lakebase_sessions.server.titles import title_soon
from lakebase_sessions.server.usage import configured, merges_itself, note_trace
from lakebase_sessions.workspace.background import settled

if TYPE_CHECKING:
    from agents import Agent
    from agents.result import RunResultStreaming

    from lakebase_sessions.conversation.atomic import AtomicTurn
    from lakebase_sessions.conversation.claim import OnBusy
    from lakebase_sessions.lakebase import Lakebase
    from lakebase_sessions.server.titles import TitleWith

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
    on_edit: OnEdit = "rewind",
    on_busy: OnBusy | None = None,
    title_with: TitleWith | None = None,
    **run_kwargs: Any,
) -> ResponsesAgentResponse:
    """Run one turn of the request's conversation, for MLflow's `@invoke`.

    The session is the request's (`session_for`); what a client resends of the history is not
    stored twice (`merge_history`). Where it resends the conversation from its beginning and
    without its latest turns, because the user edited a question or asked it again, this turn takes
    their place, and they become a branch (`LakebaseSession.branches`). A client may say so itself:
    `custom_inputs["turn"] = n` makes this turn n, whatever is stored of it and after it.

    `custom_outputs` have the `session_id`, the number of the `turn`, its `response_id` and, if
    there is an MLflow trace, the `trace_id`. What the run has used is stored with the turn,
    however it ends.

    Args:
        agent: The agent to run.
        request: What the client sent. With an empty `input` the agent goes on from the history.
        user: Keeps users apart: a user, or what says who it is, `user=current_user`. What that
            raises reaches the client with its own status, in a stream too.
        lakebase: Where to store; None is the process-wide default.
        history_limit: The model sees at most the latest so many items.
        atomic: Store the turn whole, at its end, or not at all (`LakebaseSession.turn`). A turn in
            the place of others, or with a number, is stored like that anyway.
        on_edit: What an edit does: `"rewind"` puts the turn in the place of what it leaves,
            `"fork"` puts it into a copy of what was before it, whose id is in `custom_outputs`;
            with `"append"` nothing is taken for an edit, and `custom_inputs["turn"]` is ignored.
        on_busy: While another turn of the conversation is under way that has it too: `"refuse"`
            this one before the model is called, `"wait"` for the other, up to 60 s; None: run.
        title_with: Makes the conversation's title from its items: called once, in the background,
            when the first answer is stored. A plain function is called in a thread.
        **run_kwargs: Passed to `Runner.run`: `context`, `max_turns`, `hooks`, `run_config`, …

    Raises:
        ConversationConflict: Of an atomic turn or an edit, when somebody else wrote meanwhile.
        ConversationBusy: With `on_busy`, when another turn is under way, or still is after waiting.
        InvalidTurn: `custom_inputs["turn"]` is not a whole number from 1.
        TurnNotFound: The conversation has no such turn, and it is not the next.
        TablesMissing: There is a `custom_inputs["turn"]`, and no tables of turns.
        LakebaseSessionsError: The class says why; `add_error_handlers` makes HTTP of it.

    Example:
        >>> @invoke()
        ... async def handle(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        ...     return await invoke_turn(agent, request)
    """
    turn = _Turn(
        request,
        user,
        lakebase,
        history_limit,
        run_kwargs,
        atomic=atomic,
        on_edit=on_edit,
        on_busy=on_busy,
    )
    async with turn.conversation as session:
        begin = await turn.approvals.begin(agent, session, turn.items)
        result = await Runner.run(agent, begin, session=session, **turn.run_kwargs)
        await turn.approvals.keep(result, session)
    turn.title(title_with)
    return ResponsesAgentResponse(
        id=turn.response_id,
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
    on_edit: OnEdit = "rewind",
    on_busy: OnBusy | None = None,
    title_with: TitleWith | None = None,
    **run_kwargs: Any,
) -> AsyncGenerator[ResponsesAgentStreamEvent, None]:
    """Run one turn of the request's conversation as a stream, for MLflow's `@stream`.

    The events are those of one OpenAI response, whatever the number of model calls and tool
    steps: `response.created`, the items with their deltas, `response.completed`. An item has one
    id from `added` to `done`; tool calls and their outputs are items. `session_id`, `turn` and
    `response_id` are in the `custom_outputs` of the first event, of every
    `response.output_item.done` and of the last, and so is `trace_id`, that of the MLflow trace, if
    there is one. Edits are recognised as by `invoke_turn`.

    An error of this package ends the stream with an `error` event that has its code. Where a
    client goes away, the run is cancelled and has settled before this generator ends.

    Args:
        agent: The agent to run.
        request: What the client sent.
        user: Keeps users apart, as for `invoke_turn`.
        lakebase: Where to store; None is the process-wide default.
        history_limit: The model sees at most the latest so many items.
        atomic: Store the turn whole, at its end, or not at all.
        on_edit: What an edit does: `"rewind"`, `"fork"` or `"append"`.
        on_busy: As for `invoke_turn`.
        title_with: As for `invoke_turn`.
        **run_kwargs: Passed to `Runner.run_streamed`.

    Example:
        >>> @stream()
        ... async def handle(request: ResponsesAgentRequest):
        ...     async for event in stream_turn(agent, request):
        ...         yield event
    """
    try:
        turn = _Turn(
            request,
            user,
            lakebase,
            history_limit,
            run_kwargs,
            atomic=atomic,
            on_edit=on_edit,
            on_busy=on_busy,
        )
        async with turn.conversation as session:
            begin = await turn.approvals.begin(agent, session, turn.items)
            result = Runner.run_streamed(agent, begin, session=session, **turn.run_kwargs)
            events = as_one_response(
                result, turn.response_id, lambda: turn.custom_outputs, turn.approvals
            )
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
        turn.title(title_with)
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
        *,
        atomic: bool,
        on_edit: OnEdit,
        on_busy: OnBusy | None,
    ) -> None:
        self._user = user() if callable(user) else user
        self.session = session_for(
            request,
            user=self._user,
            lakebase=lakebase,
            history_limit=history_limit,
        )
        self.approvals = Approvals(request)
        self.items: list[Any] = self.approvals.items
        config = run_kwargs.get("run_config")
        self.run_kwargs = run_kwargs | {
            "run_config": configured(config, self._merge, self._note_trace)
        }
        begin = self.session.turn if atomic else self.session.stepped_turn
        self.conversation: AtomicTurn = begin(on_busy=on_busy)
        """What the run reads and adds to; at the end of the block it is stored."""
        if not self.approvals.is_answered:  # who answers goes on with the turn that asks
            number = named_turn(request.custom_inputs)
            self.conversation.edit = Edit.of(
                self.items, number, on_edit, compared=not merges_itself(config)
            )
        self._note_trace()

    @property
    def response_id(self) -> str:
        return self.conversation.record.response_id

    @property
    def custom_outputs(self) -> dict[str, Any]:
        """What is known by now for the client."""
        record = self.conversation.record
        outputs: dict[str, Any] = {
            "session_id": self.conversation.destination,
            "response_id": record.response_id,
        }
        if record.number is not None:
            outputs["turn"] = record.number
        if record.trace_id is not None:
            outputs["trace_id"] = record.trace_id
        return outputs

    def title(self, title_with: TitleWith | None) -> None:
        """Have the conversation titled, if this was its first turn."""
        if title_with is not None and self.conversation.record.number == 1:
            title_soon(title_with, self.conversation.destination, self.session._owner)

    def _merge(self, history: list[Any], new_items: list[Any]) -> list[Any]:
        edit = self.conversation.edit
        parted = edit.parted if edit else None
        return merge(history, new_items, self.session.session_id, parted)

    def _note_trace(self) -> None:
        """Of the handler's span, or of the run's own where there is none around it."""
        turn = self.conversation
        note_trace(turn.record, turn.destination, self._user)


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
