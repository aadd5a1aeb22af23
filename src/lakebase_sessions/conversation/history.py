"""Pure functions on lists of items: resent histories, and windows that are safe to begin with."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from lakebase_sessions.conversation.soundness import RefusedItem, refused

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

logger = logging.getLogger(__name__)

_SYSTEM_ROLES = ("system", "developer")


def merge_history(
    history: list[TResponseInputItem], new_items: list[TResponseInputItem]
) -> list[TResponseInputItem]:
    """The stored conversation and what a client sent, without what is stored already.

    For `RunConfig(session_input_callback=merge_history)`: the Runner has read the history anyway,
    and stores what is new. Clients may send only what is new, or the conversation as they see it
    and what is new: the whole of it or its end, edited, without answers that never arrived or
    with a part of them, the assistant's text as a string or in parts, with other ids or none,
    with tool items and reasoning or without.

    Items are compared by content. A client cannot invent the assistant's words: everything up to
    the last of them that is stored is old, and so is what goes on as the stored conversation does
    from there. What comes after is kept, in order, also when the same was said before ("yes",
    "yes"). A system message that is stored is not stored again. The last item is never dropped.

    Args:
        history: What is stored, oldest first; a window of it will do.
        new_items: What the client sent.

    Returns:
        `history`, then the items of `new_items` that are new: the same objects, not copies. Without
        what a model would refuse the conversation for, such as a call whose output was never
        stored, which the log says once; but for the last item.

    Example:
        >>> hi, hello = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
        >>> [item["content"] for item in merge_history([hi, hello], [hi, hello, hi])]
        ['Hi', 'Yes?', 'Hi']
    """
    return merge(history, new_items)


def merge(
    history: list[TResponseInputItem],
    new_items: list[TResponseInputItem],
    session_id: str | None = None,
    parted: Parting | None = None,
) -> list[TResponseInputItem]:
    """`merge_history`, with the session's id for the log.

    With `parted` where it is known by more of the past than `history` shows.
    """
    parted = parted or parting(history, new_items)
    merged = [*history, *(new_items[number] for number in parted.new)]
    last = len(merged) - 1 if new_items else len(merged)
    left_out = {
        item.position: item for item in refused(merged, len(history)) if item.position != last
    }
    latest = next((it for it in reversed(left_out.values()) if _is_broken(it, history)), None)
    if latest:
        _say_once(session_id, latest.type, latest.reason, hash(_canonical(latest.item)))
    return [item for at, item in enumerate(merged) if at not in left_out]


def _is_broken(item: RefusedItem, history: list[TResponseInputItem]) -> bool:
    """Whether it is stored, and not merely what a window has left of the turn it begins in."""
    if item.position >= len(history):
        return False
    if item.reason != "no_call":
        return item.reason != "no_reasoning"
    return any(role_of(other) not in (None, "assistant") for other in history[: item.position])


@lru_cache(maxsize=1024)  # what was said, to say it once
def _say_once(session_id: str | None, kind: str, reason: str, _latest: int) -> None:
    logger.warning(
        "The conversation%s holds items for which a model's API refuses the whole of it (the "
        "latest is a %s: %s). Turns leave them out of what the model sees; `await "
        "session.repair()` removes them.",
        f" {session_id!a}" if session_id is not None else "",
        kind,
        reason,
    )


@dataclass(frozen=True, slots=True)
class Parting:
    """Where what a client sent leaves what is stored."""

    new: tuple[int, ...]
    """The places, in what was sent, of what is not stored. The last item counts as new."""

    stored: int
    """The client's view ends behind so many stored items; 0 if it shares nothing with them."""

    from_beginning: bool
    """Whether the view has words of the assistant that are stored, and begins as that does."""

    is_ambiguous: bool = False
    """Whether it may as well end elsewhere, because the assistant has said the same twice."""


def parting(history: list[TResponseInputItem], sent: list[TResponseInputItem]) -> Parting:
    """What of `sent` is new, and where in `history` the view of who sent it ends.

    Takes time in proportion to the number of items.

    Args:
        history: What is stored, oldest first; a window of it will do.
        sent: What a client sent: what is new, behind as much of the past as it likes.
    """
    if len(sent) < 2:
        return Parting(new=tuple(range(len(sent))), stored=0, from_beginning=False)
    resent = [_key(item) for item in sent[:-1]]
    # To a client that shows tool items, calls are the assistant's words too. To others they are
    # nothing, and not worth the time of comparing.
    shown = {key[0] for key in resent}
    kinds = {"message"} | (shown & {"call"})
    compared = shown & {"call", "item"}
    stored = [_key(item) if compared or role_of(item) else ("item",) for item in history]
    there = [number for number, key in enumerate(stored) if key[0] in kinds]
    here = [number for number, key in enumerate(resent) if key[0] in kinds]
    old, end, is_ambiguous = _shared(
        [stored[number] for number in there], [resent[number] for number in here]
    )
    boundary = here[old - 1] + 1 if old else 0
    end = there[end - 1] + 1 if end else 0

    systems = {key for key in stored if key[0] == "system"}
    # The rest of a turn whose beginning is shared: its tool items, in any order.
    rest: dict[_Key, list[int]] = {}
    for number in range(len(stored) - 1, end - 1, -1):
        if stored[number][0] in ("call", "item"):
            rest.setdefault(stored[number], []).append(number)
    new: list[int] = []
    thoughts: list[int] = []  # reasoning often has no content: it goes with what it led to
    for number, key in enumerate(resent):
        if key[0] == "system":
            if key not in systems:
                new.append(number)
        elif number < boundary:
            continue
        elif key[0] == "reasoning":
            thoughts.append(number)
        else:
            if rest.get(key):
                end = max(end, rest[key].pop() + 1)
            else:
                new += [*thoughts, number]
            thoughts.clear()
    return Parting(
        new=(*sorted([*new, *thoughts]), *range(len(resent), len(sent))),
        stored=end,
        from_beginning=_begin_alike(stored, resent),
        is_ambiguous=is_ambiguous,
    )


