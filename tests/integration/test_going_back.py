"""Turns, rewind, branches and restore: what a conversation was is never lost, and can come back."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions import (
    Branch,
    BranchNotFound,
    ConversationConflict,
    ConversationExists,
    ConversationNotFound,
    InvalidLimit,
    InvalidSessionId,
    Lakebase,
    LakebaseSession,
    TablesMissing,
    TurnNotFound,
)
from lakebase_sessions.conversation.item_pages import item_page
from lakebase_sessions.local import LocalLakebase


def said(role: str, content: Any) -> Any:
    return {"role": role, "content": content}


def exchange(name: str) -> list[Any]:
    """What a turn of that name holds."""
    return [said("user", f"{name}?"), said("assistant", f"{name}!")]


async def take_turns(session: LakebaseSession, *names: str) -> list[str]:
    """Atomic turns with records; their response ids."""
    ids = []
    for name in names:
        async with session.turn() as turn:
            await turn.get_items()
            await turn.add_items(exchange(name))
        ids.append(turn.record.response_id)
    return ids


async def names_of(session: LakebaseSession) -> list[str]:
    """The conversation, by the names of its turns, and each whole."""
    items: list[Any] = await session.get_items()
    names = [item["content"][:-1] for item in items[::2]]
    assert items == [item for name in names for item in exchange(name)]
    return names


async def names_in(session: LakebaseSession, branch: Branch) -> list[str]:
    items: list[Any] = await session.branch_items(branch)
    assert branch.items == len(items)
    return [item["content"][:-1] for item in items if item["role"] == "user"]


@pytest.fixture
def session(lakebase: Lakebase) -> LakebaseSession:
    return lakebase.session("s")


# --- turns -------------------------------------------------------------------------------------


async def test_turns_have_what_is_known_of_them(session: LakebaseSession) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        turn.record.model, turn.record.trace_id = "m", "tr-1"
        turn.record.usage = {"m": {"requests": 2, "input_tokens": 7}}
        turn.record.status = "failed"
        await turn.add_items([said("system", "Be kind."), *exchange("a b\n c")])
    await session.add_items(exchange("b"))
    one, two = await session.turns()
    assert (one.number, one.response_id) == (1, turn.record.response_id)
    assert (one.preview, one.items, one.status) == ("a b c?", 3, "failed")
    assert (one.model, one.trace_id) == ("m", "tr-1")
    assert (one.usage.requests, one.usage.input_tokens) == (2, 7)
    assert one.usage.by_model["m"].requests == 2
    assert abs(datetime.now(UTC) - one.created_at) < timedelta(minutes=1)
    assert (two.number, two.response_id, two.preview, two.items) == (2, None, "b?", 2)
    assert (two.status, two.model, two.usage.requests) == (None, None, 0)


async def test_turns_without_records_begin_at_users_messages(session: LakebaseSession) -> None:
    """Behind something else; what stands before the first belongs to none."""
    items: list[Any] = [
        said("assistant", "Welcome."),
        said("user", "1"),
        said("user", "still 1"),
        said("assistant", "1"),
        {"type": "function_call", "role": "tool", "content": said("user", "not one")},
        said("user", "2"),
    ]
    await session.add_items(items)
    turns = await session.turns()
    assert [(turn.number, turn.preview, turn.items) for turn in turns] == [(1, "1", 4), (2, "2", 1)]


async def test_turns_of_both_kinds(session: LakebaseSession) -> None:
    await session.add_items(exchange("0"))
    await take_turns(session, "1")
    await session.add_items([said("user", "2?")])
    async with session.turn() as turn:  # begins at what is no message of a user
        await turn.get_items()
        await turn.add_items([said("assistant", "2!"), said("user", "in it")])
    await session.add_items([said("user", "behind a user's"), said("assistant", "!")])
    await take_turns(session, "4")
    assert [(turn.number, turn.items, turn.preview) for turn in await session.turns()] == [
        (1, 2, "0?"),
        (2, 2, "1?"),
        (3, 1, "2?"),
        (4, 4, "in it"),
        (5, 2, "4?"),
    ]
    assert [turn.number for turn in await session.turns(limit=2)] == [4, 5]
    assert await session.turns(limit=0) == []
    with pytest.raises(InvalidLimit):
        await session.turns(limit=-1)


@pytest.mark.parametrize(
    ("content", "preview"),
    [
        ("\x00 \ud800 a", "\x00 \ud800 a"),
        ('\\u0000 \\ "role": "x" \U0001f30d', '\\u0000 \\ "role": "x" \U0001f30d'),
        ([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "a b"),
        ([{"type": "input_image", "image_url": "data:" + "x" * 9999}], ""),
        ("x" * 5000, "x" * 199 + "…"),
        (None, ""),
        ([1, {"text": 2}], ""),
    ],
)
async def test_whatever_a_user_says(session: LakebaseSession, content: Any, preview: str) -> None:
    await session.add_items([said("user", content), said("assistant", "!")])
    await session.add_items(exchange("b"))
    turns = await session.turns()
    assert [turn.preview for turn in turns] == [preview, "b?"]


async def test_rows_that_are_no_items_are_no_turns(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await session.add_items(exchange("a"))
    with admin(local, database) as connection:
        for row in ("{", "[]", "7", '"role"', '{"role": {}}', "\\u", '{"role": ["user"]}'):
            connection.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES ('s', %s)", [row]
            )
    await session.add_items(exchange("b"))
    assert [(turn.items, turn.preview) for turn in await session.turns()] == [(9, "a?"), (2, "b?")]


async def test_a_record_without_items_is_no_turn(session: LakebaseSession) -> None:
    await take_turns(session, "a", "b")
    await session.pop_item()
    assert [(turn.number, turn.items) for turn in await session.turns()] == [(1, 2), (2, 1)]
    await session.pop_item()
    assert [turn.number for turn in await session.turns()] == [1]
    await take_turns(session, "c")
    assert [turn.preview for turn in await session.turns()] == ["a?", "c?"]


async def test_there_is_nothing(session: LakebaseSession) -> None:
    assert await session.turns() == []
    assert await session.branches() == []
    assert (await session.usage()).requests == 0


# --- rewind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [True, False])
async def test_rewind_takes_a_turn_out_and_what_follows(
    session: LakebaseSession, recorded: bool
) -> None:
    if recorded:
        await take_turns(session, "a", "b", "c")
    else:
        for name in "abc":
            await session.add_items(exchange(name))
    branch = await session.rewind(before_turn=2)
    assert branch is not None
    assert (branch.turn, branch.turns, branch.items, branch.preview) == (2, 2, 4, "b?")
    assert abs(datetime.now(UTC) - branch.created_at) < timedelta(minutes=1)
    assert await names_of(session) == ["a"]
    assert await names_in(session, branch) == ["b", "c"]
    assert await session.branches() == [branch]
    assert [turn.preview for turn in await session.turns()] == ["a?"]


async def test_rewind_to_a_response_takes_that_out_too(session: LakebaseSession) -> None:
    _, second, _ = await take_turns(session, "a", "b", "c")
    branch = await session.rewind(to_response=second)
    assert branch is not None
    assert await names_of(session) == ["a"]
    with pytest.raises(TurnNotFound, match=second):
        await session.rewind(to_response=second)


async def test_rewind_leaves_what_stands_before_the_first_turn(session: LakebaseSession) -> None:
    await session.add_items([said("system", "Be kind.")])
    await take_turns(session, "a")
    branch = await session.rewind(before_turn=1)
    assert await session.get_items() == [said("system", "Be kind.")]
    assert branch is not None
    assert await session.restore(branch) is None
    assert [turn.preview for turn in await session.turns()] == ["a?"]


@pytest.mark.parametrize("turn", [3, 0, -1, True, "1", 1.0, 2**31, 2**70])
async def test_a_turn_that_is_not_there(session: LakebaseSession, turn: Any) -> None:
    await take_turns(session, "a", "b")
    async with session.turn() as under_way:
        await under_way.get_items()
        with pytest.raises(TurnNotFound):
            await session.rewind(before_turn=turn)
        await under_way.add_items(exchange("c"))
    assert await names_of(session) == ["a", "b", "c"]


@pytest.mark.parametrize("response", ["resp_1", "", "\x00", "\ud800", 7])
async def test_a_response_that_is_not_there(session: LakebaseSession, response: Any) -> None:
    await take_turns(session, "a")
    with pytest.raises(TurnNotFound):
        await session.rewind(to_response=response)


async def test_a_conversation_that_is_not_there(session: LakebaseSession) -> None:
    with pytest.raises(ConversationNotFound):
        await session.rewind(before_turn=1)
    with pytest.raises(BranchNotFound):
        await session.restore(1)


async def test_rewind_says_one_thing(session: LakebaseSession) -> None:
    with pytest.raises(TypeError):
        await session.rewind()
    with pytest.raises(TypeError):
        await session.rewind(before_turn=1, to_response="resp_1")


async def test_rewind_for_good_takes_what_hangs_on_it(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    """Also what hangs on that; and nothing else."""
    await take_turns(session, "a", "b", "c", "d")
    await session.rewind(before_turn=4)  # d hangs on c
    await session.rewind(before_turn=3)  # c hangs on b
    await session.rewind(before_turn=2)  # b hangs on a
    await take_turns(session, "e")
    (e,) = [await session.rewind(before_turn=2)]
    b = (await session.branches())[1]
    await session.restore(b)
    assert await names_of(session) == ["a", "b"]
    assert await session.rewind(before_turn=2, keep=False) is None
    assert await session.branches() == [e]
    assert await names_of(session) == ["a"]
    with admin(local, database) as connection:
        kept = connection.execute("SELECT count(*) FROM agent_turns").fetchone()
        assert kept == (2,)
        kept = connection.execute("SELECT count(*) FROM agent_branch_items").fetchone()
        assert kept == (2,)


async def test_a_turn_under_way_meets_a_conflict(session: LakebaseSession) -> None:
    await take_turns(session, "a", "b")
    with pytest.raises(ConversationConflict):
        async with session.turn() as turn:
            await turn.get_items()
            await session.rewind(before_turn=2)
            await turn.add_items(exchange("c"))
    assert await names_of(session) == ["a"]


# --- branches and restore ----------------------------------------------------------------------


async def test_restore_swaps(session: LakebaseSession) -> None:
    await take_turns(session, "a", "b", "c")
    old = await session.rewind(before_turn=2)
    await take_turns(session, "B")
    assert old is not None
    new = await session.restore(old)
    assert new is not None
    assert (new.turn, new.turns, new.items, new.preview) == (2, 1, 2, "B?")
    assert await names_of(session) == ["a", "b", "c"]
    assert await session.branches() == [new]
    turns = await session.turns()
    assert [(turn.number, turn.preview, turn.status) for turn in turns] == [
        (1, "a?", "completed"),
        (2, "b?", "completed"),
        (3, "c?", "completed"),
    ]
    with pytest.raises(BranchNotFound):
        await session.restore(old)
    await session.restore(new.id)
    assert await names_of(session) == ["a", "B"]
    await take_turns(session, "C")
    assert [turn.preview for turn in await session.turns()] == ["a?", "B?", "C?"]


async def test_versions_of_a_place_are_known_by_their_items(session: LakebaseSession) -> None:
    """Also while they are swapped for each other, and where the place is the beginning."""
    await take_turns(session, "a", "b")
    first, _, behind, *_ = [number for number, _ in (await item_page(session)).items]
    old = await session.rewind(before_turn=2)
    await take_turns(session, "B")
    assert old is not None
    assert (old.after_item, old.first_item) == (first + 1, behind)
    new = await session.restore(old)
    assert new is not None
    assert new.after_item == old.after_item
    assert new.first_item > old.first_item
    back = await session.restore(new)
    assert back is not None
    assert (back.after_item, back.first_item) == (old.after_item, old.first_item)
    everything = await session.rewind(before_turn=1)
    assert everything is not None
    assert (everything.after_item, everything.first_item) == (None, first)
    assert await session.branches() == [everything, back]


async def test_a_branch_in_a_branch_brings_what_it_stood_behind(session: LakebaseSession) -> None:
    await take_turns(session, "a", "b", "c", "d")
    d = await session.rewind(before_turn=4)
    await take_turns(session, "D")
    b = await session.rewind(before_turn=2)
    await take_turns(session, "B")
    assert d is not None
    assert b is not None
    assert [branch.turn for branch in await session.branches()] == [2, 4]
    swapped_out = await session.restore(d)
    assert await names_of(session) == ["a", "b", "c", "d"]
    assert [turn.number for turn in await session.turns() if turn.response_id] == [1, 2, 3, 4]
    assert swapped_out is not None
    assert await names_in(session, swapped_out) == ["B"]
    rest = next(branch for branch in await session.branches() if branch.id == b.id)
    assert (rest.turn, rest.turns, rest.preview) == (4, 1, "D?")
    await session.restore(rest)
    assert await names_of(session) == ["a", "b", "c", "D"]


async def test_behind_an_item_that_is_gone(session: LakebaseSession) -> None:
    """It hangs behind what stood before that."""
    await take_turns(session, "a", "b", "c")
    c = await session.rewind(before_turn=3)
    await session.pop_item()
    await session.pop_item()
    await take_turns(session, "B")
    assert c is not None
    assert [branch.turn for branch in await session.branches()] == [2]
    swapped_out = await session.restore(c)
    assert swapped_out is not None
    assert await names_of(session) == ["a", "c"]
    assert await names_in(session, swapped_out) == ["B"]


async def test_all_of_it(session: LakebaseSession) -> None:
    await take_turns(session, "a", "b")
    branch = await session.rewind(before_turn=1)
    assert await session.get_items() == []
    assert branch is not None
    assert branch.turn == 1
    await take_turns(session, "A")
    assert await session.restore(branch) is not None
    assert await names_of(session) == ["a", "b"]


@pytest.mark.parametrize("branch", [0, -1, 2**63, True, "1", None, 12345])
async def test_a_branch_that_is_not_there(session: LakebaseSession, branch: Any) -> None:
    await take_turns(session, "a")
    with pytest.raises(BranchNotFound):
        await session.restore(branch)
    with pytest.raises(BranchNotFound):
        await session.branch_items(branch)


async def test_a_branch_of_another_conversation_is_not_there(lakebase: Lakebase) -> None:
    mine, other = lakebase.session("mine"), lakebase.session("other")
    await take_turns(mine, "a")
    await take_turns(other, "b")
    branch = await mine.rewind(before_turn=1)
    assert branch is not None
    with pytest.raises(BranchNotFound):
        await other.branch_items(branch)
    with pytest.raises(BranchNotFound):
        await other.restore(branch)
    assert await names_of(other) == ["b"]
    assert await names_in(mine, branch) == ["a"]


async def test_branches_go_with_their_conversation(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await take_turns(session, "a", "b")
    await session.rewind(before_turn=2)
    await session.clear_session()
    with admin(local, database) as connection:
        for table in ("agent_branches", "agent_branch_items", "agent_turns"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


async def test_there_is_a_bound_in_number(session: LakebaseSession) -> None:
    await take_turns(session, "a")
    for number in range(55):
        await take_turns(session, str(number))
        await session.rewind(before_turn=2)
    branches = await session.branches()
    assert [branch.preview for branch in branches] == [f"{n}?" for n in range(54, 4, -1)]
    for branch in (branches[0], branches[-1]):  # the first takes the place of nothing
        await session.restore(branch)
        assert len(await session.branches()) == 49


async def test_there_is_a_bound_in_age(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await take_turns(session, "a", "b", "c")
    await session.rewind(before_turn=3)
    with admin(local, database) as connection:
        connection.execute("UPDATE agent_branches SET created_at = now() - interval '31 days'")
    assert len(await session.branches()) == 1
    await session.rewind(before_turn=2)
    assert [branch.preview for branch in await session.branches()] == ["b?"]


# --- fork --------------------------------------------------------------------------------------


async def test_a_fork_is_a_conversation_of_its_own(session: LakebaseSession) -> None:
    responses = await take_turns(session, "a", "b")
    await session.add_items(exchange("c"))
    fork = await session.fork()
    assert fork.session_id != session.session_id
    assert await names_of(fork) == ["a", "b", "c"]
    turns, old = await fork.turns(), await session.turns()
    assert turns == old
    assert [turn.response_id for turn in turns] == [*responses, None]
    await take_turns(fork, "d")
    await session.rewind(before_turn=2)
    assert await names_of(session) == ["a"]
    assert await names_of(fork) == ["a", "b", "c", "d"]
    assert await fork.branches() == []
    await session.clear_session()
    assert [turn.preview for turn in await fork.turns()] == ["a?", "b?", "c?", "d?"]


async def test_a_fork_of_the_beginning(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s", user="mia", history_limit=5)
    await take_turns(session, "a", "b", "c")
    fork = await session.fork("other", before_turn=3)
    assert fork.session_id == "mia:other"
    assert fork.session_settings == session.session_settings
    assert await names_of(await fork.fork()) == ["a", "b"]
    assert [turn.number for turn in await fork.turns()] == [1, 2]
    nothing = await session.fork(before_turn=1)
    assert await nothing.get_items() == []
    assert await (await nothing.fork()).get_items() == []
    with admin(local, database) as connection:
        assert connection.execute(
            "SELECT forked_from, forked_before FROM agent_conversations "
            "WHERE session_id = 'mia:other'"
        ).fetchall() == [("mia:s", 3)]


async def test_a_fork_keeps_what_describes_it(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await take_turns(session, "a")
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_conversations (session_id, title, metadata) "
            """VALUES ('s', 'Rome', '{"project": 7}')"""
        )
        await session.fork("t")
        assert connection.execute(
            "SELECT title, metadata, forked_from, forked_before FROM agent_conversations "
            "WHERE session_id = 't'"
        ).fetchone() == ("Rome", {"project": 7}, "s", None)


async def test_what_waits_waits_in_one_place(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        turn.record.status, turn.record.state = "waiting", "{}"
        await turn.add_items(exchange("a"))
    fork = await session.fork("t")
    assert [turn.status for turn in await session.turns()] == ["waiting"]
    assert [turn.status for turn in await fork.turns()] == ["cancelled"]
    with admin(local, database) as connection:
        states = connection.execute("SELECT session_id, state FROM agent_turns ORDER BY 1")
        assert states.fetchall() == [("s", "{}"), ("t", None)]


async def test_a_fork_that_cannot_be(session: LakebaseSession, lakebase: Lakebase) -> None:
    with pytest.raises(ConversationNotFound):
        await session.fork("t")
    await take_turns(session, "a")
    await take_turns(lakebase.session("taken"), "x")
    for taken in ("taken", "s"):
        with pytest.raises(ConversationExists):
            await session.fork(taken)
    with pytest.raises(TurnNotFound):
        await session.fork("t", before_turn=2)
    with pytest.raises(TurnNotFound):
        await session.fork("t", before_turn=0)
    with pytest.raises(InvalidSessionId):
        await session.fork("\x00")
    assert await names_of(lakebase.session("taken")) == ["x"]
    with pytest.raises(ConversationNotFound):
        await lakebase.session("t").fork()


async def test_a_turn_that_has_lost_its_end_is_forked(session: LakebaseSession) -> None:
    await take_turns(session, "a")
    await session.pop_item()
    await session.add_items([said("user", "b?")])
    fork = await session.fork()
    for one in (session, fork):
        turns = await one.turns()
        assert [(turn.items, turn.status) for turn in turns] == [(2, "completed")]


async def test_many_forks_at_once(lakebase: Lakebase) -> None:
    """While somebody writes: each is whole, and one of two with the same id wins."""
    session = lakebase.session("s")
    await take_turns(session, "a", "b")

    async def write() -> None:
        for name in "cdefgh":
            await session.add_items(exchange(name))

    forks, *_ = await asyncio.gather(
        asyncio.gather(*(session.fork(str(n % 10)) for n in range(20)), return_exceptions=True),
        write(),
    )
    made = [fork for fork in forks if isinstance(fork, LakebaseSession)]
    assert len({fork.session_id for fork in made}) == len(made) == 10
    assert all(isinstance(fork, LakebaseSession | ConversationExists) for fork in forks)
    for fork in made:
        names = await names_of(fork)
        assert names == list("abcdefgh"[: len(names)])
        assert len(await fork.turns()) == len(names) >= 2


# --- with others -------------------------------------------------------------------------------


@pytest.mark.upstream_logs
async def test_upstream_goes_on_from_there(
    session: LakebaseSession, upstream: AsyncDatabricksSession
) -> None:
    """What was taken out is none of its rows, and what it stores can be taken out."""
    await upstream.add_items(exchange("a"))
    await upstream.add_items(exchange("b"))
    assert [turn.preview for turn in await session.turns()] == ["a?", "b?"]
    old = await session.rewind(before_turn=2)
    assert await upstream.get_items() == exchange("a")
    await upstream.add_items(exchange("B"))
    assert old is not None
    new = await session.restore(old)
    fork = await session.fork("t")
    assert await upstream.get_items() == exchange("a") + exchange("b")
    assert await upstream.pop_item() == exchange("b")[1]
    await upstream.add_items(exchange("b")[1:])
    assert new is not None
    await session.restore(new)
    assert await upstream.get_items() == exchange("a") + exchange("B")
    upstream.session_id = "t"
    assert await upstream.get_items() == exchange("a") + exchange("b")
    await upstream.add_items(exchange("c"))
    assert [turn.preview for turn in await fork.turns()] == ["a?", "b?", "c?"]
    upstream.session_id = "s"
    await upstream.clear_session()
    assert await session.branches() == []


async def test_two_at_once_one_wins(lakebase: Lakebase, local: LocalLakebase) -> None:
    """The others are told, and nothing is mixed."""
    session = lakebase.session("s")
    for _ in range(10):
        await take_turns(session, "a", "b", "c")
        done = await asyncio.gather(
            *(session.rewind(before_turn=2) for _ in range(4)),
            session.add_items(exchange("d")),
            return_exceptions=True,
        )
        branches = [branch for branch in done if isinstance(branch, Branch)]
        errors = [error for error in done if isinstance(error, Exception)]
        assert all(isinstance(error, ConversationConflict | TurnNotFound) for error in errors)
        taken_out = [name for one in branches for name in await names_in(session, one)]
        assert sorted(await names_of(session) + taken_out) == ["a", "b", "c", "d"]
        await session.clear_session()


async def test_without_own_tables(lakebase: Lakebase, local: LocalLakebase, database: str) -> None:
    await lakebase.session("s").add_items(exchange("a"))
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_turns, agent_branch_items, agent_branches")
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        session = without.session("s")
        for call in (
            session.turns(),
            session.usage(),
            session.rewind(before_turn=1),
            session.branches(),
            session.branch_items(1),
            session.restore(1),
            session.fork(),
        ):
            with pytest.raises(TablesMissing, match="lakebase-sessions init"):
                await call
        assert await names_of(session) == ["a"]


async def test_usage_is_summed(session: LakebaseSession) -> None:
    """Of turns that were taken out too, in all and by model."""
    for model, tokens in (("m", 7), ("n", 5), ("m", 1)):
        async with session.turn() as turn:
            await turn.get_items()
            turn.record.usage = {model: {"requests": 1, "input_tokens": tokens}}
            await turn.add_items(exchange(model))
    await session.rewind(before_turn=2)
    usage = await session.usage()
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (3, 13, 0)
    assert {model: used.input_tokens for model, used in usage.by_model.items()} == {"m": 8, "n": 5}


async def test_the_sql_of_the_docs(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items(exchange("a"))
    await take_turns(session, "b")
    await session.fork("t")
    await session.rewind(before_turn=2)
    page = Path(__file__).parents[2] / "docs" / "going_back.md"
    [block] = re.findall("```sql\n(.*?)```", page.read_text(), re.DOTALL)
    with admin(local, database) as connection:
        answers = [connection.execute(one).fetchall() for one in block.split(";\n") if one.strip()]
    assert answers == [[("s", 1)], [("t", "s", None)]]
