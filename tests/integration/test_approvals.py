"""Calls that wait for somebody's yes or no: asked, answered, declined, once and never unasked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, HostedMCPTool, RunContextWrapper, function_tool, set_tracing_disabled
from conftest import admin
from proxy import Proxy
from refusing_model import RefusingModel
from scripted_model import ScriptedModel, call, mcp_approval, message

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
from lakebase_sessions.testing import OfflineModel

PAY: Any = [{"role": "user", "content": "Make the payment for Mia."}]
DONE = "Paid Mia."


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    import mlflow

    set_tracing_disabled(True)
    mlflow.tracing.disable()


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
        assert output == [
            event["item"] for event in events if event["type"] == "response.output_item.done"
        ]
        return {"output": output, "custom_outputs": last["custom_outputs"]}


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def chat(lakebase: Lakebase, streamed: bool, atomic: bool) -> Chat:
    return Chat(lakebase, streamed, atomic)


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


async def test_a_turn_waits_and_goes_on(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """One turn with one record, whose items are stored as if nobody had been asked."""
    till = Till()
    first = await chat(till.agent(), PAY)
    assert till.paid == []
    assert kinds(first) == ["function_call", "mcp_approval_request"]
    [waits] = asked(first)
    assert waits == {
        "id": first["output"][1]["id"],
        "name": "make_payment",
        "arguments": '{"to": "Mia"}',
    }
    assert first["output"][1]["server_label"] == "Till"
    assert turns(local, database) == [(1, "waiting", True)]
    assert await stored(lakebase) == ["user", "function_call"]

    second = await chat(till.agent(), [response(waits["id"], True)])
    assert till.paid == ["Mia"]
    assert kinds(second) == ["function_call_output", "message"]
    assert text(second) == DONE
    assert "approvals" not in second["custom_outputs"]
    assert turns(local, database) == [(1, "completed", False)]
    assert await stored(lakebase) == ["user", "function_call", "function_call_output", "assistant"]

    third = await chat(till.agent(), [{"role": "user", "content": "Hello"}])
    assert text(third) == "I see."
    assert turns(local, database) == [(1, "completed", False), (2, "completed", False)]


@pytest.mark.parametrize(
    "said",
    [
        lambda waits: {"items": [response(waits, False, "Too much.")]},
        lambda waits: {
            "approvals": [{"approval_request_id": waits, "approve": False, "reason": "Too much."}]
        },
    ],
    ids=["items", "custom_inputs"],
)
async def test_no_is_no(chat: Chat, said: Callable[[str], Any]) -> None:
    """The model is told why."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    answer = await chat(till.agent(), **said(waits["id"]))
    assert till.paid == []
    assert kinds(answer) == ["function_call_output", "message"]
    assert text(answer) == "Too much."


async def test_a_yes_in_custom_inputs(chat: Chat) -> None:
    """With the conversation resent, as a chat UI does it; what is sent with it counts as old."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    answer = await chat(till.agent(), [*PAY, *first["output"]], approvals={waits["id"]: True})
    assert till.paid == ["Mia"]
    assert text(answer) == DONE


async def test_a_client_that_resends_everything(chat: Chat, lakebase: Lakebase) -> None:
    """What was asked and answered here is no item for the model, in any later turn."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    sent = [*PAY, *first["output"], response(waits["id"], True)]
    second = await chat(till.agent(), sent)
    assert text(second) == DONE
    sent += [*second["output"], {"role": "user", "content": "Hello"}]
    assert text(await chat(till.agent(), sent)) == "I see."
    assert (await stored(lakebase))[-2:] == ["user", "assistant"]
    assert len(await stored(lakebase)) == 6


