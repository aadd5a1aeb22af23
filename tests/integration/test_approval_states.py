"""What is kept of a run that waits: what is in it, who can read it, and who dies over it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    HostedMCPTool,
    RunContextWrapper,
    RunHooks,
    function_tool,
    set_tracing_disabled,
)
from conftest import admin
from processes import Fork
from refusing_model import RefusingModel
from scripted_model import ScriptedModel, call, mcp_approval, message
from till import DONE, PAY, Chat, Till, asked, kinds, response, stored, text, turns

from lakebase_sessions import (
    ApprovalNotFound,
    Lakebase,
    StateUnreadable,
    TablesMissing,
)
from lakebase_sessions.local import LocalLakebase

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    import mlflow

    set_tracing_disabled(True)
    mlflow.tracing.disable()


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def chat(lakebase: Lakebase, streamed: bool, atomic: bool) -> Chat:
    return Chat(lakebase, streamed, atomic)


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
    """Somebody is asked for it; two calls in it may be answered one by one."""
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
    assert till.paid == []  # the SDK goes on with such an agent when all is answered
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


async def test_a_turn_that_was_rewound_and_restored_waits_no_more(
    chat: Chat, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    till = Till()
    await chat(till.agent(), [{"role": "user", "content": "Hi"}])
    [waits] = asked(await chat(till.agent(), PAY))
    session = lakebase.session("s")
    fork = await session.fork()
    branch = await session.rewind(before_turn=2)
    assert branch is not None
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), approvals={waits["id"]: True})
    await session.restore(branch)
    for session_id in ("s", fork.session_id):
        with pytest.raises(ApprovalNotFound):
            await chat(till.agent(), approvals={waits["id"]: True}, session_id=session_id)
    assert till.paid == []
    assert [turn.status for turn in await session.turns()] == ["completed", "cancelled"]
    assert text(await chat(till.agent(), [{"role": "user", "content": "Hi"}])) == "I see."


async def test_a_resent_view_of_an_old_answer(chat: Chat) -> None:
    """An answer that something was said behind is history."""
    till = Till()
    first = await chat(till.agent(), PAY)
    [waits] = asked(first)
    sent = [*PAY, *first["output"], response(waits["id"], True), *PAY]
    [again] = asked(await chat(till.agent(), sent))
    assert till.paid == []
    assert again["id"] != waits["id"]


class Deadly(RunHooks[Any]):
    """Kills the process it is in, at one point of a run."""

    def __init__(self, point: str) -> None:
        self.point = point

    async def on_tool_start(self, *_: Any) -> None:
        self.die("before the tool")

    async def on_tool_end(self, *_: Any) -> None:
        self.die("behind the tool")

    async def on_llm_start(self, *_: Any) -> None:
        self.die("before the model")

    async def on_llm_end(self, *_: Any) -> None:
        self.die("behind the model")

    def die(self, point: str) -> None:
        if point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "point", ["before the tool", "in the tool", "behind the tool", "before the model"]
)
async def test_a_worker_that_is_killed(
    chat: Chat, lakebase: Lakebase, tmp_path: Path, point: str
) -> None:
    """With the answer in hand: the tool ran once or not at all, and the conversation goes on."""
    ran = tmp_path / "ran"
    hooks = Deadly(point)

    @function_tool(needs_approval=True)
    async def make_payment(to: str) -> str:
        with ran.open("a") as file:
            file.write(to)
        hooks.die("in the tool")
        return f"Paid {to}."

    model = RefusingModel()
    agent = Agent(name="A", model=model, tools=[make_payment])
    [waits] = asked(await chat(agent, PAY))
    doomed = dataclasses.replace(chat, options={"hooks": hooks})
    worker = Fork(lambda: asyncio.run(doomed(agent, approvals={waits["id"]: True})))
    await asyncio.to_thread(worker.join)
    with pytest.raises(ApprovalNotFound):
        await chat(agent, approvals={waits["id"]: True})
    assert (ran.read_text() if ran.exists() else "") == ("" if "before the t" in point else "Mia")
    known = point == "before the model" and not chat.atomic
    assert ("function_call_output" in await stored(lakebase)) == known
    assert text(await chat(agent, [{"role": "user", "content": "Hi"}])) == "I see."
    assert any(item.get("type") == "function_call" for item in model.seen) == known


async def test_a_worker_that_is_killed_between_question_and_answer(
    chat: Chat, lakebase: Lakebase, tmp_path: Path
) -> None:
    """Another one goes on, which has nothing but the database."""
    till, told = Till(), tmp_path / "told"

    async def ask_and_die() -> None:
        told.write_text(json.dumps(asked(await chat(till.agent(), PAY))))
        os.kill(os.getpid(), signal.SIGKILL)

    worker = Fork(lambda: asyncio.run(ask_and_die()))
    await asyncio.to_thread(worker.join)
    [waits] = json.loads(told.read_text())
    answer = await chat(till.agent(), [response(waits["id"], True)])
    assert text(answer) == DONE
    with pytest.raises(ApprovalNotFound):
        await chat(till.agent(), [response(waits["id"], True)])
    assert till.paid == ["Mia"]
    assert await stored(lakebase) == ["user", "function_call", "function_call_output", "assistant"]


async def test_a_worker_that_is_killed_before_it_could_ask(chat: Chat, lakebase: Lakebase) -> None:
    """Nothing waits, and the conversation goes on."""
    till = Till()
    doomed = dataclasses.replace(chat, options={"hooks": Deadly("behind the model")})
    worker = Fork(lambda: asyncio.run(doomed(till.agent(), PAY)))
    await asyncio.to_thread(worker.join)
    assert await stored(lakebase) == ([] if chat.atomic else ["user"])
    [waits] = asked(await chat(till.agent(), PAY))
    assert text(await chat(till.agent(), approvals={waits["id"]: True})) == DONE
