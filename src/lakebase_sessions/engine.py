"""LoopEngine: one identity's connection pool on one event loop.

Room for everything that is between a statement and its rows: connecting, dead connections,
retries, and whose error it is. The engine itself is built by upstream's public constructor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import random
import select
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg

# Loaded here, with the application, and not by the first request: importing in a thread keeps
# the event loop from running. The second is named by an option of the Agents SDK's tables.
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401
from databricks_openai.agents import AsyncDatabricksSession
from psycopg.pq import ConnStatus, TransactionStatus
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import greenlet_spawn

from lakebase_sessions import queries
from lakebase_sessions.background import in_thread
from lakebase_sessions.errors import (
    GRANT_ACCESS,
    DatabaseFailure,
    LakebaseNotOpen,
    LakebaseSessionsError,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    TablesMissing,
    check_running,
    from_connect_error,
    from_statement_error,
)

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from psycopg.pq.abc import PGconn
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

    from lakebase_sessions.credentials import Credentials
    from lakebase_sessions.workspace import Token

logger = logging.getLogger(__name__)

POOL_RECYCLE_SECONDS = 14 * 60
"""Upstream's own figure. A connection may live for days; this spreads renewals over restarts."""

SURPLUS_SECONDS = 60.0
"""How long connections beyond `pool_size` stay open after a burst."""

HANDSHAKES_AT_ONCE = 2
"""New connections that are set up at the same time. TLS and SCRAM compute for about 4 ms each,
on the event loop; a burst of first requests would add that up."""

READ_ONLY_SQLSTATE = "25006"

LOOK_UP_SECONDS = 1.0
"""Between two questions to the workspace where a Lakebase is that cannot be connected to."""

_CONNECTED_AT = "lakebase-sessions: connected at"
_NOT_A_PASSWORD = "set by lakebase-sessions"  # noqa: S105 - that is the point
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


@dataclass(frozen=True, slots=True)
class Place:
    """Everything needed to build an engine; the same for all loops of a `Lakebase`."""

    name: str
    host: str
    user: str
    database: str
    schema: str | None
    credentials: Credentials
    locate: Callable[[], str]
    """Look the host up anew; blocks."""
    ssl_mode: str
    pool_size: int
    max_overflow: int
    connect_timeout_seconds: float

    @property
    def where(self) -> str:
        """Where the tables are, for a message."""
        schema = f"schema '{self.schema}'" if self.schema else "the default schema"
        return f"{schema} of database '{self.database}' on Lakebase '{self.name}'"

    @property
    def statement_seconds(self) -> float:
        """How long one statement may take: Postgres ends it after 2 timeouts, else we do."""
        return 2.5 * self.connect_timeout_seconds


class _EmptyPlace(Exception):
    """A place in the pool whose connection was closed, and which was not filled again yet."""


