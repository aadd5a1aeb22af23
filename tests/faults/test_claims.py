"""Claims under faults: nobody is kept out for longer than a lease, and no task stays behind."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from agents import Agent, set_tracing_disabled
from conftest import admin
from proxy import Moment, Proxy

from faults.interruption import How, every_how, interrupted
from faults.witness import Witness
from lakebase_sessions import (
    ConversationBusy,
    Lakebase,
    LakebaseSession,
    LakebaseUnavailable,
    stream_turn,
)
from lakebase_sessions.conversation import claim
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

ADDED: list[Any] = [{"role": "user", "content": "added"}]


@pytest.fixture
async def proxied(local: LocalLakebase, database: str, proxy: Proxy) -> AsyncIterator[Lakebase]:
    async with Lakebase(
        "proxied", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        yield lakebase


def claims_seen(witness: Witness) -> list[tuple[Any, ...]]:
    return witness.connection.execute("SELECT holder, waiting FROM agent_claims").fetchall()


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("step", ["claim", "store", "give up"])
async def test_the_connection_breaks(
    proxied: Lakebase, proxy: Proxy, witness: Witness, step: str, moment: Moment
) -> None:
    """Claiming and giving up are repeated. Storing is not, and then the claim is given up."""

    async def turn(session: LakebaseSession, break_at: str | None) -> None:
        def cut(at: str) -> None:
            if at == break_at:
                proxy.cut = moment

        made = session.stepped_turn if step == "give up" else session.turn
        async with made(on_busy="refuse") as turn:
            cut("claim")
            await turn.get_items()
            await turn.add_items(ADDED)
            cut("store")
            cut("give up")

    await turn(proxied.session("rehearsal"), None)  # prepares the statements
    session = proxied.session("s")
    if step == "store" and moment != "after":
        with pytest.raises(LakebaseUnavailable) as caught:
            await turn(session, step)
        assert caught.value.outcome_unknown
    else:
        await turn(session, step)
        assert witness.stored("s") == ADDED
    assert claims_seen(witness) == []


@every_how
async def test_cancelled_at_every_step(
    local: LocalLakebase, database: str, witness: Witness, how: How
) -> None:
    """The claim is given up; its renewal has ended."""
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        for at in itertools.count():
            session = lakebase.session(at)

            async def run(session: LakebaseSession = session) -> None:
                async with session.turn(on_busy="wait") as turn:
                    await turn.get_items()
                    await turn.add_items(ADDED)

            came_to_it = await interrupted(run, at, how)
            # Who cancels statements themselves, as the end of asyncio.run does, cuts some off.
            assert claims_seen(witness) == [] or how == "everything"
            assert witness.stored(str(at)) in ([], ADDED)
            if not came_to_it:
                break


@every_how
async def test_a_waiter_cancelled_at_every_step(
    local: LocalLakebase,
    database: str,
    witness: Witness,
    how: How,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim, "WAIT_SECONDS", 0.1)
    async with (
        Lakebase("local", workspace_client=local.workspace_client(), database=database) as lakebase,
        lakebase.session("s").turn(on_busy="wait") as first,
    ):
        await first.get_items()
        session = lakebase.session("s")

        async def wait() -> None:
            async with session.turn(on_busy="wait") as turn:
                with pytest.raises(ConversationBusy):
                    await turn.get_items()

        for at in itertools.count():
            came_to_it = await interrupted(wait, at, how)
            ((_, waiting),) = claims_seen(witness)
            assert waiting == [] or how == "everything"
            if not came_to_it:
                break


def test_run_that_ends_in_a_turn(local: LocalLakebase, database: str, witness: Witness) -> None:
    """asyncio.run cancels the turn and its renewal; the next run finds nobody in its way."""
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=database)
    tasks: set[asyncio.Task[Any]] = set()

    async def hang(reading: asyncio.Event) -> None:
        async with lakebase.session("s").turn(on_busy="refuse") as turn:
            await turn.get_items()
            reading.set()
            await asyncio.Event().wait()

    async def main() -> None:
        reading = asyncio.Event()
        hanging = asyncio.create_task(hang(reading))
        await reading.wait()
        tasks.update(asyncio.all_tasks(), {hanging})

    for _ in range(2):
        asyncio.run(main())
        assert len(tasks) >= 3  # this one, the turn, its renewal
        assert all(task.done() for task in tasks)
        assert claims_seen(witness) == []
    asyncio.run(lakebase.close())


async def test_a_client_that_goes_away(lakebase: Lakebase, witness: Witness) -> None:
    """As Starlette does it: cancelled again at every await."""
    set_tracing_disabled(True)
    from mlflow.types.responses import ResponsesAgentRequest

    request = ResponsesAgentRequest(
        input=[{"role": "user", "content": "Hi"}],  # type: ignore[list-item]
        custom_inputs={"session_id": "s"},
    )
    agent = Agent(name="A", model=OfflineModel())
    for atomic in (True, False):
        with anyio.CancelScope() as scope:
            async for _ in stream_turn(
                agent, request, lakebase=lakebase, atomic=atomic, on_busy="refuse"
            ):
                assert len(claims_seen(witness)) == 1
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        # A generator that is dropped ends in a task of its own.
        async with asyncio.timeout(10):
            while claims_seen(witness) or len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)


@pytest.fixture
async def impatient(local: LocalLakebase, database: str) -> AsyncIterator[Lakebase]:
    async with Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        call_timeout_seconds=0.2,
    ) as lakebase:
        yield lakebase


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in caplog.text:
            await asyncio.sleep(0.01)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger=claim.__name__):
        yield caplog


async def test_renewal_fails_for_a_while(
    impatient: Lakebase,
    lakebase: Lakebase,
    local: LocalLakebase,
    database: str,
    told: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim, "LEASE_SECONDS", 3.0)
    async with impatient.session("s").turn(on_busy="refuse") as turn:
        await turn.get_items()
        with admin(local, database) as other:
            with other.transaction():
                other.execute("LOCK TABLE agent_claims IN SHARE MODE")
                await logged(told, "could not be renewed")
            before = other.execute("SELECT expires_at FROM agent_claims").fetchone()
            async with asyncio.timeout(30):
                while other.execute("SELECT expires_at FROM agent_claims").fetchone() == before:
                    await asyncio.sleep(0.01)
        async with lakebase.session("s").turn(on_busy="refuse") as second:
            with pytest.raises(ConversationBusy):
                await second.get_items()
        await turn.add_items(ADDED)
    assert await lakebase.session("s").get_items() == ADDED


async def test_a_claim_that_is_lost(
    lakebase: Lakebase,
    witness: Witness,
    told: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says so, the run goes on, and storing decides; the other's claim is left alone."""
    monkeypatch.setattr(claim, "LEASE_SECONDS", 0.3)
    async with lakebase.session("s").turn(on_busy="refuse") as turn:
        await turn.get_items()
        witness.connection.execute("UPDATE agent_claims SET holder = 'other'")
        await logged(told, "has lost its claim")
        await turn.add_items(ADDED)
    assert await lakebase.session("s").get_items() == ADDED
    assert claims_seen(witness) == [("other", [])]
