"""Connections that break or go silent, before, during and after each operation.

What was acknowledged is stored. A read that breaks in flight is repeated and nobody notices. A
write that breaks in flight is reported as unknown and not repeated. No wait is without a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from conftest import admin
from proxy import Moment, Proxy

from faults.backends import gone, kill_blocked
from faults.checker import Checker
from faults.operations import (
    ADDED,
    BEFORE,
    OPERATIONS,
    POOL_SIZE,
    Operation,
    each_operation,
    fill_pool,
    nothing,
)
from lakebase_sessions import Lakebase, LakebaseSession, LakebaseTimeout, LakebaseUnavailable
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.tables import LOCK, OWN, UPSTREAMS
from lakebase_sessions.testing.plugin import TEMPLATE


@pytest.fixture(scope="module")
def database(local_for_run: LocalLakebase) -> Iterator[str]:
    """One for all tests of this file, which are many; each has conversations of its own."""
    name = f"lakebase_sessions_test_{os.getpid()}_broken"
    local_for_run.create_database(name, template=TEMPLATE)
    yield name
    local_for_run.drop_database(name)


@pytest.fixture
def session_id(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
async def proxied(local: LocalLakebase, proxy: Proxy, database: str) -> AsyncIterator[Lakebase]:
    """A Lakebase that is reached through the proxy, open."""
    async with _through_proxy(local, database) as lakebase:
        yield lakebase


@pytest.fixture
async def impatient(local: LocalLakebase, proxy: Proxy, database: str) -> AsyncIterator[Lakebase]:
    """The same with short bounds."""
    async with _through_proxy(local, database, call_timeout_seconds=0.5) as lakebase:
        yield lakebase


@pytest.fixture
async def session(proxied: Lakebase, session_id: str) -> LakebaseSession:
    """A conversation that holds `BEFORE`, through the proxy."""
    session = proxied.session(session_id)
    await session.add_items(BEFORE)
    return session


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@each_operation
async def test_the_connection_breaks(
    operation: Operation,
    moment: Moment,
    proxied: Lakebase,
    session: LakebaseSession,
    proxy: Proxy,
    local: LocalLakebase,
    database: str,
) -> None:
    """Before the statement reaches the server, before the answer is back, or right after it."""
    rehearsal = proxied.session(f"{session.session_id}, rehearsal")
    await rehearsal.add_items(BEFORE)
    await operation.run(rehearsal, nothing)  # prepares the statement: it is one packet from now on

    async def cut() -> None:
        proxy.cut = moment

    if operation.writes and moment != "after":
        with pytest.raises(LakebaseUnavailable, match="read the conversation before") as caught:
            await operation.run(session, cut)
        assert caught.value.outcome_unknown
        session._loop_engine.pool.close_idle()  # type: ignore[union-attr]  # that gave up a claim
        await gone(local, database)  # the server may still be at it
    else:
        assert await operation.run(session, cut) == operation.returns
    stored = BEFORE if moment == "before" else list(operation.after)
    assert await session.get_items() == stored


@pytest.mark.parametrize("moment", ["before", "during"])
async def test_a_fork_is_whole_or_absent(
    moment: Moment,
    proxied: Lakebase,
    session: LakebaseSession,
    proxy: Proxy,
    local: LocalLakebase,
    database: str,
) -> None:
    await session.fork()
    fork = proxied.session(f"{session.session_id}, fork")
    proxy.cut = moment
    with pytest.raises(LakebaseUnavailable) as caught:
        await session.fork(fork.session_id)
    assert caught.value.outcome_unknown
    await gone(local, database)
    assert await fork.get_items() == ([] if moment == "before" else BEFORE)
    assert await fork.turns() == ([] if moment == "before" else await session.turns())


@each_operation
async def test_the_backend_is_killed_under_it(
    operation: Operation,
    lakebase: Lakebase,
    session_id: str,
    local: LocalLakebase,
    database: str,
) -> None:
    session = lakebase.session(session_id)
    await session.add_items(BEFORE)
    with admin(local, database) as other:
        other.autocommit = False

        async def block() -> None:
            mode = "SHARE" if operation.writes else "ACCESS EXCLUSIVE"
            other.execute(f"LOCK TABLE agent_sessions, agent_messages IN {mode} MODE")

        running = asyncio.ensure_future(operation.run(session, block))
        await kill_blocked(local, database)
        other.rollback()
    if operation.writes:
        with pytest.raises(LakebaseUnavailable, match="broke") as caught:
            await running
        assert caught.value.outcome_unknown
    else:
        assert await running == operation.returns
    assert await session.get_items() == BEFORE


@pytest.mark.parametrize("how", [Proxy.drop, Proxy.half_close], ids=["dropped", "half closed"])
@each_operation
async def test_a_connection_that_died_while_idle_reaches_nobody(
    operation: Operation, how: Callable[[Proxy], None], session: LakebaseSession, proxy: Proxy
) -> None:
    """Every connection of the pool, as when the Lakebase scales to zero."""
    await fill_pool(session)

    async def scale_to_zero() -> None:
        how(proxy)

    assert await operation.run(session, scale_to_zero) == operation.returns
    assert await session.get_items() == list(operation.after)


async def test_requests_that_wake_a_lakebase_up_wait_for_it(
    proxied: Lakebase, proxy: Proxy, local: LocalLakebase, database: str
) -> None:
    """Scaled to zero, and not back yet when they come: they are late, and nothing else."""
    checker = Checker()
    await asyncio.gather(*(checker.add(proxied.session(f"s{n}")) for n in range(20)))
    proxy.refuse()
    proxy.drop()
    asyncio.get_running_loop().call_later(0.3, proxy.accept)
    await asyncio.gather(*(checker.add(proxied.session(f"s{n}"), 2) for n in range(20)))
    with admin(local, database) as connection:
        verdict = checker.verdict(connection)
    assert verdict.clean, verdict
    assert verdict.acknowledged == 40


async def test_a_network_that_goes_silent(impatient: Lakebase, proxy: Proxy) -> None:
    """Packets are acknowledged and nobody answers: each call ends, and later ones recover.

    A connection that was idle meanwhile leads to the same silence and is not used any more.
    """
    sessions = {name: impatient.session(f"silent, {name}") for name in OPERATIONS}
    for session in sessions.values():
        await session.add_items(BEFORE)
    await fill_pool(session)
    all_there = asyncio.Barrier(len(OPERATIONS))

    async def go_deaf() -> None:
        await all_there.wait()
        proxy.deaf = True

    async with asyncio.timeout(30):
        errors = await asyncio.gather(
            *(OPERATIONS[name].run(sessions[name], go_deaf) for name in OPERATIONS),
            return_exceptions=True,
        )
        for operation, error in zip(OPERATIONS.values(), errors, strict=True):
            assert isinstance(error, LakebaseTimeout), error
            assert error.outcome_unknown == operation.writes
        with pytest.raises(LakebaseTimeout, match="gave no connection") as caught:
            await impatient.session("new").add_items(ADDED)
        assert not caught.value.outcome_unknown, "it never got there"
        proxy.deaf = False
        histories = await asyncio.gather(*(session.get_items() for session in sessions.values()))
    assert histories == [BEFORE] * len(OPERATIONS)


@pytest.mark.parametrize("given_up_by", [LakebaseTimeout, asyncio.CancelledError])
async def test_an_attempt_to_connect_that_was_given_up_is_closed(
    given_up_by: type[BaseException], impatient: Lakebase, proxy: Proxy
) -> None:
    """At once, also while somebody keeps the error: on the server it takes a connection's place."""
    proxy.drop()
    proxy.deaf = True
    connected = proxy.accepted
    reading = asyncio.ensure_future(impatient.session("s").get_items())
    while proxy.accepted == connected:
        await asyncio.sleep(0.01)
    if given_up_by is asyncio.CancelledError:
        reading.cancel()
    with pytest.raises(given_up_by):
        await reading
    proxy.deaf = False  # it hears who has hung up
    async with asyncio.timeout(10):
        while proxy.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_opening_is_not_disturbed_by_a_connection_that_breaks(
    moment: Moment, local: LocalLakebase, proxy: Proxy, empty_database: str
) -> None:
    lakebase = _through_proxy(local, empty_database)
    proxy.cut = moment
    await lakebase.session("s").add_items(BEFORE)
    assert proxy.accepted > 1, "the first one broke"
    assert await lakebase.session("s").get_items() == BEFORE
    await lakebase.close()