class LoopEngine:
    """A pool of connections, used by one event loop only.

    Args:
        place: Where to connect, and as whom.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.prototype = _prototype(place)
        self._engine: AsyncEngine = self.prototype.engine
        self.transactional: AsyncEngine = self._engine.execution_options(
            isolation_level="READ COMMITTED"
        )
        """The same pool for other people's statements, which expect transactions."""
        self._closing = False
        self._handshakes = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        sockets: weakref.WeakSet[psycopg.AsyncConnection[Any]] = weakref.WeakSet()
        self._sockets = sockets
        # Not bound to self: whoever holds the engine alone still uses its connections.
        weakref.finalize(self._engine.sync_engine, _finish_all, sockets, os.getpid())
        self._watchdog = _Watchdog(place.statement_seconds)
        self._peeking = False
        self._trimming: asyncio.Task[None] | None = None
        self._trusted_since = 0.0
        self._presented: Token | None = None
        self._host = place.host
        self._lookup: Future[str] = Future()
        self._lookup.set_result(place.host)
        self._looked_up_at = -math.inf
        self._listen()

    async def rows(
        self, statement: LiteralString, parameters: Mapping[str, str | None], *, writing: bool
    ) -> list[tuple[Any, ...]]:
        """Run one statement, in one round trip, and return its rows.

        Connecting is retried. A read whose connection breaks is repeated once; a write is not.

        Raises:
            LakebaseSessionsError: The class says why; `LakebaseUnavailable.outcome_unknown` says
                whether a write may have been stored.
        """
        place = self.place
        statement_seconds = place.statement_seconds
        give_up_at = time.monotonic() + place.connect_timeout_seconds + statement_seconds
        for repeated in (False, True):
            connection = await self._connect(give_up_at)
            raw = _psycopg(connection)
            self._watchdog.watch(raw, min(statement_seconds, give_up_at - time.monotonic()))
            try:
                return await _execute(raw, connection.info, statement, parameters)
            except psycopg.Error as error:
                in_time = self._watchdog.stop(raw)
                if not in_time:
                    # Others that were idle meanwhile may lead to the same silence.
                    self._trusted_since = time.monotonic()
                elif raw.closed and not writing and not repeated:
                    continue
                elif error.sqlstate == READ_ONLY_SQLSTATE:
                    # After a failover this may be what was the primary server.
                    self._trusted_since = time.monotonic()
                    self._look_up_host()
                raise from_statement_error(
                    error,
                    place.name,
                    broken=raw.closed,
                    writing=writing,
                    silent_for_seconds=None if in_time else statement_seconds,
                ) from error
            finally:
                self._watchdog.stop(raw)
                await self._put_back(connection)
        raise AssertionError("unreachable")

    async def _connect(self, operation_ends_at: float = math.inf) -> PoolProxiedConnection:
        """A connection from the pool, retried while nothing has reached the server."""
        # An idle connection needs no token, so a workspace that is down is no matter.
        if (idle := await self._idle()) is not None:
            return idle
        give_up_at = min(time.monotonic() + self.place.connect_timeout_seconds, operation_ends_at)
        rejected = None
        for attempt in itertools.count():
            try:
                if not self._pool_is_empty():
                    await self._token(rejected, give_up_at)
                async with _until(give_up_at):
                    return await self._checkout()
            except LakebaseSessionsError:
                raise
            except (PoolTimeoutError, TimeoutError) as error:
                self._look_up_host()
                raise self._timed_out() from error
            except (psycopg.Error, InvalidRequestError, OSError) as error:
                # InvalidRequestError: what replaced a dead connection was dead as well
                found = from_connect_error(cast("psycopg.Error", error), self.place.name)
                if isinstance(found, PermissionDenied) and rejected is None:
                    # Perhaps only the token died early: one new token, one more try.
                    rejected = self._presented
                    continue
                if isinstance(found, LakebaseUnavailable):
                    self._look_up_host()
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
                await self.place.credentials.ready(rejected)
        except TimeoutError as error:
            if isinstance(error, LakebaseTimeout):
                raise
            raise LakebaseTimeout(
                "The workspace gave no database token within "
                f"{self.place.connect_timeout_seconds:g} s; this is tried again with the next "
                "request."
            ) from error

    def _look_up_host(self) -> None:
        """Ask again, in the background, where the Lakebase is: it may have failed over."""
        now = time.monotonic()
        if now - self._looked_up_at < LOOK_UP_SECONDS or not self._lookup.done():
            return
        self._looked_up_at = now
        self._lookup = in_thread(self.place.locate, "host")
        self._lookup.add_done_callback(self._looked_up)

    def _looked_up(self, lookup: Future[str]) -> None:
        if lookup.exception() is not None:
            logger.info("The host could not be looked up again: %s", lookup.exception())
        elif lookup.result() != self._host:
            logger.warning(
                "Lakebase '%s' is at %s now, no longer at %s",
                self.place.name,
                lookup.result(),
                self._host,
            )
            self._host = lookup.result()

    def _timed_out(self) -> LakebaseTimeout:
        place = self.place
        within = f"within {place.connect_timeout_seconds:g} s"
        if self._pool_is_empty():
            return LakebaseTimeout(
                f"None of the {place.pool_size + place.max_overflow} connections of this process "
                f"to Lakebase '{place.name}' became free {within}; all stayed busy. Raise "
                "pool_size or max_overflow, or run more workers."
            )
        return LakebaseTimeout(
            f"Lakebase '{place.name}' gave no connection {within}. Check that it runs and can be "
            f"reached from here: `{check_running(place.name)}`."
        )

    def _pool_is_empty(self) -> bool:
        return self._pool.checkedout() >= self.place.pool_size + self.place.max_overflow

    @property
    def _pool(self) -> QueuePool:
        return cast("QueuePool", self._engine.pool)

    async def _idle(self) -> PoolProxiedConnection | None:
        """A connection that is open and free, if there is one."""
        for _ in range(0 if self._closing else self._pool.checkedin()):
            connection = self._peek()
            if connection is None:
                continue
            if self._usable(connection.info, _psycopg(connection)):
                return connection
            await greenlet_spawn(_discard, connection)
        return None

    def _peek(self) -> PoolProxiedConnection | None:
        """The next place of the pool; None if there is nothing in it."""
        # Not in a greenlet, which costs half as much as the statement itself. Only closing and
        # opening need one.
        self._peeking = True
        try:
            return self._pool.connect()
        except _EmptyPlace:
            return None
        finally:
            self._peeking = False

    async def _checkout(self) -> PoolProxiedConnection:
        if self._closing:
            raise LakebaseNotOpen("This Lakebase was closed; make a new one for further sessions.")
        if self._pool.checkedin() or self._pool_is_empty():
            return await self._engine.raw_connection()
        # Whoever waits here may find that a connection has come back in the meantime.
        async with self._handshakes:
            return await self._engine.raw_connection()

    async def _put_back(self, connection: PoolProxiedConnection) -> None:
        """Back into the pool, if it is as it was taken."""
        if _psycopg(connection).pgconn.transaction_status != TransactionStatus.IDLE:
            await greenlet_spawn(_discard, connection)
            return
        connection.close()
        if self._trimming is None and self._pool.checkedin() > self.place.pool_size:
            self._trimming = asyncio.get_running_loop().create_task(self._trim())

    async def _trim(self) -> None:
        """Close what a burst has left over; not at once, because the next may be on its way."""
        await asyncio.sleep(SURPLUS_SECONDS)
        self._trimming = None
        kept = 0
        for _ in range(self._pool.checkedin()):
            if (connection := self._peek()) is None:
                continue
            kept += 1
            if kept > self.place.pool_size:
                await greenlet_spawn(_discard, connection)
            else:
                connection.close()

    def _listen(self) -> None:
        """Take part in connecting, and in every checkout of a connection from the pool."""
        engine = self._engine.sync_engine
        parameters = _connect_parameters(self.place)

        @event.listens_for(engine, "do_connect")
        def set_parameters(
            _dialect: object, _record: object, _args: object, arguments: dict[str, Any]
        ) -> None:
            if self._peeking:
                raise _EmptyPlace
            token = self._presented = self.place.credentials.token
            arguments |= parameters
            arguments["host"] = self._host
            arguments["password"] = token.value if token else ""

        @event.listens_for(engine, "connect")
        def remember(connection: Any, record: ConnectionPoolEntry) -> None:
            self._sockets.add(connection.driver_connection)
            record.info[_CONNECTED_AT] = time.monotonic()

        @event.listens_for(engine, "checkout")
        def reject_dead(connection: Any, record: ConnectionPoolEntry, _fairy: object) -> None:
            if not self._peeking and not self._usable(record.info, connection.driver_connection):
                raise DisconnectionError("It is dead, or too old.")

    def _usable(self, info: Mapping[Any, Any], connection: psycopg.AsyncConnection[Any]) -> bool:
        connected_at = info[_CONNECTED_AT]
        return (
            connected_at >= self._trusted_since
            and connected_at + POOL_RECYCLE_SECONDS > time.monotonic()
            and not _hung_up(connection.pgconn)
        )

    async def ensure_tables(self, *, create: bool) -> None:
        """See that the tables exist; nothing that needs a privilege runs when they do.

        Raises:
            TablesMissing: They do not, and `create` is False.
            PermissionDenied: They do not, and this identity may not create them.
        """
        if await self._tables_exist():
            return
        place = self.place
        if not create:
            raise TablesMissing(
                f"There are no tables agent_sessions and agent_messages in {place.where}, and "
                "create_tables is False. Run once with create_tables=True, or create them in a "
                "migration; check the database and the schema (LAKEBASE_AGENT_MEMORY_SCHEMA)."
            )
        try:
            await self._create_tables()
        except PermissionDenied as error:
            raise PermissionDenied(
                f"'{place.user}' may not create the session tables in {place.where}. To fix this, "
                f"either: {GRANT_ACCESS}; or GRANT CREATE ON SCHEMA to it; or have the tables "
                "created once by somebody who may."
            ) from error
        except DatabaseFailure:
            # Somebody without our lock, such as the upstream class, was creating them meanwhile.
            if not await self._tables_exist():
                raise

    async def _create_tables(self) -> None:
        schema = self.place.schema
        statement = queries.CREATE_TABLES.format(
            lock=queries.CREATE_LOCK,
            create_schema=queries.CREATE_SCHEMA.format(schema=_quoted(schema)) if schema else "",
        )
        connection = await self._connect()
        raw = _psycopg(connection)
        self._watchdog.watch(raw, self.place.statement_seconds)
        try:
            await raw.execute(statement.encode())
        except psycopg.Error as error:
            raise from_statement_error(
                error, self.place.name, broken=raw.closed, writing=False
            ) from error
        finally:
            self._watchdog.stop(raw)
            await self._put_back(connection)

    async def _tables_exist(self) -> bool:
        return (await self.rows(queries.TABLES_EXIST, {}, writing=False))[0][0] is True

    async def close(self) -> None:
        """Let what is under way come to its end, then close the pool, on its own loop."""
        self._closing = True
        if self._trimming is not None:
            self._trimming.cancel()
        give_up_at = time.monotonic() + self.place.connect_timeout_seconds
        # The pool has no event for the return of the last connection.
        while self._pool.checkedout() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self._engine.dispose()
        self.cut_off()

    def cut_off(self) -> None:
        """End what is still under way, from any thread: its statements fail."""
        for connection in list(self._sockets):
            _cut_off(connection)

    def abandon(self) -> None:
        """Close the connections without their loop, which is closed."""
        _finish_all(self._sockets, os.getpid())


