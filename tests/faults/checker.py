"""Checker: what was acknowledged, beside what the tables hold.

Every batch that goes through it is numbered, so that each row says which batch it belongs to and
how much of it there should be. It works with our sessions and with upstream's, with any number of
conversations, loops and threads; what is popped or cleared is not for it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from agents.memory import Session

from lakebase_sessions import LakebaseSession

Outcome = Literal["acknowledged", "unknown", "refused"]


@dataclass(slots=True)
class Batch:
    """Items that have to be stored together: one `add_items`, or one atomic turn."""

    number: int
    session_id: str
    size: int
    began: int
    ended: int = 0
    outcome: Outcome = "unknown"

    def items(self) -> list[Any]:
        return [
            {"role": "user", "content": f"batch {self.number} item {position} of {self.size}"}
            for position in range(self.size)
        ]


@dataclass(frozen=True)
class Verdict:
    """Numbers of batches."""

    lost: int
    """Acknowledged, and not whole in the tables."""
    doubled: int
    """An item is there more than once."""
    torn: int
    """A part is there, and a part is not."""
    disordered: int
    """Before a batch that was acknowledged when it began, or not in one piece and in order."""
    phantoms: int
    """Refused, and there all the same."""
    acknowledged: int
    unknown: int
    refused: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.torn or self.disordered or self.phantoms)


@dataclass
class Checker:
    """Adds numbered batches and remembers what became of each."""

    batches: list[Batch] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def add(self, session: Session, size: int = 1) -> None:
        """`add_items` of so many items. What it raises is recorded and raised."""
        with self._batch(session, size) as batch:
            await session.add_items(batch.items())

    async def turn(self, session: LakebaseSession, sizes: Sequence[int] = (1, 2)) -> None:
        """An atomic turn that reads, and adds once for each of `sizes`: all of it is one batch."""
        with self._batch(session, sum(sizes)) as batch:
            items = iter(batch.items())
            async with session.turn() as turn:
                await turn.get_items()
                for size in sizes:
                    await turn.add_items(list(itertools.islice(items, size)))

    @contextmanager
    def _batch(self, session: Session, size: int) -> Iterator[Batch]:
        batch = Batch(next(self._numbers), session.session_id, size, time.monotonic_ns())
        self.batches.append(batch)
        try:
            yield batch
        except Exception as error:
            # Upstream does not say whether a write that failed was stored.
            known = isinstance(session, LakebaseSession)
            if known and not getattr(error, "outcome_unknown", False):
                batch.outcome = "refused"
            raise
        else:
            batch.outcome = "acknowledged"
        finally:
            batch.ended = time.monotonic_ns()  # a cancellation leaves the outcome unknown

    def verdict(self, connection: psycopg.Connection[Any]) -> Verdict:
        """Compare with the tables that `connection` sees, when no write is under way any more."""
        stored = _stored(connection)
        conversations: dict[str, list[Batch]] = defaultdict(list)
        lost = doubled = torn = disordered = phantoms = 0
        for batch in self.batches:
            rows = stored.get((batch.session_id, batch.number), [])
            positions = [position for _, position in rows]
            found = set(positions)
            lost += batch.outcome == "acknowledged" and len(found) < batch.size
            phantoms += batch.outcome == "refused" and bool(found)
            torn += 0 < len(found) < batch.size
            if len(positions) > len(found):
                doubled += 1
            elif positions:
                first = rows[0][0]
                in_one_piece = [row for row, _ in rows] == list(range(first, first + len(rows)))
                disordered += not in_one_piece or positions != sorted(positions)
            if found:
                conversations[batch.session_id].append(batch)
        for session_id, batches in conversations.items():
            batches.sort(key=lambda batch: stored[session_id, batch.number][0][0])
            disordered += _overtaken(batches)
        outcomes = [batch.outcome for batch in self.batches]
        return Verdict(
            lost=lost,
            doubled=doubled,
            torn=torn,
            disordered=disordered,
            phantoms=phantoms,
            acknowledged=outcomes.count("acknowledged"),
            unknown=outcomes.count("unknown"),
            refused=outcomes.count("refused"),
        )


def _stored(connection: psycopg.Connection[Any]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """For each batch: (row within the conversation, position within the batch), as read."""
    rows = connection.execute(
        "SELECT session_id, message_data, row_number() OVER "
        "(PARTITION BY session_id ORDER BY created_at, id) "
        "FROM agent_messages ORDER BY session_id, created_at, id"
    )
    stored: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for session_id, data, row in rows:
        words = str(json.loads(data).get("content")).split()
        if words[:1] == ["batch"]:
            stored[session_id, int(words[1])].append((row, int(words[3])))
    return stored


def _overtaken(batches: list[Batch]) -> int:
    """How many stand before one that was acknowledged when they began."""
    count = 0
    earliest: float = float("inf")
    for batch in reversed(batches):
        count += earliest < batch.began
        if batch.outcome == "acknowledged":
            earliest = min(earliest, batch.ended)
    return count
