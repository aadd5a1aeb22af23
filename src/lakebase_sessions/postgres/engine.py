"""LoopEngine: statements of one identity on one event loop.

Room for everything that is between a statement and its rows: a connection, retries, bounds, and
whose error it is.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from lakebase_sessions.errors import (
    GRANT_ACCESS,
    DatabaseFailure,
    LakebaseSessionsError,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    TablesMissing,
    check_running,
    from_connect_error,
    from_statement_error,
)
from lakebase_sessions.postgres import queries
from lakebase_sessions.postgres.pool import Pool, cut_off, presented, psycopg_of
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from databricks_openai.agents import AsyncDatabricksSession
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolProxiedConnection

    from lakebase_sessions.workspace.api import Token
    from lakebase_sessions.workspace.place import Place

READ_ONLY_SQLSTATE = "25006"

_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class LoopEngine:
    """Runs statements on a pool of connections that one event loop uses.

    Args:
        place: Where to connect, and as whom.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.pool = Pool(place)
        self._watchdog = _Watchdog(place.statement_seconds)
        self.prototype: AsyncDatabricksSession = self.pool.prototype
        self.transactional: AsyncEngine = self.pool.engine.execution_options(
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
            connection = await self._connect(give_up_at)
            raw = psycopg_of(connection)
            self._watchdog.watch(raw, min(statement_seconds, give_up_at - time.monotonic()))
            try:
                return await _execute(raw, connection.info, statement, parameters)
            except psycopg.Error as error:
                in_time = self._watchdog.stop(raw)
                if not in_time:
                    # Others that were idle meanwhile may lead to the same silence.
                    self.pool.distrust()
                elif raw.closed and not writing and not repeated:
                    continue
                elif error.sqlstate == READ_ONLY_SQLSTATE:
                    # After a failover this may be what was the primary server.
                    self.pool.distrust()
                    place.host.look_up()
                raise from_statement_error(
                    error,
                    place.name,
                    broken=raw.closed,
                    writing=writing,
                    silent_for_seconds=None if in_time else statement_seconds,
                ) from error
            finally:
                self._watchdog.stop(raw)
                await self.pool.put_back(connection)
        raise AssertionError("unreachable")

    async def _connect(self, operation_ends_at: float = math.inf) -> PoolProxiedConnection:
        """A connection from the pool, retried while nothing has reached the server."""
        # An idle connection needs no token, so a workspace that is down is no matter.
        if (idle := await self.pool.idle()) is not None:
            return idle
        place = self._place
        give_up_at = min(time.monotonic() + place.timeout_seconds, operation_ends_at)
        rejected = None
        for attempt in itertools.count():
            try:
                if not self.pool.exhausted:
                    await self._token(rejected, give_up_at)
                async with _until(give_up_at):
                    return await self.pool.take()
            except LakebaseSessionsError:
                raise
            except (PoolTimeoutError, TimeoutError) as error:
                place.host.look_up()
                raise self._timed_out() from error
            except (psycopg.Error, DBAPIError, InvalidRequestError, OSError) as error:
                # DBAPIError: SQLAlchemy has questions to an engine's first connection.
                # InvalidRequestError: what replaced a dead connection was dead as well.
                cause = error.orig if isinstance(error, DBAPIError) else error
                found = from_connect_error(cast("psycopg.Error", cause), place.name)
                if isinstance(found, PermissionDenied):
                    token = presented.get(None)
                    if token is not place.credentials.token:
                        continue  # another one has replaced it in the meantime
                    if rejected is None:
                        rejected = token  # perhaps it died early: one new token, one more try
                        continue
                if isinstance(found, LakebaseUnavailable):
                    place.host.look_up()
                backoff = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
                backoff *= random.uniform(0.5, 1.0)
                if (
                    not isinstance(found, LakebaseUnavailable)
                    or time.monotonic() + backoff > give_up_at
                ):
                    raise found from error
            await asyncio.sleep(backoff)
        raise AssertionError("unreachable")

    async def _token(self, rejected: Token | None, give_up_at: float) -> None:
        try:
            async with _until(give_up_at):
                await self._place.credentials.ready(rejected)
        except TimeoutError as error:
            if isinstance(error, LakebaseTimeout):
                raise
            raise LakebaseTimeout(
                f"The workspace gave no database token within {self._place.timeout_seconds:g} s; "
                "this is tried again with the next request."
            ) from error

    def _timed_out(self) -> LakebaseTimeout:
        place = self._place
        within = f"within {place.timeout_seconds:g} s"
        if self.pool.exhausted:
            return LakebaseTimeout(
                f"None of the {place.most_connections} connections of this process "
                f"to Lakebase '{place.name}' became free {within}; all stayed busy. Raise "
                "pool_size or max_overflow, or run more workers."
            )
        return LakebaseTimeout(
            f"Lakebase '{place.name}' gave no connection {within}. Check that it runs and can be "
            f"reached from here: `{check_running(place.name)}`."
        )

    async def ensure_tables(self, *, create: bool) -> None:
        """See that the tables exist; nothing that needs a privilege runs when they do.

        Raises:
            TablesMissing: They do not, and `create` is False.
            PermissionDenied: They do not, and this identity may not create them.
        """
        if await self._tables_exist():
            return
        place = self._place
        if not create:
            raise TablesMissing(
                f"There are no tables agent_sessions and agent_messages in {place.where}, and "
                "create_tables is False. Run once with create_tables=True, or create them in a "
                "migration; check the database and the schema (LAKEBASE_AGENT_MEMORY_SCHEMA)."
            )
        try:
            await self._create_tables()
        except (PermissionDenied, DatabaseFailure) as error:
            # Somebody may have created them meanwhile, also without our lock: the upstream class.
            if await self._tables_exist():
                return
            if not isinstance(error, PermissionDenied):
                raise
            raise PermissionDenied(
                f"'{place.user}' may not create the session tables in {place.where}. To fix this, "
                f"either: {GRANT_ACCESS}; or GRANT CREATE ON SCHEMA to it; or have the tables "
                "created once by somebody who may."
            ) from error

    async def _create_tables(self) -> None:
        schema = self._place.schema
        statement = queries.CREATE_TABLES.format(
            lock=queries.CREATE_LOCK,
            create_schema=queries.CREATE_SCHEMA.format(schema=quoted(schema)) if schema else "",
        )
        connection = await self._connect()
        raw = psycopg_of(connection)
        self._watchdog.watch(raw, self._place.statement_seconds)
        try:
            await raw.execute(statement.encode())
        except psycopg.Error as error:
            raise from_statement_error(
                error, self._place.name, broken=raw.closed, writing=False
            ) from error
        finally:
            self._watchdog.stop(raw)
            await self.pool.put_back(connection)

    async def _tables_exist(self) -> bool:
        return (await self.rows(queries.TABLES_EXIST, {}, writing=False))[0][0] is True


async def _execute(
    connection: psycopg.AsyncConnection[Any],
    known: dict[Any, Any],
    statement: LiteralString,
    parameters: Mapping[str, str | None],
) -> list[tuple[Any, ...]]:
    """The rows. `known` says what was prepared on this connection before."""
    cursor = connection.cursor()
    if statement in known:
        await cursor.execute(statement, parameters, prepare=True)
    else:
        # psycopg prepares in a round trip of its own, but for a pipeline.
        async with connection.pipeline():
            await cursor.execute(statement, parameters, prepare=True)
        known[statement] = True
    return await cursor.fetchall() if cursor.rownumber is not None else []


class _Watchdog:
    """Ends connections on which nothing has come back for too long.

    The kernel notices a peer that is gone, and Postgres ends a statement that takes too long.
    Neither helps when something in between acknowledges every packet and passes on none.

    One timer for all of them: one for each statement would cost as much as the rest of it.
    """

    def __init__(self, seconds: float) -> None:
        self._tick_seconds = seconds / 10
        self._deadlines: dict[psycopg.AsyncConnection[Any], float] = {}
        self._ticking = False

    def watch(self, connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
        """Give `connection` so long, or a little less."""
        self._deadlines[connection] = time.monotonic() + seconds - self._tick_seconds
        if not self._ticking:
            self._tick()

    def stop(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Whether it was in time."""
        return self._deadlines.pop(connection, None) is not None

    def _tick(self) -> None:
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if deadline < now:
                del self._deadlines[connection]
                cut_off(connection)
        self._ticking = bool(self._deadlines)
        if self._ticking:
            asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)


def _until(monotonic: float) -> asyncio.Timeout:
    return asyncio.timeout(max(monotonic - time.monotonic(), 0.01))
