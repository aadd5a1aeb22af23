"""Connection: one to Postgres, from the first attempt to its end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import os
import random
import select
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import waiting
from psycopg.pq import ConnStatus, TransactionStatus

from lakebase_sessions.errors import (
    LakebaseSessionsError,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    check_running,
    from_connect_error,
)
from lakebase_sessions.workspace.background import in_thread, wait_for
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from lakebase_sessions.workspace.api import Token
    from lakebase_sessions.workspace.place import Place

logger = logging.getLogger(__name__)

PORT = 5432

WAKING_SECONDS = 1.0
"""A connection that takes longer is probably waking a Lakebase that was scaled to zero."""

_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Home(Protocol):
    """Where a connection came from."""

    def put_back(self, connection: Connection) -> None:
        """Take it back."""


class Connection(psycopg.AsyncConnection[Any]):
    """One of a pool's: `close()` returns it, as SQLAlchemy's `NullPool` expects.

    Attributes:
        opened_at: `time.monotonic()` when it was there.
        prepared: Statements that it has prepared.
        home: Its pool. Not kept alive by it: what is left of a pool is closed with it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.opened_at = time.monotonic()
        self.prepared: set[str] = set()
        self.home: weakref.ref[Home] | None = None

    async def wait(self, gen: Any, interval: float = 0.1, *args: Any, **options: Any) -> Any:
        """Wait for what `gen` does; the connection is closed where somebody is cancelled."""
        # psycopg would ask the server, on another connection, to cancel the statement, which may
        # take 10 s; and what it had begun to prepare, and a pipeline, would stay half done.
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *args, **options)
        except asyncio.CancelledError:
            self.pgconn.finish()
            with contextlib.suppress(psycopg.Error):
                gen.close()
            raise

    async def close(self) -> None:
        """Return it to its pool."""
        home = self.home() if self.home is not None else None
        if home is None:
            await super().close()
        else:
            home.put_back(self)

    @property
    def reusable(self) -> bool:
        """Whether it is as it was when it was opened."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE and self.autocommit

    def hung_up(self) -> bool:
        """Whether the server has closed it while it was idle, without asking the server."""
        try:
            readable = select.poll()
            readable.register(self.pgconn.socket, select.POLLIN)
            # Until nothing is left: the server's last words come before the end of the stream.
            while readable.poll(0):
                self.pgconn.consume_input()
        except (psycopg.OperationalError, OSError):
            return True
        return self.pgconn.status != ConnStatus.OK

    def cut_off(self) -> None:
        """End the stream under it, from any thread."""
        # Closing would free what a statement in flight still reads. The end of the stream is
        # something that psycopg knows how to deal with.
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as stream,
        ):
            stream.shutdown(socket.SHUT_RDWR)


async def connect(
    place: Place, wanted: Callable[[LakebaseSessionsError], bool]
) -> Connection | None:
    """A new connection, tried again while nothing has reached the server.

    Args:
        place: Where to connect, and as whom.
        wanted: Whether anybody waits for it. Told what to tell one who gives up from now on.

    Returns:
        None where nobody waits any more.

    Raises:
        PermissionDenied: Postgres refused a new token too.
        LakebaseUnavailable: The workspace gives no token.
        LakebaseSessionsError: Trying again would not change it; the class says what.
    """
    rejected: Token | None = None
    found: LakebaseSessionsError = no_connection(place)
    for attempt in itertools.count():
        wanted(no_token(place))
        await _token(place, rejected)
        wanted(found)
        token = place.credentials.token
        try:
            async with asyncio.timeout(place.timeout_seconds):
                with _waking_is_said(place):
                    return await _connect_once(place, token)
        except TimeoutError:
            found = no_connection(place)
        except (psycopg.Error, OSError) as error:
            found = from_connect_error(error, place.name)
            found.__cause__ = error
        if isinstance(found, PermissionDenied):
            if token is not place.credentials.token:
                continue  # another one has replaced it in the meantime
            if rejected is None:
                rejected = token  # perhaps it died early: one new token, one more try
                continue
        if not isinstance(found, LakebaseUnavailable):
            raise found
        place.host.look_up()
        if not wanted(found):
            return None
        backoff = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _waking_is_said(place: Place) -> Iterator[None]:
    """Say once, for all who connect meanwhile, that it takes its time."""

    def say() -> None:
        if not place.host.waking:
            place.host.waking = True
            logger.warning(
                "Lakebase '%s' has not answered for %g s: it may be waking from zero. Waiting for "
                "up to %g s.",
                place.name,
                WAKING_SECONDS,
                place.timeout_seconds,
            )

    timer = asyncio.get_running_loop().call_later(WAKING_SECONDS, say)
    try:
        yield
        place.host.waking = False
    finally:
        timer.cancel()


def no_connection(place: Place) -> LakebaseTimeout:
    """The error of one who waited for a connection in vain."""
    return LakebaseTimeout(
        f"Lakebase '{place.name}' gave no connection within {place.timeout_seconds:g} s. Check "
        f"that it runs and can be reached from here: `{check_running(place.name)}`."
    )


def no_token(place: Place) -> LakebaseTimeout:
    """The error of one who waited in vain while the workspace was asked for a token."""
    return LakebaseTimeout(
        f"The workspace gave no database token within {place.timeout_seconds:g} s; this is tried "
        "again with the next request."
    )


async def _token(place: Place, rejected: Token | None) -> None:
    try:
        async with asyncio.timeout(place.timeout_seconds):
            await place.credentials.ready(rejected)
    except TimeoutError as error:
        if isinstance(error, LakebaseTimeout):
            raise
        raise no_token(place) from error


async def _connect_once(place: Place, token: Token | None) -> Connection:
    host = place.host.name
    addresses = await _addresses(host, place.timeout_seconds)
    try:
        return await Connection.connect(
            # One host an address: libpq wants as many of the one as of the other.
            host=",".join([host] * max(len(addresses), 1)),
            hostaddr=",".join(addresses) or None,
            password=token.value if token else "",
            autocommit=True,
            **_parameters(place),
        )
    except asyncio.CancelledError as error:
        # The attempt to connect lives in these frames, and its socket as long as they do.
        traceback.clear_frames(error.__traceback__)
        raise


async def _addresses(host: str, timeout_seconds: float) -> list[str]:
    """The addresses of a host that has to be looked up; none of any other."""
    # psycopg would look it up in the loop's default executor, whose threads the application may
    # have taken. And libpq itself fails on long names on some systems, macOS among them.
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return []
    if host.startswith("/"):
        return []
    looking = in_thread(lambda: socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM), "resolve")
    try:
        found = await wait_for(looking, timeout_seconds)
    except (socket.gaierror, UnicodeError) as error:
        raise psycopg.OperationalError(f"failed to resolve host {host!r}: {error}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _parameters(place: Place) -> dict[str, Any]:
    timeout = place.timeout_seconds
    options = [
        # A forgotten transaction elsewhere must not hold up a write, and its request, for ever.
        f"lock_timeout={int(timeout * 1000)}",
        f"statement_timeout={int(timeout * 2000)}",
        # Under any other, of two who write to one conversation at once the second one fails.
        "default_transaction_isolation=read committed",
        # Moments come back as text, and go out again as they came.
        "datestyle=ISO",
    ]
    if place.schema:
        # At connect, so that no checkout costs a SET. No fall-back to public: tables of the same
        # name there are somebody else's.
        options.append(f"search_path={quoted(place.schema)}")
    escaped = [option.replace("\\", "\\\\").replace(" ", "\\ ") for option in options]
    return {
        "port": PORT,
        "user": place.user,
        "dbname": place.database,
        "sslmode": place.ssl_mode,
        "connect_timeout": max(2, int(timeout)),  # libpq's smallest
        "fallback_application_name": "lakebase-sessions",
        # A network that went silent is noticed within about 25 s, not after hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": " ".join(f"-c{option}" for option in escaped),
    }