def _prototype(place: Place) -> AsyncDatabricksSession:
    """An upstream session, made by its public constructor, that never asks the workspace."""
    # What the constructor and its token handler would ask the workspace, synchronously and on
    # the event loop, is known already. The password is set by our own handler, which runs later:
    # upstream's logs parts of what it sets.
    client = SimpleNamespace(
        database=SimpleNamespace(
            get_database_instance=lambda _name: SimpleNamespace(read_write_dns=place.host),
            generate_database_credential=lambda **_: SimpleNamespace(token=_NOT_A_PASSWORD),
        )
    )
    return AsyncDatabricksSession(
        session_id="prototype",
        instance_name=place.name,
        workspace_client=cast("WorkspaceClient", client),
        username=place.user,
        database=place.database,
        create_tables=False,
        use_cached_engine=False,  # the cache's key leaves out whose connections they are
        # SQLAlchemy closes the overflow as soon as it is put back, also under the eyes of those
        # who wait; see LoopEngine._trim.
        pool_size=place.pool_size + place.max_overflow,
        max_overflow=0,
        pool_timeout=place.connect_timeout_seconds,
        pool_recycle=-1,  # seen to at checkout, with the other reasons not to use one
        pool_reset_on_return=None,  # in autocommit there is nothing to roll back
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they are what people said to the agent
        use_native_hstore=False,  # saves looking the type up at the first connection
    )


