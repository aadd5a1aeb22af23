"""What becomes of turns, and of their numbers, when single items are removed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import admin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakebase_sessions import Lakebase, LakebaseSession
from lakebase_sessions.conversation.item_pages import item_page, remove_item
from lakebase_sessions.errors import ItemNotFound
from lakebase_sessions.local import LocalLakebase


async def exchange(session: LakebaseSession, answers: int = 1) -> tuple[str, int | None]:
    """A recorded turn: its response's id, and the number it was told."""
    answer: Any = {"role": "assistant", "content": "Hello."}
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([{"role": "user", "content": "Hi"}, *[answer] * answers])
    return turn.record.response_id, turn.record.number


async def remove(session: LakebaseSession, *places: int) -> None:
    page = await item_page(session, limit=100)
    for place in places:
        await remove_item(session, page.items[place][0])


async def told(session: LakebaseSession, lakebase: Lakebase) -> None:
    """Who goes back to a response finds the turn that the list has of it."""
    for turn in await session.turns():
        if turn.response_id is not None:
            found = await lakebase.store.find_response(turn.response_id)
            assert found == (session.session_id, turn.number)


async def test_a_turn_without_its_question_is_one_still(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    first, second = [(await exchange(session))[0] for _ in range(2)]
    await remove(session, 0)
    turns = await session.turns()
    assert [turn.response_id for turn in turns] == [first, second]
    assert [turn.items for turn in turns] == [1, 2]
    await told(session, lakebase)
    assert (await exchange(session))[1] == 3


async def test_a_turn_without_items_is_none(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    first, second = [(await exchange(session))[0] for _ in range(2)]
    await remove(session, 0, 1)
    assert [turn.response_id for turn in await session.turns()] == [second]
    assert await lakebase.store.find_response(first) is None
    await told(session, lakebase)
    assert (await exchange(session))[1] == 2


async def test_the_last_turn_without_items_does_not_count(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    for _ in range(2):
        await exchange(session)
    await remove(session, 2, 3)
    await session.add_items([{"role": "user", "content": "Hi"}])
    assert (await exchange(session))[1] == 3


async def test_a_branch_does_not_say_a_number_that_may_be_wrong(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    for _ in range(2):
        await exchange(session)
    branch = await session.rewind(before_turn=2)
    assert branch is not None
    await remove(session, 0, 1)
    await session.restore(branch)
    await told(session, lakebase)
    assert (await exchange(session))[1] is None


async def test_several_at_once(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    for _ in range(4):
        await exchange(session)
    numbers = [number for number, _ in (await item_page(session)).items]
    await asyncio.gather(*(remove_item(session, number) for number in numbers[:6]))
    assert [turn.number for turn in await session.turns()] == [1]
    assert (await exchange(session))[1] == 2
    with pytest.raises(ItemNotFound):
        await remove_item(session, numbers[0])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("turn"), st.integers(0, 2)),
            st.tuples(st.just("add"), st.sampled_from(["user", "assistant"])),
            st.tuples(st.just("remove"), st.integers(0, 9)),
            st.tuples(st.just("remove"), st.integers(0, 9)),
        ),
        min_size=3,
        max_size=16,
    )
)
async def test_numbers_are_places(lakebase: Lakebase, steps: list[tuple[str, Any]]) -> None:
    session = lakebase.session("any")
    await session.clear_session()
    for kind, detail in steps:
        match kind:
            case "turn":
                before = len(await session.turns())
                assert (await exchange(session, detail))[1] == before + 1
            case "add":
                await session.add_items([{"role": detail, "content": "And?"}])
            case "remove" if size := len(await session.get_items()):
                await remove(session, detail % size)
        await told(session, lakebase)


async def test_without_own_tables_items_are_removed(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await lakebase.session("s").add_items([{"role": "user", "content": text} for text in "12"])
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_turns, agent_branch_items, agent_branches")
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        session = without.session("s")
        await remove(session, 0)
        assert await session.get_items() == [{"role": "user", "content": "2"}]
