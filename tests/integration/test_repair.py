"""Conversations that a model refuses: turns go on, and repair removes what is in the way."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, function_tool, set_tracing_disabled
from proxy import Proxy
from refusing_model import Refused, RefusingModel, refuse

from lakebase_sessions import (
    ConversationConflict,
    Lakebase,
    RefusedItem,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase

USER: Any = {"role": "user", "content": "Pay!"}
MORE: Any = {"role": "user", "content": "And?"}
DONE: Any = {"role": "assistant", "content": "Paid."}
CALL: Any = {"type": "function_call", "call_id": "a", "name": "pay", "arguments": "{}"}
OUTPUT: Any = {"type": "function_call_output", "call_id": "a", "output": "7"}
THOUGHT: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
BROKEN = {
    "a call without its output": [USER, CALL],
    "with thoughts": [USER, THOUGHT, CALL, MORE],
    "an output without its call": [USER, OUTPUT, DONE],
    "an output before its call": [USER, OUTPUT, CALL, DONE],
    "thoughts alone": [USER, THOUGHT, MORE, DONE],
    "a call twice": [USER, CALL, CALL, OUTPUT, DONE],
    "an output twice": [USER, CALL, OUTPUT, OUTPUT, DONE],
}


@pytest.fixture(params=[False, True], ids=["invoke", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "atomic"])
def atomic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@function_tool
def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


async def turn(
    lakebase: Lakebase,
    model: RefusingModel,
    session_id: str,
    text: str = "What is the weather in Rome?",
    *,
    stream: bool = False,
    **options: Any,
) -> None:
    from mlflow.types.responses import ResponsesAgentRequest

    set_tracing_disabled(True)
    agent = Agent[Any](name="A", model=model, tools=[get_weather])
    request = ResponsesAgentRequest(
        input=[{"role": "user", "content": text}],  # type: ignore[list-item]
        custom_inputs={"session_id": session_id},
    )
    if stream:
        async for _ in stream_turn(agent, request, lakebase=lakebase, **options):
            pass
    else:
        await invoke_turn(agent, request, lakebase=lakebase, **options)


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_turn_goes_on(lakebase: Lakebase, stream: bool, atomic: bool, broken: str) -> None:
    """The model sees what it does not refuse; what is stored stays until it is repaired."""
    session = lakebase.session("s")
    await session.add_items(BROKEN[broken])
    with pytest.raises(Refused):
        refuse([*BROKEN[broken], MORE])
    model = RefusingModel()
    for _ in range(2):
        await turn(lakebase, model, "s", stream=stream, atomic=atomic)
    stored = await session.get_items()
    assert stored[: -2 * 4] == BROKEN[broken]

    found = await session.repair(dry_run=True)
    assert found
    assert await session.get_items() == stored
    assert await session.repair() == found
    left_out = {item.position for item in found}
    repaired = [item for at, item in enumerate(stored) if at not in left_out]
    assert await session.get_items() == repaired
    refuse(repaired)
    assert await session.repair() == ()
    await turn(lakebase, model, "s", stream=stream, atomic=atomic)


async def test_a_window_of_a_model_that_thinks(
    lakebase: Lakebase, stream: bool, atomic: bool
) -> None:
    """Nothing is shown to it that needs reasoning which the window has cut off."""
    model = RefusingModel(thinks=True)
    for _ in range(3):
        await turn(lakebase, model, "s", stream=stream)
    stored = await lakebase.session("s").get_items()
    assert len(stored) == 3 * 6
    for limit in range(2, 19):
        session = lakebase.session(f"s{limit}")
        await session.add_items(stored)
        options: dict[str, Any] = {"stream": stream, "atomic": atomic, "history_limit": limit}
        await turn(lakebase, model, f"s{limit}", "Hello.", **options)
        assert await session.repair(dry_run=True) == ()


DIES = """
import asyncio
from agents import Agent, RunConfig, Runner, function_tool, set_tracing_disabled
from lakebase_sessions import session_for
from refusing_model import RefusingModel

@function_tool(needs_approval=True)
async def get_weather(city: str) -> str:
    print("the tool runs", flush=True)
    await asyncio.sleep(600)

