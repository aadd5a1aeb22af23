"""LakebaseSession: one conversation, as the Agents SDK's Session protocol wants it."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, LiteralString, Protocol, Self
from weakref import WeakKeyDictionary

from agents.memory.session_settings import SessionSettings, resolve_session_limit
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions.conversation.atomic import AtomicTurn
from lakebase_sessions.conversation.going_back import GoingBack
from lakebase_sessions.conversation.history import without_cut_off_outputs
from lakebase_sessions.conversation.items import checked_limit, decode, encode
from lakebase_sessions.conversation.session_id import scope_to_user
from lakebase_sessions.conversation.stepped import SteppedTurn
from lakebase_sessions.errors import LakebaseNotOpen
from lakebase_sessions.postgres import claims, queries
from lakebase_sessions.workspace.background import to_its_end

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from agents.items import TResponseInputItem
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lakebase_sessions.conversation.claim import OnBusy
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

    What a run passes as `wrapper` is its context: its items are a turn then, whose record is
    written with them, with what the run has used.

    Args:
        session_id: A checked id, scoped to its user.
        lakebase: Where it is stored.
        user: Whose it is; what is forked from it gets the same.
        history_limit: `get_items()` returns at most the latest so many items; None is all.

    Raises:
        InvalidLimit: `history_limit` is not a whole number from 0.
    """

    _loop_engine: LoopEngine | None = None
    """That of the latest use."""
    _runs: MutableMapping[RunContextWrapper[Any], SteppedTurn] | None = None
    """Of the runs that use this session, for as long as their contexts are there."""

    def __init__(
        self,
        session_id: str,
        *,
        lakebase: Owner,
        user: str | None = None,
        history_limit: int | None = None,
    ) -> None:
        # The base class's constructor asks the workspace, synchronously. It is called once for an
        # engine, in a thread (postgres/prototype.py); what it set up is found by __getattr__.
        self.session_id = session_id
        self.session_settings = SessionSettings(limit=checked_limit(history_limit))
        self._owner = lakebase
        self._user = user

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """The conversation, oldest item first. One round trip.

        Args:
            limit: At most the latest so many items, exactly. None: the session's own
                `history_limit`, under which no tool output is returned whose call was cut off,
                because models refuse such a history.
            wrapper: The context of the run that calls.

        Returns:
            Items as they were added. A row that is no JSON is skipped and does not count.

        Raises:
            InvalidLimit: `limit` is not a whole number from 0.
        """
        if wrapper is not None:
            turn = await self._turn_of(wrapper, begins=limit is None)
            return await turn.get_items(limit)
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

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append to the conversation, all items or none. One round trip.

        Raises:
            InvalidItems: An item is not JSON; nothing was stored.
            LakebaseUnavailable: With `outcome_unknown` the connection broke under the write.
        """
        if wrapper is not None:
            await (await self._turn_of(wrapper)).add_items(items)
            return
        await self._add(encode(items))

    async def _add(self, encoded: list[str]) -> None:
        if not encoded:
            await self._open()
            return
        await self._write(queries.ADD_ITEMS, items="\n".join(encoded), count=str(len(encoded)))

    async def pop_item(
        self, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> TResponseInputItem | None:
        """Remove and return the latest item, or None. One round trip.

        Several who pop at once get an item each. A row that is no JSON is removed and passed over.
        """
        if wrapper is not None:
            return await (await self._turn_of(wrapper)).pop_item()
        while rows := await self._write(queries.POP_ITEM):
            for item in decode([row for (row,) in rows]):
                return item
        return None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Delete the conversation, and the claim of a turn on it. One round trip."""
        if wrapper is not None:
            await (await self._turn_of(wrapper)).clear_session()
            return
        claimed = (await self._open()).keeps_records
        await self._write(claims.CLEAR_CLAIMED_SESSION if claimed else queries.CLEAR_SESSION)

    def turn(self, *, on_busy: OnBusy | None = None) -> AtomicTurn:
        """A turn that is stored whole or not at all, in two round trips: see `AtomicTurn`.

        Args:
            on_busy: What its first read does while another turn that has `on_busy` is under way:
                `"refuse"` is `ConversationBusy` at once; `"wait"` waits in order of arrival, for
                up to 60 s. None neither looks nor is seen by others, and storing decides.

        Raises:
            ConfigurationError: `on_busy` is something else.
        """
        return AtomicTurn(self, on_busy=on_busy)

    def stepped_turn(self, *, on_busy: OnBusy | None = None) -> SteppedTurn:
        """A turn whose items are stored as they come: what `invoke_turn` runs on.

        Args:
            on_busy: As for `turn`; at the end it costs one more round trip.
        """
        return SteppedTurn(self, on_busy=on_busy)

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

    async def _turn_of(
        self, wrapper: RunContextWrapper[Any], *, begins: bool = False
    ) -> SteppedTurn:
        """That of a run: one context, one turn, and the next one if it is used for another run."""
        if self._runs is None:
            self._runs = WeakKeyDictionary()
        session = self._of_run(wrapper)
        turn = self._runs.get(wrapper)
        over = turn is not None and turn.is_over and begins
        if turn is None or over or turn.session_id != session.session_id:
            turn = self._runs[wrapper] = await session.stepped_turn().begun_by(wrapper)
        return turn

    def _of_run(self, wrapper: RunContextWrapper[Any]) -> LakebaseSession:  # noqa: ARG002
        """The conversation that a run is about."""
        return self

    def _sibling(self, session_id: str) -> Self:
        """The same user's session of another id, checked but not scoped yet."""
        return type(self)(
            scope_to_user(session_id, self._user),
            lakebase=self._owner,
            user=self._user,
            history_limit=self.session_settings.limit if self.session_settings else None,
        )

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
        return await self._settled(statement, parameters, repeatable=False)

    async def _write_repeatable(
        self, statement: LiteralString, **parameters: str | None
    ) -> list[tuple[Any, ...]]:
        """The same for one that changes nothing the second time: repeated where it breaks."""
        return await self._settled(statement, parameters, repeatable=True)

    async def _settled(
        self, statement: LiteralString, parameters: dict[str, str | None], *, repeatable: bool
    ) -> list[tuple[Any, ...]]:
        engine = await self._open()
        parameters = {"session_id": self.session_id, **parameters}
        return await to_its_end(engine.rows(statement, parameters, writing=not repeatable))

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
