"""Conversations and their items, as a terminal or a program is shown them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lakebase_sessions.cli.terminal import harmless, print_json, shortened, table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from lakebase_sessions.conversation.listing import Conversation

_LONGEST_DETAIL = 200
"""Characters of a tool's arguments or output that people are shown; programs get all."""


def as_json(conversation: Conversation) -> dict[str, Any]:
    """What a program is told of a conversation."""
    return {
        "session_id": conversation.session_id,
        "title": conversation.title,
        "titled": conversation.titled,
        "preview": conversation.preview,
        "metadata": dict(conversation.metadata),
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "items": conversation.items,
        "turns": conversation.turns,
        "forked_from": conversation.forked_from,
    }


def print_conversations(conversations: Iterable[Conversation], output: str) -> None:
    """A table, or one JSON object a line."""
    if output == "json":
        for each in conversations:
            print_json(as_json(each))
        return
    table(
        {"ID": "fold", "Title": "left", "Items": "right", "Turns": "right", "Last used": "left"},
        (
            (each.session_id, shortened(each.title, 60), each.items, each.turns, _at(each))
            for each in conversations
        ),
    )


def _at(conversation: Conversation) -> str:
    return minutes(conversation.updated_at)


def minutes(moment: datetime) -> str:
    """A moment, in the time zone of whoever looks."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def about(conversation: Conversation) -> str:
    """What a conversation is, in some lines."""
    lines = [
        conversation.session_id,
        f"title:    {conversation.title}{'' if conversation.titled else ' (the first words)'}",
        f"created:  {minutes(conversation.created_at)}",
        f"used:     {minutes(conversation.updated_at)}",
        f"holds:    {conversation.items} items, {conversation.turns} turns",
    ]
    if conversation.forked_from is not None:
        lines.append(f"fork of:  {conversation.forked_from}")
    lines += [f"metadata: {name} = {value}" for name, value in conversation.metadata.items()]
    return "\n".join(map(harmless, lines))


def described(item: Any) -> str:
    """An item for people: who says what, or what was called."""
    who, what = _who_and_what(item)
    text = harmless(what, keep="\n\t").replace("\n", "\n    ")
    return f"{harmless(who)}: {text}"


def _who_and_what(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict):
        return "unknown", _short(item)
    kind = item.get("type")
    match kind:
        case "function_call":
            return "call", f"{item.get('name')}({_short(item.get('arguments', ''))})"
        case "function_call_output":
            return "output", _short(item.get("output"))
        case "reasoning":
            return "reasoning", _texts(item.get("summary"))
    if isinstance(item.get("role"), str):
        return item["role"], _texts(item.get("content"))
    return str(kind or "unknown"), _short(item)


def _texts(content: object) -> str:
    """The text of a message, its parts one below the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return _short(content)
    parts = []
    for part in content:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        kind = part.get("type") if isinstance(part, dict) else None
        parts.append(text if isinstance(text, str) else f"[{kind or 'unknown'}]")
    return "\n".join(parts)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return shortened(text, _LONGEST_DETAIL)
