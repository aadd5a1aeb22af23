"""LoopEngine: statements of one identity on one event loop.

Room for everything that is between a statement and its rows: a connection, retries, bounds, and
whose error it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from lakebase_sessions.errors import (
    GRANT_ACCESS,
    DatabaseFailure,
    LakebaseSessionsError,
    PermissionDenied,
    TablesMissing,
    from_statement_error,
)
from lakebase_sessions.postgres import indexes, tables
from lakebase_sessions.postgres.pool import Pool
from lakebase_sessions.postgres.transaction import Transaction
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from databricks_openai.agents import AsyncDatabricksSession
    from sqlalchemy.ext.asyncio import AsyncEngine

    from lakebase_sessions.postgres.connection import Connection
    from lakebase_sessions.workspace.place import Place

    MakePrototype = Callable[[Place, Callable[[], Awaitable[Connection]]], AsyncDatabricksSession]

logger = logging.getLogger(__name__)

READ_ONLY = "25006"
"""SQLSTATE of a server that only reads."""
STALE_PLAN = "0A000"
"""SQLSTATE of a prepared statement whose tables were altered; it never works again."""


class LoopEngine:
    """Runs statements on a pool of connections that one event loop uses.

    Args:
        place: Where to connect, and as whom.
        loop: The loop; not kept alive.
        make_prototype: Makes what sessions copy; None for who needs statements alone, and then
            does not load what upstream's class loads.
    """

    def __init__(
        self,
        place: Place,
        loop: asyncio.AbstractEventLoop,
        make_prototype: MakePrototype | None = None,
    ) -> None:
        self._place = place
        self.pool = Pool(place, loop)
        self._own_exist = False
        self.keeps_records = False
        """Whether this package's own tables are there and may be used."""
        self.collation = "default"
        """With whose idea of upper and lower case what was said is searched."""
        self.finds_words = False
        """Whether an index leads to what was said."""
        self._watchdog = _Watchdog(place.statement_seconds)
        if make_prototype is None:
            return
        self.prototype = make_prototype(place, self.connection)
        self.transactional: AsyncEngine = self.prototype.engine.execution_options(
            isolation_level="READ COMMITTED"
        )
        """The same pool for other people's statements, which expect transactions."""

    async def rows(
        self, statement: LiteralString, parameters: Mapping[str, str | None], *, writing: bool
    ) -> list[tuple[Any, ...]]:
        """Run one statement, in one round trip, and return its rows.

        Connecting is retried. A read whose connection breaks is repeated once; a write is not.

        Raises:
            LakebaseSessionsError: The class says why; `LakebaseUnavailable.outcome_unknown` says
                whether a write may have been stored.
        """
        place = self._place
        statement_seconds = place.statement_seconds
        give_up_at = time.monotonic() + place.timeout_seconds + statement_seconds
        for repeated in (False, True):
            connection = await self.connection(give_up_at)
            self._watchdog.watch(connection, min(statement_seconds, give_up_at - time.monotonic()))
            try:
                return await _execute(connection, statement, parameters)
            except psycopg.Error as error:
                in_time = self._watchdog.stop(connection)
                if not in_time:
                    # Others that were idle meanwhile may lead to the same silence.
                    self.pool.distrust()
                elif connection.closed and not writing and not repeated:
                    continue
                elif error.sqlstate == STALE_PLAN:
                    self.pool.distrust()
                    if not repeated:
                        continue  # it was refused before anything was done
                elif error.sqlstate == READ_ONLY:
                    # After a failover this may be what was the primary server.
                    self.pool.distrust()
                    place.host.look_up()
                raise from_statement_error(
                    error,
                    place.name,
                    broken=connection.closed,
                    writing=writing,
                    silent_for_seconds=None if in_time else statement_seconds,
                ) from error
            finally:
                self._watchdog.stop(connection)
                self.pool.put_back(connection)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """Several statements in one transaction; an exception takes all of it back.

        Args:
            snapshot: Every statement reads the same state, and none may write.

        Raises:
            LakebaseSessionsError: As `rows`; only a failing end leaves the outcome unknown.
        """
        connection = await self.connection()
        try:
            transaction = Transaction(connection, self._bounded)
            level = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else ""
            await transaction.rows(f"BEGIN{level}")
            yield transaction
            await self._bounded(connection, "COMMIT", None, ending=not snapshot)
        finally:
            self.pool.put_back(connection)  # which closes what is still in a transaction

    async def _bounded(
        self,
        connection: Connection,
        statement: str,
        parameters: Mapping[str, str | None] | None,
        *,
        ending: bool = False,
    ) -> list[tuple[Any, ...]]:
        """A statement of a transaction."""
        seconds = self._place.statement_seconds
        self._watchdog.watch(connection, seconds)
        try:
            # Not prepared: each run is planned for its parameters, of which some are NULL.
            cursor = await connection.execute(statement.encode(), parameters, prepare=False)
            return await cursor.fetchall() if cursor.rownumber is not None else []
        except psycopg.Error as error:
            in_time = self._watchdog.stop(connection)
            if not in_time:
                self.pool.distrust()
            raise from_statement_error(
                error,
                self._place.name,
                broken=connection.closed,
                writing=ending,
                silent_for_seconds=None if in_time else seconds,
            ) from error
        finally:
            self._watchdog.stop(connection)

    async def connection(self, give_up_at: float = math.inf) -> Connection:
        """A connection of the pool's; its `close()` gives it back."""
        return await self.pool.take(min(time.monotonic() + self._place.timeout_seconds, give_up_at))

    async def ensure_tables(self, *, create: bool) -> None:
        """See that the tables exist; nothing that needs a privilege runs when they do.

        Raises:
            TablesMissing: Upstream's do not, and `create` is False.
            PermissionDenied: They do not, and this identity may not create them.
        """
        if not await self._tables_exist():
            await self._make_tables(create=create)
        elif create and not self._own_exist:
            # Nobody needs them for the sessions themselves, so that any failure is no failure.
            with suppress(LakebaseSessionsError):
                await self._run(tables.create())
            await self._tables_exist()
        if not self.keeps_records:
            logger.warning(
                "Turns, branches, titles and approvals are not kept in %s: %s. Sessions work "
                "without. `lakebase-sessions init`, by who owns the tables, makes what is missing; "
                "`lakebase-sessions grant` lets '%s' use it.",
                self._place.where,
                "their tables may not be used" if self._own_exist else "there are no tables for it",
                self._place.user,
            )

    def check_records(self) -> None:
        """For what needs this package's own tables.

        Raises:
            TablesMissing: They are not there or may not be used.
        """
        if self.keeps_records:
            return
        place = self._place
        if self._own_exist:
            raise TablesMissing(
                f"'{place.user}' may not use the tables of turns and branches in {place.where}. "
                "To fix this, whoever owns them runs `lakebase-sessions grant` for it."
            )
        raise TablesMissing(
            f"There are no tables for turns and branches in {place.where}, and they may not be "
            "made. To fix this, whoever owns agent_sessions runs `lakebase-sessions init`."
        )

    async def _make_tables(self, *, create: bool) -> None:
        place = self._place
        if not create:
            raise TablesMissing(
                f"There are no tables agent_sessions and agent_messages in {place.where}, and "
                "create_tables is False. Run once with create_tables=True, or create them in a "
                "migration; check the database and the schema (LAKEBASE_AGENT_MEMORY_SCHEMA)."
            )
        try:
            await self._run(tables.create(quoted(place.schema) if place.schema else None))
        except (PermissionDenied, DatabaseFailure, TablesMissing) as error:
            # Somebody may have created them meanwhile, also without our lock: the upstream class.
            if await self._tables_exist():
                return
            if isinstance(error, DatabaseFailure):
                raise
            # TablesMissing: to somebody without USAGE there is no schema to make them in.
            raise PermissionDenied(
                f"'{place.user}' may not create the session tables in {place.where}. To fix this, "
                f"either: {GRANT_ACCESS}; or GRANT CREATE ON SCHEMA to it; or have the tables "
                "created once by somebody who may."
            ) from error
        await self._tables_exist()

    async def _run(self, statements: str) -> None:
        """Several statements, without parameters, in one transaction."""
        connection = await self.connection()
        self._watchdog.watch(connection, self._place.statement_seconds)
        try:
            await connection.execute(statements.encode())
        except psycopg.Error as error:
            raise from_statement_error(
                error, self._place.name, broken=connection.closed, writing=False
            ) from error
        finally:
            self._watchdog.stop(connection)
            self.pool.put_back(connection)

    async def _tables_exist(self) -> bool:
        own = ",".join(tables.OWN)
        parameters = {"own": own, **indexes.STATE_PARAMETERS}
        rows = await self.rows(f"{tables.STATE}, {indexes.STATE}", parameters, writing=False)
        upstreams, self._own_exist, may_use, self.collation, finds_words = rows[0]
        self.finds_words = finds_words is True
        self.keeps_records = upstreams and self._own_exist and may_use
        return upstreams is True


