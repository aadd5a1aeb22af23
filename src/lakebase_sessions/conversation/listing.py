"""What a listing gives: conversations, page by page, and where the next page begins."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from lakebase_sessions.conversation.session_id import check_session_id
from lakebase_sessions.errors import InvalidQuery

if TYPE_CHECKING:
    from lakebase_sessions.postgres.listing import Order

_KEY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}")
"""As `to_char` writes it: `fromisoformat` takes more, and Postgres less."""
PREVIEW_LENGTH = 80
"""Characters of a preview: a line in a list."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as a listing shows it.

    Attributes:
        session_id: As it is stored, scoped to its user: `lakebase.session(session_id)` opens it.
        title: The one that was set, else the preview.
        titled: Whether a title was set.
        preview: The first words of the user, on one line of at most 80 characters; "" where the
            user has not said anything.
        metadata: What was set, at most 16 keys.
        created_at: In the server's time zone.
        updated_at: When something was last added to it; a new title is no use.
        items: How many are stored.
        turns: How often the user spoke and was answered.
        forked_from: The session id of the conversation that this one began as a copy of.
    """

    session_id: str
    title: str
    titled: bool
    preview: str
    metadata: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    items: int
    turns: int
    forked_from: str | None

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        """From a row of the statements in postgres/listing.py."""
        session_id, _, created_at, updated_at, title, metadata, forked_from, words, items, turns = (
            row
        )
        preview = first_words(words or "")
        return cls(
            session_id=session_id,
            title=preview if title is None else title,
            titled=title is not None,
            preview=preview,
            metadata=MappingProxyType(metadata or {}),
            created_at=created_at,
            updated_at=updated_at,
            items=items,
            turns=turns,
            forked_from=forked_from,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing.

    Attributes:
        conversations: In order. A page of a search may have fewer than were asked for, or none,
            and not be the last.
        next: Where the next page begins, for `after`; None behind the last one.
    """

    conversations: tuple[Conversation, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """How far `SessionStore.prune` is.

    Attributes:
        conversations: That have been deleted.
        items: That were in them.
        of: Conversations that were old enough at the beginning.
    """

    conversations: int
    items: int
    of: int


class Cursor(NamedTuple):
    """The place in a listing behind which a page begins; clients get it as an opaque text."""

    order: Order
    key: str
    session_id: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(json.dumps(self).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, order: Order) -> Self:
        """What `str` has made.

        Raises:
            InvalidQuery: It has not, or for a listing in another order.
        """
        with suppress(ValueError, TypeError, RecursionError):
            padded = text + "=" * (-len(text) % 4)
            of, key, session_id = json.loads(base64.urlsafe_b64decode(padded))
            datetime.fromisoformat(key)
            if of == order and _KEY.fullmatch(key) and check_session_id(session_id) == session_id:
                return cls(order, key, session_id)
        raise InvalidQuery(
            "`after` is not what a page in this order had as its `next`. Begin the listing anew."
        )


def first_words(text: str, length: int = PREVIEW_LENGTH) -> str:
    """`text` on one line of at most so many characters, cut between words where it can be."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    words, space, _ = line[:length].rpartition(" ")
    # Many scripts have no spaces, and a long word is no reason to show next to nothing.
    return (words if space and len(words) > length // 2 else line[: length - 1]).rstrip() + "…"
