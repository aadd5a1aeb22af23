"""LakebaseSession: one conversation, as the Agents SDK's Session protocol wants it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, LiteralString, Protocol

from agents.memory.session_settings import SessionSettings, resolve_session_limit
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions.conversation.atomic import AtomicTurn
from lakebase_sessions.conversation.going_back import GoingBack
from lakebase_sessions.conversation.history import without_cut_off_outputs
from lakebase_sessions.conversation.items import checked_limit, decode, encode
from lakebase_sessions.conversation.stepped import SteppedTurn
from lakebase_sessions.errors import LakebaseNotOpen
from lakebase_sessions.postgres import queries
from lakebase_sessions.workspace.background import settled

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lakebase_sessions.conversation.soundness import RefusedItem
    from lakebase_sessions.postgres.engine import LoopEngine


class Owner(Protocol):
    """What a session needs of its `Lakebase`."""

    async def engine_here(self) -> LoopEngine:
        """The engine of the running loop, opened if need be."""


class _NotUsedYet(LakebaseNotOpen, AttributeError):
    """Both, so that `hasattr` is False and whoever catches this package's errors has it."""


class LakebaseSession(GoingBack, AsyncDatabricksSession):
    """A conversation in a Lakebase; made by `session_for` or `Lakebase.session`.

    It is an `AsyncDatabricksSession`, on the same two tables in the same format, and opens its
    `Lakebase` at the first awaited call. It holds no connection between calls, may be kept or
    thrown away, and may be used from any loop.

    Every method may raise any `LakebaseSessionsError`. A method that changes something settles
    before a cancellation is seen: the change is whole or absent.

    Args:
        session_id: A checked id, scoped to its user.
        lakebase: Where it is stored.
        history_limit: `get_items()` returns at most the latest so many items; None is all.

    Raises:
        InvalidLimit: `history_limit` is not a whole number from 0.
    """

    _loop_engine: LoopEngine | None = None
    """That of the latest use."""

    def __init__(
        self, session_id: str, *, lakebase: Owner, history_limit: int | None = None
    ) -> None:
        # The base class's constructor asks the workspace, synchronously. It is called once for an
        # engine, in a thread (postgres/prototype.py); what it set up is found by __getattr__.
        self.session_id = session_id
        self.session_settings = SessionSettings(limit=checked_limit(history_limit))
        self._owner = lakebase

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The conversation, oldest item first. One round trip.

        Args:
            limit: At most the latest so many items, exactly. None: the session's own
                `history_limit`, under which no tool output is returned whose call was cut off,
                because models refuse such a history.

        Returns:
            Items as they were added. A row that is no JSON is skipped and does not count.

        Raises:
            InvalidLimit: `limit` is not a whole number from 0.
        """
        window = checked_limit(resolve_session_limit(limit, self.session_settings))
        if window is None:
            return decode([row for (row,) in await self._read(queries.ALL_ITEMS)])
        items = await self._latest(window)
        return items if limit is not None else without_cut_off_outputs(items)

    async def _latest(self, count: int) -> list[TResponseInputItem]:
        if count == 0:
            await self._open()
            return []
        fetched = count
        while True:
            rows = await self._read(queries.LATEST_ITEMS, limit=str(fetched))
            items = decode([row for (row,) in reversed(rows)])
            if len(items) >= count or len(rows) < fetched:
                return items[-count:]
            fetched *= 2  # corrupt rows among the latest do not count

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append to the conversation, all items or none. One round trip.

        Raises:
            InvalidItems: An item is not JSON; nothing was stored.
            LakebaseUnavailable: With `outcome_unknown` the connection broke under the write.
        """
        await self._add(encode(items))

    async def _add(self, encoded: list[str]) -> None:
        if not encoded:
            await self._open()
            return
        await self._write(queries.ADD_ITEMS, items="\n".join(encoded), count=str(len(encoded)))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the latest item, or None. One round trip.

        Several who pop at once get an item each. A row that is no JSON is removed and passed over.
        """
        while rows := await self._write(queries.POP_ITEM):
            for item in decode([row for (row,) in rows]):
                return item
        return None

    async def clear_session(self) -> None:
        """Delete the conversation. One round trip."""
        await self._write(queries.CLEAR_SESSION)

    def turn(self) -> AtomicTurn:
        """A turn that is stored whole or not at all, in two round trips: see `AtomicTurn`."""
        return AtomicTurn(self)

    def stepped_turn(self) -> SteppedTurn:
        """A turn whose items are stored as they come: what `invoke_turn` runs on."""
        return SteppedTurn(self)

    async def repair(self, *, dry_run: bool = False) -> tuple[RefusedItem, ...]:
        """Remove what a model's API refuses the conversation for. Two round trips.

        That is an output without its call, a call without its output, one of either that is there
        twice, and reasoning that leads to nothing: a process that died leaves them, or a run whose
        writes failed. `merge_history` leaves them out of what the model sees anyway. What is
        behind the last words of a user may get its counterpart yet, from a run that is under way
        or an approval, and stays. All or nothing; whatever `history_limit` is, the whole
        conversation is read.

        Args:
            dry_run: Only say what would be removed. One round trip.

        Returns:
            What was removed, in order, and why.

        Raises:
            ConversationConflict: Somebody wrote meanwhile, and nothing was removed: repair again.

        Example:
            >>> async def repaired(session):
            ...     return [(item.type, item.reason) for item in await session.repair()]
        """
        async with self.turn() as turn:
            return await turn._repair(dry_run=dry_run)

    @property
    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine behind this session, for statements of your own.

        Raises:
            LakebaseNotOpen: Nothing was awaited yet; `await lakebase.open()` first.
        """
        if self._loop_engine is None:
            raise AttributeError  # __getattr__ says more
        return self._loop_engine.transactional

    async def _write(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]:
        """The outcome of a statement; a cancellation waits until it is certain."""
        engine = await self._open()
        writing = asyncio.ensure_future(
            engine.rows(statement, {"session_id": self.session_id, **parameters}, writing=True)
        )
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await settled(writing)
            if not writing.cancelled():
                writing.exception()  # nobody else will look at it
            raise

    async def _read(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]:
        engine = await self._open()
        return await engine.rows(
            statement, {"session_id": self.session_id, **parameters}, writing=False
        )

    async def _open(self) -> LoopEngine:
        # Not read back: another thread's loop may be using this session too.
        engine = self._loop_engine = await self._owner.engine_here()
        return engine

    def __getattr__(self, name: str) -> Any:
        """What the base class's constructor would have set up is looked up where it did."""
        if self._loop_engine is None:
            raise _NotUsedYet(
                f"This session has no attribute {name!r} before its first use: `await "
                "lakebase.open()` and one awaited call come first."
            )
        return getattr(self._loop_engine.prototype, name)

    def __repr__(self) -> str:
        return f"<LakebaseSession {self.session_id!a} in {self._owner!r}>"
