"""The four operations, on a real Postgres: what `SessionContract` does not say of them."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from agents.memory import Session
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy import text

from lakebase_sessions import (
    InvalidItems,
    InvalidLimit,
    Lakebase,
    LakebaseNotOpen,
    LakebaseSession,
)
from lakebase_sessions.local import LocalLakebase

HELLO: Any = {"role": "user", "content": "Hello, I live in SF!"}


def said(count: int, start: int = 0) -> list[Any]:
    return [{"role": "user", "content": f"message {n}"} for n in range(start, start + count)]


async def test_it_is_what_the_runner_expects(lakebase: Lakebase) -> None:
    """A session is an AsyncDatabricksSession and follows the protocol."""
    session = lakebase.session("s")
    assert isinstance(session, AsyncDatabricksSession)
    assert isinstance(session, Session)


async def test_no_items_is_no_write(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await lakebase.session("s").add_items([])
    with admin(local, database) as connection:
        assert connection.execute("SELECT count(*) FROM agent_sessions").fetchone() == (0,)


@pytest.mark.parametrize("limit", [-1, 1.5, "3", True])
async def test_a_limit_that_is_none_is_refused(lakebase: Lakebase, limit: Any) -> None:
    with pytest.raises(InvalidLimit):
        await lakebase.session("s").get_items(limit=limit)
    with pytest.raises(InvalidLimit):
        lakebase.session("s", history_limit=limit)


async def test_a_limit_may_be_any_number(lakebase: Lakebase) -> None:
    session = lakebase.session("s", history_limit=10**30)
    await session.add_items(said(2))
    assert await session.get_items() == await session.get_items(2**63) == said(2)
    async with session.turn() as turn:
        assert await turn.get_items() == said(2)


async def test_corrupt_rows_are_skipped_and_do_not_count(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    await session.add_items(said(4))
    with admin(local, database) as connection:
        connection.execute(
            "UPDATE agent_messages SET message_data = '{broken' "
            "WHERE message_data LIKE '%message 2%'"
        )
    expected = [said(4)[n] for n in (0, 1, 3)]
    assert await session.get_items() == expected
    assert await session.get_items(limit=2) == expected[1:]
    assert await session.pop_item() == expected[2]
    assert await session.pop_item() == expected[1]


async def test_clear_leaves_no_row(lakebase: Lakebase, local: LocalLakebase, database: str) -> None:
    session = lakebase.session("s")
    await session.add_items(said(3))
    await lakebase.session("other").add_items([HELLO])
    await session.clear_session()
    assert await session.get_items() == []
    with admin(local, database) as connection:
        rows = connection.execute("SELECT session_id FROM agent_sessions").fetchall()
    assert rows == [("other",)]


async def test_many_first_writers_of_one_session(lakebase: Lakebase) -> None:
    """All writes are kept, and none is torn apart by another."""
    await asyncio.gather(
        *(lakebase.session("s").add_items(said(3, start=n * 3)) for n in range(20))
    )
    numbers = [
        int(str(dict(item)["content"]).split()[1])
        for item in await lakebase.session("s").get_items()
    ]
    assert sorted(numbers) == list(range(60))
    triples = [numbers[n : n + 3] for n in range(0, 60, 3)]
    assert all(b == a + 1 and c == a + 2 for a, b, c in triples)


async def test_a_clock_that_is_set_back_does_not_reorder(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """What was written later is read later, whatever the server's clock says."""
    session = lakebase.session("s")
    await session.add_items(said(1))
    with admin(local, database) as connection:
        later = {"later": "2100-01-01"}
        connection.execute("UPDATE agent_sessions SET updated_at = %(later)s", later)
        connection.execute("UPDATE agent_messages SET created_at = %(later)s", later)
    await session.add_items(said(1, start=1))
    assert await session.get_items() == said(2)


@pytest.mark.parametrize(
    "item", [object(), {"role": "user", "content": {1, 2}}, {"content": b"bytes"}]
)
async def test_what_is_no_json_is_refused_whole(lakebase: Lakebase, item: Any) -> None:
    session = lakebase.session("s")
    with pytest.raises(InvalidItems, match="Item 1 cannot be stored"):
        await session.add_items([HELLO, item])
    assert await session.get_items() == []


