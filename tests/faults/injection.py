"""The faults that a soak draws from. Each lasts until `over` is set, and has undone itself then.

A fault runs in a thread of its own, and two may be in force at the same time: what one of them
needs from the server may have to wait until the other has given the server back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg
from proxy import Moment, Proxy

from faults.load import Load
from faults.own_server import Manner, OwnServer
from faults.subjects import Subject
from lakebase_sessions.local import LocalLakebase

GIVE_UP_SECONDS = 60.0
"""For undoing a fault while another one is in the way."""


@dataclass(frozen=True)
class Scene:
    """Everything that faults act on."""

    server: OwnServer
    local: LocalLakebase
    proxy: Proxy
    database: str
    load: Load
    subject: Subject

    def execute(self, statement: str, *parameters: object) -> list[Any]:
        """Run a superuser's statement, again and again while the server is away."""
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                with self.connect() as connection:
                    cursor = connection.execute(statement.encode(), parameters or None)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            self.local.admin_dsn,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
            options="-clock_timeout=5s",
        )

    def kill(self) -> None:
        """End every connection to the database, on the server's side."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            self.database,
        )


Fault = Callable[[Scene, Random, threading.Event], None]


def _again_and_again(do: Callable[[], object], random: Random, over: threading.Event) -> None:
    while not over.wait(random.uniform(0.02, 0.5)):
        do()


def connections_killed(scene: Scene, random: Random, over: threading.Event) -> None:
    _again_and_again(scene.kill, random, over)


def statements_cancelled(scene: Scene, random: Random, over: threading.Event) -> None:
    """By an operator."""
    _again_and_again(
        lambda: scene.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            scene.database,
        ),
        random,
        over,
    )


def connections_dropped(scene: Scene, random: Random, over: threading.Event) -> None:
    _again_and_again(scene.proxy.drop, random, over)


def connections_half_closed(scene: Scene, random: Random, over: threading.Event) -> None:
    _again_and_again(scene.proxy.half_close, random, over)


def statements_cut_off(scene: Scene, random: Random, over: threading.Event) -> None:
    """Before they reach the server, before their answer comes back, after it."""
    moments: tuple[Moment, ...] = ("before", "during", "after")

    def cut() -> None:
        scene.proxy.cut = random.choice(moments)

    _again_and_again(cut, random, over)
    scene.proxy.cut = None


def network_deaf(scene: Scene, random: Random, over: threading.Event) -> None:
    scene.proxy.deaf = True
    over.wait()
    scene.proxy.deaf = False


def network_slow(scene: Scene, random: Random, over: threading.Event) -> None:
    """From slow to slower than any bound, so that writes arrive after they were given up."""
    usual = scene.proxy.round_trip_seconds
    scene.proxy.round_trip_seconds = random.choice((0.2, 1.0, 5.0, 10.0))
    over.wait()
    scene.proxy.round_trip_seconds = usual


def network_closed(scene: Scene, random: Random, over: threading.Event) -> None:
    scene.proxy.refuse()
    scene.proxy.drop()
    over.wait()
    scene.proxy.accept()


def server_restarted(scene: Scene, random: Random, over: threading.Event) -> None:
    """A fast shutdown, an immediate one, SIGKILL."""
    manners: tuple[Manner, ...] = ("fast", "immediate", "kill")
    scene.server.stop(random.choice(manners))
    over.wait()
    scene.server.start()


def locks_held(scene: Scene, random: Random, over: threading.Event) -> None:
    """On a table, or on each conversation."""
    statements = (
        b"LOCK TABLE agent_sessions",
        b"LOCK TABLE agent_messages",
        b"SELECT FROM agent_sessions FOR UPDATE",
    )
    # The server may be away now, or go away and take the locks with it.
    with (
        contextlib.suppress(psycopg.Error),
        scene.connect(scene.database) as connection,
        connection.transaction(),
    ):
        connection.execute(random.choice(statements))
        over.wait()
    over.wait()


def workspace_failing(scene: Scene, random: Random, over: threading.Event) -> None:
    """While connections are dropped, so that tokens are needed."""
    manners: tuple[dict[str, Any], ...] = (
        {"status": 401},
        {"status": 403},
        {"status": 429, "headers": {"Retry-After": "3600"}},
        {"status": 500},
        {"status": 503},
        {"status": 200, "body": "{not json"},
        {"status": 200, "body": ""},
        {"delay_seconds": 3.0},
        {"hang": True},
        {"drop": True},
    )
    with scene.local.fault(**random.choice(manners)):
        _again_and_again(scene.proxy.drop, random, over)


def too_many_connections(scene: Scene, random: Random, over: threading.Event) -> None:
    scene.execute(f'ALTER DATABASE "{scene.database}" CONNECTION LIMIT {random.choice((0, 3))}')
    scene.kill()
    over.wait()
    scene.execute(f'ALTER DATABASE "{scene.database}" CONNECTION LIMIT -1')


def server_read_only(scene: Scene, random: Random, over: threading.Event) -> None:
    setting = "default_transaction_read_only"
    scene.execute(f'ALTER DATABASE "{scene.database}" SET {setting} = on')
    scene.kill()
    over.wait()
    scene.execute(f'ALTER DATABASE "{scene.database}" RESET {setting}')
    scene.kill()


def calls_cancelled(scene: Scene, random: Random, over: threading.Event) -> None:
    scene.load.cancelling = True
    over.wait()
    scene.load.cancelling = False


def lakebase_reopened(scene: Scene, random: Random, over: threading.Event) -> None:
    scene.subject.close()
    over.wait()
    scene.subject.open()


def loops_ended(scene: Scene, random: Random, over: threading.Event) -> None:
    """`asyncio.run` again and again, each with a loop and connections of its own."""
    _again_and_again(scene.subject.use_in_new_loop, random, over)


FAULTS: tuple[Fault, ...] = (
    connections_killed,
    statements_cancelled,
    connections_dropped,
    connections_half_closed,
    statements_cut_off,
    network_deaf,
    network_slow,
    network_closed,
    server_restarted,
    locks_held,
    workspace_failing,
    too_many_connections,
    server_read_only,
    calls_cancelled,
    lakebase_reopened,
    loops_ended,
)
