"""Pure functions on lists of items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

_OUTPUT = "_call_output"


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
    called: set[object] = set()
    kept = []
    for item in items:
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        kind = str(fields.get("type") or "")
        if kind.endswith("_call"):
            called.add(fields.get("call_id"))
        elif kind.endswith(_OUTPUT) and fields.get("call_id") not in called:
            continue
        kept.append(item)
    return kept
