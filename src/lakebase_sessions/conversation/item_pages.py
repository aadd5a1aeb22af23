"""ItemPage: a conversation's items with their ids, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lakebase_sessions.conversation.items import decode, encode
from lakebase_sessions.errors import ConversationConflict, ConversationNotFound, ItemNotFound
from lakebase_sessions.postgres import items as queries

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from lakebase_sessions.conversation.going_back import GoingBack
    from lakebase_sessions.conversation.protocol import Conversation

Numbered = tuple[int, "TResponseInputItem"]
"""An item and the id of its row, which it keeps as long as it is in the conversation, and has again
when it is restored."""


_TRIES = 20
"""To remove an item from a conversation that somebody else writes to."""


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some of a conversation's items.

    Attributes:
        items: Ids and items. A row that is no JSON is left out.
        has_more: There are further ones in this direction.
    """

    items: tuple[Numbered, ...]
    has_more: bool


async def item_page(
    session: Conversation, *, after: int | None = None, limit: int = 20, backwards: bool = False
) -> ItemPage:
    """A page. One round trip.

    Args:
        session: The conversation.
        after: The id of the item before the page; None is the beginning.
        limit: At most so many.
        backwards: Newest first.

    Raises:
        ConversationNotFound: There is no such conversation.
        ItemNotFound: `after` is none of its items.
    """
    rows = await session._read(
        queries.PAGE_BACKWARDS if backwards else queries.PAGE,
        after=None if after is None else str(after),
        limit=str(limit + 1),
    )
    if not rows:
        raise _no_conversation(session)
    if not rows[0][0]:
        raise _no_item(session, after)
    found = [(number, row) for _, number, row in rows if number is not None]
    return ItemPage(tuple(_decoded(found[:limit])), len(found) > limit)


async def check_there(session: Conversation) -> None:
    """One round trip, however long the conversation is.

    Raises:
        ConversationNotFound: There is no such conversation.
    """
    if not await session._read(queries.THERE):
        raise _no_conversation(session)


async def branch_page(session: GoingBack, branch: int) -> tuple[Numbered, ...]:
    """All items of a branch. One round trip.

    Raises:
        BranchNotFound: The conversation has no such branch.
    """
    return tuple(_decoded(await session._branch_rows(branch)))


async def one_item(session: Conversation, item: int) -> TResponseInputItem:
    """One item. One round trip.

    Raises:
        ItemNotFound: The conversation has no such item.
    """
    for _, found in _decoded(await session._read(queries.ONE, item=str(item))):
        return found
    raise _no_item(session, item)


async def remove_item(session: Conversation, item: int) -> None:
    """Remove one item. One round trip, and another each time that somebody else wrote meanwhile.

    The record of its turn begins with the next item of that, or is no turn's any more.

    Raises:
        ConversationConflict: Somebody else wrote meanwhile, again and again; nothing was removed.
        ItemNotFound: The conversation has no such item.
    """
    recorded = (await session._open()).keeps_records
    statement = queries.REMOVE_RECORDED if recorded else queries.REMOVE
    for _ in range(_TRIES):
        [(is_there, is_removed)] = await session._write(statement, item=str(item))
        if not is_there:
            raise _no_item(session, item)
        if is_removed:
            return
    raise ConversationConflict(
        f"Others write to conversation {session.session_id!a} all the time, so item {item} was not "
        "removed. Try again."
    )


async def add_numbered(
    session: Conversation, items: list[TResponseInputItem]
) -> tuple[Numbered, ...]:
    """Append, all or none, and return them with their ids. One round trip.

    Raises:
        ConversationNotFound: There is no such conversation, and none is made.
        InvalidItems: An item is not JSON; nothing was stored.
    """
    encoded = encode(items)
    if not encoded:
        await check_there(session)
        return ()
    rows = await session._write(queries.ADD, items="\n".join(encoded), count=str(len(encoded)))
    if not rows:
        raise _no_conversation(session)
    return tuple(zip((number for (number,) in rows), decode(encoded), strict=True))


def _decoded(rows: list[tuple[Any, ...]]) -> list[Numbered]:
    return [(number, item) for number, row in rows for item in decode([row])]


def _no_conversation(session: Conversation) -> ConversationNotFound:
    return ConversationNotFound(f"There is no conversation {session.session_id!a}.")


def _no_item(session: Conversation, item: int | None) -> ItemNotFound:
    return ItemNotFound(f"Conversation {session.session_id!a} has no item {item}.")
