"""What was measured, as tables for the terminal and for the documentation."""

from __future__ import annotations

import datetime as dt
import os
import statistics
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from benchmarks.chart import bars, shown
from benchmarks.competitors import ATOMIC, FLOOR, OURS, TEMPLATE
from benchmarks.testbed import Way, processor, versions
from rich.table import Table

USUAL = 100
"""Items in the history where no other number is named."""
WINDOW = 50
LONG = 100_000
AT_ONCE = 64
SESSIONS = 10_000

Footprint = dict[str, dict[str, float]]
"""Competitor -> column -> figure."""


class Cost(NamedTuple):
    """What one turn took."""

    wall_ms: float
    cpu_ms: float
    round_trips: float

    @classmethod
    def median(cls, costs: Iterable[Cost]) -> Self:
        """Of each figure on its own."""
        return cls(*(statistics.median(column) for column in zip(*costs, strict=True)))


@dataclass
class Results:
    """What one run found, as medians."""

    server: str
    settings: str
    round_trip_ms: dict[Way, float] = field(default_factory=dict)
    turns: dict[tuple[Way, int, int | None], dict[str, Cost]] = field(default_factory=dict)
    """By network, items in the history, and history_limit."""
    at_once: dict[Way, dict[str, float]] = field(default_factory=dict)
    """Turns a second."""
    latest_ms: dict[int, float] = field(default_factory=dict)
    """Of the latest items, by items in the history."""
    footprint: Footprint = field(default_factory=dict)

    def add(self, footprint: Footprint) -> None:
        """Further columns."""
        for name, found in footprint.items():
            self.footprint.setdefault(name, {}).update(found)


