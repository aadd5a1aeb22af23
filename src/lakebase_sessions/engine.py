"""LoopEngine: one identity's connection pool on one event loop.

Room for everything that is between a statement and its rows: connecting, dead connections,
retries, and whose error it is. The engine itself is built by upstream's public constructor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import select
import socket
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psycopg

# Loaded here, with the application, and not by the first request: importing in a thread keeps
# the event loop from running. The second is named by an option of the Agents SDK's tables.
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401
from databricks_openai.agents import AsyncDatabricksSession
from psycopg.pq import ConnStatus
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from lakebase_sessions import queries
from lakebase_sessions.errors import (
    GRANT_ACCESS,
    DatabaseFailure,
    LakebaseNotOpen,
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
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import QueuePool

    from lakebase_sessions.credentials import Credentials

POOL_RECYCLE_SECONDS = 14 * 60
"""Upstream's own figure. A connection may live for days; this spreads renewals over restarts."""

HANDSHAKES_AT_ONCE = 2
"""New connections that are set up at the same time. TLS and SCRAM compute for about 4 ms each,
on the event loop; a burst of first requests would add that up."""

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
    pool_size: int
    max_overflow: int
    connect_timeout_seconds: float

    @property
    def where(self) -> str:
        """Where the tables are, for a message."""
        schema = f"schema '{self.schema}'" if self.schema else "the default schema"
        return f"{schema} of database '{self.database}' on Lakebase '{self.name}'"


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
        _listen(self._engine, place, sockets)

    async def rows(
        self, statement: str, parameters: Mapping[str, object], *, writing: bool
    ) -> list[Any]:
        """Run one statement and return the first column of its rows.

        Connecting is retried. A read whose connection breaks is repeated once; a write is not.

        Raises:
            LakebaseSessionsError: The class says why; `LakebaseUnavailable.outcome_unknown` says
                whether a write may have been stored.
        """
        for repeated in (False, True):
            connection = await self._connect()
            try:
                result = await connection.exec_driver_sql(statement, dict(parameters))
                return list(result.scalars()) if result.returns_rows else []
            except DBAPIError as error:
                broken = error.connection_invalidated
                if broken and not writing and not repeated:
                    continue
                raise from_statement_error(
                    cast("psycopg.Error", error.orig),
                    self.place.name,
                    broken=broken,
                    writing=writing,
                ) from error
            finally:
                await connection.close()
        raise AssertionError("unreachable")

    async def _connect(self) -> AsyncConnection:
        """A connection from the pool, retried while nothing has reached the server."""
        credentials = self.place.credentials
        give_up_at = time.monotonic() + self.place.connect_timeout_seconds
        rejected = None
        for attempt in itertools.count():
            # An idle connection needs no token, so a workspace that is down is no matter.
            if rejected is not None or not self._pool.checkedin():
                await credentials.ready(rejected)
            token = credentials.token
            try:
                async with asyncio.timeout(max(give_up_at - time.monotonic(), 0.01)):
                    return await self._checkout()
            except (PoolTimeoutError, TimeoutError) as error:
                raise self._timed_out() from error
            except (DBAPIError, InvalidRequestError, OSError) as error:
                # InvalidRequestError: what replaced a dead connection was dead as well
                cause = error.orig if isinstance(error, DBAPIError) else error
                found = from_connect_error(cast("psycopg.Error", cause), self.place.name)
                if isinstance(found, PermissionDenied) and rejected is None:
                    # Perhaps only the token died early: one new token, one more try.
                    rejected = token
                    continue
                backoff = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
                backoff *= random.uniform(0.5, 1.0)
                if (
                    not isinstance(found, LakebaseUnavailable)
                    or time.monotonic() + backoff > give_up_at
                ):
                    raise found from error
            await asyncio.sleep(backoff)
        raise AssertionError("unreachable")

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

    async def _checkout(self) -> AsyncConnection:
        if self._closing:
            raise LakebaseNotOpen("This Lakebase was closed; make a new one for further sessions.")
        if self._pool.checkedin() or self._pool_is_empty():
            return await self._engine.connect()
        # Whoever waits here may find that a connection has come back in the meantime.
        async with self._handshakes:
            return await self._engine.connect()

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
        raw = cast(
            "psycopg.AsyncConnection[Any]",
            (await connection.get_raw_connection()).driver_connection,
        )
        try:
            await raw.execute(statement.encode())  # SQLAlchemy would prepare it; it is several
        except psycopg.Error as error:
            raise from_statement_error(
                error, self.place.name, broken=raw.broken, writing=False
            ) from error
        finally:
            await connection.close()

    async def _tables_exist(self) -> bool:
        return bool((await self.rows(queries.TABLES_EXIST, {}, writing=False))[0])

    async def close(self) -> None:
        """Let what is under way come to its end, then close the pool, on its own loop."""
        self._closing = True
        give_up_at = time.monotonic() + self.place.connect_timeout_seconds
        # The pool has no event for the return of the last connection.
        while self._pool.checkedout() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self._engine.dispose()
        self.cut_off()

    def cut_off(self) -> None:
        """End what is still under way, from any thread: its statements fail."""
        # Closing would free what a statement in flight still reads. The end of the stream is
        # something that psycopg knows how to deal with.
        for connection in list(self._sockets):
            with (
                contextlib.suppress(OSError, psycopg.Error),
                socket.socket(fileno=os.dup(connection.pgconn.socket)) as stream,
            ):
                stream.shutdown(socket.SHUT_RDWR)

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
        pool_size=place.pool_size,
        max_overflow=place.max_overflow,
        pool_timeout=place.connect_timeout_seconds,
        pool_recycle=POOL_RECYCLE_SECONDS,
        pool_reset_on_return=None,  # in autocommit there is nothing to roll back
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they are what people said to the agent
        use_native_hstore=False,  # saves looking the type up at the first connection
    )


def _listen(
    engine: AsyncEngine, place: Place, sockets: weakref.WeakSet[psycopg.AsyncConnection[Any]]
) -> None:
    """Take part in connecting, and in every checkout of a connection from the pool."""
    parameters: dict[str, Any] = {
        "connect_timeout": max(2, int(place.connect_timeout_seconds)),  # libpq's smallest
        "fallback_application_name": "lakebase-sessions",
        # A network that went silent is noticed within about 25 s, not after hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        # A forgotten transaction elsewhere must not hold up a write, and its request, for ever.
        "options": f"-clock_timeout={int(place.connect_timeout_seconds * 1000)}",
    }
    if place.schema:
        # At connect, so that no checkout costs a SET. No fall-back to public: tables of the same
        # name there are somebody else's.
        escaped = _quoted(place.schema).replace("\\", "\\\\").replace(" ", "\\ ")
        parameters["options"] += f" -csearch_path={escaped}"

    @event.listens_for(engine.sync_engine, "do_connect")
    def set_parameters(
        _dialect: object, _record: object, _args: object, arguments: dict[str, Any]
    ) -> None:
        token = place.credentials.token
        arguments |= parameters
        arguments["password"] = token.value if token else ""

    @event.listens_for(engine.sync_engine, "connect")
    def remember(connection: Any, _record: object) -> None:
        sockets.add(connection.driver_connection)

    @event.listens_for(engine.sync_engine, "checkout")
    def reject_dead(connection: Any, _record: object, _fairy: object) -> None:
        if _hung_up(connection.driver_connection.pgconn):
            raise DisconnectionError("The server closed this connection while it was idle.")


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
