"""Export: conversations out of a Lakebase, line by line."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.session_id import user_prefix
from lakebase_sessions.errors import ConversationNotFound
from lakebase_sessions.postgres import transfer
from lakebase_sessions.transfer.lines import HEADER, Branch, End, Head, Item, Record, Turn, line

if TYPE_CHECKING:
    from lakebase_sessions.conversation.session import Owner
    from lakebase_sessions.postgres.engine import LoopEngine
    from lakebase_sessions.postgres.transaction import Transaction


async def export_conversations(
    lakebase: Owner, *, session_ids: Iterable[str] | None = None, user: str | None = None
) -> AsyncGenerator[bytes, None]:
    """The lines of an export, for a file: JSON, lossless, in the order of the ids.

    A conversation is exported as it stands at one moment, with its branches and the records of its
    turns. Few rows are in memory at a time, however long a conversation is.

    Args:
        lakebase: Where from.
        session_ids: Which, as they are stored (scoped to their users). None: all.
        user: Only this user's.

    Yields:
        A line, with its end, as bytes.

    Raises:
        ConversationNotFound: One of `session_ids` is not there, or not this user's.

    Example:
        >>> async def backup(lakebase, path):
        ...     with open(path, "wb") as file:
        ...         async for line in export_conversations(lakebase):
        ...             file.write(line)
    """
    yield HEADER
    count = 0
    found = records(lakebase, session_ids=session_ids, user=user)
    async with aclosing(found):  # whoever stops in the middle gives the connection back
        async for record in found:
            count += isinstance(record, Head)
            yield line(record)
    yield line(End(count))


async def count_conversations(
    lakebase: Owner, *, session_ids: Iterable[str] | None = None, user: str | None = None
) -> int:
    """How many an export has. One round trip."""
    engine = await lakebase.engine_here()
    [(count,)] = await engine.rows(transfer.COUNT, _chosen(session_ids, user), writing=False)
    return int(count)


async def records(
    lakebase: Owner, *, session_ids: Iterable[str] | None = None, user: str | None = None
) -> AsyncGenerator[Record, None]:
    """What the lines hold, without the last one."""
    wanted = None if session_ids is None else dict.fromkeys(session_ids)
    chosen = _chosen(wanted, user)
    engine = await lakebase.engine_here()
    after: str | None = None
    while True:
        page = 0
        async with engine.transaction(snapshot=True) as transaction:
            rows = await transaction.rows(
                transfer.HEADS if engine.keeps_records else transfer.PLAIN_HEADS,
                {**chosen, "after": after},
            )
            if rows:
                async for record in _conversations(engine, transaction, rows):
                    if wanted is not None and isinstance(record, Head):
                        wanted.pop(record.fields["conversation"], None)
                    yield record
                after = rows[-1][0]
            page = len(rows)
        if page < transfer.PAGE:
            break
    if wanted:
        raise ConversationNotFound(
            f"There is no conversation {next(iter(wanted))!a}"
            f"{'' if user is None else ' of this user'}: `lakebase-sessions list` shows their ids."
        )


def _chosen(session_ids: Iterable[str] | None, user: str | None) -> dict[str, str | None]:
    return {
        "ids": None if session_ids is None else json.dumps(list(session_ids)),
        "prefix": None if user is None else user_prefix(user),
    }


async def _conversations(
    engine: LoopEngine, transaction: Transaction, heads: list[tuple[Any, ...]]
) -> AsyncIterator[Record]:
    """A page of conversations: their rows come in streams side by side, in the same order."""
    ids = {"ids": json.dumps([head[0] for head in heads])}
    has_branches = any(head[8] for head in heads)
    has_turns = any(head[9] for head in heads)
    items = _Ahead(
        transaction.stream(
            "items", transfer.ITEMS if engine.keeps_records else transfer.PLAIN_ITEMS, ids
        )
    )
    branches = _Ahead(transaction.stream("branches", transfer.BRANCHES, ids), used=has_branches)
    turns = _Ahead(transaction.stream("turns", transfer.TURNS, ids), used=has_turns)
    for head in heads:
        session_id = head[0]
        yield _head(head)
        while (row := await branches.next_of(session_id)) is not None:
            yield _branch(row)
        number = 0
        turn = await turns.next_of(session_id)
        while True:
            number += 1
            while turn is not None and (turn[4] or 0) <= number:
                yield _turn(turn)
                turn = await turns.next_of(session_id)
            if (row := await items.next_of(session_id)) is None:
                break
            yield Item(text=row[3], at=row[2], branch=row[1])


class _Ahead:
    """A stream of rows, of which one is looked at before it is taken."""

    def __init__(self, rows: AsyncIterator[tuple[Any, ...]], *, used: bool = True) -> None:
        self._rows = rows
        self._row: tuple[Any, ...] | None = None
        self._more = used

    async def next_of(self, session_id: str) -> tuple[Any, ...] | None:
        """The next row, if it is of this conversation."""
        if self._row is None and self._more:
            self._row = await anext(self._rows, None)
            self._more = self._row is not None
        if self._row is None or self._row[0] != session_id:
            return None
        row, self._row = self._row, None
        return row


def _head(row: tuple[Any, ...]) -> Head:
    session_id, created, updated, title, metadata, forked_from, forked_before, *counts = row
    items, branches, turns = counts
    return Head(
        {
            "conversation": session_id,
            "created_at": created,
            "updated_at": updated,
            "title": title,
            "metadata": None if metadata is None else json.loads(metadata),
            "forked_from": forked_from,
            "forked_before": forked_before,
            "items": items,
            "branches": branches,
            "turns": turns,
        }
    )


def _branch(row: tuple[Any, ...]) -> Branch:
    _, number, created, after = row
    return Branch({"branch": number, "created_at": created, "after": after})


def _turn(row: tuple[Any, ...]) -> Turn:
    _, response_id, branch, number, first, last, created, status, model, trace_id, usage, state = (
        row
    )
    return Turn(
        {
            "turn": response_id,
            "branch": branch,
            "number": number,
            "first": first,
            "last": last,
            "created_at": created,
            "status": status,
            "model": model,
            "trace_id": trace_id,
            "usage": json.loads(usage),
            "state": state,
        }
    )
