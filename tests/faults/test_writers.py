"""Several writers on one conversation: plain, atomic and upstream's, each in a process of its own.

Nothing is lost, doubled or torn, each batch stays in one piece, and a turn follows what it read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest
from agents.memory import Session
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession

from faults.checker import Checker
from lakebase_sessions import (
    BranchNotFound,
    ConversationConflict,
    Lakebase,
    LakebaseSession,
    TurnNotFound,
)
from lakebase_sessions.local import LocalLakebase

Kind = Literal["plain", "atomic", "upstream"]
Make = Callable[[Kind, str], Awaitable[Session]]

BATCHES = 30

pytestmark = pytest.mark.upstream_logs


@pytest.fixture
async def make(local: LocalLakebase, database: str) -> AsyncIterator[Make]:
    """Sessions with a pool of their own, as another worker has them."""
    async with AsyncExitStack() as stack:

        async def make(kind: Kind, session_id: str) -> Session:
            client = local.workspace_client()
            if kind == "upstream":
                session = AsyncDatabricksSession(
                    session_id,
                    instance_name="local",
                    workspace_client=client,
                    database=database,
                    use_cached_engine=False,
                )
                stack.push_async_callback(session.engine.dispose)
                return session
            lakebase = Lakebase("local", workspace_client=client, database=database)
            return (await stack.enter_async_context(lakebase)).session(session_id)

        yield make


async def write(checker: Checker, kind: Kind, session: Session, size: int) -> None:
    """Add a batch; a turn that meets somebody else's is run again."""
    while True:
        try:
            if kind != "atomic":
                await checker.add(session, size)
            else:
                assert isinstance(session, LakebaseSession)
                await checker.turn(session, (1, size))
        except ConversationConflict:
            continue
        return


@pytest.mark.parametrize(
    "kinds",
    [
        ("plain", "plain"),
        ("atomic", "atomic"),
        ("plain", "atomic"),
        ("upstream", "plain"),
        ("upstream", "atomic"),
        ("plain", "plain", "atomic", "atomic", "upstream", "upstream"),
    ],
    ids="-".join,
)
async def test_one_conversation(
    kinds: tuple[Kind, ...], make: Make, local: LocalLakebase, database: str
) -> None:
    checker = Checker()

    async def writer(kind: Kind, session: Session) -> None:
        for size in itertools.islice(itertools.cycle((1, 4, 99)), BATCHES):
            await write(checker, kind, session, size)

    sessions = [await make(kind, "s") for kind in kinds]
    await asyncio.gather(*map(writer, kinds, sessions))
    with admin(local, database) as connection:
        verdict = checker.verdict(connection)
    assert verdict.clean, verdict
    assert verdict.acknowledged == BATCHES * len(kinds)


async def test_conversations_that_all_begin_at_once(
    make: Make, local: LocalLakebase, database: str
) -> None:
    checker = Checker()
    kinds: tuple[Kind, ...] = ("plain", "atomic", "upstream")
    sessions = {kind: await make(kind, "s") for kind in kinds}
    for number in range(BATCHES):
        for session in sessions.values():
            session.session_id = f"s{number}"
        await asyncio.gather(*(write(checker, kind, sessions[kind], 3) for kind in kinds))
    with admin(local, database) as connection:
        verdict = checker.verdict(connection)
    assert verdict.clean, verdict
    assert verdict.acknowledged == BATCHES * len(kinds)


async def test_a_turn_follows_what_it_read(make: Make) -> None:
    """Whatever was written between its reading and its storing would have been a conflict.

    With upstream's writers this cannot be promised: they date items before they store them.
    """
    turns: list[tuple[list[Any], list[Any]]] = []

    async def take_turns(label: str, session: Session) -> None:
        assert isinstance(session, LakebaseSession)
        for number in range(BATCHES):
            added = message(f"{label} {number}")
            while True:
                try:
                    async with session.turn() as turn:
                        read = await turn.get_items()
                        await turn.add_items(added)
                except ConversationConflict:
                    continue
                break
            turns.append((read, added))

    async def add(session: Session) -> None:
        for number in range(BATCHES):
            await session.add_items(message(f"between {number}"))

    one, another = await make("atomic", "s"), await make("atomic", "s")
    await asyncio.gather(
        take_turns("one", one), take_turns("another", another), add(await make("plain", "s"))
    )
    history = await one.get_items()
    assert len(history) == 3 * BATCHES
    for read, added in turns:
        assert history[: len(read) + 1] == read + added


def message(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


async def test_somebody_goes_back_meanwhile(
    make: Make, local: LocalLakebase, database: str
) -> None:
    """Each item that was acknowledged is in the conversation or in a branch, once."""
    kinds: tuple[Kind, ...] = ("plain", "atomic", "upstream")
    checker, writing = Checker(), True

    async def writer(kind: Kind, session: Session) -> None:
        for size in itertools.islice(itertools.cycle((1, 4, 99)), BATCHES):
            await write(checker, kind, session, size)

    async def go_back(session: LakebaseSession) -> None:
        done = 0
        while (writing or done < 10) and done < 40:  # of the 50 branches that are kept
            turns = await session.turns()
            with contextlib.suppress(ConversationConflict, TurnNotFound, BranchNotFound):
                if done % 3 < 2 and turns:
                    await session.rewind(before_turn=max(1, len(turns) - done % 4))
                elif branches := await session.branches():
                    await session.restore(branches[done % len(branches)])
                done += 1
            await asyncio.sleep(0.01)

    sessions = [await make(kind, "s") for kind in kinds]
    other = await make("plain", "s")
    assert isinstance(other, LakebaseSession)
    going_back = asyncio.create_task(go_back(other))
    await asyncio.gather(*map(writer, kinds, sessions))
    writing = False
    await going_back
    everything = [await other.get_items()]
    everything += [await other.branch_items(branch) for branch in await other.branches()]
    stored = [str(item.get("content")) for items in everything for item in items]
    assert len(stored) == len(set(stored))
    expected = {
        item["content"]
        for batch in checker.batches
        if batch.outcome == "acknowledged"
        for item in batch.items()
    }
    assert set(stored) == expected


async def test_everybody_pops_something_else(make: Make) -> None:
    kinds: tuple[Kind, ...] = ("plain", "plain", "upstream")
    sessions = [await make(kind, "s") for kind in kinds]
    items = [item for number in range(20 * len(kinds)) for item in message(str(number))]
    await sessions[0].add_items(items)
    popped: list[Any] = []
    for _ in range(20):
        popped += await asyncio.gather(*(session.pop_item() for session in sessions))
    assert sorted(popped, key=items.index) == items
