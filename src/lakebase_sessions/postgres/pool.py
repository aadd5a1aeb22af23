"""Pool: one identity's connections on one event loop.

Those who wait are served in the order of their coming. A connection is handed from one to the
next without a pause, so nobody takes it from somebody who was first.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, cast

from lakebase_sessions.errors import (
    CLOSED,
    LakebaseNotOpen,
    LakebaseSessionsError,
    LakebaseTimeout,
    LakebaseUnavailable,
)
from lakebase_sessions.postgres.connection import Connection, connect, no_connection

if TYPE_CHECKING:
    from lakebase_sessions.workspace.place import Place

LIFETIME_SECONDS = 14 * 60
"""Upstream's own figure. A connection may live for days; this spreads renewals over restarts."""

SURPLUS_SECONDS = 60.0
"""How long connections beyond `pool_size` stay open after a burst."""

HANDSHAKES_AT_ONCE = 2
"""New connections that are set up at the same time. TLS and SCRAM compute for about 4 ms each,
on the event loop; a burst of first requests would add that up."""

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_inherited: list[Connection] = []


def _keep_what_is_the_parents() -> None:
    # Closed by a forked child, politely as the end of an object closes them, these would be
    # closed for the parent too.
    _inherited.extend(connection for pool in _pools for connection in pool.connections)


os.register_at_fork(after_in_child=_keep_what_is_the_parents)