async def test_an_answer_counts_once(chat: Chat) -> None:
    """A second click, a later one, and one for what nobody asked."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    for unknown in ("approval_1", "", "a,b", "a\0b", "x" * 300):
        with pytest.raises(ApprovalNotFound, match="nothing was run"):
            await chat(till.agent(), approvals={unknown: True})
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: True, unknown: True})
    assert till.paid == []
    await chat(till.agent(), approvals={waits["id"]: True})
    for again in (True, False):
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: again})
    assert till.paid == ["Mia"]


async def test_ten_clicks_at_once(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """On as many workers: one runs the tool and stores what it did, the others are told at once."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))

    async def click() -> Any:
        async with Lakebase(
            "local", workspace_client=local.workspace_client(), database=database
        ) as worker:
            again = dataclasses.replace(chat, lakebase=worker)
            return await again(till.agent(), approvals={waits["id"]: True})

    answers = await asyncio.gather(*(click() for _ in range(10)), return_exceptions=True)
    assert till.paid == ["Mia"]
    late = [answer for answer in answers if isinstance(answer, ApprovalNotFound)]
    assert len(late) == 9
    assert await stored(lakebase) == ["user", "function_call", "function_call_output", "assistant"]


async def test_nobody_answers_for_somebody_else(chat: Chat) -> None:
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY, user="mia"))
    for user in ("noah", None):
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), user=user, approvals={waits["id"]: True})
    assert till.paid == []
    await chat(till.agent(), user="mia", approvals={waits["id"]: True})
    assert till.paid == ["Mia"]


async def test_a_message_declines(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """The model does not see the call, nothing is left of the state, and a yes comes late."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    model = RefusingModel()
    answer = await chat(till.agent(model), [{"role": "user", "content": "My name is Mia."}])
    assert text(answer) == "Hello! I will remember: your name is Mia."
    assert [item.get("role") for item in model.seen] == ["user", "user"]
    assert turns(local, database) == [(1, "cancelled", False), (2, "completed", False)]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []
    assert [item.type for item in await lakebase.session("s").repair()] == ["function_call"]


async def test_whoever_writes_declines(chat: Chat, lakebase: Lakebase) -> None:
    """Upstream's class too, which knows nothing of turns."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    await lakebase.session("s").add_items([{"role": "user", "content": "Wait!"}])
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []
    assert text(await chat(till.agent(), [{"role": "user", "content": "Hi"}])) == "I see."


async def test_a_message_that_is_under_way_when_the_answer_comes(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """The tool runs, so it is the message that has to be sent again."""
    till = Till()
    chat = Chat(lakebase, streamed=False, atomic=True)
    [waits] = asked(await chat(till.agent(), PAY))

    class Answered(OfflineModel):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            await chat(till.agent(), approvals={waits["id"]: True})
            return await super().get_response(*args, **kwargs)

    with pytest.raises(ConversationConflict):
        await chat(till.agent(Answered()), [{"role": "user", "content": "Hi"}])
    assert till.paid == ["Mia"]
    assert turns(local, database) == [(1, "completed", False)]


async def test_two_calls_and_one_answer(chat: Chat, local: LocalLakebase, database: str) -> None:
    """What was answered is done; the rest waits on, under its id."""
    till = Till()
    calls = [call("make_payment", json.dumps({"to": to})) for to in ("Mia", "Noah")]
    first = await chat(till.agent(ScriptedModel(calls)), PAY)
    mia, noah = asked(first)
    second = await chat(till.agent(), approvals={noah["id"]: True})
    assert till.paid == ["Noah"]
    assert kinds(second) == ["function_call_output", "mcp_approval_request"]
    assert asked(second) == [mia]
    assert turns(local, database) == [(1, "waiting", True)]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={noah["id"]: True})
    third = await chat(till.agent(), approvals={mia["id"]: False})
    assert till.paid == ["Noah"]
    assert kinds(third) == ["function_call_output", "message"]
    assert turns(local, database) == [(1, "completed", False)]


async def test_one_run_may_ask_again(chat: Chat, local: LocalLakebase, database: str) -> None:
    """For a second call, under another id, also where a gateway numbers its calls."""
    till = Till()
    again = call("make_payment", '{"to": "Mia"}')
    [first] = asked(await chat(till.agent(ScriptedModel([again])), PAY))
    [second] = asked(
        await chat(
            till.agent(ScriptedModel([call("make_payment", '{"to": "Mia"}')])),
            approvals={first["id"]: True},
        )
    )
    assert till.paid == ["Mia"]
    assert first["id"] != second["id"]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={first["id"]: True})
    await chat(till.agent(), approvals={second["id"]: True})
    assert till.paid == ["Mia", "Mia"]
    assert turns(local, database) == [(1, "completed", False)]


