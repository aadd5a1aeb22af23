"""Soak: faults at random, from a seed that is printed, against conversations for a given time.

    uv run tests/faults/soak.py --seconds 600 --conversations 50 --seed 1

Each fault ends; then every conversation has to succeed again within a bound, and in the calm that
follows nothing may fail. The status is 1 if a promise was broken. `--session upstream` tries the
upstream class, as the template uses it, under the same faults.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from typing import Literal

import click
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a program it does not find tests/

from proxy import Proxy

from faults.injection import FAULTS, Fault, Scene
from faults.load import Load
from faults.own_server import own_server
from faults.report import Footprint, Options, Report
from faults.subjects import Loops, Ours, Subject, Upstream
from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase

INSTANCE = "proxied"
DATABASE = "soak"
MOST_CONNECTIONS = 15
"""Of a loop: `pool_size` and `max_overflow` as they are by default."""
ROUND_TRIP_SECONDS = 0.005
"""Of the network, so that faults meet statements under way."""
TOKENS_LIVE_SECONDS = 6.0


@dataclass
class Soak:
    """One run on a scene that is set up."""

    options: Options
    scene: Scene
    faults: int = 0
    longest_recovery: float = 0.0
    restarts: int = 0

    def __post_init__(self) -> None:
        self._random = Random(self.options.seed)
        self._bag: list[Fault] = []
        self._began = time.monotonic()

    def run(self) -> Report:
        scene, load, subject = self.scene, self.scene.load, self.scene.subject
        subject.open()
        load.start()
        self._recover()
        self._inject_for(self.options.seconds / 10)
        start = self._footprint()
        self._inject_for(self.options.seconds)
        end = self._footprint()
        if not subject.promises:
            scene.proxy.drop()  # some of its calls would never end
        load.stop()
        subject.close()
        left_open = self._connections() if subject.promises else 0
        with scene.connect(scene.database) as connection:
            verdict = load.checker.verdict(connection)
        return Report(
            options=self.options,
            verdict=verdict,
            calls=subject.calls,
            start=start,
            end=end,
            left_open=left_open,
            incomplete_reads=sum(each.incomplete_reads for each in load.conversations),
            popped_twice=sum(each.popped_twice for each in load.conversations),
            faults=self.faults,
            longest_recovery=self.longest_recovery,
            restarts=self.restarts,
        )

    def _inject_for(self, seconds: float) -> None:
        calls, until = self.scene.subject.calls, time.monotonic() + seconds
        while time.monotonic() < until:
            drawn = [self._draw() for _ in range(self._random.choice((1, 1, 1, 2)))]
            self._inject(list(dict.fromkeys(drawn)))  # no fault beside itself
            calls.calm_since = time.monotonic()
            time.sleep(self._random.uniform(0.2, 1.0) * self.options.longest_pause_seconds)
            calls.calm_since = inf

    def _draw(self) -> Fault:
        """Each kind comes as often as the others."""
        if not self._bag:
            self._bag = list(FAULTS)
            self._random.shuffle(self._bag)
        return self._bag.pop()

    def _inject(self, faults: list[Fault]) -> None:
        seconds = self._random.uniform(0.1, 1.0) * self.options.longest_fault_seconds
        seeds = [self._random.random() for _ in faults]
        names = " and ".join(fault.__name__ for fault in faults)
        since = time.monotonic() - self._began
        click.echo(f"{since:6.1f} s: {names} for {seconds:.1f} s", nl=False)
        over = threading.Event()
        with ThreadPoolExecutor() as threads:
            running = [
                threads.submit(fault, self.scene, Random(seed), over)
                for fault, seed in zip(faults, seeds, strict=True)
            ]
            time.sleep(seconds)
            over.set()
        for fault in running:
            fault.result()
        self.faults += len(faults)
        recovery = self._recover()
        self.longest_recovery = max(self.longest_recovery, recovery)
        click.echo(f", recovered after {recovery:.1f} s")

    def _recover(self) -> float:
        """Wait until every conversation has succeeded again; the seconds that took."""
        since = time.monotonic()
        give_up_at = since + 2 * self.options.bounds["turn"]
        while not self.scene.load.have_succeeded_since(since):
            if time.monotonic() > give_up_at:
                self.restarts += 1
                self.scene.subject.restart()
                self.scene.proxy.drop()
                click.echo(", restarted", nl=False)
                give_up_at = time.monotonic() + 2 * self.options.bounds["turn"]
            time.sleep(0.02)
        return time.monotonic() - since

    def _footprint(self) -> Footprint:
        """With every pool filled, and one loop that has ended: the same at each time."""
        self.scene.load.pause()
        self.scene.subject.use_in_new_loop()
        for _ in range(10):  # a busy machine does not manage it at once
            if self._fill_pools():
                break
        gc.collect()
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what is free in its heaps is no leak
        megabytes = psutil.Process().memory_info().rss / 1e6
        footprint = Footprint(self._connections(), megabytes)
        self.scene.load.paused = False
        return footprint

    def _fill_pools(self) -> bool:
        """Have each connection that may be open wait for a lock, if they all come in time."""
        scene, subject = self.scene, self.scene.subject

        async def fill_pool() -> None:
            reading = (subject.session("footprint").get_items() for _ in range(MOST_CONNECTIONS))
            await asyncio.gather(*reading, return_exceptions=not subject.promises)

        with scene.connect(scene.database) as connection, connection.transaction():
            connection.execute("LOCK TABLE agent_messages")
            filling = subject.loops.start_on_each(fill_pool)
            wanted = MOST_CONNECTIONS * len(subject.loops)
            give_up_at = time.monotonic() + self.options.call_timeout_seconds / 2
            while not (filled := self._waiting() == wanted) and time.monotonic() < give_up_at:
                time.sleep(0.02)
        for each in filling:
            each.result()
        return filled

    def _waiting(self) -> int:
        [(count,)] = self.scene.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
            self.scene.database,
        )
        return int(count)

    def _connections(self) -> int:
        """On the server, once it has noticed who hung up."""
        give_up_at = time.monotonic() + 10
        while True:
            [(count,)] = self.scene.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", self.scene.database
            )
            if count == self.scene.proxy.connections or time.monotonic() > give_up_at:
                return int(count)
            time.sleep(0.05)


def soak(options: Options) -> Report:
    """Set the scene and run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        server = stack.enter_context(own_server(options.postgres, folder))
        # Upstream keeps a token for 15 minutes, whatever the platform says of its life.
        lifetime = 3600.0 if options.upstream else TOKENS_LIVE_SECONDS
        local = stack.enter_context(
            LocalLakebase(dsn=server.machine.dsn, token_lifetime_seconds=lifetime)
        )
        proxy = stack.enter_context(Proxy(local.host, round_trip_seconds=ROUND_TRIP_SECONDS))
        local.add_instance(INSTANCE, read_write_dns=proxy.host)
        local.create_database(DATABASE)
        # Upstream's engine belongs to one loop.
        loops = stack.enter_context(Loops(1 if options.upstream else 2))
        subject = _subject(options, local, loops)
        load = Load(
            subject,
            conversations=options.conversations,
            seed=options.seed,
            longest_pause_seconds=options.longest_pause_seconds,
        )
        stack.callback(load.stop)  # also when something has gone wrong
        return Soak(options, Scene(server, local, proxy, DATABASE, load, subject)).run()


