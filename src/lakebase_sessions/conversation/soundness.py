"""Which items of a conversation make a model's API refuse the whole of it, and why.

The Responses API refuses an output that answers no call, a call that has no output, and reasoning
that leads to nothing; what led to a refusal once does so in every later turn. Calls that the
platform answers itself (a web search, code, an MCP server's tool) carry their own result. A call
id that is used again after its output is fine; items with the same `id` are the Runner's: it
sends the latest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

Reason = Literal["no_call", "no_output", "repeated", "leads_nowhere", "no_reasoning"]

_ANSWERED = (
    "function",
    "computer",
    "local_shell",
    "shell",
    "apply_patch",
    "custom_tool",
    "tool_search",
    "mcp_approval",
)
"""Kinds of calls that the API wants an output of."""

_OTHER_CALLS = ("mcp_approval_request", "program")
_FAKE_ID = "__fake_id__"
"""What the Agents SDK calls items of models that give them no id."""


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """An item for which a model's API refuses the whole conversation."""

    position: int
    """Its place in the conversation, from 0."""

    type: str
    """The item's own, such as `function_call`."""

    reason: Reason
    """`no_call`: an output, and no call before it. `no_output`: a call, and no output behind it.
    `repeated`: a call that comes again before its output, or a second output. `leads_nowhere`:
    reasoning without what it belongs to. `no_reasoning`: what a window, which begins in the middle
    of a turn, may have cut off from its reasoning."""

    item: TResponseInputItem = field(repr=False)
    """The item itself."""


def refused(items: list[TResponseInputItem], stored: int | None = None) -> tuple[RefusedItem, ...]:
    """What has to be left out of `items` before a model is given them.

    Without these items there is nothing left to refuse.

    Args:
        items: The conversation, or a window of it, and what is new; oldest first.
        stored: So many of them are what was read, of which the beginning may be cut off. None: all.

    Example:
        >>> died = {"type": "function_call", "call_id": "a", "name": "pay", "arguments": "{}"}
        >>> refused([{"role": "user", "content": "Pay!"}, died, {"role": "user", "content": "?"}])
        (RefusedItem(position=1, type='function_call', reason='no_output'),)
    """
    reasons: dict[int, Reason] = {}
    # What is left may begin, or may have to lead somewhere, elsewhere than before.
    while True:
        cut_off = _cut_off(items[:stored], reasons)
        found = cut_off | _alone(items, {**reasons, **cut_off}, len(items))
        if not found:
            break
        reasons |= found
    return _as_found(items, reasons)


def refused_for_good(items: list[TResponseInputItem]) -> tuple[RefusedItem, ...]:
    """What of a whole stored conversation nothing that is still to come can make right.

    A call behind what users said last may get its output yet: from a run that is under way, from
    somebody who is asked for approval, from a client that has the tool.
    """
    asked = [at for at, item in enumerate(items) if _role(item) not in ("", "assistant")]
    return _as_found(items, _alone(items, {}, asked[-1] if asked else 0))


def _as_found(
    items: list[TResponseInputItem], reasons: Mapping[int, Reason]
) -> tuple[RefusedItem, ...]:
    return tuple(
        RefusedItem(at, _type(items[at]) or _role(items[at]), reasons[at], items[at])
        for at in sorted(reasons)
    )


def _cut_off(items: list[TResponseInputItem], known: Mapping[int, Reason]) -> dict[int, Reason]:
    """The rest of a turn whose beginning a window has cut off, if models here do think.

    The API knows by their ids which reasoning led to calls and answers, and wants it with them.
    """
    rest: dict[int, Reason] = {}
    for at, item in enumerate(items):
        if at in known:
            continue
        if _type(item) == "reasoning" or _role(item) not in ("", "assistant"):
            break
        if _has_id(item) and not _is_output(item):
            rest[at] = "no_reasoning"
    thinks = any(
        _type(item) == "reasoning" and _has_id(item) and at not in known
        for at, item in enumerate(items)
    )
    return rest if thinks else {}


def _alone(
    items: list[TResponseInputItem], known: Mapping[int, Reason], open_from: int
) -> dict[int, Reason]:
    """Calls, outputs and reasoning without their counterparts.

    Args:
        items: The items.
        known: The places of those that count as left out already.
        open_from: From this place on a counterpart may still come.
    """
    found: dict[int, Reason] = {}
    waiting: dict[tuple[str, str], int] = {}
    answered: set[tuple[str, str]] = set()
    for at, item in enumerate(items):
        if at in known or (call := _call(item)) is None:
            continue
        if not _is_output(item):
            if call in waiting and call[0] in _ANSWERED:
                # The later one stays: it is nearer to its output.
                found[waiting[call]] = "repeated"
            waiting[call] = at
        elif call in waiting:
            del waiting[call]
            answered.add(call)
        else:
            found[at] = "repeated" if call in answered else "no_call"
    for (kind, _), at in waiting.items():
        if kind in _ANSWERED and at < open_from:
            found[at] = "no_output"

    leads_somewhere = False
    for at in range(len(items) - 1, -1, -1):
        if at in known or at in found:
            continue
        if _type(items[at]) != "reasoning":
            leads_somewhere = _role(items[at]) in ("", "assistant") and not _is_output(items[at])
        elif not leads_somewhere and at < open_from:
            found[at] = "leads_nowhere"
    return found


def _call(item: TResponseInputItem) -> tuple[str, str] | None:
    """Which call an item is, or answers: its kind, and its id as text. None: neither."""
    kind = _type(item)
    fields = cast("dict[str, Any]", item)
    if not (_is_output(item) or kind.endswith("_call") or kind in _OTHER_CALLS):
        return None
    # A local shell's output has its call's id as its own.
    own = fields.get("approval_request_id") or fields.get("call_id") or fields.get("id")
    if kind.startswith("tool_search") and not isinstance(fields.get("call_id"), str):
        return None  # the platform's own search, of which there may be several at once
    for ending in ("_response", "_output", "_call", "_request"):
        kind = kind.removesuffix(ending)
    return kind, own if isinstance(own, str) else _text(own)


def _is_output(item: object) -> bool:
    kind = _type(item)
    return kind.endswith("_output") or kind == "mcp_approval_response"


def _has_id(item: object) -> bool:
    own = item.get("id") if isinstance(item, dict) else None
    return isinstance(own, str) and own != _FAKE_ID


def _type(item: object) -> str:
    # A stored row may hold anything.
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else ""


def _role(item: object) -> str:
    role = item.get("role") if isinstance(item, dict) else None
    return role if isinstance(role, str) else ""


def _text(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        return f"like no other: {id(value)}"
