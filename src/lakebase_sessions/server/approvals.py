"""Approvals: calls that wait for somebody's yes or no, across requests, workers and restarts."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents import RunState
from pydantic import BaseModel

from lakebase_sessions.errors import ApprovalNotFound, InvalidApproval, StateUnreadable

if TYPE_CHECKING:
    from agents import Agent, RunItem, ToolApprovalItem
    from agents.result import RunResult, RunResultStreaming
    from mlflow.types.responses import ResponsesAgentRequest

    from lakebase_sessions.conversation.atomic import AtomicTurn

    _Result = RunResult | RunResultStreaming

REQUEST = "mcp_approval_request"
_RESPONSE = "mcp_approval_response"

_OURS = "approval_"
"""How ids begin that are made up here. Who resends such items does not mean the model."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,255}")

_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    approve: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Approval:
    """A call that waits."""

    request: _Fields
    """As the client sees it."""
    own_item: bool
    """Whether the model asks, in an item of its own: for an MCP server that the platform runs."""

    @property
    def id(self) -> str:
        return str(self.request["id"])


class Approvals:
    """What one turn answers, and what it asks.

    Args:
        request: What the client sent.

    Attributes:
        items: Its input, as the model may see it.

    Raises:
        InvalidApproval: It holds answers that say neither yes nor no, or both.
    """

    def __init__(self, request: ResponsesAgentRequest) -> None:
        self.items = _without_ours([item.model_dump(exclude_none=True) for item in request.input])
        self._answers = _answers(request)
        self._known: dict[str, _Fields] = {}  # what the resumed run had asked, and is not answered
        self._told = 0
        self._asked: list[_Approval] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the request answers, and so goes on with a turn."""
        return bool(self._answers)

    async def begin(
        self, agent: Agent[Any], turn: AtomicTurn, items: list[Any]
    ) -> list[Any] | RunState[Any]:
        """What the run begins with: these items, or what waited for the client's answer.

        Raises:
            ApprovalNotFound: Nothing waits for one of the answers.
            StateUnreadable: What waits cannot be read here; it waits on.
        """
        if not self._answers:
            return items
        for answered in self._answers:
            if not _ID.fullmatch(answered):
                raise _not_found(turn.session_id)
        kept = await turn.resume(self._answers)
        if kept is None:
            raise _not_found(turn.session_id)
        try:
            state = await self._resumed(agent, json.loads(kept))
        except Exception as error:
            await turn.release()
            raise StateUnreadable(
                f"What waits for an approval in conversation {turn.session_id!a} cannot be taken "
                f"up here: {error} Nothing was run, and it waits on. Answer again where the agent "
                "and the libraries are those that asked, or send a message: that declines it, and "
                "the conversation goes on."
            ) from error
        if state._context is not None:  # an approved tool may ask a model before it is told here
            turn.meet(state._context)
        return state

    async def _resumed(self, agent: Agent[Any], kept: _Fields) -> RunState[Any]:
        state = await RunState.from_string(agent, json.dumps(kept["run"]))
        waiting = zip(kept["approvals"], state.get_interruptions(), strict=True)
        for request, interruption in waiting:
            answer = self._answers.get(request["id"])
            if answer is None:
                self._known[request["id"]] = request
            elif answer.approve:
                state.approve(interruption)
            else:
                state.reject(interruption, rejection_message=answer.reason)
        self._told = len(state._session_items)
        return state

    def new_items(self, result: _Result) -> Sequence[RunItem]:
        """What the run has added since the client was last told."""
        return result.new_items[self._told :]

    def requests(self, result: _Result) -> list[_Fields]:
        """The items that ask, of calls for which there is no such item yet."""
        return [asked.request for asked in self._of(result) if not asked.own_item]

    def custom_outputs(self, result: _Result) -> _Fields:
        """What is told of the calls that wait, if any do."""
        told = [
            {name: asked.request[name] for name in ("id", "name", "arguments")}
            for asked in self._of(result)
        ]
        return {"approvals": told} if told else {}

    async def keep(self, result: _Result, turn: AtomicTurn) -> None:
        """Store, with the turn, what it takes to go on; nothing if nothing waits.

        Raises:
            TablesMissing: There is no table to keep it in.
        """
        if not (asked := self._of(result)):
            return
        run = result.to_state().to_json(context_serializer=lambda _context: {})
        _forget_context(run)
        kept = {"approvals": [approval.request for approval in asked], "run": run}
        await turn.wait(json.dumps(kept))

    def _of(self, result: _Result) -> list[_Approval]:
        if self._asked is None:
            self._asked = [self._approval(item) for item in result.interruptions]
        return self._asked

    def _approval(self, interruption: ToolApprovalItem) -> _Approval:
        raw = _fields(interruption.raw_item)
        if raw.get("type") == REQUEST:
            return _Approval(raw, own_item=True)
        request = {
            "type": REQUEST,
            "name": interruption.qualified_name or str(raw.get("type")),
            "arguments": _arguments(interruption, raw),
            "server_label": interruption.agent.name,
        }
        # It was asked before, and something else was answered.
        for known_id, known in self._known.items():
            if {**known, "id": None} == {**request, "id": None}:
                del self._known[known_id]
                return _Approval(known, own_item=False)
        return _Approval({**request, "id": f"{_OURS}{uuid.uuid4().hex}"}, own_item=False)


def _not_found(session_id: str) -> ApprovalNotFound:
    return ApprovalNotFound(
        f"Nothing in conversation {session_id!a} waits for this answer, and nothing was run. It "
        "was answered before, perhaps by a second click, or something else was said meanwhile, "
        "which declines it. Show the conversation as it is; what is still wanted can be asked for "
        "in a message."
    )


def _answers(request: ResponsesAgentRequest) -> dict[str, _Answer]:
    """By id; the items at the end of the input and those of `custom_inputs`."""
    given: list[Any] = []
    for item in reversed(request.input):
        fields = item.model_dump()
        if fields.get("type") != _RESPONSE:
            break
        given.append(fields)
    custom = (request.custom_inputs or {}).get("approvals")
    if isinstance(custom, Mapping):
        given += [{"approval_request_id": of, "approve": said} for of, said in custom.items()]
    elif isinstance(custom, list):
        given += custom
    elif custom is not None:
        raise _invalid()
    answers: dict[str, _Answer] = {}
    for fields in given:
        if not isinstance(fields, Mapping):
            raise _invalid()
        answered, approve = fields.get("approval_request_id"), fields.get("approve")
        reason = fields.get("reason")
        if not (
            isinstance(answered, str)
            and isinstance(approve, bool)
            and (reason is None or isinstance(reason, str))
        ):
            raise _invalid()
        if answers.setdefault(answered, _Answer(approve, reason)).approve != approve:
            raise InvalidApproval(f"The request says both yes and no to {answered!a}.")
    return answers


def _invalid() -> InvalidApproval:
    return InvalidApproval(
        'custom_inputs["approvals"] is {id: true or false}, or a list of '
        '{"approval_request_id": id, "approve": true or false, "reason": text or null}; items of '
        f"type {_RESPONSE} have the same fields. Nothing but true is a yes."
    )


def _without_ours(items: list[_Fields]) -> list[_Fields]:
    """What is left for the model. What answers is no message, and what is resent is history."""
    while items and items[-1].get("type") == _RESPONSE:
        items.pop()
    return [
        item
        for item in items
        if not (
            (item.get("type") == REQUEST and str(item.get("id")).startswith(_OURS))
            or (
                item.get("type") == _RESPONSE
                and str(item.get("approval_request_id")).startswith(_OURS)
            )
        )
    ]


def _fields(raw_item: Any) -> _Fields:
    if isinstance(raw_item, BaseModel):
        return raw_item.model_dump(exclude_unset=True, exclude_none=True)
    return dict(raw_item)


def _arguments(interruption: ToolApprovalItem, raw: _Fields) -> str:
    """As the model wrote them; a shell's call has an action instead."""
    if interruption.arguments is not None:
        return interruption.arguments
    return json.dumps({name: raw[name] for name in ("action", "operation") if name in raw})


def _forget_context(state: Any) -> None:
    """Take the context out of a state, and of the states of agents that are tools in it.

    It is what a handler makes for each request, with its clients and tokens, and makes again for
    the one that answers.
    """
    if isinstance(state, dict):
        if "$schemaVersion" in state and isinstance(state.get("context"), dict):
            state["context"]["context"] = None
            state["context"].pop("context_meta", None)
        for value in state.values():
            _forget_context(value)
    elif isinstance(state, list):
        for value in state:
            _forget_context(value)