@dataclass
class Grid:
    """A table, for the terminal and for the documentation."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left")
        for place, name in enumerate(self.header):
            table.add_column(name, justify="right" if place else "left", no_wrap=not place)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the documentation."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{table}\n"


@dataclass(frozen=True)
class Asked:
    """A figure that was asked for, and what was measured."""

    what: str
    bound: float
    measured: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def asked(results: Results) -> list[Asked]:
    """Of several figures that one demand is about, the worst counts."""

    def worst(way: Way, figure: str, beside: str) -> float:
        # Up to the usual length: what decoding a longer history costs is the same for all.
        ratios: list[float] = [
            getattr(costs[OURS], figure) / getattr(costs[beside], figure)
            for (measured_way, history, _), costs in results.turns.items()
            if measured_way is way and history <= USUAL
        ]
        return max(ratios)

    usual = results.turns[Way.MS_4, USUAL, None]
    latest = results.latest_ms
    return [
        Asked("round trips of a turn", 3, usual[OURS].round_trips),
        Asked("round trips of an atomic turn", 2, usual[ATOMIC].round_trips),
        Asked("a turn at 4 ms, x the floor", 1.15, worst(Way.MS_4, "wall_ms", FLOOR)),
        Asked("a turn at 4 ms, x the template's", 0.2, worst(Way.MS_4, "wall_ms", TEMPLATE)),
        Asked("a turn at 0 ms, x the floor", 2, worst(Way.DIRECT, "wall_ms", FLOOR)),
        Asked("CPU time of a turn, x the floor's", 2, worst(Way.DIRECT, "cpu_ms", FLOOR)),
        *(
            Asked(
                f"turns a second of {AT_ONCE} at once, {way}, x the template's",
                4,
                rates[OURS] / rates[TEMPLATE],
                at_least=True,
            )
            for way, rates in results.at_once.items()
        ),
        Asked(
            f"get_items(limit={WINDOW}) of {LONG:,} items, x of {USUAL}",
            2,
            latest[LONG] / latest[USUAL],
        ),
        Asked(
            f"{SESSIONS:,} live sessions, MB", 20, results.footprint[OURS]["KB"] * SESSIONS / 1000
        ),
    ]


def tables(results: Results) -> list[Grid]:
    """Everything, in the order of the documentation."""
    demands = Grid("What was asked for", ["figure", "asked", "measured", "met"])
    for demand in asked(results):
        bound = f"at {'least' if demand.at_least else 'most'} {demand.bound:g}"
        met = "yes" if demand.met else "no"
        demands.rows.append([demand.what, bound, f"{demand.measured:.3g}", met])
    return [
        _by_round_trip(results),
        *(_by_history(results, way) for way in results.at_once),
        _at_once(results),
        _footprint(results),
        demands,
    ]


def _by_round_trip(results: Results) -> Grid:
    ways = list(results.round_trip_ms)
    costs = {way: results.turns[way, USUAL, None] for way in ways}
    grid = Grid(
        f"A turn, by round-trip time ({USUAL} items)",
        ["ms (x the floor)", "round trips", "CPU time, direct", *map(str, ways)],
        [["one round trip, measured", "", "", *map(shown, results.round_trip_ms.values())]],
    )
    for name, counted in costs[Way.MS_4].items():
        cpu = _beside(costs[Way.DIRECT][name].cpu_ms, costs[Way.DIRECT][FLOOR].cpu_ms)
        walls = [_beside(costs[way][name].wall_ms, costs[way][FLOOR].wall_ms) for way in ways]
        grid.rows.append([name, f"{counted.round_trips:g}", cpu, *walls])
    return grid


def _by_history(results: Results, way: Way) -> Grid:
    columns = {
        f"{history:,}" + (f", limit {limit}" if limit else ""): costs
        for (measured_way, history, limit), costs in results.turns.items()
        if measured_way is way
    }
    grid = Grid(f"A turn, by items in the history ({way})", ["ms (x the floor)", *columns])
    for name in results.turns[way, USUAL, None]:
        walls = [_beside(costs[name].wall_ms, costs[FLOOR].wall_ms) for costs in columns.values()]
        grid.rows.append([name, *walls])
    return grid


def _at_once(results: Results) -> Grid:
    grid = Grid(
        f"{AT_ONCE} conversations at once ({USUAL} items)",
        ["turns a second (x the template's)", *map(str, results.at_once)],
    )
    for name in results.at_once[Way.DIRECT]:
        rates = results.at_once.values()
        grid.rows.append(
            [name, *(f"{rate[name]:,.0f} ({rate[name] / rate[TEMPLATE]:.2g})" for rate in rates)]
        )
    return grid


def _footprint(results: Results) -> Grid:
    units = {
        "import": "import, s",
        "first answer": "first answer, ms",
        "open": "loop stall at open, ms",
        "renewal": "loop stall at token renewal, ms",
        "us": "making a session, µs",
        "KB": "keeping it, KB",
    }
    grid = Grid("A process, and a session object", ["medians", *units.values()])
    for name, found in results.footprint.items():
        grid.rows.append([name, *(shown(found[key]) if key in found else "" for key in units)])
    return grid


def _beside(figure: float, floor: float) -> str:
    return f"{shown(figure)} ({figure / floor:.2f})"


def drawn(results: Results) -> str:
    """The chart, as SVG."""
    panels = {
        f"{way} a round trip": {
            name: cost.wall_ms for name, cost in results.turns[way, USUAL, None].items()
        }
        for way in (Way.MS_0, Way.MS_1, Way.MS_4, Way.MS_16)
    }
    title = f"Milliseconds a turn, {USUAL} items in the history (each group on a scale of its own)"
    return bars(title, panels, ours=OURS, floor=FLOOR)


def fragment(results: Results, chart: str) -> str:
    """The part of the documentation that this measurement is; `chart` is a file beside it."""
    machine = f"""
        {processor()}, {os.cpu_count()} cores, which client, proxy and server share;
        {results.server}, with {results.settings}: what a disk costs is not in the figures;
        {versions()}; {dt.date.today()}.
    """
    parts = "\n".join(grid.markdown() for grid in tables(results))
    return f"""\
% Written by tests/benchmarks/turns.py; do not edit.

## A turn of a conversation

A turn is what `Runner.run` does to a session: it reads the history, adds the input, adds the
output. The items are those of real conversations with tool calls.

![Milliseconds a turn, by round-trip time]({chart})

All competitors take turns within one run, in changing order, on the same tables, histories and
turns; each makes a new session object for each turn, but for the floor, which has none. Figures
are medians. The floor is psycopg with one prepared statement an operation, JSON included, on a
connection that is checked for nothing. Everybody else has a pool of its class's own default size.
Round trips are counted by the proxy that delays them, a process of its own; "direct" is without
it. CPU time is this process's alone, without PostgreSQL's.

{parts}
{textwrap.fill(" ".join(machine.split()), 100)}

To repeat: `uv run --group bench tests/benchmarks/turns.py`.
"""
