"""What a session costs: round trips counted on the wire, pages read, memory. No timing."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import psycopg
import pytest
from agents import Agent, Runner, Usage, function_tool, set_tracing_disabled
from conftest import admin
from mlflow.types.responses import ResponsesAgentRequest
from proxy import Proxy
from sqlalchemy import select

from lakebase_sessions import Lakebase, LakebaseSession, invoke_turn, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import edits, pool, queries
from lakebase_sessions.testing import OfflineModel

HELLO: Any = {"role": "user", "content": "hello"}


@pytest.fixture(params=[None, "agent memory"], ids=["", "schema"])
async def proxied(
    request: pytest.FixtureRequest, local: LocalLakebase, database: str, proxy: Proxy
) -> AsyncIterator[Lakebase]:
    """An open Lakebase behind the proxy, with and without a schema of its own."""
    client = local.workspace_client()
    async with Lakebase(
        "proxied", workspace_client=client, database=database, schema=request.param
    ) as lakebase:
        yield lakebase


Operation = Callable[[LakebaseSession], Any]
OPERATIONS: dict[str, Operation] = {
    "a new session": lambda s: s.add_items([HELLO]),
    "a known session": lambda s: s.add_items([HELLO]),
    "many items": lambda s: s.add_items([HELLO] * 500),
    "no items": lambda s: s.add_items([]),
    "all": lambda s: s.get_items(),
    "some": lambda s: s.get_items(limit=3),
    "others": lambda s: s.get_items(limit=100_000),
    "none": lambda s: s.get_items(limit=0),
    "pop": lambda s: s.pop_item(),
    "clear": lambda s: s.clear_session(),
    "clear what is not there": lambda s: s.clear_session(),
    "pop what is not there": lambda s: s.pop_item(),
}


async def test_an_operation_is_one_round_trip(proxied: Lakebase, proxy: Proxy) -> None:
    """The first time, when statements are prepared, and every other time; nothing to do is none."""
    for _ in range(7):
        costs = {}
        for name, operation in OPERATIONS.items():
            before = proxy.round_trips
            await operation(proxied.session("s"))
            costs[name] = proxy.round_trips - before
        assert costs == dict.fromkeys(OPERATIONS, 1) | {"no items": 0, "none": 0}
    assert proxy.connections == 1


class Steps(OfflineModel):
    """Calls the tool so many times before it answers."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    async def get_response(self, system_instructions: Any, input: Any, *a: Any, **o: Any) -> Any:  # noqa: A002
        return await super().get_response(system_instructions, self.asked(input), *a, **o)

    async def stream_response(
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002
        *a: Any,
        **o: Any,
    ) -> AsyncIterator[Any]:
        async for event in super().stream_response(system_instructions, self.asked(input), *a, **o):
            yield event

    def asked(self, items: Any) -> Any:
        calls = sum(item.get("type") == "function_call" for item in items)
        return "How is the weather in Rome?" if calls < self.steps else "Hi"


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "run_streamed"])
@pytest.mark.parametrize("steps", [0, 1, 4])
async def test_a_turn_is_three_round_trips_and_an_atomic_one_two(
    proxied: Lakebase, proxy: Proxy, steps: int, streamed: bool
) -> None:
    """Each tool step adds one to the plain turn and none to the atomic one."""

    @function_tool
    def get_weather(city: str) -> str:
        return f"It is sunny in {city}."

    agent = Agent(name="A", model=Steps(steps), tools=[get_weather])
    set_tracing_disabled(True)

    async def run(session: Any) -> None:
        if not streamed:
            await Runner.run(agent, "Hi", session=session)
            return
        async for _ in Runner.run_streamed(agent, "Hi", session=session).stream_events():
            pass

    before = proxy.round_trips
    await run(proxied.session("plain"))
    assert proxy.round_trips - before == 3 + steps

    before = proxy.round_trips
    async with proxied.session("atomic").turn() as turn:
        await run(turn)
    assert proxy.round_trips - before == 2
    assert len(await proxied.session("atomic").get_items()) == 2 + 2 * steps


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "plain"])
@pytest.mark.parametrize("streamed", [False, True], ids=["invoke_turn", "stream_turn"])
async def test_usage_costs_no_round_trip(
    proxied: Lakebase, proxy: Proxy, streamed: bool, atomic: bool
) -> None:
    """But for a run that ends with a tool's output, or fails, which nobody knows beforehand."""

    @function_tool
    def get_weather(city: str) -> str:
        return f"It is sunny in {city}."

    class Failing(Steps):
        def asked(self, items: Any) -> Any:
            if sum(item.get("type") == "function_call" for item in items) == self.steps:
                raise RuntimeError("The model is gone.")
            return super().asked(items)

    set_tracing_disabled(True)
    usage = Usage(requests=1, input_tokens=3, output_tokens=1, total_tokens=4)

    async def cost(model: Steps, **options: Any) -> int:
        model.usage = usage
        agent = Agent(name="A", model=model, tools=[get_weather], **options)
        request = ResponsesAgentRequest(
            input=[{"role": "user", "content": "Hi"}],  # type: ignore[list-item]
            custom_inputs={"session_id": "s"},
        )
        before = proxy.round_trips
        with suppress(RuntimeError):
            if streamed:
                async for _ in stream_turn(agent, request, lakebase=proxied, atomic=atomic):
                    pass
            else:
                await invoke_turn(agent, request, lakebase=proxied, atomic=atomic)
        return proxy.round_trips - before

    assert [await cost(Steps(steps)) for steps in (0, 2)] == ([2, 2] if atomic else [3, 5])
    last_word = await cost(Steps(3), tool_use_behavior="stop_on_first_tool")
    assert last_word == (2 if atomic else 4)
    assert await cost(Failing(4)) == (2 if atomic else 4)