def _shared(stored: list[_Key], resent: list[_Key]) -> tuple[int, int, bool]:
    """How many of `resent` are old, and behind how many of `stored` the last of them stands.

    And whether it may stand elsewhere as well.
    """
    first: dict[_Key, int] = {}
    last: dict[_Key, int] = {}
    for number, key in enumerate(stored):
        if _is_assistants(key):
            first.setdefault(key, number)
            last[key] = number
    words = [number for number, key in enumerate(resent) if key in last]
    if not words:
        return *_shared_by_users(stored, resent), False

    def out_of_order() -> bool:
        return len(words) > 1 and first[resent[words[-2]]] >= last[resent[words[-1]]]

    # Words that are stored, but nowhere behind those sent before them. Either they are said again
    # and not stored yet (a client may show each failure as an answer), or those before them are
    # older than a window, and then what is stored ends in what was sent.
    if out_of_order() and (places := [at for at in _ends(stored, resent) if at > words[0]]):
        return places[-1], len(stored), False
    while out_of_order():
        words.pop()
    old = words[-1] + 1
    # They may have been said more than once: where most of what is before them is the same; of
    # several such places the latest, which at worst stores something twice.
    past = _common_pasts(resent[:old], stored)
    end = max(range(len(past)), key=lambda place: (past[place], place))
    is_ambiguous = past.count(past[end]) > 1
    # Behind them the client may miss answers that were lost, and what it took back.
    for place in range(end, len(stored)):
        if old < len(resent) and resent[old] == stored[place]:
            old, end = old + 1, place + 1
    return old, end, is_ambiguous


def _shared_by_users(stored: list[_Key], resent: list[_Key]) -> tuple[int, int]:
    """The same, where nothing is resent that is known as the assistant's words.

    What users said last is looked for instead. To find it can be chance, so it has to be all that
    they said, or what has no answer, or there are words of the assistant's with it: a part of an
    answer, or a past of which `stored` is only the end.
    """
    said = [number for number, key in enumerate(stored) if not _is_assistants(key)]
    answers = [number for number, key in enumerate(stored) if _is_assistants(key)]
    unanswered = len(stored) - (answers[-1] + 1 if answers else 0)
    speaks = next((at for at, key in enumerate(resent) if _is_assistants(key)), len(resent) + 1)
    places = [
        place
        for place in _ends([stored[number] for number in said], resent)
        if place == len(said) or place <= unanswered or place >= speaks
    ]
    if not places:
        return 0, 0
    return max((place for place in places if place <= len(said)), default=places[0]), said[-1] + 1


def _ends(stored: list[_Key], resent: list[_Key]) -> list[int]:
    """The places in `resent` before which `stored` ends: with all of either."""
    past = _common_pasts(stored, resent)
    return [place for place in range(1, len(past)) if 0 < past[place] == min(place, len(stored))]


def _common_pasts(one: list[_Key], other: list[_Key]) -> list[int]:
    """For each place in `other`, from 0 to its end: how many items before it `one` ends with."""
    text = [*reversed(one), (), *reversed(other)]
    # The Z algorithm: how many items from each place on are those at the beginning.
    same = [0] * len(text)
    left = right = 0
    for place in range(1, len(text)):
        length = min(right - place, same[place - left]) if place < right else 0
        while place + length < len(text) and text[length] == text[place + length]:
            length += 1
        same[place] = length
        if place + length > right:
            left, right = place, place + length
    return [0, *reversed(same[len(one) + 1 :])]


def _begin_alike(stored: list[_Key], resent: list[_Key]) -> bool:
    """Whether `resent` begins with what was said up to the first answer.

    Not with all of that: a first answer may have been lost, and a question that failed was asked
    again.
    """
    words = {key for key in stored if _is_assistants(key)}
    if not any(key in words for key in resent):
        return False
    said = [key for key in stored if key[0] == "message"]
    first = next((key for key in resent if key[0] == "message"), None)
    answer = next((at for at, key in enumerate(said) if _is_assistants(key)), 0)
    return first in said[: answer or 1]


def _is_assistants(key: _Key) -> bool:
    return key[0] == "call" or key[:2] == ("message", "assistant")


_Key = tuple[str, ...]


def _key(item: TResponseInputItem) -> _Key:
    """What makes two items the same, by kind: `message`, `system`, `call`, `item` or `empty`."""
    fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
    role = role_of(item)
    if role is None:
        same = {
            name: value
            for name, value in fields.items()
            if value is not None and name not in ("id", "status")
        }
        kind = fields.get("type")
        if not isinstance(kind, str):
            kind = ""
        own = "call" if kind.endswith("_call") else "reasoning" if kind == "reasoning" else "item"
        return (own, _canonical(same))
    content = _content(fields.get("content"))
    if not content:
        return ("empty", role)
    return ("system" if role in _SYSTEM_ROLES else "message", role, *content)


def role_of(item: object) -> str | None:
    """Whose words an item is; None for tool items and reasoning."""
    role = item.get("role") if isinstance(item, dict) else None
    return role if isinstance(role, str) else None


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
        own = fields.get("call_id") or fields.get("id")
        call_id = own if isinstance(own, str) else _canonical(own)
        kind = fields.get("type")
        if not (isinstance(kind, str) and kind.endswith("_output")):
            called.add(call_id)
        elif call_id not in called:
            continue
        kept.append(item)
    return kept