def _subject(options: Options, local: LocalLakebase, loops: Loops) -> Subject:
    client = local.workspace_client()
    if options.upstream:
        return Upstream(INSTANCE, client, DATABASE, loops)
    return Ours(
        lambda: Lakebase(
            INSTANCE,
            workspace_client=client,
            database=DATABASE,
            call_timeout_seconds=options.call_timeout_seconds,
            open_timeout_seconds=options.bounds["open"],
        ),
        loops,
    )


@click.command(help=__doc__.partition("\n")[0])
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--conversations", default=50, show_default=True)
@click.option("--seed", type=int, help="Repeats the faults of another run.")
@click.option("--postgres", default="embedded", type=click.Choice(["embedded", "container"]))
@click.option("--session", default="ours", type=click.Choice(["ours", "upstream"]))
def main(
    seconds: float,
    conversations: int,
    seed: int | None,
    postgres: Literal["embedded", "container"],
    session: Literal["ours", "upstream"],
) -> None:
    logging.disable(logging.WARNING)  # it would be full of what is provoked here
    seed = Random().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}")
    options = Options(seconds, conversations, seed, postgres, upstream=session == "upstream")
    report = soak(options)
    click.echo(f"\n{report.markdown()}\n")
    if not options.upstream:  # which has promised nothing
        for problem in report.problems():
            click.echo(problem)
        sys.exit(bool(report.problems()))


if __name__ == "__main__":
    main()
