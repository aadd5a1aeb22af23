"""Pure functions on lists of items: resent histories, and windows that are safe to begin with."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

_SYSTEM_ROLES = ("system", "developer")


def merge_history(
    history: list[TResponseInputItem], new_items: list[TResponseInputItem]
) -> list[TResponseInputItem]:
    """The stored conversation and what a client sent, without what is stored already.

    For `RunConfig(session_input_callback=merge_history)`: the Runner has read the history anyway,
    and stores what is new. Clients may send only what is new, or the conversation as they see it
    and what is new: the whole of it or its end, the assistant's text as a string or in parts,
    with other ids or none, with tool items and reasoning or without.

    Items are compared by content. What the client repeats ends where the stored conversation
    ends; everything up to there is dropped. What comes after is kept, in order, also when
    the same was said before ("yes", "yes"). A system message that is stored is not stored again.
    The last item is never dropped.

    Args:
        history: What is stored, oldest first; a window of it will do.
        new_items: What the client sent.

    Returns:
        `history`, then the items of `new_items` that are new: the same objects, not copies.

    Example:
        >>> hi, hello = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
        >>> [item["content"] for item in merge_history([hi, hello], [hi, hello, hi])]
        ['Hi', 'Yes?', 'Hi']
    """
    if not new_items:
        return list(history)
    candidates = new_items[:-1]
    stored = [_key(item) for item in history]
    resent = [_key(item) for item in candidates]
    positions = [number for number, key in enumerate(resent) if key[0] == "message"]
    repeated, common = _overlap(
        [key for key in stored if key[0] == "message"], [resent[number] for number in positions]
    )
    begin = positions[repeated - common] if repeated else 0
    boundary = positions[repeated - 1] + 1 if repeated else 0
    # Tool items and reasoning behind the boundary count as repeated as often as they are stored
    # and were not repeated before it; system messages as soon as they are stored.
    left = Counter(stored)
    left.subtract(resent[begin:boundary])
    known_system = {key for key in stored if key[0] == "system"}
    kept = []
    for number, (item, key) in enumerate(zip(candidates, resent, strict=True)):
        if key[0] == "system":
            if key not in known_system:
                kept.append(item)
        elif number >= boundary:
            if key[0] == "item" and left[key] > 0:
                left[key] -= 1
            else:
                kept.append(item)
    return [*history, *kept, new_items[-1]]


def _overlap(stored: list[_Key], resent: list[_Key]) -> tuple[int, int]:
    """How many messages of `resent` are old, and how many of these are seen in `stored`."""
    for length in range(len(resent), 0, -1):
        common = min(length, len(stored))
        # Either all of them are the end of what is stored, or what is stored is their end, and
        # the client knows more of the past than the window shows.
        if common and resent[length - common : length] == stored[-common:]:
            return length, common
    # A client that edits or regenerates sends a beginning of the conversation. Only the
    # assistant's words show that it is one, and not a greeting that happens to be the same.
    same = 0
    while same < min(len(stored), len(resent)) and stored[same] == resent[same]:
        same += 1
    same = same if any(key[1] == "assistant" for key in resent[:same]) else 0
    return same, same


_Key = tuple[str, ...]


def _key(item: TResponseInputItem) -> _Key:
    """What makes two items the same, by kind: `message`, `system`, `item` or `empty`."""
    fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
    role = fields.get("role")
    if not isinstance(role, str):
        same = {
            name: value
            for name, value in fields.items()
            if value is not None and name not in ("id", "status")
        }
        return ("item", _canonical(same))
    content = _content(fields.get("content"))
    if not content:
        return ("empty", role)
    return ("system" if role in _SYSTEM_ROLES else "message", role, *content)


def _content(content: object) -> tuple[str, ...]:
    """Text is text, as a string or in parts; other parts count with all that they hold."""
    parts = content if isinstance(content, list) else [content]
    found: list[str] = []
    text = ""
    for part in parts:
        fields = part if isinstance(part, dict) else {"text": part}
        said = fields.get("text", fields.get("refusal"))
        if isinstance(said, str):
            text += said
        elif said is not None or len(fields) > 1:
            same = {
                name: value
                for name, value in fields.items()
                if value is not None and (name, value) != ("detail", "auto")
            }
            found += [text.strip(), _canonical(same)]
            text = ""
    return tuple(part for part in (*found, text.strip()) if part)


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        return f"like no other: {id(value)}"  # not JSON, which the session will say


def without_cut_off_outputs(items: list[TResponseInputItem]) -> list[TResponseInputItem]:
    """`items` without the tool outputs whose call is not among them.

    A window of the latest items can begin between a call and its output, or among the outputs of
    parallel calls; a model's API refuses an output that answers nothing.

    Args:
        items: Items of one conversation, oldest first.

    Example:
        >>> without_cut_off_outputs([
        ...     {"type": "function_call_output", "call_id": "a", "output": "12"},
        ...     {"role": "user", "content": "And now?"},
        ... ])
        [{'role': 'user', 'content': 'And now?'}]
    """
    called: set[str] = set()
    kept = []
    for item in items:
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        # A stored row may hold anything there; a local shell's call has only an id.
        call_id = _canonical(fields.get("call_id") or fields.get("id"))
        kind = fields.get("type")
        if not (isinstance(kind, str) and kind.endswith("_output")):
            called.add(call_id)
        elif call_id not in called:
            continue
        kept.append(item)
    return kept
