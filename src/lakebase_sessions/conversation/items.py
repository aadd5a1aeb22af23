"""Items and their stored form, which is upstream's: one JSON text a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic_core import from_json

from lakebase_sessions.errors import InvalidItems, InvalidLimit

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

MAX_DEPTH = 200
"""Levels of lists and dicts in an item. Python's JSON reads about a thousand less what is on the
stack: what was stored from high up could not be read from further down."""

# ASCII, as upstream writes it: any text, NUL included, fits into a text column, and no line break
# is in it, so that one separates items on their way.
_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(items: list[TResponseInputItem]) -> list[str]:
    """The rows of items.

    Raises:
        InvalidItems: An item is not JSON, or these are no items at all.
    """
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
        raise InvalidItems(f"Items are a list of dicts, not a {type(items).__name__}.")
    rows = []
    for position, item in enumerate(items):
        try:
            rows.append(_to_json(item))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidItems(
                f"Item {position} cannot be stored: {error}. Items are dicts of plain JSON values."
            ) from error
        # Counting is quick, and too high where brackets are in a text; walking is exact.
        if rows[-1].count("[") + rows[-1].count("{") > MAX_DEPTH and _is_deep(item):
            raise InvalidItems(f"Item {position} cannot be stored: over {MAX_DEPTH} levels deep.")
    return rows


def _is_deep(item: object) -> bool:
    level = [item]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list | tuple)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return any(isinstance(value, dict | list | tuple) for value in level)


def decode(rows: Sequence[str]) -> list[TResponseInputItem]:
    """The items of rows; a row that is no JSON is passed over."""
    try:
        return [from_json(row) for row in rows]
    except ValueError:  # one of them; which one is looked for only then
        return [item for row in rows for item in _decoded(row)]


def _decoded(row: str) -> list[TResponseInputItem]:
    # pydantic-core's parser takes half the time, and refuses some of what Python's reads: lone
    # surrogates, and more than 200 levels.
    with suppress(ValueError):
        return [from_json(row)]
    with suppress(ValueError, RecursionError):
        return [json.loads(row)]
    return []


_MOST = 2**62
"""Of items; a sum of two still is a bigint."""


def checked_limit(limit: int | None) -> int | None:
    """`limit`, if it is one.

    Raises:
        InvalidLimit: It is not a whole number from 0, or None.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidLimit(f"A limit is a whole number of items from 0, or None; not {limit!r}.")
    return None if limit is None else min(limit, _MOST)
