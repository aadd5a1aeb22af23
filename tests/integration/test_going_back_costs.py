"""What going back costs: round trips and bytes on the wire, and rows that a plan goes through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from conftest import admin
from proxy import Proxy

from lakebase_sessions import Lakebase, LakebaseSession
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import edits, going_back

pytestmark = pytest.mark.long

TURN: Any = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.fixture
async def proxied(local: LocalLakebase, database: str, proxy: Proxy) -> AsyncIterator[Lakebase]:
    client = local.workspace_client()
    async with Lakebase(
        "proxied", workspace_client=client, database=database, call_timeout_seconds=60
    ) as lakebase:
        yield lakebase


async def edited_turn(session: LakebaseSession) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        turn.replace(turn.stored[-2][0])
        await turn.add_items(TURN)


@pytest.mark.parametrize("turns", [2, 200])
async def test_each_is_one_round_trip(proxied: Lakebase, proxy: Proxy, turns: int) -> None:
    """The first time, when statements are prepared, and every other time."""
    session = proxied.session("s")
    for _ in range(turns):
        await session.add_items(TURN)
    for _ in range(7):
        costs: dict[str, int] = {}

        async def cost(name: str, call: Any, costs: dict[str, int] = costs) -> Any:
            before = proxy.round_trips
            returned = await call
            costs[name] = proxy.round_trips - before
            return returned

        assert len(await cost("turns", session.turns())) == turns
        fork = await cost("fork", session.fork())
        assert len(await cost("get_items", fork.get_items())) == 2 * turns
        branch = await cost("rewind", session.rewind(before_turn=2))
        await cost("branches", session.branches())
        assert len(await cost("branch_items", session.branch_items(branch))) == 2 * (turns - 1)
        await cost("restore", session.restore(branch))
        await cost("usage", session.usage())
        await cost("for good", fork.rewind(before_turn=2, keep=False))
        assert set(costs.values()) == {1}, costs
        await cost("edited", edited_turn(session))
        assert costs["edited"] == 2


@pytest.mark.long
async def test_a_hundred_thousand_items_do_not_move_through_the_client(
    proxied: Lakebase, proxy: Proxy
) -> None:
    session = proxied.session("s")
    await session.add_items(TURN * 50_000)
    before = proxy.round_trips, proxy.bytes
    fork = await session.fork(before_turn=50_000)
    branch = await session.rewind(before_turn=2)
    assert branch is not None
    assert branch.items == 99_998
    assert await session.restore(branch) is None
    assert (await session.turns(limit=1))[0].number == 50_000
    assert proxy.round_trips - before[0] == 4
    assert proxy.bytes - before[1] < 50_000  # most of that are the statements
    assert len(await fork.get_items()) == 99_998


def test_the_work_grows_with_the_conversation_and_no_faster(
    local: LocalLakebase, database: str
) -> None:
    """In rows, whatever the planner knows: no loop of all turns in a loop of all items."""
    statements: dict[str, tuple[str, dict[str, str | None]]] = {
        "turns": (going_back.TURNS, {"limit": "1"}),
        "branches": (going_back.BRANCHES, {}),
        "rewind": (going_back.REWIND, {"before_turn": "2", "to_response": ""}),
        "for good": (going_back.REWIND_FOR_GOOD, {"before_turn": "2", "to_response": ""}),
        "restore": (going_back.RESTORE, {"branch": "0"}),
        "fork": (going_back.FORK, {"before_turn": "100", "fork": "fork", "first_item": None}),
        "resent": (edits.READ_RESENT_TURN, {"limit": None, "turn": None, "opening": "Hi"}),
    }
    with admin(local, database) as connection:
        for name, turns in (("short", 300), ("long", 3000)):
            fill(connection, name, turns)
        costs = {}
        for known in ("not analyzed", "analyzed"):
            if known == "analyzed":
                connection.execute("ANALYZE")
            for mode in ("force_custom_plan", "force_generic_plan"):
                connection.execute(f"SET plan_cache_mode = {mode}")
                for name, (statement, parameters) in statements.items():
                    short, long = (
                        rows_gone_through(
                            connection, statement, {"session_id": which, **parameters}
                        )
                        for which in ("short", "long")
                    )
                    costs[known, mode, name] = long / short
    assert max(costs.values()) < 15, costs


def fill(connection: psycopg.Connection[Any], name: str, turns: int) -> None:
    """Half of the turns in the conversation, half in a branch, each with a record."""
    connection.execute("INSERT INTO agent_sessions VALUES (%s)", [name])
    connection.execute(
        "INSERT INTO agent_messages (session_id, message_data) "
        "SELECT %s, '{}' FROM generate_series(1, %s)",
        [name, 2 * turns],
    )
    connection.execute(
        "INSERT INTO agent_turns (session_id, response_id, first_item, last_item, status) "
        "SELECT session_id, id::text, id, id + 1, 'completed' FROM agent_messages "
        "WHERE session_id = %s AND id %% 2 = 1",
        [name],
    )
    rewind = {"session_id": name, "before_turn": str(turns // 2), "to_response": None}
    connection.execute(going_back.REWIND, rewind)


def rows_gone_through(
    connection: psycopg.Connection[Any], statement: str, parameters: dict[str, str | None]
) -> float:
    numbered = statement % {name: f"${at}" for at, name in enumerate(parameters, 1)}
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in parameters.values())
    connection.execute(
        f"PREPARE it ({', '.join(['text'] * len(parameters))}) AS {numbered}".encode()
    )
    with connection.transaction(force_rollback=True):
        explained = connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE it ({values})".encode()
        ).fetchone()
    connection.execute("DEALLOCATE it")
    assert explained is not None
    return rows_of(explained[0][0]["Plan"])


def rows_of(plan: dict[str, Any]) -> float:
    """That a node and those below it have returned or looked at in vain."""
    removed = sum(value for key, value in plan.items() if key.startswith("Rows Removed by"))
    here = plan["Actual Loops"] * (plan["Actual Rows"] + removed)
    return float(here) + sum(map(rows_of, plan.get("Plans", [])))
