"""Place: where to connect and as whom; one for all loops of a Lakebase."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakebase_sessions.workspace.background import in_thread

if TYPE_CHECKING:
    from lakebase_sessions.workspace.credentials import Credentials

logger = logging.getLogger(__name__)

LOOK_UP_SECONDS = 1.0
"""Least time between two questions to the workspace where a Lakebase is."""


class Host:
    """The host's name, which changes when a Lakebase fails over to another host.

    Args:
        name: What it is now.
        look_up: Asks the workspace; blocks.
    """

    def __init__(self, name: str, look_up: Callable[[], str]) -> None:
        self.name = name
        self.waking = False
        """Whether it was said that it takes its time; until somebody is connected."""
        self._look_up = look_up
        self._lock = threading.Lock()
        self._looking = False
        self._looked_up_at = time.monotonic()

    def look_up(self) -> None:
        """Ask again, in the background; whoever connects later uses the answer."""
        with self._lock:
            if self._looking or time.monotonic() - self._looked_up_at < LOOK_UP_SECONDS:
                return
            self._looking = True
        in_thread(self._look_up, "host").add_done_callback(self._looked_up)

    def _looked_up(self, found: Future[str]) -> None:
        with self._lock:
            self._looking = False
            self._looked_up_at = time.monotonic()
        if (error := found.exception()) is not None:
            logger.info("The host could not be looked up again: %s", error)
        elif found.result() != self.name:
            logger.warning("Moved to host %s, from %s", found.result(), self.name)
            self.name = found.result()


@dataclass(frozen=True, slots=True)
class Place:
    """Everything needed to build an engine.

    Attributes:
        name: The instance's name or the endpoint's path.
        host: Its host.
        ssl_mode: libpq's `sslmode`: `require` or stronger.
        timeout_seconds: Bound of getting a connection; a statement has a multiple of it.
    """

    name: str
    host: Host
    user: str
    database: str
    schema: str | None
    credentials: Credentials
    ssl_mode: str
    pool_size: int
    max_overflow: int
    timeout_seconds: float

    @property
    def where(self) -> str:
        """Where the tables are, for a message."""
        schema = f"schema '{self.schema}'" if self.schema else "the default schema"
        return f"{schema} of database '{self.database}' on Lakebase '{self.name}'"

    @property
    def most_connections(self) -> int:
        """That one loop has open at once."""
        return self.pool_size + self.max_overflow

    @property
    def statement_seconds(self) -> float:
        """How long a statement may take: Postgres ends it after 2 timeouts, else we do."""
        return 2.5 * self.timeout_seconds


def quoted(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