async def test_some_arguments_need_approval(chat: Chat) -> None:
    async def needs(_context: Any, arguments: dict[str, Any], _call_id: str) -> bool:
        return bool(arguments["to"] == "Noah")

    till = Till(needs)
    assert text(await chat(till.agent(), PAY)) == DONE
    answer = await chat(till.agent(), [{"role": "user", "content": "A payment for Noah, please."}])
    assert till.paid == ["Mia"]
    [waits] = asked(answer)
    answer = await chat(till.agent(), approvals={waits["id"]: True})
    assert text(answer) == "Paid Noah."


@pytest.mark.parametrize(
    "said",
    [
        {"approvals": {"ID": "false"}},
        {"approvals": {"ID": 1}},
        {"approvals": {"ID": None}},
        {"approvals": "ID"},
        {"approvals": ["ID"]},
        {"approvals": [{"approval_request_id": "ID"}]},
        {"approvals": [{"approval_request_id": "ID", "approve": True, "reason": 1}]},
        {"approvals": [{"approval_request_id": ["ID"], "approve": True}]},
        {"approvals": {"ID": True}, "items": [response("ID", False)]},
        {"items": [response("ID", True) | {"approve": "yes"}]},
    ],
)
async def test_nothing_but_true_is_a_yes(lakebase: Lakebase, said: dict[str, Any]) -> None:
    chat = Chat(lakebase, streamed=False, atomic=False)
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    said = json.loads(json.dumps(said).replace("ID", waits["id"]))
    with pytest.raises(InvalidApproval):
        await chat(till.agent(), **said)
    assert till.paid == []
    await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == ["Mia"]


@pytest.mark.parametrize("none", [{}, [], None])
async def test_no_answers_are_no_answer(lakebase: Lakebase, none: Any) -> None:
    chat = Chat(lakebase, streamed=False, atomic=False)
    answer = await chat(Till().agent(), [{"role": "user", "content": "Hi"}], approvals=none)
    assert text(answer) == "I see."


SECRET = "not-for-the-table"


class Client:
    """What a handler gives its tools: neither JSON nor to be copied."""

    def __init__(self) -> None:
        self.token = SECRET
        self.lock = threading.Lock()

    def model_dump(self, **_options: Any) -> Any:
        raise RuntimeError("not to be written")


@dataclasses.dataclass
class Held:
    token: str
    lock: Any


@pytest.mark.parametrize(
    "context",
    [
        Client(),
        {"client": Client(), "token": SECRET},
        {"token": SECRET},
        Held(SECRET, threading.Lock()),
    ],
    ids=["object", "mapping", "token", "dataclass"],
)
async def test_the_context_is_not_stored(
    chat: Chat, local: LocalLakebase, database: str, context: Any
) -> None:
    """The handler that answers makes its own; the tool gets that one."""
    seen = []

    @function_tool(needs_approval=True)
    async def make_payment(wrapper: RunContextWrapper[Any], to: str) -> str:
        seen.append(wrapper.context)
        return f"Paid {to}."

    agent = Agent(name="A", model=RefusingModel(), tools=[make_payment])
    asking = dataclasses.replace(chat, options={"context": context})
    [waits] = asked(await asking(agent, PAY))
    with admin(local, database) as connection:
        [(state,)] = connection.execute("SELECT state FROM agent_turns").fetchall()
    assert SECRET not in state
    mine = object()
    answering = dataclasses.replace(chat, options={"context": mine})
    assert text(await answering(agent, approvals={waits["id"]: True})) == DONE
    assert seen == [mine]


