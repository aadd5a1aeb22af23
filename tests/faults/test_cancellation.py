"""A cancellation at every await of every operation: nothing leaks, and nothing is half stored.

Each operation is run again and again, and interrupted at its first await, at its second, and so
on, until it ends before that.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg.waiting
import pytest
from agents import Agent, function_tool, set_tracing_disabled
from mlflow.types.responses import ResponsesAgentRequest
from proxy import Proxy

from faults.interruption import HOW, How, every_how, interrupted
from faults.witness import Witness
from lakebase_sessions import (
    ConversationNotFound,
    Lakebase,
    LakebaseSession,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.pool import Pool as ConnectionPool
from lakebase_sessions.postgres.tables import OWN, UPSTREAMS
from lakebase_sessions.testing import OfflineModel

POOL_SIZE = 1

BEFORE: list[Any] = [{"role": "user", "content": f"before {n}"} for n in range(2)]
ADDED: list[Any] = [{"role": "user", "content": f"added {n}"} for n in range(3)]


def made(local: LocalLakebase, database: str) -> Lakebase:
    """With a pool of one connection, which is missed at once."""
    return Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        pool_size=POOL_SIZE,
        max_overflow=0,
        call_timeout_seconds=2,
    )


@pytest.fixture
async def lakebase(local: LocalLakebase, database: str) -> AsyncIterator[Lakebase]:
    async with made(local, database) as lakebase:
        yield lakebase


async def check(session: LakebaseSession, witness: Witness) -> None:
    """Nothing is open beside the pool, and what is in it reads and writes as before."""
    await witness.sees_clients(POOL_SIZE)
    async with asyncio.timeout(10):
        before = await session.get_items()
        await session.add_items(ADDED)
    assert witness.stored(session.session_id) == before + ADDED
    await witness.sees_clients(POOL_SIZE)


# --- a session's operations --------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    run: Callable[[LakebaseSession], Coroutine[Any, Any, object]]
    after: list[Any]
    """What a conversation that held `BEFORE` holds when it has been done."""


async def _turn(session: LakebaseSession) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items(ADDED[:1])
        await turn.add_items(ADDED[1:])


async def _rewind(session: LakebaseSession) -> None:
    with suppress(ConversationNotFound):  # the one that warms the pool up
        await session.rewind(before_turn=1)


async def _restore(session: LakebaseSession) -> None:
    await _turn(session)
    branch = await session.rewind(before_turn=len(await session.turns()))
    assert branch is not None
    await session.restore(branch)


async def _fork(session: LakebaseSession) -> None:
    with suppress(ConversationNotFound):
        await session.fork()


OPERATIONS = {
    "get_items": Operation(lambda session: session.get_items(), BEFORE),
    "get_items(limit)": Operation(lambda session: session.get_items(1), BEFORE),
    "add_items": Operation(lambda session: session.add_items(ADDED), BEFORE + ADDED),
    "pop_item": Operation(lambda session: session.pop_item(), BEFORE[:-1]),
    "clear_session": Operation(lambda session: session.clear_session(), []),
    "turn": Operation(_turn, BEFORE + ADDED),
    "rewind": Operation(_rewind, []),
    "restore": Operation(_restore, BEFORE + ADDED),
    "fork": Operation(_fork, BEFORE),
}


Pool = Callable[[LakebaseSession, str], Coroutine[Any, Any, None]]
"""Brings the pool behind a session into a state, for an operation."""


def _pool_of(session: LakebaseSession) -> ConnectionPool:
    assert session._loop_engine is not None
    return session._loop_engine.pool


async def _warm(session: LakebaseSession, name: str) -> None:
    """Its connection is open and has done the same before."""
    await OPERATIONS[name].run(session)


async def _first(session: LakebaseSession, name: str) -> None:
    """Its connection is open and has done everything else before: what is prepared differs."""
    _pool_of(session).close_idle()
    for other, operation in OPERATIONS.items():
        if other != name:
            await operation.run(session)


async def _cold(session: LakebaseSession, name: str) -> None:
    """There is no connection."""
    _pool_of(session).close_idle()


async def _dead(session: LakebaseSession, name: str) -> None:
    """Its connection has come to its end."""
    pool = _pool_of(session)
    connection = await pool.take(math.inf)
    connection.cut_off()
    pool.put_back(connection)


READ_WRITE_BOTH = ["get_items", "add_items", "turn"]
"""They stand for the others where what differs is the connection."""


@pytest.mark.parametrize(
    ("name", "pool"),
    [*itertools.product(OPERATIONS, [_warm]), *itertools.product(READ_WRITE_BOTH, [_first])],
)
async def test_operation(
    lakebase: Lakebase,
    witness: Witness,
    name: str,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change is whole or absent, and no connection is left as the cancellation found it."""
    # psycopg lets others run if it has not done so for 5 ms; here always, to have every await.
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0)
    await _interrupted_everywhere(lakebase, witness, name, pool)


