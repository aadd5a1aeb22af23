"""A model that refuses what the Responses API refuses, with its words, and what it is given."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agents import ModelResponse, Usage
from openai.types.responses import ResponseReasoningItem

from lakebase_sessions.testing import OfflineModel
from lakebase_sessions.testing import model as offline_model

PAIRS = {
    "function_call": "function_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "mcp_approval_request": "mcp_approval_response",
}
"""Calls that want an output, and their outputs."""

_CALLS = {output: call for call, output in PAIRS.items()}


_ALONE = "Item '{}' of type 'reasoning' was provided without its required following item."


class Refused(Exception):
    """A 400 of the API: the next request with these items gets it again."""


def refuse(items: Sequence[Any], thoughts: Mapping[str, str] | None = None) -> None:
    """Raise `Refused` if the API would.

    Args:
        items: The input of a request.
        thoughts: What the API remembers: by the id of an item, that of the reasoning it needs.
    """
    pending: set[tuple[str, str]] = set()
    seen: set[str] = set()
    thinking: str | None = None
    for item in items:
        kind = item.get("type") or "message"
        ends = kind in _CALLS or item.get("role") in ("user", "system", "developer")
        if thinking and ends:
            raise Refused(_ALONE.format(thinking))
        needed = (thoughts or {}).get(item.get("id"), "")
        if needed and needed not in seen:
            raise Refused(
                f"Item '{item['id']}' of type '{kind}' was provided without its required "
                f"'reasoning' item: '{needed}'."
            )
        thinking = item.get("id", "rs") if kind == "reasoning" else None
        seen.add(item.get("id", ""))
        if kind in PAIRS:
            call = kind, item["id" if kind == "mcp_approval_request" else "call_id"]
            if call in pending:
                raise Refused(f"Duplicate '{kind}': {call[1]}.")
            pending.add(call)
        elif kind in _CALLS:
            name = "approval_request_id" if kind == "mcp_approval_response" else "call_id"
            call = _CALLS[kind], item.get(name) or item["id"]
            if call not in pending:
                raise Refused(f"No tool call found for {kind} with call_id {call[1]}.")
            pending.remove(call)
    if thinking:
        raise Refused(_ALONE.format(thinking))
    if pending:
        raise Refused(f"No tool output found for {sorted(pending)}.")


class RefusingModel(OfflineModel):
    """The offline model behind that API; with `thinks`, it reasons before all that it says."""

    def __init__(self, *, thinks: bool = False) -> None:
        self.seen: list[Any] = []
        self._thinks = thinks
        self._thoughts: dict[str, str] = {}

    def _respond(self, items: Any, tools: Any) -> list[Any]:
        self.seen = [{"role": "user", "content": items}] if isinstance(items, str) else items
        refuse(self.seen, self._thoughts)
        said = offline_model._respond(items, tools)
        if not self._thinks:
            return [said]
        said.id = f"it_{uuid.uuid4().hex}"
        thought = ResponseReasoningItem(id=f"rs_{uuid.uuid4().hex}", type="reasoning", summary=[])
        self._thoughts[said.id] = thought.id
        return [thought, said]

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        model_settings: object,
        tools: list[Any],
        *_settings: object,
        **_options: object,
    ) -> ModelResponse:
        return ModelResponse(output=self._respond(input, tools), usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002 - the interface's name
        model_settings: object,
        tools: list[Any],
        *_settings: object,
        **_options: object,
    ) -> AsyncIterator[Any]:
        *thoughts, said = self._respond(input, tools)
        for number, event in enumerate(offline_model._events(said)):
            event.sequence_number = number
            if event.type == "response.completed":
                event.response.output = [*thoughts, said]
            yield event