@pytest.mark.parametrize("broken", ["version", "agent", "shape"])
async def test_a_state_that_cannot_be_read(
    chat: Chat, local: LocalLakebase, database: str, broken: str
) -> None:
    """Who answers is told; it waits for a worker that can, or for a message, which declines it."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    with admin(local, database) as connection:
        [(state,)] = connection.execute("SELECT state FROM agent_turns").fetchall()
        kept = json.loads(state)
        if broken == "version":
            kept["run"]["$schemaVersion"] = "99.0"
        elif broken == "agent":
            kept["run"]["current_agent"] = {"name": "Gone"}
        else:
            del kept["run"]
        connection.execute("UPDATE agent_turns SET state = %s", [json.dumps(kept)])
    for _ in range(2):
        with pytest.raises(StateUnreadable, match="Nothing was run, and it waits on"):
            await chat(till.agent(), approvals={waits["id"]: True})
    assert turns(local, database) == [(1, "waiting", True)]
    answer = await chat(till.agent(), [{"role": "user", "content": "Hi"}])
    assert text(answer) == "I see."
    assert turns(local, database) == [(1, "cancelled", False), (2, "completed", False)]

    [waits] = asked(await chat(till.agent(), PAY))
    with admin(local, database) as connection:
        connection.execute("UPDATE agent_turns SET state = 'no JSON' WHERE state IS NOT NULL")
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []


async def test_without_tables_nothing_can_wait(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """It says so at the end of the run, and the conversation goes on."""
    await lakebase.session("s").add_items([{"role": "user", "content": "Hi"}])
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_turns, agent_branch_items, agent_branches")
    till = Till()
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        chat = dataclasses.replace(chat, lakebase=without)
        with pytest.raises(TablesMissing, match="lakebase-sessions init"):
            await chat(till.agent(), PAY)
        with pytest.raises(TablesMissing, match="lakebase-sessions init"):
            await chat(till.agent(), approvals={"approval_1": True})
        assert till.paid == []
        answer = await chat(till.agent(), [{"role": "user", "content": "Hello"}])
        assert text(answer) == "I see."


async def test_agents_that_were_handed_over_to(chat: Chat) -> None:
    """The graph is that of the agent that the handler names."""
    till = Till()
    for _ in range(2):
        cashier = Agent(
            name="Cashier",
            model=ScriptedModel([call("make_payment", '{"to": "Mia"}')], [message("Done.")]),
            tools=[till.tool],
        )
        front = Agent(
            name="Front",
            model=ScriptedModel([call("transfer_to_cashier")]),
            handoffs=[cashier],
        )
        first = await chat(front, PAY)
        [waits] = asked(first)
        assert first["output"][-1]["server_label"] == "Cashier"
        cashier.model = RefusingModel()
        assert text(await chat(front, approvals={waits["id"]: True})) == DONE
    assert till.paid == ["Mia", "Mia"]


async def test_an_agent_that_is_a_tool(chat: Chat, local: LocalLakebase, database: str) -> None:
    """What it asks, its user's user is asked; two calls in it are answered one by one."""
    till = Till()
    context = {"token": SECRET, "lock": threading.Lock()}

    def front() -> Agent[Any]:
        calls = [call("make_payment", json.dumps({"to": to})) for to in ("Mia", "Noah")]
        inner = Agent(name="Inner", model=ScriptedModel(calls), tools=[till.tool])
        tool = inner.as_tool("ask_inner", "Asks it.")
        return Agent(
            name="Front", model=ScriptedModel([call("ask_inner", '{"input": "pay"}')]), tools=[tool]
        )

    def after() -> Agent[Any]:
        inner = Agent(name="Inner", model=RefusingModel(), tools=[till.tool])
        return Agent(
            name="Front", model=RefusingModel(), tools=[inner.as_tool("ask_inner", "Asks it.")]
        )

    chat = dataclasses.replace(chat, options={"context": context})
    mia, noah = asked(await chat(front(), PAY))
    with admin(local, database) as connection:
        [(state,)] = connection.execute("SELECT state FROM agent_turns").fetchall()
    assert SECRET not in state
    second = await chat(after(), approvals={mia["id"]: True})
    assert asked(second) == [noah]
    assert till.paid == ["Mia"]
    third = await chat(after(), approvals={noah["id"]: True})
    assert till.paid == ["Mia", "Noah"]
    assert kinds(third)[-1] == "message"
    assert turns(local, database) == [(1, "completed", False)]


