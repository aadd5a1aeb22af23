"""Proxy: a network between a client and Postgres that counts, delays, breaks off and goes deaf.

It forwards bytes and does not read them, so it works with and without TLS. Tests run one in a
thread; benchmarks run it as a process of its own, out of the way of what is measured:

    python tests/proxy.py HOST ROUND_TRIP_MS

That prints the host to connect to, and the counts after each line on its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast

T = TypeVar("T")

PORT = 5432
Moment = Literal["before", "during", "after"]


class Proxy:
    """A server that forwards to the Postgres at `server`, which tests may change at any time.

    Args:
        server: A socket's folder or an address; the port is 5432.
        round_trip_seconds: Half of it delays each direction.
    """

    def __init__(self, server: str, *, round_trip_seconds: float = 0.0) -> None:
        self.server = server
        self.round_trip_seconds = round_trip_seconds
        self.host = ""
        """Where clients connect: a folder or an address, as `server` is."""
        self.round_trips = 0
        """How often the server began to answer. Connecting costs 3 or more."""
        self.bytes = 0
        """How many have come, from both sides."""
        self.accepted = 0
        """How many connections there have been."""
        self.cut: Moment | None = None
        """Break the next connection that sends something: before it reaches the server; when it
        has reached it, before the answer; after the answer. Happens once."""
        self._deaf = False
        self._pairs: set[_Client] = set()
        # epoll would round each delay up to a whole millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_exception: object) -> None:
        self.refuse()
        self.drop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._folder is not None:
            self._folder.cleanup()

    def drop(self) -> None:
        """Break every connection, on both sides."""
        self._run(self._each(_Client.abort))

    def half_close(self) -> None:
        """Tell every client that the server has no more to say, and go on listening."""
        self._run(self._each(_Client.half_close))

    def refuse(self) -> None:
        """Let nobody in any more; who is in stays."""
        self._run(self._close_listener())

    def accept(self) -> None:
        """Let clients in again, at the same host."""
        self._run(self._listen())

    @property
    def deaf(self) -> bool:
        """Nothing is passed on any more, and nobody is told; new connections are not answered.

        What was sent meanwhile is lost. Who hung up meanwhile is heard of when it is over."""
        return self._deaf

    @deaf.setter
    def deaf(self, deaf: bool) -> None:
        self._deaf = deaf
        if not deaf:
            self._run(self._each(_Client.catch_up))

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._pairs)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _each(self, do: Callable[[_Client], None]) -> None:
        for client in list(self._pairs):
            do(client)

    async def _listen(self) -> None:
        if not self.server.startswith("/"):
            # Each of pytest-xdist's workers has its own: one that is down for a while would lose
            # its address to another worker's.
            worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
            workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
            own = range(20 + worker, 255, workers)
            addresses = [self.host] if self.host else [f"127.0.0.{n}" for n in own]
            for address in addresses:
                with contextlib.suppress(OSError):
                    self._listener = await self._loop.create_server(
                        lambda: _Client(self), address, PORT, reuse_address=True
                    )
                    self.host = address
                    return
            raise OSError(f"no free address for port {PORT}")
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="proxy-")
            self.host = self._folder.name
        path = Path(self.host, f".s.PGSQL.{PORT}")
        path.unlink(missing_ok=True)
        self._listener = await self._loop.create_unix_server(lambda: _Client(self), path)

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._folder is not None:
            Path(self.host, f".s.PGSQL.{PORT}").unlink(missing_ok=True)


class _Side(asyncio.Protocol):
    """One socket of a connection: what it is given is sent after the delay, in order."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.transport: asyncio.Transport | None = None
        self._ended = False
        self._queue: deque[Callable[[asyncio.Transport], None]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )

    def send(self, data: bytes) -> None:
        if not self._ended:
            self._later(lambda transport: transport.write(data))

    def end(self) -> None:
        """The end of the stream, behind what was sent."""
        self._ended = True
        self._later(lambda transport: transport.write_eof())

    def close(self) -> None:
        """Hang up, behind what was sent."""
        self._later(lambda transport: transport.close())

    def _later(self, do: Callable[[asyncio.Transport], None]) -> None:
        self._queue.append(do)
        if self.proxy.round_trip_seconds:
            asyncio.get_running_loop().call_later(self.proxy.round_trip_seconds / 2, self._next)
        else:
            self._next()

    def _next(self) -> None:
        do = self._queue.popleft()
        if self.transport is not None and not self.gone and not self.proxy.deaf:
            do(self.transport)

    @property
    def gone(self) -> bool:
        return self.transport is not None and self.transport.is_closing()


class _Client(_Side):
    """The client's side, which owns the server's."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self.server = _Server(proxy, self)
        self.asked = False
        self.cut: Moment | None = None
        self._early: list[bytes] = []  # what came before the server was connected to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.proxy.accepted += 1
        self.proxy._pairs.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        proxy, server = self.proxy, self.proxy.server
        try:
            if server.startswith("/"):
                path = str(Path(server, f".s.PGSQL.{PORT}"))
                await loop.create_unix_connection(lambda: self.server, path)
            else:
                await loop.create_connection(lambda: self.server, server, PORT)
        except OSError:
            self.abort()
            return
        for data in self._early:
            self.server.send(data)
        if not proxy.deaf:
            self.catch_up()

    def data_received(self, data: bytes) -> None:
        proxy = self.proxy
        proxy.bytes += len(data)
        if proxy.deaf:
            return
        if proxy.cut is not None and self.server.transport is not None:
            self.cut, proxy.cut = proxy.cut, None
        if self.cut == "before":
            self.abort()
            return
        self.asked = True
        if self.server.transport is None:
            self._early.append(data)
        else:
            self.server.send(data)
        if self.cut == "during":
            # Politely towards the server, which reads what was sent before it sees the end.
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.proxy.deaf:
            self.catch_up()

    def catch_up(self) -> None:
        """When one side has gone, let the other hear of it."""
        if self.gone:
            self.server.close()
            self.proxy._pairs.discard(self)
        elif self.server.gone:
            self.close()

    def abort(self) -> None:
        for transport in (self.transport, self.server.transport):
            if transport is not None:
                transport.abort()
        self.proxy._pairs.discard(self)

    def half_close(self) -> None:
        self.end()


class _Server(_Side):
    def __init__(self, proxy: Proxy, client: _Client) -> None:
        super().__init__(proxy)
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.proxy.bytes += len(data)
        if self.proxy.deaf:
            return
        self.proxy.round_trips += self.client.asked
        self.client.asked = False
        self.client.send(data)
        if self.client.cut == "after":
            self.client.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.proxy.deaf:
            self.client.catch_up()


def main() -> None:
    server, round_trip_ms = sys.argv[1:]
    with Proxy(server, round_trip_seconds=float(round_trip_ms) / 1000) as proxy:
        print(proxy.host, flush=True)
        for _ in sys.stdin:
            print(proxy.round_trips, proxy.accepted, flush=True)


if __name__ == "__main__":
    main()