async def main():
    set_tracing_disabled(True)
    session = session_for(session_id="s")
    agent = Agent(name="A", model=RefusingModel(thinks=True), tools=[get_weather])
    waiting = await Runner.run(agent, "What is the weather in Oslo?", session=session)
    state = waiting.to_state()
    for request in state.get_interruptions():
        state.approve(request)
    await Runner.run(agent, state, session=session)

asyncio.run(main())
"""
"""The Runner stores a tool's call and output at once, unless somebody is asked in between."""


@pytest.mark.long
async def test_a_process_that_is_killed_while_a_tool_runs(
    environ: dict[str, str], lakebase: Lakebase, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves a call without its output, and the conversation goes on all the same."""
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", DIES],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"the tool runs\n"
    process.kill()
    process.communicate()

    session = lakebase.session("s")
    stored = await session.get_items()
    assert [item.get("type", "message") for item in stored] == [
        "message",
        "reasoning",
        "function_call",
    ]
    with pytest.raises(Refused):
        refuse([*stored, MORE])
    caplog.set_level(logging.WARNING, "lakebase_sessions")
    for number, (stream, atomic) in enumerate(itertools.product([False, True], repeat=2)):
        options: dict[str, Any] = {"stream": stream, "atomic": atomic}
        copied = lakebase.session(f"s{number}")
        await copied.add_items(stored)
        model = RefusingModel(thinks=True)
        for _ in range(3):
            await turn(lakebase, model, f"s{number}", **options)
        assert [item.type for item in await copied.repair()] == ["reasoning", "function_call"]
        assert (await copied.get_items())[0] == stored[0]
        await turn(lakebase, model, f"s{number}", **options)
    told = [record.getMessage() for record in caplog.records if "repair()" in record.msg]
    assert len(told) == 4, "once a conversation"
    assert all(f"'s{number}'" in message for number, message in enumerate(told))


async def test_what_is_removed_is_said(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    await session.add_items([USER, CALL, USER])
    assert await session.repair() == (RefusedItem(1, "function_call", "no_output", CALL),)


async def test_what_may_still_be_answered_stays(lakebase: Lakebase) -> None:
    """A run is under way, or waits for somebody's approval: its output comes next."""
    session = lakebase.session("s", history_limit=1)
    await session.add_items([USER, CALL])
    assert await session.repair() == ()
    await session.add_items([OUTPUT, DONE])
    assert await session.repair() == ()
    assert await lakebase.session("s").get_items() == [USER, CALL, OUTPUT, DONE]


async def test_rows_that_are_no_items_do_not_count(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    from conftest import admin

    session = lakebase.session("s")
    await session.add_items([USER, CALL, USER])
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data, created_at)"
            " SELECT session_id, '{', min(created_at) - interval '1 s'"
            " FROM agent_messages GROUP BY session_id"
        )
    [removed] = await session.repair()
    assert removed.position == 1
    assert await session.get_items() == [USER, USER]


async def test_somebody_writes_meanwhile(
    lakebase: Lakebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is removed, and the next repair sees what was written."""
    session = lakebase.session("s")
    await session.add_items([USER, CALL, USER])
    write = type(session)._write

    async def late(self: Any, statement: Any, **parameters: Any) -> Any:
        monkeypatch.setattr(type(session), "_write", write)
        await lakebase.session("s").add_items([OUTPUT])
        return await write(self, statement, **parameters)

    monkeypatch.setattr(type(session), "_write", late)
    with pytest.raises(ConversationConflict):
        await session.repair()
    assert await session.get_items() == [USER, CALL, USER, OUTPUT]
    assert await session.repair() == ()


async def test_it_takes_two_round_trips(local: LocalLakebase, database: str, proxy: Proxy) -> None:
    client = local.workspace_client()
    async with Lakebase("proxied", workspace_client=client, database=database) as lakebase:
        session = lakebase.session("s")
        await session.add_items([USER, *[CALL, USER] * 200])
        for trips, dry_run, found in ((1, True, 200), (2, False, 200), (1, False, 0)):
            before = proxy.round_trips
            assert len(await session.repair(dry_run=dry_run)) == found
            assert proxy.round_trips == before + trips
