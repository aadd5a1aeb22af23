"""Load: conversations into a Lakebase, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.session_id import check_session_id, scope_to_user
from lakebase_sessions.errors import ConversationExists, InvalidExport
from lakebase_sessions.postgres import transfer
from lakebase_sessions.transfer.lines import Branch, End, Head, Item, Record, Turn, record
from lakebase_sessions.transfer.sqlite import is_sqlite, sqlite_records

if TYPE_CHECKING:
    from lakebase_sessions.conversation.session import Owner
    from lakebase_sessions.postgres.engine import LoopEngine
    from lakebase_sessions.postgres.transaction import Transaction

BATCH_CHARACTERS = 500_000
"""Of items that are held before they are sent."""
BATCH_LINES = 2000
BATCH_CONVERSATIONS = 200
"""Most in one transaction; where one of them fails, so do the others."""


_OWN = ("title", "metadata", "forked_from", "forked_before")


@dataclass(frozen=True, slots=True)
class Loaded:
    """How far a load has come.

    Attributes:
        conversations: That are stored for good.
        items: In them, those of branches included.
    """

    conversations: int
    items: int


async def load_conversations(
    lakebase: Owner,
    source: Path | Iterable[bytes] | AsyncIterable[bytes],
    *,
    user: str | None = None,
    replace: bool = False,
) -> AsyncIterator[Loaded]:
    """Store what `export_conversations` has written. Iterate to the end: each step loads some.

    A `Path` may also lead to a file of the Agents SDK's SQLiteSession or AdvancedSQLiteSession.

    Each conversation is stored whole or not at all, as it was: items character by character, dates,
    title, metadata, branches and records of turns. Few rows are in memory at a time.

    Args:
        lakebase: Where to.
        source: The file; or its bytes, in pieces of any size.
        user: Put all conversations into this user's scope. None: the ids stay as they are.
        replace: Replace a conversation that is there already, with all that belongs to it.

    Yields:
        How far it has come, whenever something has been stored for good.

    Raises:
        ConversationExists: One is there already. It and those behind it are not loaded.
        InvalidExport: The file is none, or was cut off; the message says what was loaded.
        InvalidSessionId: An id does not fit into the user's scope.
        TablesMissing: There is more than items, and no tables for it.

    Example:
        >>> async def restore(lakebase, path):
        ...     async for loaded in load_conversations(lakebase, path):
        ...         print(loaded.conversations)
    """
    with ExitStack() as stack:
        if not isinstance(source, Path):
            records = parsed(source)
        elif is_sqlite(source):
            records = sqlite_records(source)
        else:
            records = parsed(stack.enter_context(source.open("rb")))
        async for loaded in load(lakebase, records, user=user, replace=replace):
            yield loaded


async def parsed(source: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[Record]:
    """The records of an export; the last line has to be there."""
    number = conversations = 0
    ended = False
    async for read in _lines(source):
        number += 1
        if not read.strip():
            continue
        try:
            found = record(read)
        except InvalidExport as error:
            raise InvalidExport(f"Line {number} cannot be loaded: {error}") from error.__cause__
        if found is not None and number == 1:
            raise InvalidExport("The first line does not say that an export begins.")
        ended = isinstance(found, End)
        conversations += isinstance(found, Head)
        if found is None:
            conversations = 0
        elif isinstance(found, End):
            if found.conversations != conversations:
                raise InvalidExport(
                    f"Line {number} says that {found.conversations} conversations were exported, "
                    f"and {conversations} are in the file."
                )
        else:
            yield found
    if not ended:
        raise InvalidExport(
            f"Behind line {number} the rest of the export is missing: it was cut off, or is none."
        )


async def _lines(source: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    async for piece in _pieces(source):
        first, *more = piece.split(b"\n")
        begun.append(first)
        for following in more:
            yield b"".join(begun)
            begun = [following]
    if any(begun):
        yield b"".join(begun)


async def _pieces(source: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
    else:
        for piece in source:
            yield piece


async def load(
    lakebase: Owner,
    records: AsyncIterator[Record],
    *,
    user: str | None = None,
    replace: bool = False,
) -> AsyncIterator[Loaded]:
    """Store records; see `load_conversations`."""
    loading = _Loading(await lakebase.engine_here(), user=user, replace=replace)
    loaded = Loaded(0, 0)
    try:
        async with loading:
            async for found in records:
                if isinstance(found, Head) and loading.is_due(found):
                    loaded = await loading.store()
                    yield loaded
                loading.add(found)
                if loading.is_full:
                    await loading.send()
            if loading.is_begun:
                loaded = await loading.store()
                yield loaded
    except (InvalidExport, ConversationExists) as error:
        count = loaded.conversations
        before = f"{count} conversations were loaded." if count else "Nothing was loaded."
        raise type(error)(f"{error} {before}") from error.__cause__


class _Conversation:
    """One that is being loaded."""

    def __init__(self, session_id: str, head: Head) -> None:
        self.session_id = session_id
        self.head = head
        self.seen = dict.fromkeys(("items", "branches", "turns"), 0)
        self.branch_ids: dict[int, int] = {}
        self.expected: dict[int, list[tuple[dict[str, Any], str]]] = {}
        """Number of an item to where its id is wanted."""

    def expect(self, number: int | None, row: dict[str, Any], name: str) -> None:
        """Have the id of this item under this name as soon as there is one."""
        row[name] = None
        if number is None:
            return
        row["waits"] = row.get("waits", 0) + 1
        if number <= self.seen["items"]:
            raise InvalidExport(self._wrong(f"a line refers to item {number}, which is before it"))
        self.expected.setdefault(number, []).append((row, name))

    def arrived(self, number: int, item_id: int) -> None:
        """An item has its id."""
        for row, name in self.expected.pop(number, ()):
            row[name] = item_id
            row["waits"] -= 1

    def check(self) -> None:
        """Whether all of it is there."""
        for name, seen in self.seen.items():
            said = self.head.fields.get(name)
            if said is not None and said != seen:
                raise InvalidExport(self._wrong(f"{said} {name} were exported, {seen} are there"))
        if any(number > self.seen["items"] for number in self.expected):
            raise InvalidExport(self._wrong("a line refers to an item that it does not have"))

    def branch_id(self, number: int | None) -> int | None:
        """The id of one of its branches; None is what is in no branch."""
        if number is None:
            return None
        if number not in self.branch_ids:
            raise InvalidExport(self._wrong(f"it has no branch {number}"))
        return self.branch_ids[number]

    def _wrong(self, what: str) -> str:
        return f"Conversation {self.session_id!a} is not whole: {what}."


class _Loading:
    """Conversations on their way into the tables, some in each transaction."""

    def __init__(self, engine: LoopEngine, *, user: str | None, replace: bool) -> None:
        self._engine = engine
        self._user = user
        self._replace = replace
        self._stack = AsyncExitStack()
        self._stored = Loaded(0, 0)
        self._transaction: Transaction | None = None
        self._forget()

    def _forget(self) -> None:
        self._conversations: dict[str, _Conversation] = {}
        self._current: _Conversation | None = None
        self._items_sent = 0
        self._heads: list[dict[str, Any]] = []
        self._branches: list[tuple[_Conversation, int, dict[str, Any]]] = []
        self._hanging: list[dict[str, Any]] = []
        self._items: list[tuple[_Conversation, int, Item]] = []
        self._turns: list[tuple[_Conversation, dict[str, Any]]] = []
        self._size = 0

    async def __aenter__(self) -> None:
        await self._stack.__aenter__()

    async def __aexit__(self, *exception: Any) -> bool | None:
        return await self._stack.__aexit__(*exception)

    @property
    def is_begun(self) -> bool:
        """Whether anything waits to be stored for good."""
        return bool(self._conversations)

    @property
    def is_full(self) -> bool:
        """Whether what is held in memory should be sent."""
        lines = len(self._items) + len(self._turns) + len(self._branches)
        return self._size > BATCH_CHARACTERS or lines >= BATCH_LINES

    def is_due(self, head: Head) -> bool:
        """Whether what has come should be stored before this conversation begins."""
        return (
            self._transaction is not None
            or len(self._conversations) >= BATCH_CONVERSATIONS
            or self._scoped(head.fields["conversation"]) in self._conversations
        )

    def _scoped(self, session_id: str) -> str:
        if self._user is None:
            return session_id
        return scope_to_user(check_session_id(session_id, "conversation") or "", self._user)

    def add(self, record: Record) -> None:
        """Take what a line holds."""
        if isinstance(record, Head):
            self._begin(record)
            return
        here = self._current
        if here is None:
            raise InvalidExport("There is a line before the first conversation.")
        match record:
            case Item():
                here.seen["items"] += 1
                self._items.append((here, here.seen["items"], record))
                self._size += len(record.text)
            case Branch(fields):
                here.seen["branches"] += 1
                row = {**fields, "session_id": here.session_id}
                here.expect(fields.get("after"), row, "after")
                self._branches.append((here, fields["branch"], row))
                if fields.get("after") is not None:
                    self._hanging.append(row)
            case Turn(fields):
                here.seen["turns"] += 1
                row = {**fields, "session_id": here.session_id, "response_id": fields["turn"]}
                here.expect(fields.get("first"), row, "first")
                here.expect(fields.get("last"), row, "last")
                self._turns.append((here, row))
                self._size += len(fields.get("state") or "")

    def _begin(self, head: Head) -> None:
        if self._current is not None:
            self._current.check()
        session_id = self._scoped(head.fields["conversation"])
        forked_from = head.fields.get("forked_from")
        if forked_from is not None:
            forked_from = self._scoped(forked_from)
        self._current = self._conversations[session_id] = _Conversation(session_id, head)
        self._heads.append({**head.fields, "session_id": session_id, "forked_from": forked_from})

    async def store(self) -> Loaded:
        """Store for good what has come."""
        assert self._current is not None, "something has begun"  # noqa: S101
        self._current.check()
        await self.send()
        await self._stack.aclose()  # the transaction's end
        self._stored = Loaded(
            self._stored.conversations + len(self._conversations),
            self._stored.items + self._items_sent,
        )
        self._transaction = None
        self._forget()
        return self._stored

    async def send(self) -> None:
        """Send what is held."""
        if self._transaction is None:
            transaction = self._engine.transaction()
            self._transaction = await self._stack.enter_async_context(transaction)
        if self._heads:
            await self._send_heads(self._transaction)
        if self._branches:
            await self._send_branches(self._transaction)
        if self._items:
            await self._send_items(self._transaction)
        await self._send_turns(self._transaction)
        hung = [row for row in self._hanging if row["after"] is not None]
        if hung:
            await self._transaction.rows(transfer.HANG_BRANCHES, {"branches": json.dumps(hung)})
            self._hanging = [row for row in self._hanging if row["after"] is None]
        self._size = sum(len(row.get("state") or "") for _, row in self._turns)

    async def _send_heads(self, transaction: Transaction) -> None:
        ids = [head["session_id"] for head in self._heads]
        if self._replace:
            for statement in (transfer.LOCK, transfer.REMOVE_ITEMS, transfer.REMOVE):
                await transaction.rows(statement, {"ids": json.dumps(ids)})
        rows = await transaction.rows(transfer.INSERT_HEADS, {"heads": json.dumps(self._heads)})
        made = {session_id for (session_id,) in rows}
        if there := next((each for each in ids if each not in made), None):
            raise ConversationExists(
                f"Conversation {there!a} is there already. To load it in its place: "
                "`load_conversations(..., replace=True)`, or `lakebase-sessions load --replace`."
            )
        own = [head for head in self._heads if any(head.get(name) for name in _OWN)]
        if own:
            self._engine.check_records()
            await transaction.rows(transfer.INSERT_CONVERSATIONS, {"heads": json.dumps(own)})
        self._heads = []

    async def _send_branches(self, transaction: Transaction) -> None:
        self._engine.check_records()
        rows = [row for _, _, row in self._branches]
        made = await transaction.rows(transfer.INSERT_BRANCHES, {"branches": json.dumps(rows)})
        for (here, number, row), (branch_id,) in zip(self._branches, made, strict=True):
            here.branch_ids[number] = row["id"] = branch_id
        self._branches = []

    async def _send_items(self, transaction: Transaction) -> None:
        branches = [here.branch_id(item.branch) for here, _, item in self._items]
        if any(branches):
            self._engine.check_records()
        made = await transaction.rows(
            transfer.INSERT_ITEMS if self._engine.keeps_records else transfer.INSERT_PLAIN_ITEMS,
            {
                "ids": json.dumps([here.session_id for here, _, _ in self._items]),
                "branches": json.dumps(branches),
                "moments": json.dumps([item.at for _, _, item in self._items]),
                "texts": json.dumps([item.text for _, _, item in self._items]),
            },
        )
        for (here, number, _), (item_id,) in zip(self._items, made, strict=True):
            here.arrived(number, item_id)
        self._items_sent += len(self._items)
        self._items = []

    async def _send_turns(self, transaction: Transaction) -> None:
        """Those whose first and last item have their ids."""
        ready = [
            {**row, "branch_id": here.branch_id(row.get("branch"))}
            for here, row in self._turns
            if not row.get("waits")
        ]
        if ready:
            self._engine.check_records()
            await transaction.rows(transfer.INSERT_TURNS, {"turns": json.dumps(ready)})
            self._turns = [(here, row) for here, row in self._turns if row.get("waits")]
