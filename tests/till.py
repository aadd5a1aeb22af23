"""A till whose payments somebody has to approve, and a client that is asked."""

from __future__ import annotations

import dataclasses
from typing import Any

from agents import Agent, function_tool
from conftest import admin
from refusing_model import RefusingModel

from lakebase_sessions import (
    ApprovalNotFound,
    ConversationConflict,
    InvalidApproval,
    Lakebase,
    StateUnreadable,
    TablesMissing,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase

PAY: Any = [{"role": "user", "content": "Make the payment for Mia."}]
DONE = "Paid Mia."


class Till:
    """A tool that needs approval, and what it was asked to do."""

    def __init__(self, needs: Any = True) -> None:
        self.paid: list[str] = []

        @function_tool(needs_approval=needs)
        async def make_payment(to: str) -> str:
            self.paid.append(to)
            return f"Paid {to}."

        self.tool = make_payment

    def agent(self, model: Any = None, **options: Any) -> Agent[Any]:
        return Agent(name="Till", model=model or RefusingModel(), tools=[self.tool], **options)


@dataclasses.dataclass
class Chat:
    """A client of one conversation; each call is a request of its own."""

    lakebase: Lakebase
    streamed: bool
    atomic: bool
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    async def __call__(
        self, agent: Agent[Any], items: Any = (), *, user: str | None = None, **custom: Any
    ) -> dict[str, Any]:
        """The response, whichever way it comes; an error of a stream is raised as invoke does."""
        from mlflow.types.responses import ResponsesAgentRequest

        request = ResponsesAgentRequest(
            input=list(items), custom_inputs={"session_id": "s", **custom}
        )
        options = {"lakebase": self.lakebase, "atomic": self.atomic, "user": user, **self.options}
        if not self.streamed:
            return dict((await invoke_turn(agent, request, **options)).model_dump())
        events = [event.model_dump() async for event in stream_turn(agent, request, **options)]
        last = events[-1]
        if last["type"] == "error":
            errors = (ApprovalNotFound, StateUnreadable, TablesMissing, ConversationConflict)
            raise {error.code: error for error in (*errors, InvalidApproval)}[last["code"]](
                last["message"]
            )
        assert last["type"] == "response.completed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        output = last["response"]["output"]
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        assert sorted(map(str, output)) == sorted(map(str, done))
        return {"output": output, "custom_outputs": last["custom_outputs"]}


def kinds(answer: dict[str, Any]) -> list[str]:
    return [item["type"] for item in answer["output"]]


def asked(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer["custom_outputs"]["approvals"])


def response(approval_id: str, approve: bool, reason: str | None = None) -> Any:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": approval_id,
        "approve": approve,
        "reason": reason,
    }


def text(answer: dict[str, Any]) -> str:
    return str(answer["output"][-1]["content"][0]["text"])


def turns(local: LocalLakebase, database: str) -> list[tuple[Any, ...]]:
    with admin(local, database) as connection:
        return connection.execute(
            "SELECT number, status, state IS NOT NULL FROM agent_turns ORDER BY first_item"
        ).fetchall()


async def stored(lakebase: Lakebase) -> list[str]:
    items = [dict(item) for item in await lakebase.session("s").get_items()]
    return [str(item.get("role") or item["type"]) for item in items]