async def test_many_at_once_share_the_connections_there_are(
    proxied: Lakebase, proxy: Proxy
) -> None:
    """5 and 10 connections for 64 conversations: none is closed while others wait for one."""

    async def turns(number: int) -> None:
        for _ in range(3):
            await proxied.session(f"{number}").get_items()
            await proxied.session(f"{number}").add_items([HELLO])

    await asyncio.gather(*map(turns, range(64)))
    assert proxy.accepted <= 15


async def test_what_a_burst_leaves_over_is_closed(
    proxied: Lakebase, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SURPLUS_SECONDS", 0.1)
    session = proxied.session("s")
    await session.get_items()
    async with AsyncExitStack() as stack:
        for _ in range(15):
            await stack.enter_async_context(session.engine.connect())
    while proxy.connections > 5:
        await asyncio.sleep(0.01)
    await session.get_items()
    assert proxy.connections == 5


async def test_a_dead_connection_costs_nothing_to_find(
    proxied: Lakebase, proxy: Proxy, local: LocalLakebase, database: str
) -> None:
    """Of four idle connections three are killed: the next call takes the one that lives."""
    session = proxied.session("s")
    await session.get_items()
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(session.engine.connect())
    assert proxy.connections == 4
    with admin(local, database) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s "
            "AND pid <> pg_backend_pid() ORDER BY backend_start DESC LIMIT %s",
            [database, proxy.connections - 1],
        )
    while proxy.connections > 1:
        await asyncio.sleep(0.01)
    before = proxy.round_trips, proxy.accepted
    await session.add_items([HELLO])
    assert (proxy.round_trips - before[0], proxy.accepted - before[1]) == (1, 0)


