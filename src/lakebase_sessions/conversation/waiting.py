"""Waiting: the part of a turn that is about approvals."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.meter import Spending
from lakebase_sessions.conversation.snapshot import Snapshot, Version
from lakebase_sessions.postgres import approvals
from lakebase_sessions.workspace.background import settled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents import RunContextWrapper

    from lakebase_sessions.conversation.claim import Claim
    from lakebase_sessions.conversation.protocol import Conversation
    from lakebase_sessions.conversation.records import TurnRecord


logger = logging.getLogger(__name__)


class Waiting:
    """What `AtomicTurn` does of a run that waits for somebody's yes or no."""

    if TYPE_CHECKING:
        record: TurnRecord
        _session: Conversation
        _seen: Snapshot
        _claim: Claim | None
        _spending: Spending | None

        def _check_open(self, wrapper: RunContextWrapper[Any] | None = None) -> None: ...

    async def resume(self, answered: Iterable[str]) -> str | None:
        """Take up the turn that waits for these answers, in the place of reading. One round trip.

        With `on_busy` the conversation is claimed first, in one more.

        What is added goes on with that turn, under its record. Nobody is given it a second time.

        Args:
            answered: Ids of its approvals, without commas; not necessarily all.

        Returns:
            The state that `wait` was given. None: no turn at the end of this conversation waits
            for all of them.

        Raises:
            ConversationBusy: Another turn has it; this one waits on.
            TablesMissing: Where there is no table of turns, none can wait.
        """
        self._check_open()
        (await self._session._open()).check_records()
        if self._claim is not None:
            await self._claim.take()
        rows = await self._claimed(",".join(answered))
        if not rows:
            return None
        response_id, number, newest, state, updated_at, usage, model = rows[0]
        record = self.record
        record.response_id, record.number = response_id, number
        record.usage, record.model = usage, model
        self._seen = Snapshot(Version(updated_at, newest))
        self._spending = Spending(record)
        return str(state)

    async def _claimed(self, answered: str) -> list[tuple[Any, ...]]:
        """The turn that waits for `answered`; where this is cancelled meanwhile it waits on."""
        claiming = asyncio.ensure_future(self._session._write(approvals.CLAIM, answered=answered))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await settled(claiming)
            if not claiming.cancelled() and claiming.exception() is None and claiming.result():
                self.record.response_id = claiming.result()[0][0]
                releasing = asyncio.ensure_future(self.release())
                await settled(releasing)
                if releasing.exception() is not None:
                    logger.warning(
                        "Turn %s was taken up for an answer that was cancelled, and could not be "
                        "put back to wait: %s",
                        self.record.response_id,
                        releasing.exception(),
                    )
            raise

    def meet(self, wrapper: RunContextWrapper[Any]) -> None:
        """Count what the resumed run uses from now on, before it has come here itself."""
        self._check_open(wrapper)

    async def release(self) -> None:
        """Let the turn that `resume` took up wait on, as nothing of it was run. One round trip."""
        self._check_open()
        await self._session._write(approvals.RELEASE, response_id=self.record.response_id)
        self._spending = None  # there is nothing to say of it

    async def wait(self, state: str) -> None:
        """End this turn waiting for approvals; stored at the end of the block.

        Args:
            state: What `resume` is to return: a JSON object with `approvals`, a list of objects
                with an `id` each.

        Raises:
            TablesMissing: There is no table of turns to keep it in.
        """
        self._check_open()
        (await self._session._open()).check_records()
        self.record.status, self.record.state = "waiting", state

    @property
    def _waits(self) -> bool:
        return self.record.status == "waiting"