def _psycopg(connection: PoolProxiedConnection) -> psycopg.AsyncConnection[Any]:
    return cast("psycopg.AsyncConnection[Any]", connection.driver_connection)


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


def _discard(connection: PoolProxiedConnection) -> None:
    """Close it and give its place in the pool back. In a greenlet, because closing awaits."""
    connection.invalidate()
    connection.close()


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
                _cut_off(connection)
        self._ticking = bool(self._deadlines)
        if self._ticking:
            asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)


def _cut_off(connection: psycopg.AsyncConnection[Any]) -> None:
    """End the stream under a connection, from any thread."""
    # Closing would free what a statement in flight still reads. The end of the stream is
    # something that psycopg knows how to deal with.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)


def _until(monotonic: float) -> asyncio.Timeout:
    return asyncio.timeout(max(monotonic - time.monotonic(), 0.01))


def _connect_parameters(place: Place) -> dict[str, Any]:
    connect_seconds = place.connect_timeout_seconds
    # A forgotten transaction elsewhere must not hold up a write, and its request, for ever.
    options = (
        f"-clock_timeout={int(connect_seconds * 1000)} "
        f"-cstatement_timeout={int(connect_seconds * 2000)}"
    )
    if place.schema:
        # At connect, so that no checkout costs a SET. No fall-back to public: tables of the same
        # name there are somebody else's.
        escaped = _quoted(place.schema).replace("\\", "\\\\").replace(" ", "\\ ")
        options += f" -csearch_path={escaped}"
    return {
        "connect_timeout": max(2, int(connect_seconds)),  # libpq's smallest
        "fallback_application_name": "lakebase-sessions",
        # A network that went silent is noticed within about 25 s, not after hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": options,
        "sslmode": place.ssl_mode,
    }


def _hung_up(pgconn: PGconn) -> bool:
    """Whether the server has closed an idle connection, without asking it."""
    try:
        readable = select.poll()
        readable.register(pgconn.socket, select.POLLIN)
        # Until nothing is left: the server's last words come before the end of the stream.
        while readable.poll(0):
            pgconn.consume_input()
    except (psycopg.OperationalError, OSError):
        return True
    return pgconn.status != ConnStatus.OK


def _finish_all(sockets: weakref.WeakSet[psycopg.AsyncConnection[Any]], pid: int) -> None:
    """Close connections whose loop cannot do it any more."""
    # In a forked child the sockets are the parent's, and closing them politely would end its
    # connections.
    if os.getpid() == pid:
        for connection in list(sockets):
            connection.pgconn.finish()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
