"""SessionStore: all conversations of a Lakebase, and what one does with them as a whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

from lakebase_sessions.conversation.filters import ago, filters, moment, words_of
from lakebase_sessions.conversation.items import encode
from lakebase_sessions.conversation.listing import Conversation, Cursor, Page, Pruned
from lakebase_sessions.conversation.metadata import checked_title, encoded_metadata
from lakebase_sessions.conversation.session_id import (
    check_session_id,
    new_session_id,
    scope_to_user,
    user_prefix,
)
from lakebase_sessions.errors import (
    ConversationExists,
    ConversationNotFound,
    InvalidQuery,
    InvalidSessionId,
)
from lakebase_sessions.postgres import items as item_queries
from lakebase_sessions.postgres import listing, retention
from lakebase_sessions.workspace.background import to_its_end

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from lakebase_sessions.conversation.session import Owner
    from lakebase_sessions.postgres.engine import LoopEngine
    from lakebase_sessions.postgres.listing import Order

Rows: TypeAlias = list[tuple[Any, ...]]  # the class below has a method of that name

DELETED_AT_ONCE = 100
"""Conversations that one statement of `delete_user` deletes; it holds their locks to its end."""

MOST_AT_ONCE = 10_000
"""Conversations in one batch of `prune`: one statement has to end in time."""


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
"""What `update` leaves as it is."""


class SessionStore:
    """The conversations of a Lakebase; `lakebase.store` has it.

    Every method may raise any `LakebaseSessionsError`. With `user=` a method knows the
    conversations of that user only: another's is `ConversationNotFound`, whoever names it. Without
    it, it is about everybody's, so an app passes whom the platform authenticated, as for
    `session_for`.

    What is listed was stored by whichever class. Titles and metadata need this package's own
    tables; without them `update` raises `TablesMissing`, and the rest works on.
    """

    def __init__(self, lakebase: Owner) -> None:
        self._owner = lakebase

    async def list(
        self,
        *,
        user: str | None = None,
        order: Order = "updated",
        updated_since: datetime | None = None,
        updated_before: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        search: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> AsyncIterator[Conversation]:
        """Conversations, newest first. One round trip for each hundred of them.

        In the order of their last use a conversation that is used meanwhile can come twice, or
        only the second time: it moves to the front. In the order in which they were created none
        moves, and a walk meets each that was there when it began and was not deleted.

        Args:
            user: Only this user's.
            order: `"updated"`, by when they were last used, or `"created"`.
            updated_since: Only those that were last used then or later. Without a time zone it is
                local time.
            updated_before: Only those that were last used before.
            metadata: Only those whose metadata has all of these.
            search: Only those in which the user or the assistant said this, in one message, as it
                is written, but for upper and lower case; at most 200 characters. Without the index
                that `lakebase-sessions init --search` makes, all that is listed is read, 2,000
                conversations in a round trip.
            limit: At most so many; None is all.
            after: The `next` of a page, to go on behind it.

        Raises:
            InvalidQuery: One of these cannot be what it should be.
            TablesMissing: `metadata`, without the table that holds it.

        Example:
            >>> async def show(lakebase, user):
            ...     async for conversation in lakebase.store.list(user=user):
            ...         print(conversation.updated_at, conversation.title)
        """
        left = limit
        while left is None or left > 0:
            page = await self.page(
                user=user,
                order=order,
                updated_since=updated_since,
                updated_before=updated_before,
                metadata=metadata,
                search=search,
                limit=listing.MOST if left is None else min(left, listing.MOST),
                after=after,
            )
            for conversation in page.conversations:
                yield conversation
            if page.next is None:
                return
            after = page.next
            left = None if left is None else left - len(page.conversations)

    async def page(
        self,
        *,
        user: str | None = None,
        order: Order = "updated",
        updated_since: datetime | None = None,
        updated_before: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        search: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page:
        """One page of `list`, for an API. One round trip, for any page.

        Args:
            user: As for `list`, like all that is not here.
            order: As for `list`.
            updated_since: As for `list`.
            updated_before: As for `list`.
            metadata: As for `list`.
            search: As for `list`. A page then may have fewer conversations than there are, and a
                `next`: there is a bound to how many are looked through.
            limit: Conversations on it, 1 to 100.
            after: The `next` of the page before.

        Example:
            >>> async def second_page(store):
            ...     first = await store.page(limit=50)
            ...     return await store.page(limit=50, after=first.next)
        """
        if order not in ("updated", "created"):
            raise InvalidQuery(f"order is 'updated' or 'created', not {order!r}.")
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 < limit <= listing.MOST:
            raise InvalidQuery(f"A page has 1 to {listing.MOST} conversations, not {limit!r}.")
        begin = Cursor.parse(after, order) if after is not None else None
        words = words_of(search)
        parameters = {
            **filters(user, updated_since, updated_before, metadata),
            "words": words,
            "item": json.dumps({"role": "user", "content": words}),
            "key": begin.key if begin else "infinity",
            "last": begin.session_id if begin else "",
            "limit": str(limit + 1),
        }
        engine = await self._engine(own=metadata is not None)
        wanted = listing.Listing(
            order=order,
            own=engine.keeps_records,
            user=user is not None,
            metadata=metadata is not None,
            search=None if words is None else engine.collation,
            grams=words is not None and engine.finds_words,
        )
        rows = await engine.rows(listing.page_of(wanted), parameters, writing=False)
        found = [row for row in rows if row[2] is not None]
        goes_on = found[limit - 1 :] if len(found) > limit else rows[len(found) :]
        return Page(
            tuple(Conversation.from_row(row) for row in found[:limit]),
            str(Cursor(order, goes_on[0][1], goes_on[0][0])) if goes_on else None,
        )

    async def count(
        self,
        *,
        user: str | None = None,
        updated_since: datetime | None = None,
        updated_before: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """How many conversations `list` would give. One round trip.

        Args:
            user: As for `list`, like the others.
            updated_since: As for `list`.
            updated_before: As for `list`.
            metadata: As for `list`.
        """
        engine = await self._engine(own=metadata is not None)
        statement = listing.count(user=user is not None, metadata=metadata is not None)
        parameters = filters(user, updated_since, updated_before, metadata)
        ((found,),) = await engine.rows(statement, parameters, writing=False)
        return int(found)

    async def create(
        self,
        session_id: object = None,
        *,
        user: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Sequence[TResponseInputItem] = (),
    ) -> Conversation:
        """Begin a conversation before anybody speaks. Two round trips.

        Nobody has to: the first item that is added begins one, too.

        Args:
            session_id: As for `Lakebase.session`; None makes one.
            user: Whose.
            title: As for `update`.
            metadata: As for `update`.
            items: What it begins with.

        Raises:
            ConversationExists: The id is taken, and nothing was stored.
            InvalidMetadata: The title or the metadata are beyond their bounds.
            InvalidItems: An item is not JSON.
            TablesMissing: There is no table for title and metadata.
        """
        stored = scope_to_user(check_session_id(session_id) or new_session_id(), user)
        encoded = encode([*items])
        parameters: dict[str, str | None] = {
            "session_id": stored,
            "items": "\n".join(encoded),
            "count": str(len(encoded)),
        }
        described = title is not None or bool(metadata)
        if described:
            parameters["title"] = checked_title(title)
            parameters["metadata"] = encoded_metadata(metadata or {})
        await self._engine(own=described)
        statement = item_queries.CREATE_DESCRIBED if described else item_queries.CREATE
        if not await self._write(statement, parameters):
            raise ConversationExists(
                f"There is a conversation {stored!a} already, so none was made. Without an id "
                "create() makes one."
            )
        return await self.get(stored)

    async def find_response(
        self, response_id: str, *, user: str | None = None
    ) -> tuple[str, int] | None:
        """The conversation that a response belongs to, and its turn's number. One round trip.

        Args:
            response_id: As `custom_outputs` or the response had it.
            user: Whose.

        Returns:
            None if no conversation has it, or only as a branch.
        """
        engine = await self._engine(own=True)
        if not response_id.isprintable():  # what Postgres cannot take is nobody's
            return None
        prefix = "" if user is None else user_prefix(user)
        rows = await engine.rows(
            item_queries.FIND_RESPONSE,
            {"response_id": response_id, "prefix": prefix},
            writing=False,
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def get(self, session_id: object, *, user: str | None = None) -> Conversation:
        """One conversation. One round trip.

        Raises:
            ConversationNotFound: There is none, or it is somebody else's.
        """
        stored = _stored_id(session_id, user)
        engine = await self._engine()
        statement = listing.one(own=engine.keeps_records)
        rows = await engine.rows(statement, {"session_id": stored}, writing=False)
        return _only(rows, stored)

    async def update(
        self,
        session_id: object,
        *,
        user: str | None = None,
        title: str | _Unset | None = UNSET,
        metadata: Mapping[str, str] | _Unset | None = UNSET,
    ) -> Conversation:
        """Set a conversation's title, or its metadata, or both. One round trip.

        It does not count as a use: `updated_at` stays.

        Args:
            session_id: Which.
            user: Whose.
            title: At most 200 characters; None takes it away, so that the first words are shown.
            metadata: What it is from now on, as a whole: at most 16 keys of 64 characters, with
                texts of at most 512; None is none.

        Returns:
            The conversation as it is now.

        Raises:
            ConversationNotFound: There is none, or it is somebody else's.
            InvalidMetadata: The title or the metadata are beyond their bounds.
            TablesMissing: There is no table for them.
        """
        stored = _stored_id(session_id, user)
        parameters = {
            "session_id": stored,
            "title": None if isinstance(title, _Unset) else checked_title(title),
            "titled": str(not isinstance(title, _Unset)),
            "metadata": None if isinstance(metadata, _Unset) else encoded_metadata(metadata or {}),
        }
        await self._engine(own=True)
        return _only(await self._write(listing.updated(), parameters), stored)

    async def _title(self, session_id: str, title: str) -> None:
        """Give a conversation a title if it has none yet; for `title_with`."""
        await self._engine(own=True)
        parameters = {"session_id": session_id, "title": checked_title(title)}
        await self._write(listing.TITLE, parameters)

    async def delete(self, session_id: object, *, user: str | None = None) -> None:
        """Delete a conversation and all that hangs on it. One round trip.

        Raises:
            ConversationNotFound: There is none, or it is somebody else's.
        """
        stored = _stored_id(session_id, user)
        engine = await self._engine()
        statement = listing.delete(own=engine.keeps_records)
        if not await self._write(statement, {"session_id": stored}):
            raise _not_found(stored)

    async def delete_user(self, user: str) -> int:
        """Delete all conversations of a user; those that begin meanwhile too.

        A hundred in each round trip. If it is broken off, what is left is whole.

        Returns:
            How many there were.
        """
        parameters = {"prefix": user_prefix(user), "limit": str(DELETED_AT_ONCE)}
        engine = await self._engine()
        statement = listing.delete_users(own=engine.keeps_records)
        deleted = 0
        while gone := await self._write(statement, parameters):
            deleted += len(gone)
        return deleted

    async def prune(
        self,
        *,
        older_than: timedelta | datetime,
        user: str | None = None,
        dry_run: bool = False,
        batch: int = 100,
    ) -> AsyncIterator[Pruned]:
        """Delete conversations that have not been used for long, each as a whole.

        In batches, each a statement of its own that holds its locks for some milliseconds. It goes
        round what somebody is writing to, and what was used since it began stays whole: a turn
        that comes when its conversation is gone begins a new one, and an atomic one fails with
        `ConversationConflict`. Nothing happens before it is iterated; broken off, it can be begun
        again.

        Args:
            older_than: Last used longer ago than this, or before this moment.
            user: Only this user's.
            dry_run: Only say how many there are: the only `Pruned` is what would be deleted.
            batch: Conversations in a statement, from 1 to 10,000. More is quicker, and others
                wait longer.

        Yields:
            After each batch what has been deleted so far.

        Raises:
            InvalidQuery: One of these cannot be what it should be.

        Example:
            >>> async def forget(store):
            ...     async for pruned in store.prune(older_than=timedelta(days=90)):
            ...         print(f"{pruned.conversations} of {pruned.of}")
        """
        if not isinstance(batch, int) or isinstance(batch, bool) or not 0 < batch <= MOST_AT_ONCE:
            raise InvalidQuery(f"batch is a whole number from 1 to {MOST_AT_ONCE}, not {batch!r}.")
        parameters = {
            "until": moment(ago(older_than), "older_than"),
            "prefix": None if user is None else user_prefix(user),
        }
        engine = await self._engine()
        kind = {"own": engine.keeps_records, "user": user is not None}
        statement = retention.count(**kind)
        asked = {**parameters, "items": str(dry_run)}
        ((of, items),) = await engine.rows(statement, asked, writing=False)
        if dry_run:
            yield Pruned(of, int(items), of)
            return
        pruned, since = Pruned(0, 0, of), "-infinity"
        while True:
            asked = {**parameters, "batch": str(batch), "since": since}
            ((gone, items, last),) = await self._write(retention.prune(**kind), asked)
            if last is None:
                return
            since = last
            conversations = pruned.conversations + gone
            pruned = Pruned(conversations, pruned.items + items, max(of, conversations))
            yield pruned

    async def _engine(self, *, own: bool = False) -> LoopEngine:
        engine = await self._owner.engine_here()
        if own:
            engine.check_records()
        return engine

    async def _write(self, statement: LiteralString, parameters: Mapping[str, str | None]) -> Rows:
        """The outcome of a statement; a cancellation waits until it is certain."""
        engine = await self._owner.engine_here()
        return await to_its_end(engine.rows(statement, parameters, writing=True))


def _stored_id(session_id: object, user: str | None) -> str:
    checked = check_session_id(session_id)
    if checked is None:
        raise InvalidSessionId("Which conversation is meant is not said: session_id is empty.")
    return scope_to_user(checked, user)


def _only(rows: Rows, session_id: str) -> Conversation:
    if not rows:
        raise _not_found(session_id)
    return Conversation.from_row(rows[0])


def _not_found(session_id: str) -> ConversationNotFound:
    return ConversationNotFound(
        f"There is no conversation {session_id!a}: it was never stored, was deleted, or is another "
        "user's."
    )
