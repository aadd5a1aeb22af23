"""What a listing is narrowed by, checked, and as the statements take it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from lakebase_sessions.conversation.metadata import encoded_metadata
from lakebase_sessions.conversation.session_id import user_prefix
from lakebase_sessions.errors import InvalidQuery

MOST_SEARCHED = 200
"""Characters that can be searched for."""


def filters(
    user: str | None,
    since: datetime | None,
    before: datetime | None,
    metadata: Mapping[str, str] | None,
) -> dict[str, str | None]:
    """The parameters that listings and counts share."""
    return {
        "prefix": None if user is None else user_prefix(user),
        "since": moment(since, "updated_since") or "-infinity",
        "before": moment(before, "updated_before") or "infinity",
        "metadata": None if metadata is None else encoded_metadata(metadata),
    }


def words_of(search: str | None) -> str | None:
    """What is searched for, as a stored text would have it; None is anything."""
    if search is None:
        return None
    if not isinstance(search, str) or len(search) > MOST_SEARCHED:
        raise InvalidQuery(f"search is a text of at most {MOST_SEARCHED} characters.")
    # As in postgres/said.py. A search box that is empty is no search.
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", search).strip() or None


def moment(value: datetime | None, name: str) -> str | None:
    """A point in time as a parameter; without a time zone it is local time."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidQuery(f"{name} is a datetime, not a {type(value).__name__}.")
    try:
        return value.astimezone(UTC).isoformat()
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidQuery(f"{name} is out of range: {value}.") from error


def ago(older_than: timedelta | datetime) -> datetime:
    """The point in time before which something is older than this."""
    if isinstance(older_than, datetime):
        return older_than
    if not isinstance(older_than, timedelta) or older_than < timedelta(0):
        raise InvalidQuery(f"older_than is a timedelta from 0, or a datetime; not {older_than!r}.")
    try:
        return datetime.now(UTC) - older_than
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