@pytest.mark.parametrize(
    ("name", "pool"),
    [*itertools.product(READ_WRITE_BOTH, [_cold]), ("get_items", _dead), ("add_items", _dead)],
)
async def test_operation_that_connects(
    lakebase: Lakebase, witness: Witness, name: str, pool: Pool
) -> None:
    """A connection that is half open when nobody waits for it any more is closed."""
    await _interrupted_everywhere(lakebase, witness, name, pool)


async def _interrupted_everywhere(
    lakebase: Lakebase, witness: Witness, name: str, pool: Pool
) -> None:
    operation = OPERATIONS[name]
    other = lakebase.session("other")
    await other.get_items()
    for how in HOW:
        for at in itertools.count():
            session = lakebase.session(f"{how} {at}")
            witness.store(session.session_id, BEFORE)
            await pool(other, name)

            came_to_it = await interrupted(partial(operation.run, session), at, how)

            assert _pool_of(session)._in_use == 0
            possible = [operation.after, BEFORE] if came_to_it else [operation.after]
            assert witness.stored(session.session_id) in possible
            await check(session, witness)
            if not came_to_it:
                break


async def test_read_on_a_silent_network(local: LocalLakebase, database: str, proxy: Proxy) -> None:
    """Whoever gives up reading does not wait for the server to agree."""
    client = local.workspace_client()
    async with Lakebase("proxied", workspace_client=client, database=database) as lakebase:
        session = lakebase.session("s")
        await session.get_items()
        proxy.deaf = True
        reading = asyncio.create_task(session.get_items())
        await asyncio.sleep(0)
        async with asyncio.timeout(4):  # of a call timeout of 10
            reading.cancel()
            await asyncio.wait({reading})
        assert reading.cancelled()
        proxy.deaf = False
        assert await session.get_items() == []


@every_how
async def test_opening(local: LocalLakebase, empty_database: str, how: How) -> None:
    """The first operation of all: it looks for the Lakebase, connects and makes the tables."""
    with Witness(local, empty_database) as witness:
        for at in itertools.count():
            witness.connection.execute(
                f"DROP TABLE IF EXISTS {', '.join(UPSTREAMS + OWN)}".encode()
            )
            lakebase = made(local, empty_database)
            session = lakebase.session("s")
            came_to_it = await interrupted(partial(session.add_items, ADDED), at, how)
            assert await session.get_items() in ([ADDED, []] if came_to_it else [ADDED])
            await check(session, witness)
            await lakebase.close()
            await witness.sees_clients(at_most=0)
            if not came_to_it:
                break


# --- a turn of an agent ------------------------------------------------------------------------


async def _invoke(agent: Agent[Any], request: ResponsesAgentRequest, lakebase: Lakebase) -> None:
    await invoke_turn(agent, request, lakebase=lakebase)


async def _stream(agent: Agent[Any], request: ResponsesAgentRequest, lakebase: Lakebase) -> None:
    async with aclosing(stream_turn(agent, request, lakebase=lakebase)) as events:
        async for _event in events:
            await asyncio.sleep(0)  # as a server does that sends it


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


QUESTION = {"role": "user", "content": "What is the weather in SF?"}


@every_how
@pytest.mark.parametrize("run", [_invoke, _stream])
async def test_agent_turn(lakebase: Lakebase, witness: Witness, run: Any, how: How) -> None:
    """Of what the Runner stores step by step, the first steps are there and the others are not."""
    set_tracing_disabled(True)
    agent = Agent(name="Assistant", model=OfflineModel(), tools=[get_weather])
    turn = ["message", "function_call", "function_call_output", "message"]
    for at in itertools.count():
        session = lakebase.session(at)
        await session.get_items()
        request = ResponsesAgentRequest.model_validate(
            {"input": [QUESTION], "custom_inputs": {"session_id": session.session_id}}
        )
        came_to_it = await interrupted(partial(run, agent, request, lakebase), at, how)
        stored = [item.get("type", "message") for item in witness.stored(session.session_id)]
        assert stored == (turn[: len(stored)] if came_to_it else turn)
        await check(session, witness)
        if not came_to_it:
            break
