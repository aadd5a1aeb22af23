"""Items and their stored form, which is upstream's: one JSON text a row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lakebase_sessions.errors import InvalidItems, InvalidLimit

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

# ASCII, as upstream writes it: any text, NUL included, fits into a text column, and no line break
# is in it, so that one separates items on their way.
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(items: list[TResponseInputItem]) -> list[str]:
    """The rows of items.

    Raises:
        InvalidItems: An item is not JSON.
    """
    rows = []
    for position, item in enumerate(items):
        try:
            rows.append(_to_json(item))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidItems(
                f"Item {position} cannot be stored: {error}. Items are dicts of plain JSON values."
            ) from error
    return rows


def decode(rows: Iterable[str]) -> list[TResponseInputItem]:
    """The items of rows; a row that is no JSON is passed over."""
    items: list[TResponseInputItem] = []
    for row in rows:
        try:
            items.append(json.loads(row))
        except (ValueError, RecursionError):
            continue
    return items


def checked_limit(limit: int | None) -> int | None:
    """`limit`, if it is one.

    Raises:
        InvalidLimit: It is not a whole number from 0, or None.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidLimit(f"A limit is a whole number of items from 0, or None; not {limit!r}.")
    return limit
