"""What a conversation is described with: a title, and metadata within OpenAI's bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lakebase_sessions.errors import InvalidMetadata

MOST_KEYS = 16
KEY_LENGTH = 64
VALUE_LENGTH = 512
"""The bounds of OpenAI's API, so that metadata goes from one to the other. In characters."""
TITLE_LENGTH = 200
"""Characters of a title: what a list can show, and more."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def encoded_metadata(metadata: Mapping[str, str]) -> str:
    """`metadata` as JSON.

    Raises:
        InvalidMetadata: It is no mapping of texts to texts, or beyond the bounds.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidMetadata(f"metadata is a mapping, not a {type(metadata).__name__}.")
    if len(metadata) > MOST_KEYS:
        raise InvalidMetadata(f"metadata has at most {MOST_KEYS} keys, not {len(metadata)}.")
    for key, value in metadata.items():
        _check(key, "a key of metadata", KEY_LENGTH)
        _check(value, f"metadata[{key!a}]", VALUE_LENGTH)
    return json.dumps(dict(metadata))


def checked_title(title: str | None) -> str | None:
    """`title` without blanks around it; None is no title.

    Raises:
        InvalidMetadata: It is no text, blank, or longer than 200 characters.
    """
    if title is None:
        return None
    _check(title, "title", TITLE_LENGTH)
    if not title.strip():
        raise InvalidMetadata("title is blank; None takes it away.")
    return title.strip()


def _check(text: object, place: str, length: int) -> None:
    if not isinstance(text, str):
        raise InvalidMetadata(f"{place} is a string, not a {type(text).__name__}.")
    if len(text) > length:
        raise InvalidMetadata(f"{place} has at most {length} characters, not {len(text)}.")
    if _UNSTORABLE.search(text):
        raise InvalidMetadata(f"{place} holds a NUL or a lone surrogate, which cannot be stored.")
