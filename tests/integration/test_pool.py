"""The pool: who is served when it is full, and what becomes of connections and their loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import admin
from faults.backends import gone, pids
from proxy import Proxy
from sqlalchemy import text

from lakebase_sessions import Lakebase, LakebaseSession, PermissionDenied
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.connection import _addresses
from lakebase_sessions.postgres.pool import Pool

HELLO: Any = {"role": "user", "content": "hello"}


def made(local: LocalLakebase, database: str, **options: Any) -> Lakebase:
    return Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, **options
    )


def pool_of(session: LakebaseSession) -> Pool:
    assert session._loop_engine is not None
    return session._loop_engine.pool


async def test_who_waits_is_served_before_who_comes_back(
    local: LocalLakebase, database: str
) -> None:
    """Nobody who reads in a loop takes the connection from those who were first."""
    async with made(local, database, pool_size=1, max_overflow=0) as lakebase:
        order: list[int] = []

        async def read(number: int) -> None:
            for _ in range(10):
                await lakebase.session(number).get_items()
                order.append(number)

        session = lakebase.session("s")
        await session.get_items()
        async with session.engine.connect():  # it begins when all of them wait
            readers = [asyncio.create_task(read(number)) for number in range(8)]
            while len(pool_of(session)._waiting) < 8:
                await asyncio.sleep(0)
        await asyncio.gather(*readers)
    rounds = [order[start : start + 8] for start in range(0, len(order), 8)]
    assert all(sorted(served) == list(range(8)) for served in rounds), rounds


async def test_closed_connections_leave_no_places_behind(
    local: LocalLakebase, database: str
) -> None:
    """After the server has closed 15, a read opens one, and there is one."""
    async with made(local, database) as lakebase:
        session = lakebase.session("s")
        await session.get_items()
        with admin(local, database) as connection, connection.transaction():
            connection.execute("LOCK agent_messages")  # so that each needs one of its own
            readers = [asyncio.create_task(lakebase.session(n).get_items()) for n in range(64)]
            while len(pids(local, database, "wait_event_type = 'Lock'")) < 15:
                await asyncio.sleep(0.01)
        await asyncio.gather(*readers)
        with admin(local, "postgres") as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) pid",
                [list(pids(local, database))],
            )
        await gone(local, database)
        await session.get_items()
        assert len(pool_of(session).connections) == 1
        assert len(pids(local, database)) == 1


async def test_a_refused_login_is_told_to_all_who_wait_at_once(
    local: LocalLakebase, database: str, proxy: Proxy
) -> None:
    """Attempts to log in, also with a new token, are shared: not one for each of twenty."""
    client = local.workspace_client()
    async with Lakebase("proxied", workspace_client=client, database=database) as lakebase:
        sessions = [lakebase.session(n) for n in range(20)]
        await sessions[0].get_items()
        pool_of(sessions[0]).close_idle()
        accepted = proxy.accepted
        with admin(local, "postgres") as connection:
            connection.execute('ALTER ROLE "developer@example.com" NOLOGIN')
        try:
            outcomes = await asyncio.gather(
                *(session.get_items() for session in sessions), return_exceptions=True
            )
        finally:
            with admin(local, "postgres") as connection:
                connection.execute('ALTER ROLE "developer@example.com" LOGIN')
        assert {type(outcome) for outcome in outcomes} == {PermissionDenied}
        assert proxy.accepted - accepted < 10
        assert await sessions[0].get_items() == []


async def test_somebody_elses_transactions_use_the_same_connections(
    local: LocalLakebase, database: str
) -> None:
    async with made(local, database, pool_size=1, max_overflow=0) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        for _ in range(3):
            async with session.engine.begin() as connection:
                count = await connection.scalar(text("SELECT count(*) FROM agent_messages"))
            assert count == 1
            assert await session.get_items() == [HELLO]
        with pytest.raises(ZeroDivisionError):
            async with session.engine.begin() as connection:
                await connection.execute(text("DELETE FROM agent_messages"))
                _ = 1 / 0
        assert await session.get_items() == [HELLO]
        assert len(pids(local, database)) == 1


def test_a_loop_that_is_dropped_unclosed_takes_its_connections_with_it(
    local: LocalLakebase, database: str
) -> None:
    lakebase = made(local, database)

    def used() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(lakebase.session("s").get_items())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it is the loop that was not closed
        used()
        gc.collect()
    asyncio.run(gone(local, database))
    asyncio.run(lakebase.close())


async def test_names_are_resolved_while_the_applications_threads_are_taken() -> None:
    over = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        loop.run_in_executor(None, over.wait)
        try:
            async with asyncio.timeout(5):
                assert "127.0.0.1" in await _addresses("localhost", 5)
        finally:
            over.set()


@pytest.mark.parametrize("host", ["/run/postgresql", "127.0.0.1", "::1"])
async def test_what_is_an_address_is_not_looked_up(host: str) -> None:
    assert await _addresses(host, 0) == []


async def test_writers_under_another_default_isolation(
    local: LocalLakebase, database: str, proxy: Proxy
) -> None:
    """Of several who write at once to one conversation none fails."""
    with admin(local, database) as connection:
        connection.execute(
            f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"
        )
    async with made(local, database) as lakebase:
        for _ in range(5):
            await asyncio.gather(*(lakebase.session("s").add_items([HELLO]) for _ in range(15)))
        assert len(await lakebase.session("s").get_items()) == 75


async def test_ids_beyond_two_billion(local: LocalLakebase, database: str) -> None:
    with admin(local, database) as connection:
        connection.execute("ALTER TABLE agent_messages ALTER COLUMN id TYPE bigint")
        connection.execute("ALTER SEQUENCE agent_messages_id_seq AS bigint RESTART 3000000000")
    async with made(local, database) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        async with session.turn() as turn:
            assert await turn.pop_item() == HELLO
            await turn.add_items([HELLO, HELLO])
        assert await session.get_items() == [HELLO, HELLO]


async def test_tables_that_are_altered_under_prepared_statements(
    local: LocalLakebase, database: str
) -> None:
    """On every connection, for reads and for writes."""
    async with made(local, database) as lakebase:
        sessions = [lakebase.session(n) for n in range(15)]
        await asyncio.gather(*(session.add_items([HELLO]) for session in sessions))
        await asyncio.gather(*(session.get_items() for session in sessions))
        await asyncio.gather(*(session.pop_item() for session in sessions))
        with admin(local, database) as connection:
            connection.execute("ALTER TABLE agent_messages ALTER COLUMN message_data TYPE varchar")
        await asyncio.gather(*(session.add_items([HELLO]) for session in sessions))
        for session in sessions:
            assert await session.get_items() == [HELLO]
            assert await session.pop_item() == HELLO


async def test_an_abandoned_opening_that_fails_late(local: LocalLakebase, database: str) -> None:
    """It takes nothing from the one that went well after it."""
    lakebase = made(local, database, open_timeout_seconds=0.3)
    with local.fault("/instances", status=404, delay_seconds=1.0, times=1) as fault:
        with pytest.raises(ConnectionError):
            await lakebase.open()
        lakebase._open_timeout_seconds = 30.0
        await lakebase.open()
        assert lakebase.name == "local"
        while fault.hits == 0 or any("open" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.02)
    assert lakebase.name == "local"
    assert await lakebase.session("s").get_items() == []
    await lakebase.close()
    give_up_at = time.monotonic() + 10
    while any(_is_timer(thread) for thread in threading.enumerate()):
        assert time.monotonic() < give_up_at, "a token's timer lives on"
        await asyncio.sleep(0.02)


async def test_an_abandoned_opening_that_succeeds_late(local: LocalLakebase, database: str) -> None:
    """Nobody renews a token that nobody uses."""
    lakebase = made(local, database, open_timeout_seconds=0.3)
    with local.fault("/instances", delay_seconds=1.0, times=1):
        with pytest.raises(ConnectionError):
            await lakebase.open()
        lakebase._open_timeout_seconds = 30.0
        await lakebase.open()
        while any("open" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.02)
    await lakebase.close()
    give_up_at = time.monotonic() + 10
    while any(_is_timer(thread) for thread in threading.enumerate()):
        assert time.monotonic() < give_up_at, "a token's timer lives on"
        await asyncio.sleep(0.02)


def _is_timer(thread: threading.Thread) -> bool:
    return thread.name == "lakebase-sessions-token-timer"
