r"""The lines of an export: JSON, one object a line, ASCII unless a row is not.

The first line says what it is, the last one how many conversations there were. A conversation is
its head, its branches, and then its items by id, each turn in front of its first item::

    {"format":"lakebase-sessions","version":1}
    {"conversation":"trip-7","created_at":"...","updated_at":"...","items":2,"branches":0,"turns":1}
    {"turn":"resp_1","number":1,"first":1,"last":2,"created_at":"...","status":"completed"}
    {"at":"...","item":{"role":"user","content":"Hi"}}
    {"at":"...","item":{"role":"assistant","content":"Hello."}}
    {"conversations":1}

An item stands in its line as it is stored, character by character; where that is no JSON, or would
break the line, it is a string under `text` instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import from_json

from lakebase_sessions.errors import InvalidExport

FORMAT = "lakebase-sessions"
VERSION = 1

Fields = dict[str, Any]

as_json = json.JSONEncoder(separators=(",", ":")).encode
_ITEM = re.compile(
    rb'\{(?:"branch":([0-9]{1,9}),)?"at":"([^"\\]{1,40})","item":(.*)\}\s*', re.DOTALL
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOMENT = re.compile(r"\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


@dataclass(slots=True)
class Head:
    """A conversation begins: its id, dates, title and the like, and how many lines follow."""

    fields: Fields


@dataclass(slots=True)
class Branch:
    """A branch of the conversation; its items say so."""

    fields: Fields


@dataclass(slots=True)
class Turn:
    """The record of a turn, with the numbers of its first and last item, from 1."""

    fields: Fields


@dataclass(slots=True)
class Item:
    """An item, as it is stored."""

    text: str
    at: str
    branch: int | None


@dataclass(slots=True)
class End:
    """The last line."""

    conversations: int


Record = Head | Branch | Turn | Item | End

HEADER = as_json({"format": FORMAT, "version": VERSION}).encode() + b"\n"


def line(record: Record) -> bytes:
    """The line of a record."""
    match record:
        case Item(text, at, branch):
            of = "" if branch is None else f'"branch":{branch},'
            what = f'"item":{text}' if _is_json(text) else f'"text":{as_json(text)}'
            return f'{{{of}"at":"{at}",{what}}}\n'.encode()
        case End(conversations):
            return as_json({"conversations": conversations}).encode() + b"\n"
    known = {name: value for name, value in record.fields.items() if value not in (None, {})}
    return as_json(known).encode() + b"\n"


def _is_json(text: str) -> bool:
    """Whether it may stand in a line as it is: any JSON parser reads it."""
    if "\n" in text or "\r" in text:
        return False
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def record(read: bytes) -> Record | None:
    """The record of a line; None for the first line of an export.

    Raises:
        InvalidExport: It is none.
    """
    if (found := _ITEM.fullmatch(read)) is not None:
        branch, at, text = found.groups()
        try:
            from_json(text, allow_inf_nan=False)
            as_stored = text.decode()
        except ValueError:  # another member behind the item: somebody else has written it
            pass
        else:
            return Item(as_stored, _moment(at.decode()), None if branch is None else int(branch))
    try:
        fields = json.loads(read)
    except (ValueError, RecursionError) as error:
        raise InvalidExport(f"it is no JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise InvalidExport(f"it is a JSON {type(fields).__name__}, and no object.")
    return _of_fields(fields)


def _of_fields(fields: Fields) -> Record | None:
    if "format" in fields:
        if fields["format"] == FORMAT and fields.get("version") == VERSION:
            return None
        raise InvalidExport(
            f"it is of format {fields['format']!a}, version {fields.get('version')!a}; this "
            f"release reads {FORMAT!r}, version {VERSION}."
        )
    if "item" in fields or "text" in fields:
        _check(fields, at=str, branch=int | None, text=str | None)
        text = fields["text"] if fields.get("text") is not None else as_json(fields.get("item"))
        _check({"text": text}, text=str)
        return Item(text, _moment(fields["at"]), fields.get("branch"))
    if "conversation" in fields:
        _check(fields, conversation=str, created_at=str, updated_at=str, title=str | None)
        _check(fields, metadata=dict | None, forked_from=str | None, forked_before=int | None)
        _check(fields, items=int | None, branches=int | None, turns=int | None)
        _moment(fields["created_at"])
        _moment(fields["updated_at"])
        return Head(fields)
    if "turn" in fields:
        _check(fields, turn=str, created_at=str, status=str, number=int | None, branch=int | None)
        _check(fields, first=int | None, last=int | None, model=str | None, trace_id=str | None)
        _check(fields, usage=dict | None, state=str | None)
        _moment(fields["created_at"])
        return Turn(fields)
    if "branch" in fields:
        _check(fields, branch=int, created_at=str, after=int | None)
        _moment(fields["created_at"])
        return Branch(fields)
    if "conversations" in fields:
        _check(fields, conversations=int)
        return End(fields["conversations"])
    raise InvalidExport("it is no line of an export.")


Kind = TypeVar("Kind", Head, Branch, Turn, Item)


def checked(fields: Fields, kind: type[Kind]) -> Kind:
    """A record of this kind, from what another store has kept.

    Raises:
        InvalidExport: It cannot be stored; the message says which part.
    """
    try:
        made = _of_fields(fields)
    except InvalidExport as error:
        what = fields.get("conversation", kind.__name__.lower())
        raise InvalidExport(f"{what!a} cannot be loaded: {error}") from error
    assert isinstance(made, kind), "its members say what it is"  # noqa: S101
    return made


def _check(fields: Fields, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = fields.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidExport(f"its {name!r} is {'missing' if value is None else 'not right'}.")
        if not _storable(value):
            raise InvalidExport(f"its {name!r} holds a NUL or half a character.")


def _storable(value: object) -> bool:
    """Whether Postgres takes every text in it."""
    match value:
        case str():
            return "\0" not in value and _SURROGATE.search(value) is None
        case dict():
            return all(_storable(name) and _storable(inner) for name, inner in value.items())
        case list():
            return all(map(_storable, value))
    return True


def _moment(text: str) -> str:
    if _MOMENT.fullmatch(text) is None:
        raise InvalidExport(f"{text!a} is no moment, such as 2026-11-25T08:30:00.000000Z.")
    return text
