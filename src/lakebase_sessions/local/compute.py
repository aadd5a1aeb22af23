"""The compute of an endpoint, which can be suspended and disabled.

Clients reach it at a socket of its own, where a thread forwards what they send to PostgreSQL and
back. So it knows which sessions are its own, and who connects while it sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lakebase_sessions.local import socket_folder

if TYPE_CHECKING:
    from lakebase_sessions.local.admin import Admin

T = TypeVar("T")
Report = Callable[[str, bool], None]

_PORT = 5432
_CANCEL, _SSL, _GSS = 80877102, 80877103, 80877104
"""What a client's first message may be, beside a login."""
_READ_BYTES = 65536
_END_SECONDS = 10
"""How long a session that is ended may take for it."""


@dataclass(eq=False)
class _Session:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    pid: int | None = None
    """Of the backend, once it has logged in."""


class Compute:
    """An autoscaling endpoint's compute, from `LocalLakebase.add_compute()` on.

    Its states are the platform's: ACTIVE; IDLE after `suspend()`; INIT while it wakes.
    """

    def __init__(self, admin: Admin, server: str, report: Report, *, wake_seconds: float) -> None:
        self.wake_seconds = wake_seconds
        """How long the first connection to a suspended compute waits."""
        self.wakes = 0
        """How often it has been woken."""
        self.state = "ACTIVE"
        self.disabled = False
        self._admin = admin
        self._server = server
        self._report = report
        self._sessions: set[_Session] = set()
        self._changed = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None
        self._folder = socket_folder.make_temporary()
        self.host = str(self._folder)
        """What a client passes to libpq as host."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="lakebase-local-compute", daemon=True
        )
        self._thread.start()
        self._listener = self._run(self._listen())

    def suspend(self) -> None:
        """Scale it to zero: end every session; the next connection wakes it.

        What a session had is gone with it: prepared statements, settings, advisory locks.
        """
        self._sleep(disabled=self.disabled)

    def disable(self) -> None:
        """Suspend it, and let no connection wake it: they are refused until `enable()`."""
        self._sleep(disabled=True)

    def enable(self) -> None:
        """Let the next connection wake it again."""
        self._sleep(disabled=False)

    def stop(self) -> None:
        """End it, with its sessions and its host."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _sleep(self, *, disabled: bool) -> None:
        pids = self._run(self._fall_asleep(disabled=disabled))
        if not pids:
            return
        with self._admin.connect() as conn:
            # As a server does that shuts down, so that clients are told in its words.
            conn.execute(
                "SELECT pg_terminate_backend(pid, %s::bigint) FROM unnest(%s::int[]) pid",
                [_END_SECONDS * 1000, pids],
            )

    # What follows runs on the loop

    async def _listen(self) -> asyncio.Server:
        path = self._folder / f".s.PGSQL.{_PORT}"
        return await asyncio.start_unix_server(self._serve, path, backlog=128)

    async def _fall_asleep(self, *, disabled: bool) -> list[int]:
        """Return the backends that have to end."""
        self._set("IDLE", disabled=disabled)
        for session in self._sessions:
            if session.pid is None:  # about to log in: that one is not known yet
                session.client.transport.abort()
        return [session.pid for session in self._sessions if session.pid is not None]

    async def _is_awake(self) -> bool:
        """Wake it, if need be, and return whether it is awake and not disabled by then."""
        while self.state != "ACTIVE" and not self.disabled:
            if self.state == "IDLE":
                self.wakes += 1
                self._set("INIT", disabled=False)
                self._waking = self._loop.call_later(
                    self.wake_seconds, lambda: self._set("ACTIVE", disabled=False)
                )
            await self._changed.wait()
        return not self.disabled

    def _set(self, state: str, *, disabled: bool) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        self.state, self.disabled = state, disabled
        self._report(state, disabled)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _close(self) -> None:
        self._listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the sockets that they have closed

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                await self._forward(reader, client)
            finally:
                client.close()

    async def _forward(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        first, code = await _first_message(reader)
        while code in (_SSL, _GSS):
            client.write(b"N")
            first, code = await _first_message(reader)
        if code != _CANCEL and not await self._is_awake():
            client.write(_error("endpoint is disabled. Enable it using the API and retry."))
            await client.drain()
            return
        if self._server.startswith("/"):
            path = Path(self._server, f".s.PGSQL.{_PORT}")
            answers, server = await asyncio.open_unix_connection(path)
        else:
            answers, server = await asyncio.open_connection(self._server, _PORT)
        session = _Session(client, server)
        self._sessions.add(session)
        try:
            server.write(first)
            back = asyncio.create_task(_answer(answers, session))
            await _pump(reader, server)
            await back
        finally:
            self._sessions.discard(session)
            server.close()


async def _first_message(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    size = await reader.readexactly(4)
    rest = await reader.readexactly(max(int.from_bytes(size, "big") - 4, 4))
    return size + rest, int.from_bytes(rest[:4], "big")


async def _answer(answers: asyncio.StreamReader, session: _Session) -> None:
    """Pass on what the server says, and note which backend it is."""
    try:
        with contextlib.suppress(asyncio.IncompleteReadError):
            kind = b""
            while kind not in (b"Z", b"E"):  # ready for queries, or an error
                head = await answers.readexactly(5)
                rest = await answers.readexactly(int.from_bytes(head[1:], "big") - 4)
                kind = head[:1]
                if kind == b"K":  # the key for a cancellation, and the pid
                    session.pid = int.from_bytes(rest[:4], "big")
                session.client.write(head + rest)
            await _pump(answers, session.client)
    finally:
        session.client.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what is read, and then its end."""
    with contextlib.suppress(OSError):
        try:
            while data := await reader.read(_READ_BYTES):
                writer.write(data)
                await writer.drain()
        finally:
            writer.write_eof()


def _error(message: str) -> bytes:
    fields = {"S": "ERROR", "V": "ERROR", "C": "XX000", "M": message}
    body = b"".join(f"{key}{text}\0".encode() for key, text in fields.items()) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body
