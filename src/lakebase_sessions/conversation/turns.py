"""Turn, Branch and Usage: what a conversation says of its past."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from lakebase_sessions.conversation.items import decode
from lakebase_sessions.conversation.records import is_users

if TYPE_CHECKING:
    from lakebase_sessions.conversation.records import Status

PREVIEW_LENGTH = 200
"""Characters of a user's words that a list shows."""

COUNTS = (
    "requests",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
)
"""Of a model, in a record's `usage`; the fields of Usage."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What runs have used, as far as it is known.

    Attributes:
        requests: Calls of a model.
        input_tokens: Tokens the models were given, the cached ones included.
        output_tokens: Tokens they made, those of reasoning included.
        total_tokens: Both.
        cached_tokens: Those of the input that were cached.
        reasoning_tokens: Those of the output that were reasoning.
        by_model: The same for each model; empty in what is a model's already.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    by_model: Mapping[str, Usage] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Mapping[str, Mapping[str, int]]) -> Usage:
        """The sum of what is stored by model."""

        def total(used: Iterable[Mapping[str, int]]) -> dict[str, Any]:
            return {name: sum(counts.get(name, 0) for counts in used) for name in COUNTS}

        by_model = {model: cls(**total([counts])) for model, counts in stored.items()}
        return cls(**total(stored.values()), by_model=by_model)


@dataclass(frozen=True, slots=True)
class Turn:
    """The input of one run and all that the run added.

    Attributes:
        number: Its place in the conversation, from 1.
        response_id: What the client was given as the response's id; None without a record, as
            where another class has stored it.
        created_at: When its first item was stored, in UTC.
        preview: The user's words, in one line, cut off where they are long.
        items: How many items it has.
        status: How the run ended; None without a record.
        model: What answered last, if known.
        trace_id: Of the run's MLflow trace, if known.
        usage: Of the run.
    """

    number: int
    response_id: str | None
    created_at: datetime
    preview: str
    items: int
    status: Status | None
    model: str | None
    trace_id: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Branch:
    """What was taken out of a conversation and is kept beside it.

    Attributes:
        id: Names it for `branch_items` and `restore`.
        turn: The number of the turn it begins with.
        created_at: When it was taken out, in UTC.
        preview: The user's words it begins with.
        items: How many items it has.
        turns: How many turns.
        after_item: The id of the item it stood behind, None where it was the beginning. Branches
            behind the same item are versions of what follows it.
        first_item: The id of its first item. A version keeps its own wherever it is, so by these
            versions have an order.
    """

    id: int
    turn: int
    created_at: datetime
    preview: str
    items: int
    turns: int
    after_item: int | None
    first_item: int


def turn_from(row: Sequence[Any]) -> Turn:
    """A row of `going_back.TURNS`."""
    number, response_id, created_at, first, second, third, items, status, model, trace, usage = row
    return Turn(
        number=number,
        response_id=response_id,
        created_at=created_at.replace(tzinfo=UTC),
        preview=preview_of((first, second, third)[:items]),
        items=items,
        status=status,
        model=model,
        trace_id=trace,
        usage=Usage.of(usage or {}),
    )


def branch_from(row: Sequence[Any]) -> Branch | None:
    """What `going_back.REWIND` and `RESTORE` say of the branch they have made, if they have."""
    number, turn, created_at, items, turns, heads, *places = row
    if number is None:
        return None
    at = created_at.replace(tzinfo=UTC)
    return Branch(number, turn, at, preview_of(heads), items, turns, *places)


def branches_from(rows: Sequence[Sequence[Any]]) -> list[Branch]:
    """The rows of `going_back.BRANCHES`, each beside what holds it."""
    held = {row[0]: row for row in rows}

    def begins_with(number: int) -> int:
        _, _, holder, before, *_ = held[number]
        return int(before) + (begins_with(holder) if holder in held else 1)

    return [
        Branch(
            number,
            begins_with(number),
            at.replace(tzinfo=UTC),
            preview_of(heads),
            items,
            turns,
            *places,
        )
        for number, at, _, _, items, turns, heads, *places in rows
    ]


def preview_of(heads: Iterable[str | None]) -> str:
    """The words of the first user's message among items that may be cut off."""
    for head in heads:
        item = _cut_off(head or "")
        if is_users(item):
            words = " ".join(_words(item.get("content")).split())
            return words if len(words) <= PREVIEW_LENGTH else f"{words[: PREVIEW_LENGTH - 1]}…"
    return ""


def _cut_off(head: str) -> Any:
    try:
        return from_json(head, allow_partial="trailing-strings")
    except ValueError:  # lone surrogates, which Python's JSON reads, if all of it is there
        return next(iter(decode([head])), None)


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return " ".join(text for text in texts if isinstance(text, str))
