"""TurnRecord: what is known of a turn beside its items; and where turns begin without one."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.items import TResponseInputItem

Status = Literal["in_progress", "completed", "failed", "cancelled", "waiting"]
"""`in_progress` stays where a process died in a turn that is stored step by step; `waiting` is for
somebody's approval."""


def new_response_id() -> str:
    """An id as OpenAI's responses have."""
    return f"resp_{uuid.uuid4().hex}"


@dataclass(slots=True)
class TurnRecord:
    """The row of a turn that is under way; written with its items, each time with what is known.

    Attributes:
        response_id: What names the turn.
        number: Its place in the conversation, from 1; known once the conversation has been read.
        status: How it ended.
        model: What answered last.
        trace_id: Of the run's MLflow trace.
        usage: Tokens and requests, by model.
        state: The serialized `RunState` of a run that waits for an approval.
    """

    response_id: str = field(default_factory=new_response_id)
    number: int | None = None
    status: Status = "completed"
    model: str | None = None
    trace_id: str | None = None
    usage: dict[str, dict[str, int]] = field(default_factory=dict)
    state: str | None = None

    def parameters(self) -> dict[str, str | None]:
        """For the statements that write the row."""
        return {
            "response_id": self.response_id,
            "number": None if self.number is None else str(self.number),
            "status": self.status,
            "model": self.model,
            "trace_id": self.trace_id,
            "usage": json.dumps(self.usage),
            "state": self.state,
        }


def count_turns(
    items: Iterable[TResponseInputItem], before: TResponseInputItem | None = None
) -> int:
    """How many turns begin in items without records: at each user message behind something else.

    Args:
        items: Oldest first.
        before: What stands before them.
    """
    found = 0
    after_user = before is not None and is_users(before)
    for item in items:
        users = is_users(item)
        found += users and not after_user
        after_user = users
    return found


def is_users(item: Any) -> bool:
    """Whether it is a message of a user."""
    return isinstance(item, dict) and item.get("role") == "user"
