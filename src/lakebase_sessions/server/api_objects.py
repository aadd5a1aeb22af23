"""The objects of OpenAI's Conversations API, and of what a side bar needs in its style."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from lakebase_sessions.errors import ItemNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from lakebase_sessions.conversation.item_pages import Numbered
    from lakebase_sessions.conversation.listing import Conversation
    from lakebase_sessions.conversation.turns import Branch, Turn, Usage

INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
    }
)
"""What `include` may ask for. What is stored is always sent, but for the two that are long and of
no use to a reader: logprobs and encrypted reasoning."""

_ITEM = "item_"
_ITEM_ID = re.compile(r"item_[0-9]{1,18}", re.ASCII)


class _Object(BaseModel):
    model_config = ConfigDict(extra="allow")


class ConversationObject(_Object):
    """A conversation; the fields behind `metadata` are this package's."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]
    title: str | None = None
    preview: str = ""
    updated_at: int
    items: int = 0
    turns: int = 0
    forked_from: str | None = None


class DeletedConversation(_Object):
    """What deleting a conversation answers."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


class ConversationList(_Object):
    """A page of conversations; `next`, as `after`, gives the one behind it."""

    object: Literal["list"] = "list"
    data: list[ConversationObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    next: str | None


class ItemList(_Object):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class UsageObject(_Object):
    """Tokens and requests."""

    requests: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    by_model: dict[str, UsageObject]


class ConversationUsage(UsageObject):
    """What all runs of a conversation have used."""

    object: Literal["conversation.usage"] = "conversation.usage"


class TurnObject(_Object):
    """A turn; `id` is the response's."""

    id: str | None
    object: Literal["conversation.turn"] = "conversation.turn"
    number: int
    created_at: int
    preview: str
    items: int
    status: str | None
    model: str | None
    trace_id: str | None
    usage: UsageObject


class TurnList(_Object):
    """The turns of a conversation."""

    object: Literal["list"] = "list"
    data: list[TurnObject]


class BranchObject(_Object):
    """What was taken out of a conversation, from the item `first`, and hangs behind `after`."""

    id: int
    object: Literal["conversation.branch"] = "conversation.branch"
    turn: int
    created_at: int
    preview: str
    items: int
    turns: int
    after: str | None
    first: str


class BranchList(_Object):
    """The branches of a conversation, latest first."""

    object: Literal["list"] = "list"
    data: list[BranchObject]


class Rewound(_Object):
    """What going back answers."""

    object: Literal["conversation.rewound"] = "conversation.rewound"
    branch: BranchObject | None


class Restored(_Object):
    """What putting a branch back answers: the branch of what it swapped out."""

    object: Literal["conversation.restored"] = "conversation.restored"
    branch: BranchObject | None


def conversation_object(
    conversation: Conversation, public: Callable[[str], str]
) -> ConversationObject:
    """A conversation; `public` makes ids as its user knows them."""
    forked_from = conversation.forked_from
    return ConversationObject(
        id=public(conversation.session_id),
        forked_from=None if forked_from is None else public(forked_from),
        created_at=_seconds(conversation.created_at),
        updated_at=_seconds(conversation.updated_at),
        metadata=dict(conversation.metadata),
        title=conversation.title if conversation.titled else None,
        preview=conversation.preview,
        items=conversation.items,
        turns=conversation.turns,
    )


def turn_object(turn: Turn) -> TurnObject:
    """A turn."""
    return TurnObject(
        id=turn.response_id,
        number=turn.number,
        created_at=_seconds(turn.created_at),
        preview=turn.preview,
        items=turn.items,
        status=turn.status,
        model=turn.model,
        trace_id=turn.trace_id,
        usage=usage_object(turn.usage),
    )


def usage_object(usage: Usage) -> UsageObject:
    """A usage."""
    return UsageObject(**_counts(usage))


def conversation_usage(usage: Usage) -> ConversationUsage:
    """The usage of a conversation."""
    return ConversationUsage(**_counts(usage))


def _counts(usage: Usage) -> dict[str, Any]:
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "by_model": {model: usage_object(used) for model, used in usage.by_model.items()},
    }


def branch_object(branch: Branch) -> BranchObject:
    """A branch."""
    return BranchObject(
        id=branch.id,
        turn=branch.turn,
        created_at=_seconds(branch.created_at),
        preview=branch.preview,
        items=branch.items,
        turns=branch.turns,
        after=None if branch.after_item is None else item_id(branch.after_item),
        first=item_id(branch.first_item),
    )


def item_list(
    items: Sequence[Numbered], *, has_more: bool = False, include: Collection[str] = ()
) -> ItemList:
    """A page of items."""
    data = [item_object(number, item, include) for number, item in items]
    return ItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=has_more,
    )


def item_object(number: int, item: Any, include: Collection[str] = ()) -> dict[str, Any]:
    """An item as the API has it; its id is that of its row, which no other item ever has."""
    fields = dict(item) if isinstance(item, dict) else {"type": "unknown"}
    if isinstance(fields.get("role"), str):
        fields["type"] = "message"
        fields["content"] = _parts(fields["role"], fields.get("content"), include)
    elif not isinstance(fields.get("type"), str):
        fields["type"] = "unknown"
    if fields["type"] == "reasoning":
        fields.setdefault("summary", [])
        if "reasoning.encrypted_content" not in include:
            fields.pop("encrypted_content", None)
    if fields["type"] in ("message", "function_call", "function_call_output"):
        fields["status"] = fields.get("status") or "completed"
    return fields | {"id": item_id(number)}


def item_id(number: int) -> str:
    """The id of the item in this row."""
    return f"{_ITEM}{number}"


def item_number(item_id: str) -> int:
    """The row that an item's id names.

    Raises:
        ItemNotFound: It names none.
    """
    if not _ITEM_ID.fullmatch(item_id):
        raise ItemNotFound(f"There is no item {item_id[:60]!a}.")
    return int(item_id.removeprefix(_ITEM))


def _parts(role: str, content: Any, include: Collection[str]) -> list[Any]:
    """Content as a list of parts, each of a type that the role has."""
    text = "output_text" if role == "assistant" else "input_text"
    found = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            fields: dict[str, Any] = {"type": text, "text": part}
        elif isinstance(part, dict):
            fields = dict(part)
        else:
            continue
        if fields.get("type") == "output_text":
            fields.setdefault("annotations", [])
            if "message.output_text.logprobs" not in include:
                fields.pop("logprobs", None)
        found.append(fields)
    return found


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
