"""What a benchmark runs in: real conversations in the database, and a network before it."""

from __future__ import annotations

import contextlib
import enum
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.competitors import Turn

TESTS = Path(__file__).parents[1]
CONVERSATIONS = TESTS.parents[1] / "shared" / "data" / "conversations.jsonl"
MEASURED = ("databricks-openai", "openai-agents", "SQLAlchemy", "psycopg", "asyncpg")


class Way(enum.Enum):
    """How the server is reached; the value is the round trip's milliseconds."""

    DIRECT = None
    MS_0 = 0
    MS_1 = 1
    MS_4 = 4
    MS_16 = 16

    def __str__(self) -> str:
        return "direct" if self.value is None else f"{self.value} ms"

    @property
    def instance(self) -> str:
        """The Lakebase whose host it is."""
        return self.name.lower().replace("_", "-")


class Conversations:
    """Real items, as histories of any length and as turns.

    Raises:
        FileNotFoundError: They are not part of the repository, and not beside it.
    """

    def __init__(self) -> None:
        lines = CONVERSATIONS.read_text().splitlines()
        conversations: list[list[Any]] = [json.loads(line)["items"] for line in lines]
        self._items = [json.dumps(item) for items in conversations for item in items]
        self.turns = [turn for items in conversations for turn in _turns(items) if turn.output]

    def history(self, length: int) -> list[str]:
        """So many items, as JSON, repeated where there are not so many."""
        return list(itertools.islice(itertools.cycle(self._items), length))


def _turns(items: list[Any]) -> Iterator[Turn]:
    """Each begins with what the user says."""
    begins = [place for place, item in enumerate(items) if item.get("role") == "user"]
    for begin, end in itertools.pairwise([*begins, len(items)]):
        yield Turn(items[begin : begin + 1], items[begin + 1 : end])


class Database:
    """The tables, looked at past everybody, outside of what is measured."""

    def __init__(self, dsn: str, database: str) -> None:
        self._connection = psycopg.connect(dsn, dbname=database, autocommit=True)
        self._last_id = 0

    def close(self) -> None:
        self._connection.close()

    def store(self, conversation: str, history: list[str]) -> None:
        """A conversation that everybody finds; before anything is measured."""
        self._connection.execute(
            "INSERT INTO agent_sessions (session_id) VALUES (%s)", (conversation,)
        )
        self._connection.execute(
            """
            INSERT INTO agent_messages (session_id, message_data, created_at)
            SELECT %s, item, now() - interval '1 day' + position * interval '1 millisecond'
            FROM unnest(%s::text[]) WITH ORDINALITY AS stored (item, position)
            """,
            (conversation, history),
        )
        self._last_id = self._one("SELECT max(id) FROM agent_messages")

    def forget(self) -> int:
        """Take out what was added to the histories; how many items that were."""
        return self._connection.execute(
            "DELETE FROM agent_messages WHERE id > %s", (self._last_id,)
        ).rowcount

    def tidy(self) -> None:
        """Leave nothing to read past, and the planner with figures that are true."""
        self._connection.execute("VACUUM ANALYZE agent_messages, agent_sessions")

    @property
    def server(self) -> str:
        """Which it is, and what lies between it and its clients."""
        version = str(self._one("SHOW server_version")).split()[0]
        if self._connection.pgconn.ssl_in_use:
            return f"PostgreSQL {version} in a container, with TLS"
        return f"LocalLakebase's embedded PostgreSQL {version} on a Unix socket, without TLS"

    @property
    def settings(self) -> str:
        """How durable its writes are."""
        names = ("fsync", "synchronous_commit", "full_page_writes")
        return ", ".join(f"{name}={self._one(f'SHOW {name}')}" for name in names)

    def _one(self, statement: str) -> Any:
        row = self._connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]


class Network:
    """The way to a server at `host`, which counts round trips if it goes through a proxy."""

    def __init__(self, host: str, proxy: subprocess.Popen[str] | None = None) -> None:
        self.host = host
        self._proxy = proxy

    def round_trips(self) -> int:
        """How many there have been since the beginning."""
        if self._proxy is None:
            return 0
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        self._proxy.stdin.write("\n")
        self._proxy.stdin.flush()
        return int(self._proxy.stdout.readline().split()[0])


@contextlib.contextmanager
def network(server: str, way: Way) -> Iterator[Network]:
    """A proxy in a process of its own, out of the way of what is measured."""
    if way is Way.DIRECT:
        yield Network(server)
        return
    with subprocess.Popen(
        [sys.executable, TESTS / "proxy.py", server, str(way.value)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as proxy:
        assert proxy.stdout is not None
        yield Network(proxy.stdout.readline().strip(), proxy)


def processor() -> str:
    """Its model, as the kernel names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> str:
    """Of everything that was measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in MEASURED)
    return f"Python {platform.python_version()}, {packages}"