async def test_what_the_platform_asks(chat: Chat, lakebase: Lakebase) -> None:
    """A hosted MCP server's request is an item of the model's: it and its answer are stored."""
    tool = HostedMCPTool(
        tool_config={
            "type": "mcp",
            "server_label": "s",
            "server_url": "https://mcp.example",
            "require_approval": "always",
        }
    )
    request = mcp_approval()
    first = await chat(Agent(name="A", model=ScriptedModel([request]), tools=[tool]), PAY)
    assert kinds(first) == ["mcp_approval_request"]
    [waits] = asked(first)
    assert waits == {"id": request.id, "name": "n", "arguments": "{}"}
    model = RefusingModel()
    second = await chat(Agent(name="A", model=model, tools=[tool]), [response(request.id, True)])
    assert kinds(second)[-1] == "message"
    assert [item.get("role") or item["type"] for item in model.seen] == [
        "user",
        "mcp_approval_request",
        "mcp_approval_response",
    ]
    assert await stored(lakebase) == [
        "user",
        "mcp_approval_request",
        "mcp_approval_response",
        "assistant",
    ]


async def test_a_model_that_thinks(chat: Chat) -> None:
    """Reasoning stays with the call it led to."""
    till = Till()
    model = RefusingModel(thinks=True)
    [waits] = asked(await chat(till.agent(model), PAY))
    assert text(await chat(till.agent(model), approvals={waits["id"]: True})) == DONE
    assert text(await chat(till.agent(model), [{"role": "user", "content": "Hi"}])) == "I see."
    [waits] = asked(await chat(till.agent(model), PAY))
    assert text(await chat(till.agent(model), [{"role": "user", "content": "Hi"}])) == "I see."


async def test_a_worker_that_dies_with_the_answer(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Whether the tool ran is not known, so nobody gets it again; the conversation goes on."""
    till = Till()
    [waits] = asked(await chat(till.agent(), PAY))
    async with lakebase.session("s").turn() as turn:
        assert await turn.resume([waits["id"]]) is not None
    assert turns(local, database) == [(1, "in_progress", True)]
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert text(await chat(till.agent(), [{"role": "user", "content": "Hi"}])) == "I see."
    assert turns(local, database) == [(1, "cancelled", False), (2, "completed", False)]
    assert till.paid == []


async def test_what_is_taken_out_waits_no_more(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    till = Till()
    chat = Chat(lakebase, streamed=False, atomic=True)
    [waits] = asked(await chat(till.agent(), PAY))
    async with lakebase.session("s").turn() as turn:
        await turn.get_items()
        turn.replace(turn.stored[0][0])
        await turn.add_items([{"role": "user", "content": "Hi"}])
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    assert turns(local, database) == [(1, "cancelled", False), (1, "completed", False)]


async def test_a_resent_view_of_an_old_answer(chat: Chat) -> None:
    """An answer that something was said behind is history."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    sent = [*PAY, *first["output"], response(waits["id"], True), *PAY]
    [again] = asked(await chat(till.agent(), sent))
    assert till.paid == []
    assert again["id"] != waits["id"]


@pytest.fixture
async def proxied(local: LocalLakebase, database: str, proxy: Proxy) -> Any:
    client = local.workspace_client()
    async with Lakebase("proxied", workspace_client=client, database=database) as lakebase:
        yield lakebase


async def test_round_trips(proxied: Lakebase, proxy: Proxy, streamed: bool, atomic: bool) -> None:
    """Waiting costs a plain turn one more, and an atomic one none; an answer reads as it claims."""
    chat = Chat(proxied, streamed, atomic)
    till = Till()
    for _ in range(3):
        before = proxy.round_trips
        [waits] = asked(await chat(till.agent(), PAY))
        asking = proxy.round_trips - before
        await chat(till.agent(), approvals={waits["id"]: True})
        answering = proxy.round_trips - before - asking
        assert (asking, answering) == ((2, 2) if atomic else (4, 3))
        before = proxy.round_trips
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: True})
        assert proxy.round_trips - before == 1