async def test_ids_are_data(lakebase: Lakebase) -> None:
    """An id with quotes, percent signs and SQL in it is an id like any other."""
    ids = ["'; DROP TABLE agent_messages; --", "%(session_id)s", "a%b_c", "ü🌍", " ", "x" * 255]
    for number, session_id in enumerate(ids):
        await lakebase.session(session_id).add_items(said(1, start=number))
    for number, session_id in enumerate(ids):
        assert await lakebase.session(session_id).get_items() == said(1, start=number)


async def test_the_history_limit_is_the_sessions_window(lakebase: Lakebase) -> None:
    """It bounds get_items() and what the Runner reads; an explicit limit still counts."""
    await lakebase.session("s").add_items(said(6))
    session = lakebase.session("s", history_limit=2)
    assert session.session_settings is not None
    assert session.session_settings.limit == 2
    assert await session.get_items() == said(6)[4:]
    assert await session.get_items(limit=4) == said(6)[2:]


async def test_a_window_never_begins_with_an_output_that_was_cut_off(lakebase: Lakebase) -> None:
    call: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    await lakebase.session("s").add_items([HELLO, call, output, *said(1)])
    windowed = lakebase.session("s", history_limit=2)
    assert await windowed.get_items() == said(1)
    assert await windowed.get_items(limit=2) == [output, *said(1)], "explicit: exactly two"
    assert await lakebase.session("s", history_limit=3).get_items() == [call, output, *said(1)]


async def test_users_are_kept_apart(lakebase: Lakebase) -> None:
    mia = lakebase.session("trip", user="mia@example.com")
    await mia.add_items([HELLO])
    assert await lakebase.session("trip", user="noah@example.com").get_items() == []
    stolen = lakebase.session(mia.session_id, user="noah@example.com")
    assert await stolen.get_items() == []
    again = lakebase.session(mia.session_id, user="mia@example.com")
    assert again.session_id == mia.session_id == "mia%40example.com:trip"
    assert await again.get_items() == [HELLO]


async def test_ints_and_uuids_are_ids(lakebase: Lakebase) -> None:
    made = uuid.uuid4()
    assert lakebase.session(7).session_id == "7"
    assert lakebase.session(made).session_id == str(made)


async def test_the_engine_is_for_transactions(lakebase: Lakebase) -> None:
    """`session.engine` behaves as upstream's: a block that raises leaves nothing behind."""
    session = lakebase.session("s")
    with pytest.raises(LakebaseNotOpen, match="open"):
        _ = session.engine
    await session.add_items([HELLO])

    async def half_a_transaction() -> None:
        async with session.engine.begin() as connection:
            await connection.execute(text("DELETE FROM agent_messages"))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await half_a_transaction()
    assert await session.get_items() == [HELLO]


@pytest.mark.parametrize("items", [None, "hello", {"role": "user", "content": "hello"}, 7])
async def test_what_is_no_list_of_items_is_refused(lakebase: Lakebase, items: Any) -> None:
    with pytest.raises(InvalidItems):
        await lakebase.session("s").add_items(items)
    assert await lakebase.session("s").get_items() == []


async def test_before_first_use_attributes_are_not_there(lakebase: Lakebase) -> None:
    """For `hasattr`; whoever asks outright is told what to do."""
    session = lakebase.session("s")
    assert not hasattr(session, "engine")
    assert not hasattr(session, "_messages")
    with pytest.raises(LakebaseNotOpen, match=r"lakebase\.open"):
        _ = session.engine
    await session.get_items()
    assert hasattr(session, "engine")
    assert hasattr(session, "_messages")
    assert not hasattr(session, "no_such_thing")


async def test_after_close_what_would_do_nothing_is_refused_too(lakebase: Lakebase) -> None:
    session, windowed = lakebase.session("s"), lakebase.session("s", history_limit=0)
    await session.get_items()
    await lakebase.close()
    for call in (session.add_items([]), session.get_items(0), windowed.get_items()):
        with pytest.raises(LakebaseNotOpen):
            await call
    with pytest.raises(LakebaseNotOpen):
        async with windowed.turn() as turn:
            await turn.get_items()


async def test_a_session_is_cheap_and_holds_nothing(lakebase: Lakebase) -> None:
    assert repr(lakebase.session("s")) == "<LakebaseSession 's' in <Lakebase 'local', not open>>"
    assert isinstance(lakebase.session("s"), LakebaseSession)
