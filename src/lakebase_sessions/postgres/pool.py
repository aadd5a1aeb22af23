"""Pool: one identity's connections on one event loop.

Room for what a connection goes through before and after a statement: opened, looked at, kept,
closed. The SQLAlchemy engine behind it is built by upstream's public constructor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
import traceback
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psycopg

# Loaded here, with the application, and not by the first request: importing in a thread keeps
# the event loop from running. The second is named by an option of the Agents SDK's tables.
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401
from databricks_openai.agents import AsyncDatabricksSession
from psycopg import waiting
from psycopg.pq import ConnStatus, TransactionStatus
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.util import greenlet_spawn

from lakebase_sessions.errors import CLOSED, LakebaseNotOpen
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from psycopg.pq.abc import PGconn
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool

    from lakebase_sessions.workspace.api import Token
    from lakebase_sessions.workspace.place import Place

POOL_RECYCLE_SECONDS = 14 * 60
"""Upstream's own figure. A connection may live for days; this spreads renewals over restarts."""

SURPLUS_SECONDS = 60.0
"""How long connections beyond `pool_size` stay open after a burst."""

HANDSHAKES_AT_ONCE = 2
"""New connections that are set up at the same time. TLS and SCRAM compute for about 4 ms each,
on the event loop; a burst of first requests would add that up."""

_CONNECTED_AT = "lakebase-sessions: connected at"
_NOT_A_PASSWORD = "set by lakebase-sessions"  # noqa: S105 - that is the point


presented: ContextVar[Token | None] = ContextVar("lakebase-sessions: presented")
"""The token of this task's latest attempt to connect."""

_peeking: ContextVar[bool] = ContextVar("lakebase-sessions: peeking", default=False)


class _EmptyPlace(Exception):
    """A place in the pool whose connection was closed, and which was not filled again yet."""


