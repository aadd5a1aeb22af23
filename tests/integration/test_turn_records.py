"""The rows of turns: written with the items, numbered on from turns that have none."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from typing import Any

import pytest
from conftest import admin

from lakebase_sessions import Lakebase, LakebaseSession
from lakebase_sessions.local import LocalLakebase

WAITING = json.dumps({"approvals": [{"id": "yes"}]})


def said(role: str, content: str) -> Any:
    return {"role": role, "content": content}


def records(local: LocalLakebase, database: str) -> list[tuple[Any, ...]]:
    with admin(local, database) as connection:
        return connection.execute(
            "SELECT number, status, last_item - first_item + 1 FROM agent_turns ORDER BY first_item"
        ).fetchall()


async def test_an_atomic_turn_has_a_row(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    for number in (1, 2):
        async with session.turn() as turn:
            await turn.get_items()
            assert turn.record.number == number
            await turn.add_items([said("user", "Hi"), said("assistant", "Hello.")])
    assert records(local, database) == [(1, "completed", 2), (2, "completed", 2)]


@pytest.mark.parametrize("limit", [None, 5])
async def test_turns_without_a_row_count_too(
    lakebase: Lakebase, local: LocalLakebase, database: str, limit: int | None
) -> None:
    session = lakebase.session("s")
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([said("user", "1"), said("assistant", "1")])
    await session.add_items([said("user", "2"), said("user", "2"), said("assistant", "2")])
    async with session.turn() as turn:
        await turn.get_items(limit)
        assert turn.record.number == 3
        await turn.add_items([said("user", "3"), said("assistant", "3")])
    assert [row[0] for row in records(local, database)] == [1, 3]


async def test_behind_a_turn_of_unknown_number_none_is_known(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Whoever reads a window does not see how many turns without a row stand before it."""
    session = lakebase.session("s")
    for text in "123":
        await session.add_items([said("user", text), said("assistant", text)])
    for _ in range(2):
        async with session.turn() as turn:
            await turn.get_items(2)
            assert turn.record.number is None
            await turn.add_items([said("user", "Hi"), said("assistant", "Hello.")])
    assert [row[0] for row in records(local, database)] == [None, None]
    assert [turn.number for turn in await session.turns()] == [1, 2, 3, 4, 5]


async def test_a_record_whose_items_were_popped_does_not_count(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    for _ in range(2):
        async with session.turn() as turn:
            await turn.get_items()
            await turn.add_items([said("user", "Hi"), said("assistant", "Hello.")])
    await session.pop_item()
    await session.pop_item()
    async with session.turn() as turn:
        await turn.get_items()
        assert turn.record.number == 2


async def test_nor_does_it_behind_items_without_a_record(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([said("user", "Hi"), said("assistant", "Hello.")])
    await session.pop_item()
    await session.pop_item()
    await session.add_items([said("user", "Hi")])
    async with session.turn() as turn:
        await turn.get_items()
        assert turn.record.number == 2
        await turn.add_items([said("user", "Bye")])
    assert len(await session.turns()) == 2


async def test_turns_at_the_same_time_have_a_number_each(lakebase: Lakebase) -> None:
    """They are told the same one; who comes after them is told where it stands."""
    session = lakebase.session("s")
    turns = [session.stepped_turn() for _ in range(3)]
    async with turns[0], turns[1], turns[2]:
        for turn in turns:
            await turn.get_items()
        for role in ("user", "assistant"):
            for turn in turns:
                await turn.add_items([said(role, "Hi")])
    async with session.turn() as after:
        await after.get_items()
        await after.add_items([said("user", "Bye"), said("assistant", "Bye.")])
    last = (await session.turns())[-1]
    assert last.response_id == after.record.response_id
    assert last.number == after.record.number == 4
    assert await lakebase.store.find_response(after.record.response_id) == ("s", 4)


async def test_deleting_a_conversation_deletes_its_records(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([said("user", "Hi")])
    await session.clear_session()
    assert records(local, database) == []


async def test_without_own_tables_turns_work_on(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await lakebase.session("s").add_items([said("user", "Hi")])
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_turns, agent_branch_items, agent_branches")
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        async with without.session("s").turn() as turn:
            await turn.get_items()
            await turn.add_items([said("assistant", "Hello.")])
        assert len(await without.session("s").get_items()) == 2


async def test_a_turn_in_the_place_of_others(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    for text in "123":
        async with session.turn() as turn:
            await turn.get_items()
            await turn.add_items([said("user", text), said("assistant", text)])
    async with session.turn() as turn:
        await turn.get_items()
        second, _ = turn.stored[2]
        turn.replace(second)
        assert turn.record.number == 2
        assert await turn.get_items() == [said("user", "1"), said("assistant", "1")]
        await turn.add_items([said("user", "2'"), said("assistant", "2'")])
    assert [item["content"] for item in await session.get_items()] == ["1", "1", "2'", "2'"]  # type: ignore[typeddict-item]
    with admin(local, database) as connection:
        kept = connection.execute("SELECT message_data FROM agent_branch_items ORDER BY id")
        assert [json.loads(row[0])["content"] for row in kept] == ["2", "2", "3", "3"]
        turns = connection.execute(
            "SELECT number, branch_id IS NULL FROM agent_turns ORDER BY first_item"
        ).fetchall()
    assert turns == [(1, True), (2, False), (3, False), (2, True)]


async def test_an_atomic_turn_that_reads_nothing_has_a_row_too(lakebase: Lakebase) -> None:
    session = lakebase.session("s", history_limit=0)
    for text in "ab":
        async with session.turn() as turn:
            assert await turn.get_items() == []
            await turn.add_items([said("user", text), said("assistant", text)])
        assert turn.record.response_id in [each.response_id for each in await session.turns()]
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([said("user", "c")])
        await turn.wait(WAITING)
    async with session.turn() as turn:
        assert await turn.resume(["yes"]) == WAITING


@pytest.mark.parametrize("kind", ["turn", "stepped_turn"])
async def test_an_answer_that_is_cancelled_leaves_the_approval(
    lakebase: Lakebase, kind: str
) -> None:
    """At whichever moment: as long as nothing has run, somebody may answer again."""
    for rounds in itertools.count():
        session = lakebase.session(f"{rounds}")
        async with getattr(session, kind)() as turn:
            await turn.get_items()
            await turn.add_items([said("user", "pay")])
            await turn.wait(WAITING)

        async def answer(session: LakebaseSession = session) -> Any:
            async with getattr(session, kind)() as turn:
                return await turn.resume(["yes"])

        answering = asyncio.ensure_future(answer())
        for _ in range(rounds):
            await asyncio.sleep(0)
        answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
        if not answering.cancelled():
            break  # it was over by then
        assert await answer() == WAITING, rounds
    assert rounds > 3


async def test_whatever_dates_look_like_to_others(local: LocalLakebase, database: str) -> None:
    with admin(local, database) as connection:
        connection.execute(f"ALTER DATABASE {database} SET datestyle = 'SQL, DMY'".encode())
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        for text in "ab":
            async with lakebase.session("s").turn() as turn:
                await turn.get_items()
                await turn.add_items([said("user", text)])
        assert [each.number for each in await lakebase.session("s").turns()] == [1, 2]
        assert (await lakebase.store.get("s")).turns == 2
