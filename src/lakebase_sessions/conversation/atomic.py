"""AtomicTurn: a turn of a conversation that is stored whole or not at all."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, LiteralString, Self

import anyio
from agents.memory import Session
from agents.memory.session_settings import resolve_session_limit

from lakebase_sessions.conversation.claim import Claim
from lakebase_sessions.conversation.history import without_cut_off_outputs
from lakebase_sessions.conversation.items import checked_limit, decode, encode
from lakebase_sessions.conversation.meter import Spending
from lakebase_sessions.conversation.records import TurnRecord
from lakebase_sessions.conversation.session_id import new_session_id
from lakebase_sessions.conversation.snapshot import Snapshot
from lakebase_sessions.conversation.soundness import RefusedItem, refused_for_good
from lakebase_sessions.conversation.waiting import Waiting
from lakebase_sessions.errors import (
    ConversationConflict,
    ConversationNotFound,
    InvalidUser,
    LakebaseSessionsError,
    LakebaseUnavailable,
    TurnNotFound,
    TurnNotOpen,
)
from lakebase_sessions.postgres import edits, queries
from lakebase_sessions.workspace.background import to_its_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents import RunContextWrapper
    from agents.items import TResponseInputItem

    from lakebase_sessions.conversation.claim import OnBusy
    from lakebase_sessions.conversation.edits import Edit
    from lakebase_sessions.conversation.protocol import Conversation

logger = logging.getLogger(__name__)


class _State(Enum):
    NEW = "This turn has not begun: `async with session.turn() as turn:`."
    OPEN = "open"
    OVER = "This turn is over; session.turn() begins the next one."


class AtomicTurn(Waiting, Session):
    """A session for one turn: reads see what was added, and the end of the block stores it.

    Two round trips, whatever the number of steps: one to read, one to store. An exception in the
    block, a cancellation too, stores none of its items. So does a `ConversationConflict`: somebody
    else, through whichever class, has written to the conversation since it was read here. What the
    run has used until then is stored all the same, in one more round trip, if the conversation
    exists. With `on_busy` it is claimed by the read, so that others of the kind are refused or
    wait.

    What a run passes as `wrapper` is its context, in which its usage is.

    Example:
        >>> async def answer(session, agent, question):
        ...     async with session.turn() as turn:
        ...         return await Runner.run(agent, question, session=turn)
    """

    def __init__(
        self,
        session: Conversation,
        record: TurnRecord | None = None,
        *,
        on_busy: OnBusy | None = None,
    ) -> None:
        self.session_id = session.session_id
        self.session_settings = session.session_settings
        self.record = record or TurnRecord()
        self.edit: Edit | None = None
        """What a client sends, where that may be an edit; decided by the first read."""
        self._session = session
        self._given = session
        self._spending: Spending | None = None
        self._claim = Claim(session, on_busy) if on_busy is not None else None
        self._state = _State.NEW
        self._added: list[str] = []
        self._popped: set[int] = set()
        self._seen = Snapshot()
        self._cut: int | None = None
        self._fork: Conversation | None = None

    async def __aenter__(self) -> Self:
        if self._state is not _State.NEW:
            raise TurnNotOpen("A turn begins once; session.turn() makes the next one.")
        await self._session._open()
        self._state = _State.OPEN
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._state = _State.OVER
        try:
            await self._end(error)
        finally:
            if self._claim is not None:
                await self._claim.give_up()

    async def _end(self, error: BaseException | None) -> None:
        if error is not None:
            await self._fail(error)
            return
        try:
            await self._finish()
        except BaseException as failure:
            await self._fail(failure)
            raise

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The conversation as it will be, oldest item first.

        The first call reads, in one round trip. A later one reads again only where it needs more
        of the history.

        Args:
            limit: As for `LakebaseSession.get_items`.
            wrapper: The context of the run that calls.

        Raises:
            InvalidLimit: `limit` is not a whole number from 0.
            ConversationConflict: Somebody has written since the first call.
        """
        self._check_open(wrapper)
        window = checked_limit(resolve_session_limit(limit, self.session_settings))
        if window is None:
            return await self._history(None) + decode(self._added)
        added = decode(self._added[len(self._added) - min(window, len(self._added)) :])
        items = await self._history(window - len(added)) + added
        return items if limit is not None else without_cut_off_outputs(items)

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append; stored at the end of the block.

        Raises:
            InvalidItems: An item is not JSON; none was added.
        """
        self._check_open(wrapper)
        self._added += encode(items)

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """Remove and return the latest item, or None; in the tables at the end of the block."""
        self._check_open(wrapper)
        if self._added:
            return decode([self._added.pop()])[0]
        while rows := await self._rows(1):
            number, row = rows[-1]
            self._popped.add(number)
            for item in decode([row]):
                return item
        return None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Remove all items; in the tables at the end of the block."""
        self._check_open(wrapper)
        self._added.clear()
        self._popped.update(number for number, _ in await self._rows(None))

    @property
    def destination(self) -> str:
        """The id of the conversation that this turn will be in."""
        return self._fork.session_id if self._fork else self.session_id

    @property
    def stored(self) -> list[tuple[int, TResponseInputItem]]:
        """What was read of the conversation and is not taken out: ids and items, oldest first."""
        return [(number, item) for number, row in self._kept() for item in decode([row])]

    def replace(self, from_item: int) -> None:
        """Put this turn in the place of what is stored from an item on, which becomes a branch.

        Reads show it no more; in the tables it is taken out at the end of the block, in the
        statement that stores the turn. Needs the tables of turns.

        Args:
            from_item: The id of a row in `stored`, where a turn begins.
        """
        self._check_open()
        self.record.number = self._seen.next_number(before=from_item)
        self._cut = from_item

    async def _repair(self, *, dry_run: bool) -> tuple[RefusedItem, ...]:
        """For `LakebaseSession.repair`."""
        self._check_open()
        rows = [(number, item) for number, row in await self._rows(None) for item in decode([row])]
        found = refused_for_good([item for _, item in rows])
        if not dry_run:
            self._popped.update(rows[item.position][0] for item in found)
        return found

    def __repr__(self) -> str:
        return f"<AtomicTurn of {self._session!r}, {self._state.name.lower()}>"

    def _check_open(self, wrapper: RunContextWrapper[Any] | None = None) -> None:
        if self._state is not _State.OPEN:
            raise TurnNotOpen(self._state.value)
        if wrapper is None:
            return
        session = self._given._of_run(wrapper)
        if self._spending is None:
            self._session, self.session_id = session, session.session_id
            if self._claim is not None:
                self._claim.session = session
            self._spending = Spending(self.record)
        elif session.session_id != self.session_id:
            raise InvalidUser(
                "Another user's run came to a turn that has begun: a turn is of one conversation."
            )
        self._spending.meet(wrapper)

    def _noted(self) -> dict[str, str | None]:
        """What is known of the turn by now, for the statements that write its row."""
        if self._spending is not None:
            self._spending.note()
        return self.record.parameters()

    async def _finish(self) -> None:
        if self._added or self._popped or self._waits:
            await self._store()

    async def _fail(self, error: BaseException) -> None:
        """Say in the turn's row how it ended and what it took, if that can be said at all."""
        if self._spending is None or isinstance(error, LakebaseUnavailable):
            return  # there is nothing to say, or nowhere to say it
        version = self._seen.version
        if version is not None and version.updated_at is None:
            return  # nor is there a conversation
        self.record.state = None  # nobody may take up a run of which it is not known what it did
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.record.status = "cancelled"
        elif isinstance(error, Exception):
            self.record.status = "failed"
        else:
            return  # the process ends
        await self._record()

    async def _record(self) -> None:
        """Write the row alone: if the conversation exists, and with no consequence if it fails."""
        with anyio.CancelScope(shield=True):
            try:
                if (await self._session._open()).keeps_records:
                    await self._session._write(queries.RECORD_TURN, **self._noted())
            except LakebaseSessionsError as error:
                logger.debug("A turn's record was not written: %s: %s", error.code, error)

    async def _history(self, count: int | None) -> list[TResponseInputItem]:
        """The latest `count` stored items that were not popped; None is all."""
        wanted = count
        while True:
            rows = await self._rows(wanted)
            items = self._seen.items_of(rows)
            if count is None or wanted is None:
                return items
            if len(items) >= count or self._seen.is_all:
                return items[len(items) - min(count, len(items)) :]
            wanted *= 2  # corrupt rows among the latest do not count

    async def _rows(self, count: int | None) -> Sequence[tuple[int, str]]:
        """At least the latest `count` stored rows that were not popped, if there are so many."""
        hidden = len(self._seen.rows) - len(self._kept())
        wanted = None if count is None else count + hidden
        if wanted == 0 and self._claim is not None:
            wanted = 1  # who claims has to read
        undecided = self.edit is not None and not self.edit.is_decided
        more = wanted is None or wanted > len(self._seen.rows)
        if not self._seen.is_all and (more or undecided):
            await self._read(wanted)
        return self._kept()

    def _kept(self) -> Sequence[tuple[int, str]]:
        rows = self._seen.before(self._cut)
        return [row for row in rows if row[0] not in self._popped] if self._popped else rows

    async def _read(self, count: int | None) -> None:
        engine = await self._session._open()
        edit = self.edit if self.edit and not self.edit.is_decided else None
        if edit and edit.turn is not None:
            engine.check_records()
        statement = queries.READ_RECORDED_TURN if engine.keeps_records else queries.READ_TURN
        parameters: dict[str, str | None] = {"limit": None if count is None else str(count)}
        if edit and engine.keeps_records:
            statement = edits.READ_RESENT_TURN
            parameters |= edit.parameters()
        read = self._session._read if self._claim is None else self._claim.read
        rows = await read(statement, **parameters)
        if edit and engine.keeps_records:
            # It may have taken more than `count` to decide.
            *_, count, cut, turns = next(row for row in rows if row[0] is None)
        seen = Snapshot.of(rows, count)
        if self._seen.version not in (None, seen.version):
            raise self._conflict()
        self._seen = seen
        if self.record.number is None:  # a later read may find this turn's own record
            self.record.number = seen.next_number()
        if edit and engine.keeps_records:
            stored = [row[:3] for row in reversed(rows) if row[0] is not None]
            edit.decide(stored, is_all=seen.is_all, cut=cut, turns=turns)
            self._decided(edit)

    def _decided(self, edit: Edit) -> None:
        """Take the place of the turns that the edit replaces, if any."""
        if edit.cut is not None:
            self.replace(edit.cut)
            if edit.forks:
                self._fork = self._session._sibling(new_session_id())
        if edit.number is not None:
            self.record.number = edit.number

    async def _store(self) -> None:
        if self._seen.version is None:  # what was there did not matter
            await self._append(self._session, self._added)
            return
        if self._fork:
            await self._store_in(self._fork)
            return
        updated_at, newest = self._seen.version
        statement, recorded = await self._statement()
        write = self._session._write if self._claim is None else self._claim.write
        stored = await write(
            statement,
            **recorded,
            updated_at=updated_at,
            newest=None if newest is None else str(newest),
            popped=",".join(map(str, self._popped)),
            items="\n".join(self._added),
            count=str(len(self._added)),
        )
        if not stored:
            raise self._conflict()

    async def _append(
        self, conversation: Conversation, encoded: list[str]
    ) -> dict[str, str | None] | None:
        """Append items, and say in the turn's record what is known of it: that is returned."""
        recorded = self._noted() if (await conversation._open()).keeps_records else None
        await conversation._write(
            queries.ADD_ITEMS if recorded is None else queries.ADD_RECORDED_ITEMS,
            **(recorded or {}),
            items="\n".join(encoded),
            count=str(len(encoded)),
        )
        return recorded

    async def _store_in(self, fork: Conversation) -> None:
        """Into a copy of what stands before this turn; whoever wrote behind that is no conflict.

        Two statements, both or none: a cancellation waits for the second.
        """
        await to_its_end(self._copy_and_add(fork))

    async def _copy_and_add(self, fork: Conversation) -> None:
        number = self.record.number
        try:
            await self._session._copy(fork.session_id, number, first_item=self._cut)
        except (ConversationNotFound, TurnNotFound) as error:
            raise self._conflict() from error
        try:
            await self._append(fork, self._added)
        except LakebaseSessionsError as error:
            if not getattr(error, "outcome_unknown", False):
                with suppress(LakebaseSessionsError):
                    await fork._write(queries.CLEAR_SESSION)
            raise

    async def _statement(self) -> tuple[LiteralString, dict[str, str | None]]:
        """What stores the turn, and what it needs beside the items."""
        recording = (await self._session._open()).keeps_records
        if not recording or not (self._added or self._waits):
            return queries.STORE_TURN, {}
        recorded = self._noted()
        if self._cut is None:
            return queries.STORE_RECORDED_TURN, recorded
        return queries.STORE_EDITED_TURN, {"cut": str(self._cut), **recorded}

    def _conflict(self) -> ConversationConflict:
        return ConversationConflict(
            f"Somebody else has written to conversation {self.session_id!a} since this turn began, "
            "so nothing of the turn was stored. Run the turn again: it will see what was written. "
            "Two tabs or a double click do this."
        )