async def _execute(
    connection: Connection, statement: LiteralString, parameters: Mapping[str, str | None]
) -> list[tuple[Any, ...]]:
    cursor = connection.cursor()
    if statement in connection.prepared:
        await cursor.execute(statement, parameters, prepare=True)
    else:
        # psycopg prepares in a round trip of its own, but for a pipeline.
        async with connection.pipeline():
            await cursor.execute(statement, parameters, prepare=True)
        connection.prepared.add(statement)
    return await cursor.fetchall() if cursor.rownumber is not None else []


class _Watchdog:
    """Ends connections on which nothing has come back for too long.

    The kernel notices a peer that is gone, and Postgres ends a statement that takes too long.
    Neither helps when something in between acknowledges every packet and passes on none.

    One timer for all of them: one for each statement would cost as much as the rest of it.
    """

    def __init__(self, seconds: float) -> None:
        self._tick_seconds = seconds / 10
        self._deadlines: dict[Connection, float] = {}
        self._ticking = False

    def watch(self, connection: Connection, seconds: float) -> None:
        """Give `connection` so long, or a little less."""
        self._deadlines[connection] = time.monotonic() + seconds - self._tick_seconds
        if not self._ticking:
            self._tick()

    def stop(self, connection: Connection) -> bool:
        """Whether it was in time."""
        return self._deadlines.pop(connection, None) is not None

    def _tick(self) -> None:
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if deadline < now:
                del self._deadlines[connection]
                connection.cut_off()
        self._ticking = bool(self._deadlines)
        if self._ticking:
            asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
