"""Pure functions on lists of items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from agents.items import TResponseInputItem


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
        # repr, because a stored row may hold anything there; a local shell's call has only an id
        call_id = repr(fields.get("call_id") or fields.get("id"))
        if not str(fields.get("type")).endswith("_output"):
            called.add(call_id)
        elif call_id not in called:
            continue
        kept.append(item)
    return kept
