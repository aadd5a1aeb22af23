"""The items that a client gives to the routes: one that no model takes would end a conversation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from agents.models.fake_id import FAKE_RESPONSES_ID
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseInputAudioParam,
    ResponseInputContentParam,
    ResponseInputItemParam,
    ResponseOutputRefusalParam,
    ResponseOutputTextParam,
)
from openai.types.responses.response_input_item_param import ItemReference
from pydantic import TypeAdapter, ValidationError

from lakebase_sessions.server.failures import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAY_BE_MISSING = ("id", "status", "detail", "annotations")
"""What the client's types want and the API does without."""


def checked_items(items: Sequence[dict[str, Any]]) -> list[Any]:
    """The items as the Agents SDK takes them back from a session.

    Raises:
        Refused: One is neither a message nor another item of OpenAI's Responses API.
    """
    return [_checked(item, f"items[{at}]") for at, item in enumerate(items)]


def _checked(item: dict[str, Any], place: str) -> dict[str, Any]:
    if item.get("type") not in (None, "message"):
        _check(item, _items(), place)
        return item
    item = item | {"type": "message"}
    _check(item | {"content": ""}, {"message": TypeAdapter(EasyInputMessageParam)}, place)
    content, is_answer = item.get("content"), item["role"] == "assistant"
    if isinstance(content, list):
        for at, part in enumerate(content):
            _check(part, _output() if is_answer else _input(), f"{place}.content[{at}]")
        # The SDK knows an answer in parts by its id.
        return item | {"id": item.get("id") or FAKE_RESPONSES_ID} if is_answer else item
    if not isinstance(content, str):
        raise Refused(f"{place}.content is neither a string nor a list of parts.", "items")
    # And one that is a string by having no further fields.
    return {name: item[name] for name in EasyInputMessageParam.__annotations__ if name in item}


def _check(value: object, kinds: Mapping[str, TypeAdapter[Any]], place: str) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise Refused(f"{place} has no type that is known here: {', '.join(kinds)}.", "items")
    try:
        kinds[kind].validate_python(value)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            if fault["type"] != "missing" or fault["loc"][-1] not in _MAY_BE_MISSING:
                where = ".".join(map(str, (place, *fault["loc"])))
                raise Refused(f"{where}: {fault['msg']}.", "items") from error


@cache
def _items() -> Mapping[str, TypeAdapter[Any]]:
    # A reference names what another service has stored.
    return _by_type(kind for kind in get_args(ResponseInputItemParam) if kind is not ItemReference)


@cache
def _input() -> Mapping[str, TypeAdapter[Any]]:
    return _by_type((*get_args(ResponseInputContentParam), ResponseInputAudioParam))


@cache
def _output() -> Mapping[str, TypeAdapter[Any]]:
    return _by_type((ResponseOutputTextParam, ResponseOutputRefusalParam))


def _by_type(kinds: Iterable[Any]) -> Mapping[str, TypeAdapter[Any]]:
    return {get_args(get_type_hints(kind)["type"])[0]: TypeAdapter(kind) for kind in kinds}
