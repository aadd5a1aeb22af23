"""What a soak has found: broken promises, and a table for the documentation."""

from __future__ import annotations

from dataclasses import dataclass

from faults.calls import Calls
from faults.checker import Verdict

LATE_SECONDS = 1.0
"""How late a busy machine may notice that a bound has come."""
SHORT_RUN_SECONDS = 60.0
"""A shorter one says nothing about memory."""


@dataclass(frozen=True)
class Options:
    seconds: float
    """Of faults and calm that are judged; a tenth of it comes before, to warm up."""
    conversations: int
    seed: int
    postgres: str = "embedded"
    upstream: bool = False
    call_timeout_seconds: float = 2.0
    longest_fault_seconds: float = 8.0
    longest_pause_seconds: float = 1.0
    """Between two calls of a conversation; a calm lasts as long."""

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each kind of call may take, as documented."""
        timeout = self.call_timeout_seconds
        call, opening = 3.5 * timeout, 5 * timeout
        return {
            "get_items": call,
            "add_items": call,
            "turn": 2 * call,  # it reads, and it stores
            "pop_item": call,
            "clear_session": call,
            "open": opening,
            "close": 3 * timeout,
            "first call in a loop": opening + call,
        }


@dataclass(frozen=True)
class Footprint:
    """What the process has open and holds, while nothing is under way."""

    connections: int
    megabytes: float


@dataclass
class Report:
    options: Options
    verdict: Verdict
    calls: Calls
    start: Footprint
    end: Footprint
    left_open: int
    incomplete_reads: int
    popped_twice: int
    faults: int
    longest_recovery: float
    restarts: int

    def problems(self) -> list[str]:
        """The promises that were broken."""
        found = [
            f"{name}: {count}"
            for name, count in {
                "lost": self.verdict.lost,
                "doubled": self.verdict.doubled + self.popped_twice,
                "torn": self.verdict.torn,
                "disordered": self.verdict.disordered,
                "refused, and stored all the same": self.verdict.phantoms,
                "reads that missed something acknowledged": self.incomplete_reads,
                "faults that the process did not recover from": self.restarts,
                "connections left open by close()": self.left_open,
            }.items()
            if count
        ]
        found += [f"in calm, or undocumented: {error}" for error in self.calls.wrong]
        found += [
            f"{kind} took {seconds:.1f} s, and its bound is {self.options.bounds[kind]:g} s"
            for kind, seconds in self.calls.longest.items()
            if seconds > self.options.bounds[kind] + LATE_SECONDS
        ]
        if self.start.connections != self.end.connections:
            found.append(f"connections: {self.start.connections}, then {self.end.connections}")
        long_enough = self.options.seconds >= SHORT_RUN_SECONDS
        if long_enough and self.end.megabytes > 1.1 * self.start.megabytes:
            found.append(f"MB: {self.start.megabytes:.0f}, then {self.end.megabytes:.0f}")
        return found

    def markdown(self) -> str:
        """The table for docs/guarantees.md."""
        bounds = self.options.bounds
        rows = {
            "operations": f"{self.calls.count:,}",
            "writes acknowledged": f"{self.verdict.acknowledged:,}",
            "lost": self.verdict.lost,
            "doubled": self.verdict.doubled + self.popped_twice,
            "torn": self.verdict.torn,
            "out of order": self.verdict.disordered,
            "refused, and stored all the same": self.verdict.phantoms,
            "reads that missed something acknowledged": self.incomplete_reads,
            "writes of unknown outcome": self.verdict.unknown,
            "errors in calm, or undocumented": len(self.calls.wrong),
            "faults": self.faults,
            "longest recovery": f"{self.longest_recovery:.1f} s",
            "restarts needed": self.restarts,
            "connections, start and end": f"{self.start.connections}, {self.end.connections}",
            "memory, start and end": f"{self.start.megabytes:.0f}, {self.end.megabytes:.0f} MB",
        }
        for kind, seconds in sorted(self.calls.longest.items()):
            bound = "" if self.options.upstream else f" of {bounds[kind]:g} s"
            rows[f"longest `{kind}`"] = f"{seconds:.1f} s{bound}"
        for name, count in self.calls.errors.most_common():
            rows[f"`{name}`"] = f"{count:,}"
        subject = "AsyncDatabricksSession" if self.options.upstream else "lakebase-sessions"
        lines = [f"| | {subject} |", "|---|---|"]
        return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])
