"""LakebaseSession: one conversation, as the Agents SDK's Session protocol wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from agents.memory.session_settings import SessionSettings, resolve_session_limit
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions import queries
from lakebase_sessions.errors import InvalidItems, InvalidLimit, LakebaseNotOpen
from lakebase_sessions.history import without_cut_off_outputs

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lakebase_sessions.engine import LoopEngine
    from lakebase_sessions.lakebase import Lakebase

T = TypeVar("T")

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class LakebaseSession(AsyncDatabricksSession):
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

    def __init__(
        self, session_id: str, *, lakebase: Lakebase, history_limit: int | None = None
    ) -> None:
        # The base class's constructor asks the workspace, synchronously. It is called once for
        # an engine, in a thread (engine.py); _open takes over what it set up.
        self.session_id = session_id
        self.session_settings = SessionSettings(limit=_checked_limit(history_limit))
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
        window = _checked_limit(resolve_session_limit(limit, self.session_settings))
        engine = await self._open()
        if window is None:
            return _decode(
                await engine.rows(queries.ALL_ITEMS, {"session_id": self.session_id}, writing=False)
            )
        items = await self._latest(engine, window)
        return items if limit is not None else without_cut_off_outputs(items)

    async def _latest(self, engine: LoopEngine, count: int) -> list[TResponseInputItem]:
        if count == 0:
            return []
        fetched = count
        while True:
            rows = await engine.rows(
                queries.LATEST_ITEMS,
                {"session_id": self.session_id, "limit": fetched},
                writing=False,
            )
            items = _decode(rows[::-1])
            if len(items) >= count or len(rows) < fetched:
                return items[-count:]
            fetched *= 2  # corrupt rows among the latest do not count

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append to the conversation, all items or none. One round trip.

        Raises:
            InvalidItems: An item is not JSON; nothing was stored.
            LakebaseUnavailable: With `outcome_unknown` the connection broke under the write.
        """
        if not items:
            return
        encoded = _encode(items)
        engine = await self._open()
        await _settled(
            engine.rows(
                queries.ADD_ITEMS,
                {"session_id": self.session_id, "items": encoded},
                writing=True,
            )
        )

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove and return the latest item, or None. One round trip.

        Several who pop at once get an item each. A row that is no JSON is removed and passed over.
        """
        engine = await self._open()
        while True:
            rows = await _settled(
                engine.rows(queries.POP_ITEM, {"session_id": self.session_id}, writing=True)
            )
            if not rows:
                return None
            for item in _decode(rows):
                return item

    async def clear_session(self) -> None:
        """Delete the conversation. One round trip."""
        engine = await self._open()
        await _settled(
            engine.rows(queries.CLEAR_SESSION, {"session_id": self.session_id}, writing=True)
        )

    @property
    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine behind this session, for statements of your own.

        Raises:
            LakebaseNotOpen: Nothing was awaited yet; `await lakebase.open()` first.
        """
        engine: LoopEngine | None = self.__dict__.get("_loop_engine")
        if engine is None:
            raise LakebaseNotOpen(
                "This session has not been used yet, so there is no engine: `await "
                "lakebase.open()` and one awaited call come first."
            )
        return engine.transactional

    async def _open(self) -> LoopEngine:
        engine = await self._owner._engine_here()
        if self.__dict__.get("_loop_engine") is not engine:
            self._loop_engine = engine
        return engine

    def __getattr__(self, name: str) -> Any:
        """What the base class's constructor would have set up is looked up where it did."""
        engine = self.__dict__.get("_loop_engine")
        if engine is None:
            raise AttributeError(
                f"A LakebaseSession has no attribute {name!r} before its first use.",
                name=name,
                obj=self,
            )
        return getattr(engine.prototype, name)

    def __repr__(self) -> str:
        return f"<LakebaseSession {self.session_id!a} in {self._owner!r}>"


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidLimit(f"A limit is a whole number of items from 0, or None; not {limit!r}.")
    return limit


def _encode(items: list[TResponseInputItem]) -> str:
    """The items as JSON, one a line: escaped as it is, it holds no line break of its own."""
    lines = []
    for position, item in enumerate(items):
        try:
            # ASCII, as upstream writes it: any text, NUL included, fits into a text column
            lines.append(_to_json(item))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidItems(
                f"Item {position} cannot be stored: {error}. Items are dicts of plain JSON values."
            ) from error
    return "\n".join(lines)


def _decode(rows: list[str]) -> list[TResponseInputItem]:
    items: list[TResponseInputItem] = []
    for row in rows:
        try:
            items.append(json.loads(row))
        except (ValueError, RecursionError):
            continue
    return items


async def _settled(mutation: Coroutine[Any, Any, T]) -> T:
    """The outcome of `mutation`; a cancellation waits until it is certain."""
    task = asyncio.ensure_future(mutation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody else will look at it
        raise
