"""Waiting: the part of a turn that is about approvals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakebase_sessions.conversation.snapshot import Snapshot, Version
from lakebase_sessions.postgres import approvals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lakebase_sessions.conversation.protocol import Conversation
    from lakebase_sessions.conversation.records import TurnRecord


class Waiting:
    """What `AtomicTurn` does of a run that waits for somebody's yes or no."""

    if TYPE_CHECKING:
        record: TurnRecord
        _session: Conversation
        _seen: Snapshot

        def _check_open(self) -> None: ...

    async def resume(self, answered: Iterable[str]) -> str | None:
        """Take up the turn that waits for these answers, in the place of reading. One round trip.

        What is added goes on with that turn, under its record. Nobody is given it a second time.

        Args:
            answered: Ids of its approvals, without commas; not necessarily all.

        Returns:
            The state that `wait` was given. None: no turn at the end of this conversation waits
            for all of them.

        Raises:
            TablesMissing: Where there is no table of turns, none can wait.
        """
        self._check_open()
        (await self._session._open()).check_records()
        rows = await self._session._write(approvals.CLAIM, answered=",".join(answered))
        if not rows:
            return None
        response_id, number, newest, state, updated_at, usage, model = rows[0]
        record = self.record
        record.response_id, record.number = response_id, number
        record.usage, record.model = usage, model
        self._seen = Snapshot(Version(updated_at, newest))
        return str(state)

    async def release(self) -> None:
        """Let the turn that `resume` took up wait on, as nothing of it was run. One round trip."""
        self._check_open()
        await self._session._write(approvals.RELEASE, response_id=self.record.response_id)

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