class Pool:
    """Connections of one event loop.

    Args:
        place: Where to connect, and as whom.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.prototype = _prototype(place)
        self.engine: AsyncEngine = self.prototype.engine
        self._handshakes = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        self._trusted_since = 0.0
        self._trimming: asyncio.Task[None] | None = None
        self._closing = self._cut_off = False
        self._sockets: set[psycopg.AsyncConnection[Any]] = set()
        # Not bound to self: whoever holds the engine alone still uses its connections.
        weakref.finalize(self.engine.sync_engine, _finish_all, self._sockets, os.getpid())
        self._listen()

    @property
    def _pool(self) -> QueuePool:
        return cast("QueuePool", self.engine.pool)

    def distrust(self) -> None:
        """Use none of the present connections again: they may lead to a server that is gone."""
        self._trusted_since = time.monotonic()

    @property
    def exhausted(self) -> bool:
        """Whether every connection that may be open is in use."""
        return self._pool.checkedout() >= self._place.most_connections

    async def idle(self) -> PoolProxiedConnection | None:
        """A connection that is open and free, if there is one."""
        for _ in range(0 if self._closing else self._pool.checkedin()):
            connection = await self._peek()
            if connection is None:
                continue
            if self._usable(connection.info, psycopg_of(connection)):
                return connection
            await greenlet_spawn(_discard, connection)
        return None

    async def _peek(self) -> PoolProxiedConnection | None:
        """The next place of the pool; None if there is nothing in it."""
        marked = _peeking.set(True)
        try:
            if self._pool.overflow() < 0:
                # Not in a greenlet, which costs half as much as the statement itself. Some
                # versions of SQLAlchemy need one to take from a pool that is full.
                return self._pool.connect()
            return await greenlet_spawn(self._pool.connect)
        except _EmptyPlace:
            return None
        finally:
            _peeking.reset(marked)

    async def take(self) -> PoolProxiedConnection:
        """A connection that is free or new; waits for one if there are no more to be had.

        Raises:
            LakebaseNotOpen: The pool was closed.
            psycopg.Error: A new one could not be opened.
            sqlalchemy.exc.TimeoutError: None became free.
        """
        if self._closing:
            raise LakebaseNotOpen(CLOSED)
        try:
            if self.exhausted:
                connection = await self.engine.raw_connection()
            else:
                async with self._handshakes:
                    # One may have come back in the meantime.
                    connection = await self.idle() or await self.engine.raw_connection()
        except asyncio.CancelledError as error:
            # The attempt to connect lives in these frames, and its socket as long as they do.
            traceback.clear_frames(error.__traceback__)
            raise
        if self._cut_off:  # while this one waited; nobody would close its connection any more
            await greenlet_spawn(_discard, connection)
            raise LakebaseNotOpen(CLOSED)
        return connection

    async def put_back(self, connection: PoolProxiedConnection) -> None:
        """Back into the pool, if it is as it was taken."""
        if psycopg_of(connection).pgconn.transaction_status != TransactionStatus.IDLE:
            await greenlet_spawn(_discard, connection)
            return
        connection.close()
        if self._trimming is None and self._pool.checkedin() > self._place.pool_size:
            self._trimming = asyncio.get_running_loop().create_task(self._trim())

    async def _trim(self) -> None:
        """Close what a burst has left over; not at once, because the next may be on its way."""
        await asyncio.sleep(SURPLUS_SECONDS)
        self._trimming = None
        kept = 0
        for _ in range(self._pool.checkedin()):
            if (connection := await self._peek()) is None:
                continue
            kept += 1
            if kept > self._place.pool_size:
                await greenlet_spawn(_discard, connection)
            else:
                connection.close()

    def _listen(self) -> None:
        """Take part in connecting, and in every checkout of a connection from the pool."""
        engine = self.engine.sync_engine
        parameters = _connect_parameters(self._place)

        @event.listens_for(engine, "do_connect")
        def set_parameters(
            _dialect: object, _record: object, _args: object, arguments: dict[str, Any]
        ) -> None:
            if _peeking.get():
                raise _EmptyPlace
            token = self._place.credentials.token
            presented.set(token)
            arguments |= parameters
            arguments["async_creator_fn"] = _Connection.connect
            arguments["host"] = self._place.host.name
            arguments["password"] = token.value if token else ""

        @event.listens_for(engine, "connect")
        def remember(connection: Any, record: ConnectionPoolEntry) -> None:
            self._sockets.difference_update([known for known in self._sockets if known.closed])
            self._sockets.add(connection.driver_connection)
            record.info[_CONNECTED_AT] = time.monotonic()

        @event.listens_for(engine, "checkout")
        def reject_dead(connection: Any, record: ConnectionPoolEntry, _fairy: object) -> None:
            if not _peeking.get() and not self._usable(record.info, connection.driver_connection):
                raise DisconnectionError("It is dead, or too old.")

    def _usable(self, info: Mapping[Any, Any], connection: psycopg.AsyncConnection[Any]) -> bool:
        connected_at = info[_CONNECTED_AT]
        return (
            connected_at >= self._trusted_since
            and connected_at + POOL_RECYCLE_SECONDS > time.monotonic()
            and not _hung_up(connection.pgconn)
        )

    async def close(self) -> None:
        """Let what is under way come to its end, for a while, then close everything."""
        self._closing = True
        if self._trimming is not None:
            self._trimming.cancel()
        give_up_at = time.monotonic() + self._place.timeout_seconds
        try:
            # The pool has no event for the return of the last connection.
            while self._pool.checkedout() and time.monotonic() < give_up_at:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:  # also for one who is cancelled; nothing here is suspended
            await self.engine.dispose()
            self.cut_off()

    def cut_off(self) -> None:
        """End what is still under way, from any thread: its statements fail."""
        self._cut_off = True
        for connection in list(self._sockets):
            cut_off(connection)

    def abandon(self) -> None:
        """Close the connections without their loop, which is closed."""
        _finish_all(self._sockets, os.getpid())


class _Connection(psycopg.AsyncConnection[Any]):
    """A connection that is closed where somebody is cancelled who waits for it."""

    async def wait(self, gen: Any, interval: float = 0.1, *args: Any, **options: Any) -> Any:
        """Wait for what `gen` does."""
        # psycopg would ask the server, on another connection, to cancel the statement, which may
        # take 10 s; and what it had begun to prepare, and a pipeline, would stay half done.
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *args, **options)
        except asyncio.CancelledError:
            self.pgconn.finish()
            with contextlib.suppress(psycopg.Error):
                gen.close()
            raise


def _prototype(place: Place) -> AsyncDatabricksSession:
    """An upstream session, made by its public constructor, that never asks the workspace."""
    # What the constructor and its token handler would ask the workspace, synchronously and on
    # the event loop, is known already. The password is set by our own handler, which runs later:
    # upstream's logs parts of what it sets.
    client = SimpleNamespace(
        database=SimpleNamespace(
            get_database_instance=lambda _name: SimpleNamespace(read_write_dns=place.host.name),
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
        # who wait; see _trim.
        pool_size=place.most_connections,
        max_overflow=0,
        pool_timeout=place.timeout_seconds,
        pool_recycle=-1,  # seen to at checkout, with the other reasons not to use one
        pool_reset_on_return=None,  # in autocommit there is nothing to roll back
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they are what people said to the agent
        use_native_hstore=False,  # saves looking the type up at the first connection
    )


def psycopg_of(connection: PoolProxiedConnection) -> psycopg.AsyncConnection[Any]:
    """The driver's connection in one of the pool's."""
    return cast("psycopg.AsyncConnection[Any]", connection.driver_connection)


def cut_off(connection: psycopg.AsyncConnection[Any]) -> None:
    """End the stream under a connection, from any thread."""
    # Closing would free what a statement in flight still reads. The end of the stream is
    # something that psycopg knows how to deal with.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)


def _discard(connection: PoolProxiedConnection) -> None:
    """Close it and give its place in the pool back. In a greenlet, because closing awaits."""
    connection.invalidate()
    connection.close()


def _connect_parameters(place: Place) -> dict[str, Any]:
    timeout = place.timeout_seconds
    # A forgotten transaction elsewhere must not hold up a write, and its request, for ever.
    options = f"-clock_timeout={int(timeout * 1000)} -cstatement_timeout={int(timeout * 2000)}"
    if place.schema:
        # At connect, so that no checkout costs a SET. No fall-back to public: tables of the same
        # name there are somebody else's.
        escaped = quoted(place.schema).replace("\\", "\\\\").replace(" ", "\\ ")
        options += f" -csearch_path={escaped}"
    return {
        "connect_timeout": max(2, int(timeout)),  # libpq's smallest
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


def _finish_all(sockets: set[psycopg.AsyncConnection[Any]], pid: int) -> None:
    """Close connections whose loop cannot do it any more."""
    # In a forked child the sockets are the parent's, and closing them politely would end its
    # connections.
    if os.getpid() == pid:
        for connection in list(sockets):
            connection.pgconn.finish()