@pytest.mark.parametrize("at_once", [1, 100_000], ids=["one by one", "in one write"])
def test_the_latest_items_of_a_long_conversation_cost_what_those_of_a_short_one_do(
    local: LocalLakebase, database: str, at_once: int
) -> None:
    """In pages of the database, whatever the planner knows and however they were written."""
    with admin(local, database) as connection:
        connection.execute("ALTER TABLE agent_messages SET (autovacuum_enabled = off)")
        for name, count in (("short", 100), ("long", 100_000)):
            write(connection, name, count, at_once)
        costs = {}
        for known in ("not analyzed", "analyzed"):
            if known == "analyzed":
                connection.execute("ANALYZE")
            for mode in ("force_custom_plan", "force_generic_plan"):
                connection.execute(f"SET plan_cache_mode = {mode}")
                for statement in (queries.LATEST_ITEMS, queries.READ_TURN):
                    numbered = statement % {"session_id": "$1", "limit": "$2"}
                    connection.execute(f"PREPARE latest (text, text) AS {numbered}")
                    short, long = (pages(connection, name) for name in ("short", "long"))
                    connection.execute("DEALLOCATE latest")
                    costs[known, mode, statement] = long / short
        assert max(costs.values()) <= 2, costs


def write(connection: psycopg.Connection[Any], name: str, count: int, at_once: int) -> None:
    """A conversation, through the statement of the package, in one write or as if one by one."""
    added = {"session_id": name, "items": "\n".join(["{}"] * count), "count": str(count)}
    connection.execute(queries.ADD_ITEMS, added)
    if at_once == 1:
        connection.execute(
            "UPDATE agent_messages SET created_at = created_at + id * interval '1 second' "
            "WHERE session_id = %s",
            [name],
        )
        connection.execute("VACUUM FULL agent_messages")


def pages(connection: psycopg.Connection[Any], name: str) -> int:
    explained = connection.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE latest('{name}', '50')"
    ).fetchone()
    assert explained is not None
    plan = explained[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize(
    "statement",
    [queries.ALL_ITEMS, queries.READ_TURN, queries.READ_RECORDED_TURN, edits.READ_RESENT_TURN],
    ids=["items", "turn", "recorded turn", "resent turn"],
)
def test_nothing_is_sorted_on_disk_to_read_a_whole_conversation(
    local: LocalLakebase, database: str, statement: str
) -> None:
    """However it is planned: 8 MB, where an operation has 4."""
    with admin(local, database) as connection:
        item = json.dumps({"role": "user", "content": "x" * 800})
        added = {"session_id": "s", "items": "\n".join([item] * 10_000), "count": "10000"}
        connection.execute(queries.ADD_ITEMS, added)
        connection.execute("ANALYZE")
        connection.execute("SET work_mem = '4MB'")
        parameters = {"session_id": "'s'", "limit": "NULL", "turn": "NULL", "opening": "NULL"}
        numbered = statement % {name: f"${at}" for at, name in enumerate(parameters, 1)}
        types = ", ".join(["text"] * len(parameters))
        connection.execute(f"PREPARE whole ({types}) AS {numbered}")
        for mode in ("force_custom_plan", "force_generic_plan"):
            connection.execute(f"SET plan_cache_mode = {mode}")
            explained = connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
                f"EXECUTE whole ({', '.join(parameters.values())})"
            ).fetchone()
            assert explained is not None
            plan = explained[0][0]["Plan"]
            assert plan["Actual Rows"] in (10_000, 10_001)
            assert plan["Temp Written Blocks"] == 0, mode


async def test_ten_thousand_sessions_in_use_take_less_than_20_mb(lakebase: Lakebase) -> None:
    await lakebase.open()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sessions = [lakebase.session(f"session-{n}") for n in range(10_000)]
        for session in sessions:
            await session._open()  # what its first operation leaves in it
        assert tracemalloc.get_traced_memory()[0] - before < 20e6
    finally:
        tracemalloc.stop()


async def test_sessions_share_the_statement_cache(lakebase: Lakebase) -> None:
    """A statement of somebody's own on the tables is compiled once, not once a session."""
    cached = set()
    for n in range(5):
        session = lakebase.session(f"s{n}")
        await session.add_items([HELLO])
        statement = select(session._messages.c.message_data).where(
            session._messages.c.session_id == session.session_id
        )
        async with session.engine.connect() as connection:
            assert json.loads((await connection.execute(statement)).scalar_one()) == HELLO
        cached.add(len(session.engine.sync_engine._compiled_cache or ()))
    assert len(cached) == 1
