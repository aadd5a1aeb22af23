"""Retention: old conversations go, each as a whole, and nobody who uses one loses a part of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import admin

from lakebase_sessions import ConversationConflict, InvalidQuery, Lakebase, Pruned
from lakebase_sessions.local import LocalLakebase

MONTH = timedelta(days=30)


def said(content: str) -> Any:
    return {"role": "user", "content": content}


async def begun(lakebase: Lakebase, *session_ids: str, user: str | None = None) -> None:
    for session_id in session_ids:
        await lakebase.session(session_id, user=user).add_items([said("1"), said("2")])


def aged(local: LocalLakebase, database: str, pattern: str = "%", days: int = 60) -> None:
    with admin(local, database) as connection:
        connection.execute(
            "UPDATE agent_sessions SET updated_at = updated_at - %s * interval '1 day' "
            "WHERE session_id LIKE %s",
            [days, pattern],
        )


async def ids(lakebase: Lakebase) -> set[str]:
    return {each.session_id async for each in lakebase.store.list()}


async def test_what_is_old_goes_batch_by_batch(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, *"abcde")
    aged(local, database)
    await begun(lakebase, "new", "b")
    dry = [each async for each in lakebase.store.prune(older_than=MONTH, dry_run=True)]
    assert dry == [Pruned(4, 8, 4)]
    assert len(await ids(lakebase)) == 6
    assert [each async for each in lakebase.store.prune(older_than=MONTH, batch=3)] == [
        Pruned(3, 6, 4),
        Pruned(4, 8, 4),
    ]
    assert await ids(lakebase) == {"new", "b"}
    assert len(await lakebase.session("b").get_items()) == 4
    assert [each async for each in lakebase.store.prune(older_than=MONTH)] == []
    with admin(local, database) as connection:
        assert connection.execute("SELECT count(*) FROM agent_messages").fetchone() == (6,)


async def test_before_a_moment_and_of_one_user(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, "a", "b", user="mia")
    await begun(lakebase, "a", user="ben")
    aged(local, database, "%a")
    moment = datetime.now(UTC) - MONTH
    assert [each async for each in lakebase.store.prune(older_than=moment, user="mia")] == [
        Pruned(1, 2, 1)
    ]
    assert await ids(lakebase) == {"mia:b", "ben:a"}


async def test_what_somebody_writes_to_stays_whole(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """A transaction of another program that is open meanwhile, before its first row and behind."""
    await begun(lakebase, *"abc")
    aged(local, database)
    with admin(local, database) as connection, connection.transaction():
        connection.execute("INSERT INTO agent_messages (session_id, message_data) VALUES ('b', '')")
        assert [each async for each in lakebase.store.prune(older_than=MONTH)] == [Pruned(2, 4, 3)]
    assert len(await lakebase.session("b").get_items()) == 2
    assert await ids(lakebase) == {"b"}


async def test_a_turn_that_has_begun_keeps_its_conversation(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, "a", "b")
    aged(local, database)
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_turns (session_id, response_id, status) "
            "VALUES ('a', 'resp_1', 'in_progress')"
        )
    assert [each async for each in lakebase.store.prune(older_than=MONTH)] == [Pruned(1, 2, 1)]
    assert await ids(lakebase) == {"a"}


async def test_an_atomic_turn_whose_conversation_went_stores_nothing(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, "a")
    aged(local, database)
    with pytest.raises(ConversationConflict):
        async with lakebase.session("a").turn() as turn:
            await turn.get_items()
            await turn.add_items([said("3")])
            assert [each async for each in lakebase.store.prune(older_than=MONTH)]
    assert await ids(lakebase) == set()


async def test_beside_writers_no_conversation_loses_a_part(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Each is as it was with what was added, or was deleted as a whole before that."""
    names = [f"{number:03}" for number in range(120)]
    await begun(lakebase, *names)
    aged(local, database)
    used = names[::2]

    async def write() -> None:
        for name in used:
            await lakebase.session(name).add_items([said("3")])

    async def prune() -> None:
        async for _ in lakebase.store.prune(older_than=MONTH, batch=1):
            await asyncio.sleep(0)

    await asyncio.gather(write(), prune())
    assert await ids(lakebase) == set(used)
    for name in used:
        held = [item["content"] for item in await lakebase.session(name).get_items()]  # type: ignore[typeddict-item]
        assert held in (["1", "2", "3"], ["3"])


@pytest.mark.parametrize(
    "asked",
    [
        {"older_than": "90d"},
        {"older_than": timedelta(days=-1)},
        {"older_than": None},
        {"older_than": MONTH, "batch": 0},
        {"older_than": MONTH, "batch": True},
        {"older_than": MONTH, "batch": 10_001},
    ],
)
async def test_what_makes_no_sense_deletes_nothing(lakebase: Lakebase, asked: Any) -> None:
    await begun(lakebase, "a")
    with pytest.raises(InvalidQuery):
        async for _ in lakebase.store.prune(**asked):
            pass
    assert await ids(lakebase) == {"a"}


async def test_older_than_all_time_is_nothing(lakebase: Lakebase) -> None:
    await begun(lakebase, "a")
    assert [each async for each in lakebase.store.prune(older_than=timedelta.max)] == []


@pytest.mark.parametrize("kind", ["turn", "stepped_turn"])
async def test_a_turn_that_has_claimed_its_conversation_keeps_it(
    lakebase: Lakebase, local: LocalLakebase, database: str, kind: str
) -> None:
    """It has stored nothing yet, and its model may think for minutes."""
    await begun(lakebase, "a", "b")
    aged(local, database)
    async with getattr(lakebase.session("a"), kind)(on_busy="refuse") as turn:
        assert len(await turn.get_items()) == 2
        assert [each async for each in lakebase.store.prune(older_than=MONTH)] == [Pruned(1, 2, 1)]
        await turn.add_items([said("3")])
    assert len(await lakebase.session("a").get_items()) == 3
