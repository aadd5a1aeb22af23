"""What a turn of a conversation costs, beside other ways of storing it.

    uv run --group bench tests/benchmarks/turns.py            # some 12 minutes
    uv run --group bench tests/benchmarks/turns.py --quick    # a minute or two, prints only

All competitors take turns within one run, on the same server and the same real conversations;
figures are medians. It prints tables, with what was asked for and whether it was met, and writes
docs/performance_turns.md and docs/turns.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest and mypy begin

from benchmarks import report
from benchmarks.competitors import Access, PlayTurn, competitors
from benchmarks.footprint import cold_start, loop_stalls, session_objects
from benchmarks.report import AT_ONCE, LONG, USUAL, WINDOW, Cost, Results
from benchmarks.testbed import CONVERSATIONS, Conversations, Database, Network, Way, network
from rich.console import Console
from servers import local_lakebase

from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase

DOCS = Path(__file__).parents[2] / "docs"
DATABASE = "databricks_postgres"
CLOSELY = (Way.DIRECT, Way.MS_4)
"""Where histories of all lengths are measured, and many conversations at once."""
WARM_UP = 2
"""Rounds that are not counted: connections are made, statements are prepared."""
LEAST_ROUNDS = 5
_BEGAN_AT = time.perf_counter()


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    seconds: float
    """For so long, everybody plays one turn after the other under the same conditions."""
    histories: tuple[int, ...]
    bursts: int
    turns_each: int
    """In one burst, of each of the conversations at once."""
    processes: int
    """Fresh processes for each measurement that needs them."""


FULL = Effort(seconds=10, histories=(10, 100, 1_000, 10_000), bursts=5, turns_each=5, processes=5)
QUICK = Effort(seconds=1, histories=(10, 100), bursts=1, turns_each=1, processes=1)


class Bench:
    """Turns, in this process.

    Args:
        local: Where everybody stores.
        effort: How much is measured.
    """

    def __init__(self, local: LocalLakebase, effort: Effort) -> None:
        self.local = local
        self.effort = effort
        self.client = local.workspace_client()
        self.database = Database(local.admin_dsn, DATABASE)
        self.results = Results(self.database.server, self.database.settings)
        self.conversations = Conversations()
        self.turns = self.conversations.turns
        self.at_once = [f"at-once-{number}" for number in range(AT_ONCE)]

    async def run(self) -> Results:
        """All of it."""
        await self._store()
        await self._latest()
        for way in Way:
            with network(self.local.host, way) as wire:
                self.local.add_instance(way.instance, read_write_dns=wire.host)
                await self._turns(way, wire)
        self.database.close()
        return self.results

    async def _store(self) -> None:
        async with Lakebase("local", workspace_client=self.client):
            pass  # has made the tables
        for length in (*self.effort.histories, LONG):
            self.database.store(_history(length), self.conversations.history(length))
        for conversation in self.at_once:
            self.database.store(conversation, self.conversations.history(USUAL))
        self.database.tidy()

    async def _latest(self) -> None:
        """The latest items of a conversation of usual length, and of a very long one."""
        say(f"the latest {WINDOW} of {LONG:,} items")
        found: dict[int, list[float]] = {USUAL: [], LONG: []}
        async with Lakebase("local", workspace_client=self.client) as lakebase:
            for number in range(200):
                for length, times in found.items():
                    began_at = time.perf_counter()
                    items = await lakebase.session(_history(length)).get_items(limit=WINDOW)
                    took = time.perf_counter() - began_at
                    assert len(items) == WINDOW
                    if number >= WARM_UP:
                        times.append(took * 1000)
        self.results.latest_ms = {
            length: statistics.median(times) for length, times in found.items()
        }

    async def _turns(self, way: Way, wire: Network) -> None:
        access = Access(way.instance, wire.host, DATABASE, self.client)
        self.results.round_trip_ms[way] = await _round_trip_ms(access)
        async with competitors(access) as players:
            closely = way in CLOSELY
            for history in self.effort.histories if closely else (USUAL,):
                for limit in (None, WINDOW) if closely and history > WINDOW else (None,):
                    say(f"{way}, {history:,} items, history_limit {limit}")
                    costs = await self._one_by_one(players, _history(history), limit, wire)
                    self.results.turns[way, history, limit] = costs
            if closely:
                say(f"{way}, {AT_ONCE} conversations at once")
                self.results.at_once[way] = await self._all_at_once(players)

    async def _one_by_one(
        self, players: dict[str, PlayTurn], conversation: str, limit: int | None, wire: Network
    ) -> dict[str, Cost]:
        """In every round a turn of everybody, each time in another order."""
        self.database.tidy()
        names = list(players)
        costs: dict[str, list[Cost]] = {name: [] for name in names}
        give_up_at = 0.0
        for number in itertools.count():
            if number == WARM_UP:
                give_up_at = time.perf_counter() + self.effort.seconds
            if number >= WARM_UP + LEAST_ROUNDS and time.perf_counter() > give_up_at:
                break
            turn = self.turns[number % len(self.turns)]
            first = number % len(names)
            for name in names[first:] + names[:first]:
                trips = wire.round_trips()
                cpu, wall = time.process_time(), time.perf_counter()
                await players[name](conversation, turn, limit)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                trips = wire.round_trips() - trips
                # Nobody wins by storing less, and all find the same history.
                assert self.database.forget() == len(turn.input) + len(turn.output), name
                if number >= WARM_UP:
                    costs[name].append(Cost(wall * 1000, cpu * 1000, trips))
        return {name: Cost.median(found) for name, found in costs.items()}

    async def _all_at_once(self, players: dict[str, PlayTurn]) -> dict[str, float]:
        """Turns a second, of bursts in which one competitor has the machine to itself."""
        rates: dict[str, list[float]] = {name: [] for name in players}
        for number in range(1 + self.effort.bursts):
            for name, play in players.items():
                rate = await self._burst(play, self.effort.turns_each if number else 1)
                if number:
                    rates[name].append(rate)
        return {name: statistics.median(found) for name, found in rates.items()}

    async def _burst(self, play: PlayTurn, turns_each: int) -> float:
        plan = {
            conversation: list(itertools.islice(self.turns, number, number + turns_each))
            for number, conversation in enumerate(self.at_once)
        }

        async def converse(conversation: str) -> None:
            for turn in plan[conversation]:
                await play(conversation, turn, None)

        gc.collect()  # what others left behind
        began_at = time.perf_counter()
        await asyncio.gather(*map(converse, plan))
        took = time.perf_counter() - began_at
        turns = list(itertools.chain.from_iterable(plan.values()))
        assert self.database.forget() == sum(len(turn.input) + len(turn.output) for turn in turns)
        return len(turns) / took


def _history(length: int) -> str:
    return f"history-{length}"


async def _round_trip_ms(access: Access) -> float:
    found = []
    async with await access.connect() as connection:
        for _ in range(50):
            began_at = time.perf_counter()
            await connection.execute("SELECT 1")
            found.append((time.perf_counter() - began_at) * 1000)
    return statistics.median(found)


def say(what: str) -> None:
    """What is being measured, for whoever waits."""
    print(f"{time.perf_counter() - _BEGAN_AT:5.0f} s  {what}", file=sys.stderr)


def main() -> None:
    """Measure, print, and write the documentation's part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute or two; writes no files")
    parser.add_argument("--output", type=Path, help="folder for the files; docs if not --quick")
    parser.add_argument("--postgres", choices=("embedded", "container"), default="embedded")
    arguments = parser.parse_args()
    if importlib.util.find_spec("asyncpg") is None:
        parser.error("asyncpg is missing: uv run --group bench tests/benchmarks/turns.py")
    if not CONVERSATIONS.exists():
        parser.error(f"{CONVERSATIONS.name} is not part of the repository, and not beside it")
    effort = QUICK if arguments.quick else FULL

    with local_lakebase(arguments.postgres) as local:
        results = asyncio.run(Bench(local, effort).run())
        say("session objects")
        results.add(asyncio.run(session_objects(local)))
        say("cold start")
        results.add(cold_start(local, effort.processes))
    if not arguments.quick:
        say("loop stalls")
        results.add(loop_stalls(effort.processes))

    console = Console(width=None if sys.stdout.isatty() else 130)
    for grid in report.tables(results):
        console.print(grid.rich())
    if output := arguments.output or (None if arguments.quick else DOCS):
        Path(output, "turns.svg").write_text(report.drawn(results))
        Path(output, "performance_turns.md").write_text(report.fragment(results, "turns.svg"))


if __name__ == "__main__":
    main()
