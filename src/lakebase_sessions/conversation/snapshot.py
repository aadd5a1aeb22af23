"""Snapshot: what a turn has read of its conversation's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from lakebase_sessions.conversation.items import decode
from lakebase_sessions.conversation.records import count_turns

if TYPE_CHECKING:
    from agents.items import TResponseInputItem


class Version(NamedTuple):
    """What changes with every write of anybody."""

    updated_at: str | None
    """None where there is no conversation."""
    newest: int | None


class Latest(NamedTuple):
    """The latest turn with a record."""

    first_item: int = 0
    last_item: int = 0
    number: int | None = 0
    """None where it could not be known."""


@dataclass(slots=True)
class Snapshot:
    """The latest rows of a conversation, and what was the case when they were read.

    Attributes:
        version: None where nothing was read.
        rows: Ids and texts, oldest first.
        is_all: There are no others.
        latest: As far as there are records.
    """

    version: Version | None = None
    rows: Sequence[tuple[int, str]] = ()
    is_all: bool = False
    latest: Latest = field(default_factory=Latest)
    _unused: list[TResponseInputItem] | None = field(default=None, init=False)
    """The items of all rows, where they were needed here and nobody has got them yet."""

    @classmethod
    def of(cls, read: Sequence[tuple[Any, ...]], count: int | None) -> Self:
        """What a statement has read that was to read `count` rows, newest first; None is all.

        Args:
            read: Ids and texts, and maybe more; the one without an id has the version.
            count: At most so many.
        """
        version = next(row[1] for row in read if row[0] is None)
        updated_at, *latest = version.split("/") if version else [None]
        rows = [row[:2] for row in reversed(read) if row[0] is not None]
        return cls(
            Version(updated_at, rows[-1][0] if rows else None),
            rows,
            is_all=count is None or len(rows) < count,
            latest=Latest(*map(int, latest), *[None] * (len(latest) == 2)),
        )

    def items_of(self, rows: Sequence[tuple[int, str]]) -> list[TResponseInputItem]:
        """Those of rows that were read, made for who calls."""
        if rows is self.rows and self._unused is not None:
            items, self._unused = self._unused, None
            return items
        return decode([row for _, row in rows])

    def before(self, cut: int | None) -> Sequence[tuple[int, str]]:
        """The rows before that one; all if it is none of them."""
        if cut is None:
            return self.rows
        numbers = [number for number, _ in self.rows]
        return self.rows[: numbers.index(cut)] if cut in numbers else self.rows

    def next_number(self, before: int | None = None) -> int | None:
        """The number of a turn behind all that is stored, or in the place of what is from there."""
        latest = self.latest
        if latest.number is None:
            return None
        rows = self.before(before)
        if before is not None and before <= latest.first_item:
            between = [row for number, row in self.rows[len(rows) :] if number < latest.first_item]
            return latest.number - count_turns(decode(between))
        at = next((at for at, row in enumerate(rows) if row[0] > latest.last_item), None)
        if at is None:
            return latest.number + 1
        if at == 0 and not self.is_all:
            return None  # there may be more of them than were read
        if at == 0 and rows is self.rows:
            self._unused = self.items_of(rows)
            return latest.number + count_turns(self._unused) + 1
        known = self.items_of(rows[max(at - 1, 0) : at])
        others = self.items_of(rows[at:])
        return latest.number + count_turns(others, known[0] if known else None) + 1
