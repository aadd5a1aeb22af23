"""Files of the Agents SDK's SQLiteSession and AdvancedSQLiteSession, as an export.

Of the latter's branches `main` is the conversation. What another one does not share with it becomes
a branch, and the usage of turns their records.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lakebase_sessions.errors import InvalidExport
from lakebase_sessions.transfer.lines import Branch, Fields, Head, Item, Record, Turn, checked

MAGIC = b"SQLite format 3\0"
MAIN = "main"
UNKNOWN_MODEL = "unknown"
"""The file does not say which model the tokens were of."""

_ITEMS = "SELECT id FROM agent_messages WHERE session_id = ? ORDER BY id"
_STRUCTURE = """
SELECT branch_id, message_id, user_turn_number FROM message_structure AS kept
JOIN agent_messages AS item ON item.id = kept.message_id AND item.session_id = kept.session_id
WHERE kept.session_id = ? ORDER BY branch_id <> 'main', branch_id, sequence_number
"""
_USAGE = """
SELECT branch_id, user_turn_number, requests, input_tokens, output_tokens, total_tokens,
    input_tokens_details, output_tokens_details, created_at
FROM turn_usage WHERE session_id = ? ORDER BY branch_id, user_turn_number
"""


def is_sqlite(path: Path) -> bool:
    """Whether a file says that it is SQLite's."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


async def sqlite_records(path: Path) -> AsyncIterator[Record]:
    """The conversations of a file, which is only read.

    Raises:
        InvalidExport: It has no tables of the Agents SDK, or what is in them cannot be stored.
    """
    try:
        with closing(_opened(path)) as file:
            advanced = _tables(file) >= {"message_structure", "turn_usage"}
            for session_id, *dates in file.execute(
                "SELECT session_id, created_at, updated_at FROM agent_sessions ORDER BY session_id"
            ):
                for record in _conversation(file, session_id, dates, advanced=advanced):
                    yield record
    except sqlite3.Error as error:
        raise InvalidExport(
            f"{path} cannot be read as a file of the Agents SDK: {error}."
        ) from error


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _tables(file: sqlite3.Connection) -> set[str]:
    return {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _conversation(
    file: sqlite3.Connection, session_id: str, dates: list[Any], *, advanced: bool
) -> Iterator[Record]:
    listed = file.execute(_STRUCTURE, [session_id]).fetchall() if advanced else []
    if not listed:
        listed = [(MAIN, item, None) for (item,) in file.execute(_ITEMS, [session_id])]
    branches: dict[str, list[tuple[int, int | None]]] = {MAIN: []}
    for branch, item, turn in listed:
        branches.setdefault(branch, []).append((item, turn))
    main = branches.pop(MAIN)
    shared = {name: _shared(main, items) for name, items in branches.items()}
    # Where the items stand in the export, by branch: first those of main, then what others add.
    lines: list[tuple[str, int, int | None]] = [(MAIN, *each) for each in main]
    for name, items in branches.items():
        lines += [(name, *each) for each in items[shared[name] :]]
    usage = file.execute(_USAGE, [session_id]).fetchall() if advanced else []
    numbers = {MAIN: None} | {name: number for number, name in enumerate(branches, 1)}
    turns = [turn for row in usage if (turn := _turn(row, lines, numbers)) is not None]
    yield checked(
        {
            "conversation": session_id,
            "created_at": _utc(dates[0]),
            "updated_at": _utc(dates[1]),
            "items": len(lines),
            "branches": len(branches),
            "turns": len(turns),
        },
        Head,
    )
    for name, number in numbers.items():
        if number is not None:
            after = shared[name] or None
            yield Branch({"branch": number, "created_at": _utc(dates[1]), "after": after})
    for turn in turns:
        yield checked(turn, Turn)
    at = ""
    for name, item, _ in lines:
        text, created = file.execute(
            "SELECT message_data, created_at FROM agent_messages WHERE id = ?", [item]
        ).fetchone()
        # Never before the one that it follows: that is their order from now on.
        at = max(at, _utc(created)) if numbers[name] is None else _utc(created)
        yield checked({"at": at, "text": text, "branch": numbers[name]}, Item)


def _shared(main: list[tuple[int, int | None]], items: list[tuple[int, int | None]]) -> int:
    """How many items a branch has in common with `main`, from the beginning."""
    count = 0
    for (ours, _), (theirs, _) in zip(main, items, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _turn(
    row: tuple[Any, ...],
    lines: list[tuple[str, int, int | None]],
    numbers: dict[str, int | None],
) -> Fields | None:
    """The record of a turn; None where its items are those of `main`, which has its own."""
    branch, number, requests, sent, received, total, sent_details, received_details, created = row
    found = [
        position
        for position, (name, _, turn) in enumerate(lines, 1)
        if name == branch and turn == number
    ]
    if not found:
        return None
    counts = {
        "requests": requests,
        "input_tokens": sent,
        "output_tokens": received,
        "total_tokens": total,
        "cached_tokens": _detail(sent_details, "cached_tokens"),
        "reasoning_tokens": _detail(received_details, "reasoning_tokens"),
    }
    return {
        "turn": f"resp_sqlite_{branch}_{number}",
        "branch": numbers[branch],
        "number": number,
        "first": found[0],
        "last": found[-1],
        "created_at": _utc(created),
        "status": "completed",
        "usage": {UNKNOWN_MODEL: {name: count or 0 for name, count in counts.items()}},
    }


def _detail(details: str | None, name: str) -> int:
    try:
        found = json.loads(details or "{}").get(name, 0)
    except (ValueError, AttributeError):
        return 0
    return found if isinstance(found, int) else 0


def _utc(moment: object) -> str:
    """SQLite's `CURRENT_TIMESTAMP`, which is UTC."""
    return f"{str(moment).replace(' ', 'T')}Z"