async def test_the_backend_is_killed_while_it_creates_the_tables(
    local: LocalLakebase, proxy: Proxy, empty_database: str
) -> None:
    """No half of them is left behind, and the next call makes them."""
    lakebase = _through_proxy(local, empty_database)
    with admin(local, empty_database) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        opening = asyncio.ensure_future(lakebase.open())
        await kill_blocked(local, empty_database)
        with pytest.raises(LakebaseUnavailable) as caught:
            await opening
        assert not caught.value.outcome_unknown
        other.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'agent_%'"
        assert other.execute(tables).fetchone() == (0,)
        await lakebase.open()
        assert other.execute(tables).fetchone() == (len(UPSTREAMS + OWN),)
    await lakebase.close()


async def test_opening_when_nobody_answers(
    local: LocalLakebase, proxy: Proxy, database: str
) -> None:
    lakebase = _through_proxy(local, database, call_timeout_seconds=0.5)
    proxy.deaf = True
    async with asyncio.timeout(30):
        with pytest.raises(LakebaseTimeout, match="get-database-instance proxied"):
            await lakebase.open()
        proxy.deaf = False
        assert await lakebase.session("new").get_items() == []
    await lakebase.close()


def _through_proxy(
    local: LocalLakebase, database: str, *, call_timeout_seconds: float = 10
) -> Lakebase:
    return Lakebase(
        "proxied",
        workspace_client=local.workspace_client(),
        database=database,
        pool_size=POOL_SIZE,
        call_timeout_seconds=call_timeout_seconds,
    )
