"""Credentials: a database token that is renewed, in the background, before it expires."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lakebase_sessions.errors import CLOSED, LakebaseNotOpen, LakebaseTimeout, LakebaseUnavailable
from lakebase_sessions.workspace.background import in_thread, wait_for

if TYPE_CHECKING:
    from lakebase_sessions.workspace.api import Token

logger = logging.getLogger(__name__)

RENEW_AFTER = 2 / 3
"""Of a token's lifetime. Early enough that an hour's token survives a workspace that is down for
a quarter of an hour; late enough to cost two calls an hour."""
SHORTEST_INTERVAL_SECONDS = 1.0
"""Between renewals, however short the tokens seem to live. Without it, an expiry that is always
in the next moment would flood the workspace."""
LONGEST_BACKOFF_SECONDS = 30.0
"""Between attempts to renew while the workspace is failing."""


class Credentials:
    """The current database token of one identity, for any number of loops and threads.

    A timer renews the token; whoever needs one finds it ready and never waits. Only when there
    is none that is still valid (after a suspend, or when the workspace was down for long) does
    `ready` wait, off the event loop, and all who wait share one call. When the workspace refuses
    a token, the timer rests until somebody needs one again.

    Args:
        mint: Asks the workspace for a token. Blocks, bounded by the workspace's own timeouts.
        timeout_seconds: How long `ready` waits at most, and when a call that hangs all the same
            is given up and the next one made.
    """

    def __init__(self, mint: Callable[[], Token], *, timeout_seconds: float) -> None:
        self._mint = mint
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._renewal: Future[Token] | None = None
        self._attempt = 0
        self._failures = 0
        self._closed = False
        self._timer: threading.Thread | None = None
        # The garbage collector may run anywhere, and of all ways to tell a thread something only
        # this queue is safe there.
        self._delays: SimpleQueue[float | None] = SimpleQueue()
        weakref.finalize(self, self._delays.put, None)

    @property
    def token(self) -> Token | None:
        """The newest token, which may have expired; never waits."""
        return self._token

    def renew_now(self) -> None:
        """Get the first token, in the calling thread."""
        self._keep(self._mint())

    async def ready(self, rejected: Token | None = None) -> None:
        """Return once there is a valid token other than `rejected`.

        Args:
            rejected: A token that Postgres refused although it should be valid.

        Raises:
            LakebaseTimeout: The workspace did not give one in time.
            PermissionDenied: The workspace gives this identity no token (any more).
            LakebaseUnavailable: The workspace cannot be reached.
        """
        if self._valid(rejected):
            return
        with self._lock:
            if self._valid(rejected):
                return
            renewal = self._renew()
        try:
            await wait_for(renewal, self._timeout_seconds)
        except TimeoutError as error:
            if isinstance(error, LakebaseTimeout):
                raise
            raise LakebaseTimeout(
                f"The workspace gave no database token within {self._timeout_seconds:g} s; this "
                "is tried again with the next request."
            ) from error

    def close(self) -> None:
        """Stop renewing."""
        with self._lock:
            self._closed = True
            self._delays.put(None)

    def _valid(self, rejected: Token | None) -> bool:
        token = self._token
        return token is not None and token is not rejected and time.monotonic() < token.expires_at

    def _renew(self) -> Future[Token]:
        """The renewal that is under way, or a new one. The lock is held."""
        if self._closed:
            raise LakebaseNotOpen(CLOSED)
        if self._renewal is None:
            self._attempt += 1
            attempt = self._attempt
            self._renewal = in_thread(lambda: self._renew_in_thread(attempt), "token")
            self._schedule(self._timeout_seconds)  # it may hang for ever
        return self._renewal

    def _renew_in_thread(self, attempt: int) -> Token:
        try:
            token = self._mint()
        except Exception as error:
            with self._lock:
                self._failures += 1
                failures = self._failures
                if attempt == self._attempt:
                    self._renewal = None
                    self._schedule(_pause_after(error, failures))
            logger.warning(
                "The database token could not be renewed (attempt %d): %s", failures, error
            )
            raise
        self._keep(token)
        return token

    def _keep(self, token: Token) -> None:
        with self._lock:
            if self._token is None or token.received_at >= self._token.received_at:
                self._token = token  # and not one that was long on its way
            self._renewal = None
            self._failures = 0
            self._schedule(max(token.lifetime_seconds * RENEW_AFTER, SHORTEST_INTERVAL_SECONDS))

    def _schedule(self, delay_seconds: float) -> None:
        """Renew after a while, instead of when it was scheduled before. The lock is held."""
        if self._closed:
            return
        self._delays.put(min(delay_seconds, threading.TIMEOUT_MAX))
        if self._timer is None:
            self._timer = threading.Thread(
                target=_run_timer,
                args=[weakref.ref(self), self._delays],  # does not keep this object alive
                name="lakebase-sessions-token-timer",
                daemon=True,
            )
            self._timer.start()

    def _renew_by_timer(self) -> None:
        with self._lock:
            if not self._closed and self._delays.empty():  # else scheduled anew in this moment
                self._renewal = None  # if there is one, it has had its time
                self._renew()


def _pause_after(error: Exception, failures: int) -> float:
    if not isinstance(error, LakebaseUnavailable):
        return math.inf  # asking again would not change the answer
    # capped before it is raised: an outage may last for thousands of requests
    return min(2.0 ** min(failures, 10), LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)


def _run_timer(reference: weakref.ref[Credentials], delays: SimpleQueue[float | None]) -> None:
    """Renew when the latest of `delays` is over, until None comes."""
    delay = delays.get()
    while delay is not None:
        try:
            delay = delays.get(timeout=delay)
        except Empty:
            if credentials := reference():
                credentials._renew_by_timer()
            del credentials
            delay = delays.get()
