"""SteppedTurn: a turn whose items are stored as they come, each step in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from lakebase_sessions.conversation.atomic import AtomicTurn
from lakebase_sessions.conversation.items import encode
from lakebase_sessions.conversation.snapshot import Snapshot
from lakebase_sessions.conversation.soundness import refused
from lakebase_sessions.postgres import queries

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from agents.items import TResponseInputItem


class SteppedTurn(AtomicTurn):
    """What a run without `atomic` reads and adds to.

    Each step is stored, with the turn's record, when the run adds it, and whoever writes beside
    it is no conflict. A turn in the place of others (`replace`), or one whose number the client
    says, is held back like an atomic one: of two at once only one may be stored.
    The record is written once more at the end, if it says something else then.
    """

    _written: dict[str, str | None] | None = None
    """What the row says, where there is one."""

    async def begun_by(self, wrapper: RunContextWrapper[Any]) -> Self:
        """For a run without a block around it: nobody says when it ends."""
        await self.__aenter__()
        self._check_open(wrapper)
        return self

    @property
    def is_over(self) -> bool:
        """Whether the run has stored its last words."""
        return self._written is not None and self.record.status == "completed"

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append, in one round trip.

        Raises:
            InvalidItems: An item is not JSON; none was added.
        """
        if self._is_held_back:
            await super().add_items(items, wrapper=wrapper)
            return
        self._check_open(wrapper)
        if encoded := encode(items):
            self.record.status = "completed" if _is_last_word(items) else "in_progress"
            await self._write(encoded)

    async def wait(self, state: str) -> None:
        """End this turn waiting for approvals, in one round trip.

        Raises:
            TablesMissing: There is no table of turns to keep it in.
        """
        await super().wait(state)
        if not self._is_held_back:
            await self._write([])

    async def _write(self, encoded: list[str]) -> None:
        self._forget()
        self._written = await self._append(self._session, encoded)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """Remove and return the latest item, or None, in one round trip."""
        if self._is_held_back:
            return await super().pop_item(wrapper=wrapper)
        self._check_open(wrapper)
        self._forget()
        return await self._session.pop_item()

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Delete the conversation, in one round trip."""
        if self._is_held_back:
            await super().clear_session(wrapper=wrapper)
            return
        self._check_open(wrapper)
        self._forget()
        self._written = None
        await self._session._write(queries.CLEAR_SESSION)  # leaves the turn its own claim

    async def _finish(self) -> None:
        if self._is_held_back:
            await super()._finish()
            return
        if self.record.status == "in_progress":  # a tool's output was the last word, say
            self.record.status = "completed"
        if self._written not in (None, self._noted()):
            await self._record()

    @property
    def _is_held_back(self) -> bool:
        return self._cut is not None or (self.edit is not None and self.edit.turn is not None)

    def _forget(self) -> None:
        """What was read is not what is there any more."""
        self._seen = Snapshot()


def _is_last_word(step: list[TResponseInputItem]) -> bool:
    """Whether it ends with the assistant's words, and leaves no call open."""
    last: dict[str, Any] = dict(step[-1])
    return last.get("role") == "assistant" and not any(
        item.reason == "no_output" for item in refused(step)
    )
