"""SteppedTurn: a turn whose items are stored as they come, each step in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakebase_sessions.conversation.atomic import AtomicTurn
from lakebase_sessions.conversation.items import encode
from lakebase_sessions.postgres import queries

if TYPE_CHECKING:
    from agents.items import TResponseInputItem


class SteppedTurn(AtomicTurn):
    """What a run without `atomic` reads and adds to.

    Each step is stored, with the turn's record, when the run adds it, and whoever writes beside
    it is no conflict. A turn in the place of others (`replace`) is held back like an atomic one.
    """

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append, in one round trip.

        Raises:
            InvalidItems: An item is not JSON; none was added.
        """
        if self._cut is not None:
            await super().add_items(items)
            return
        self._check_open()
        if encoded := encode(items):
            await self._write(encoded)

    async def wait(self, state: str) -> None:
        """End this turn waiting for approvals, in one round trip.

        Raises:
            TablesMissing: There is no table of turns to keep it in.
        """
        await super().wait(state)
        if self._cut is None:
            await self._write([])
            self._waits = False  # it is stored

    async def _write(self, encoded: list[str]) -> None:
        """Append items, and say in the turn's record what is known of it."""
        self._forget()
        recording = (await self._session._open()).keeps_records
        await self._session._write(
            queries.ADD_RECORDED_ITEMS if recording else queries.ADD_ITEMS,
            **(self.record.parameters() if recording else {}),
            items="\n".join(encoded),
            count=str(len(encoded)),
        )

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the latest item, or None, in one round trip."""
        if self._cut is not None:
            return await super().pop_item()
        self._check_open()
        self._forget()
        return await self._session.pop_item()

    async def clear_session(self) -> None:
        """Delete the conversation, in one round trip."""
        if self._cut is not None:
            await super().clear_session()
            return
        self._check_open()
        self._forget()
        await self._session.clear_session()

    def _forget(self) -> None:
        """What was read is not what is there any more."""
        self._stored, self._stored_is_all, self._version = [], False, None
