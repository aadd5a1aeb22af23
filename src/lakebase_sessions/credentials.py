"""Credentials: a database token that is renewed, in the background, before it expires."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from lakebase_sessions.background import in_thread, wait_for
from lakebase_sessions.errors import LakebaseNotOpen, LakebaseTimeout

if TYPE_CHECKING:
    from lakebase_sessions.workspace import Token

logger = logging.getLogger(__name__)

RENEW_AFTER = 2 / 3
"""Of a token's lifetime. Early enough that an hour's token survives a clock that is ten minutes
off and a workspace that is down for a quarter of an hour; late enough to cost two calls an hour."""
LONGEST_BACKOFF_SECONDS = 30.0
"""Between attempts to renew while the workspace is failing."""


class Credentials:
    """The current database token of one identity, for any number of loops and threads.

    A timer renews the token; whoever needs one finds it ready and never waits. Only when there
    is none that is still valid (after a suspend, or when the workspace was down for long) does
    `ready` wait, off the event loop, and all who wait share one call.

    Args:
        mint: Asks the workspace for a token. Blocks, bounded by the workspace's own timeouts.
        timeout_seconds: How long `ready` waits at most.
    """

    def __init__(self, mint: Callable[[], Token], *, timeout_seconds: float) -> None:
        self._mint = mint
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._renewal: Future[Token] | None = None
        self._timer: threading.Timer | None = None
        self._failures = 0
        self._closed = False

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
            with self._lock:
                if self._renewal is renewal:
                    self._renewal = None  # it may hang for ever; the next one asks anew
            raise LakebaseTimeout(
                f"The workspace gave no database token within {self._timeout_seconds:g} s; this "
                "is tried again with the next request."
            ) from error

    def close(self) -> None:
        """Stop renewing."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _valid(self, rejected: Token | None) -> bool:
        token = self._token
        return token is not None and token is not rejected and time.monotonic() < token.expires_at

    def _renew(self) -> Future[Token]:
        """The renewal that is under way, or a new one. The lock is held."""
        if self._closed:
            raise LakebaseNotOpen("This Lakebase was closed; open a new one.")
        if self._renewal is None:
            self._renewal = in_thread(self._renew_in_thread, "token")
        return self._renewal

    def _renew_in_thread(self) -> Token:
        try:
            token = self._mint()
        except Exception as error:
            with self._lock:
                self._renewal = None
                self._failures += 1
                failures = self._failures
                # capped before it is raised: an outage may last for thousands of requests
                delay = min(2.0 ** min(failures, 10), LONGEST_BACKOFF_SECONDS)
                self._schedule(delay * random.uniform(0.5, 1.0))
            logger.warning(
                "The database token could not be renewed (attempt %d): %s", failures, error
            )
            raise
        self._keep(token)
        return token

    def _keep(self, token: Token) -> None:
        with self._lock:
            self._token = token
            self._renewal = None
            self._failures = 0
            self._schedule(token.lifetime_seconds * RENEW_AFTER)

    def _schedule(self, delay_seconds: float) -> None:
        """Renew after a while. The lock is held. A timer does not keep this object alive."""
        if self._timer is not None:
            self._timer.cancel()
        if self._closed:
            return
        self._timer = threading.Timer(delay_seconds, _renew_if_alive, [weakref.ref(self)])
        self._timer.name = "lakebase-sessions-token-timer"
        self._timer.daemon = True
        self._timer.start()


def _renew_if_alive(reference: weakref.ref[Credentials]) -> None:
    credentials = reference()
    if credentials is None:
        return
    with credentials._lock:
        if not credentials._closed:
            credentials._renew()