class Pool:
    """Connections of one event loop.

    Args:
        place: Where to connect, and as whom.
        loop: Whose connections they are; not kept alive by them.
    """

    def __init__(self, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        self._place = place
        self.connections: set[Connection] = set()
        """All that are open, in use or idle."""
        self._idle: deque[Connection] = deque()  # whatever was used last is at the right
        self._waiting: OrderedDict[asyncio.Future[Connection], float] = OrderedDict()  # since when
        self._opening: set[asyncio.Task[None]] = set()
        self._failure: LakebaseSessionsError | None = None
        self._trusted_since = 0.0
        self._trimming = self._closing = self._cut_off = False
        self._changed = asyncio.Event()
        _pools.add(self)
        # Whichever is dropped first: nobody else can close them then.
        for owner in (self, loop):
            weakref.finalize(owner, _finish_all, self.connections, os.getpid())

    @property
    def _in_use(self) -> int:
        return len(self.connections) - len(self._idle)

    def distrust(self) -> None:
        """Use none of the present connections again: they may lead to a server that is gone."""
        self._trusted_since = time.monotonic()

    def _free(self) -> Connection | None:
        """One that is open and that nobody uses."""
        while self._idle:
            connection = self._idle.pop()
            if self._fresh(connection):
                return connection
            self._discard(connection)
        return None

    async def take(self, give_up_at: float) -> Connection:
        """A connection that is free or new, or the next that comes back.

        Args:
            give_up_at: `time.monotonic()` until which to wait.

        Raises:
            LakebaseNotOpen: The pool was closed.
            LakebaseTimeout: There was none in time.
            LakebaseSessionsError: A new one could not be opened, and none is in use.
        """
        while True:
            if self._closing:
                raise LakebaseNotOpen(CLOSED)
            connection = self._free() or await self._next(give_up_at)
            if not connection.hung_up():
                return connection
            self._discard(connection)  # the server has closed it

    async def _next(self, give_up_at: float) -> Connection:
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = time.monotonic()
        self._grow()
        try:
            async with asyncio.timeout(max(give_up_at - time.monotonic(), 0.01)):
                return await waiter
        except BaseException as error:
            self._waiting.pop(waiter, None)
            self._changed.set()
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.put_back(waiter.result())  # it came in the moment of giving up
            if isinstance(error, TimeoutError) and not isinstance(error, LakebaseTimeout):
                self._place.host.look_up()
                raise self._timed_out() from error
            raise

    def put_back(self, connection: Connection) -> None:
        """To the first who waits, or into the pool, if it is as it was taken."""
        self._changed.set()
        if self._cut_off or not (self._fresh(connection) and connection.reusable):
            self._discard(connection)
            self._grow()
            return
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)
        if len(self._idle) > self._place.pool_size and not self._trimming:
            self._trimming = True
            asyncio.get_running_loop().call_later(SURPLUS_SECONDS, self._trim)

    def _grow(self) -> None:
        """Open connections for those who wait, a few at a time."""
        while len(self._opening) < min(HANDSHAKES_AT_ONCE, len(self._waiting)):
            if len(self.connections) + len(self._opening) >= self._place.most_connections:
                return
            opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(opening)
            opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if opening.cancelled() and not self._closing:
            self._grow()  # by somebody who cancels whatever runs; others may wait

    async def _open(self) -> None:
        here = cast("asyncio.Task[None]", asyncio.current_task())
        began_at = 0.0

        def is_wanted(failure: LakebaseSessionsError) -> bool:
            nonlocal began_at
            began_at = time.monotonic()
            self._failure = failure
            return bool(self._waiting)

        try:
            connection = await connect(self._place, is_wanted)
        except LakebaseSessionsError as error:
            self._opening.discard(here)  # before anybody hears of it, and asks for another
            # Who waits for what others will put back is better off waiting. But no identity, no
            # database of that name: that is told at once.
            if not self._in_use or not isinstance(error, LakebaseUnavailable):
                self._fail(error, began_at)
                self._grow()  # for those who came later: it may be another answer by now
            return
        finally:
            self._opening.discard(here)
        if connection is not None:
            connection.home = weakref.ref(self)
            self.connections.add(connection)
            self.put_back(connection)
        self._grow()

    def _fail(self, error: LakebaseSessionsError, waiting_since: float = math.inf) -> None:
        """Tell those who waited by then; the order is that of their coming."""
        while self._waiting and next(iter(self._waiting.values())) <= waiting_since:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(error)

    def _timed_out(self) -> LakebaseSessionsError:
        place = self._place
        if self._in_use >= place.most_connections:
            return LakebaseTimeout(
                f"None of the {place.most_connections} connections of this process to Lakebase "
                f"'{place.name}' became free within {place.timeout_seconds:g} s; all stayed busy. "
                "Raise pool_size or max_overflow, or run more workers."
            )
        return self._failure or no_connection(place)

    def _trim(self) -> None:
        """Close what a burst has left over; not at once, because the next may be on its way."""
        self._trimming = False
        while len(self._idle) > self._place.pool_size:
            self._discard(self._idle.popleft())

    def _fresh(self, connection: Connection) -> bool:
        return (
            connection.opened_at >= self._trusted_since
            and connection.opened_at + LIFETIME_SECONDS > time.monotonic()
        )

    def _discard(self, connection: Connection) -> None:
        self.connections.discard(connection)
        connection.pgconn.finish()

    def close_idle(self) -> None:
        """Close what nobody uses."""
        while self._idle:
            self._discard(self._idle.popleft())

    async def close(self) -> None:
        """Let what is under way come to its end, for a while, then close everything."""
        self._closing = True
        try:
            async with asyncio.timeout(self._place.timeout_seconds):
                while self._in_use or self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:  # also for one who is cancelled; nothing here is suspended
            for opening in self._opening:
                opening.cancel()
            self._fail(LakebaseNotOpen(CLOSED))
            self.close_idle()
            self.cut_off()

    def cut_off(self) -> None:
        """End what is still under way, from any thread: its statements fail."""
        self._closing = self._cut_off = True
        for connection in list(self.connections):
            connection.cut_off()

    def abandon(self) -> None:
        """Close the connections without their loop, which is closed."""
        _finish_all(self.connections, os.getpid())


def _finish_all(connections: set[Connection], pid: int) -> None:
    """Close connections whose loop cannot do it any more."""
    if os.getpid() == pid:
        while connections:
            connections.pop().pgconn.finish()
