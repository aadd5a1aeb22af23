"""A server that stops, is full or says no: short, clear errors, and recovery without a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from conftest import admin

from faults.checker import Checker
from faults.operations import ADDED, BEFORE, endlessly, until_it_works
from faults.own_server import Manner, OwnServer
from lakebase_sessions import Lakebase, LakebaseUnavailable
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase

CONVERSATIONS = 8


def on(local: LocalLakebase, database: str, *, call_timeout_seconds: float = 0.5) -> Lakebase:
    return Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        call_timeout_seconds=call_timeout_seconds,
    )


class Load:
    """Conversations that go on and on, whatever happens."""

    def __init__(self, lakebase: Lakebase) -> None:
        self.checker = Checker()
        self.acknowledged: Counter[int] = Counter()
        self.errors: dict[int, LakebaseUnavailable] = {}
        self._lakebase = lakebase

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._converse(n)) for n in range(CONVERSATIONS)]
            yield
            for task in tasks:
                task.cancel()

    async def _converse(self, number: int) -> None:
        session = self._lakebase.session(f"s{number}")
        while True:
            try:
                await self.checker.add(session, 3)
                self.acknowledged[number] += 1
            except LakebaseUnavailable as error:
                self.errors[number] = error

    async def all_have(self, so_much: Callable[[int], bool]) -> None:
        """Return once it is true of every conversation."""
        while not all(map(so_much, range(CONVERSATIONS))):
            await asyncio.sleep(0.01)

    async def all_go_on(self) -> None:
        """Return once every conversation has had some more acknowledged."""
        before = self.acknowledged.copy()
        await self.all_have(lambda number: self.acknowledged[number] > before[number] + 3)


@pytest.mark.parametrize("manner", ["fast", "immediate", "kill"])
async def test_the_server_stops_under_load_and_starts_again(
    manner: Manner, own: OwnServer, own_database: str
) -> None:
    """Every conversation fails clearly and then goes on; what was acknowledged is there, once."""
    async with on(own.local, own_database) as lakebase:
        load = Load(lakebase)
        async with load.running():
            await load.all_go_on()
            await asyncio.to_thread(own.stop, manner)
            load.errors.clear()
            await load.all_have(load.errors.__contains__)
            await asyncio.to_thread(own.start)
            await load.all_go_on()
        for error in load.errors.values():
            assert "databricks database get-database-instance local" in str(error)
    with admin(own.local, own_database) as connection:
        assert load.checker.verdict(connection).clean


async def test_a_backend_is_killed_under_load(own: OwnServer, own_database: str) -> None:
    """As when memory runs out: Postgres ends all connections, and recovers by itself."""
    async with on(own.local, own_database) as lakebase:
        load = Load(lakebase)
        async with load.running():
            await load.all_go_on()
            with admin(own.local, "postgres") as victim, admin(own.local, "postgres") as witness:
                own.kill_backend(victim.info.backend_pid)
                with pytest.raises(psycopg.OperationalError):
                    await asyncio.to_thread(witness.execute, "SELECT pg_sleep(60)")
            await load.all_go_on()
    with admin(own.local, own_database) as connection:
        assert load.checker.verdict(connection).clean


async def test_opening_while_the_server_is_down(own: OwnServer, own_database: str) -> None:
    lakebase = on(own.local, own_database)
    session = lakebase.session("s")
    own.stop()
    with pytest.raises(LakebaseUnavailable, match="get-database-instance local") as caught:
        await session.get_items()
    assert not caught.value.outcome_unknown
    own.start()
    assert await session.get_items() == []
    await lakebase.close()


@pytest.fixture(params=["role", "database", "server"])
def two_connections(
    request: pytest.FixtureRequest, own: OwnServer, own_database: str
) -> Iterator[None]:
    """The server lets two clients in."""
    limits = {
        "role": f'ALTER ROLE "{DEFAULT_USER}" CONNECTION LIMIT {{}}',
        "database": f'ALTER DATABASE "{own_database}" CONNECTION LIMIT {{}}',
        "server": "ALTER SYSTEM SET superuser_reserved_connections = {}",
    }
    server = request.param == "server"

    def set_limit(number: int) -> None:
        with admin(own.local, "postgres") as connection:
            connection.execute(limits[request.param].format(number))
        if server:
            own.stop()
            own.start()

    set_limit(298 if server else 2)  # of 300
    yield
    set_limit(3 if server else -1)  # the defaults


@pytest.mark.usefixtures("two_connections")
async def test_too_many_connections(own: OwnServer, own_database: str) -> None:
    """Nobody gets in while all are taken. When some are free, a pool makes do with those."""
    waiting = on(own.local, own_database)
    async with on(own.local, own_database) as greedy:
        session = greedy.session("s")
        await session.get_items()
        async with session.engine.connect(), session.engine.connect():
            with pytest.raises(LakebaseUnavailable, match="connections of this Lakebase") as caught:
                await waiting.session("s").add_items(ADDED)
            assert not caught.value.outcome_unknown
    await waiting.close()
    async with on(own.local, own_database, call_timeout_seconds=10) as lakebase:
        sessions = [lakebase.session(f"s{n}") for n in range(30)]
        await asyncio.gather(*(session.add_items(ADDED) for session in sessions))
        assert [await session.get_items() for session in sessions] == [ADDED] * 30


async def test_the_disk_is_full(own: OwnServer, own_database: str) -> None:
    """Writes are refused whole, reads go on; with room again so do writes."""
    checker = Checker()
    async with on(own.local, own_database) as lakebase:
        session = lakebase.session("s")
        await session.get_items()
        with small_tablespace(own, own_database) as database:
            database.execute("ALTER TABLE agent_messages SET TABLESPACE small")
            database.execute(
                "CREATE TABLE ballast TABLESPACE small AS SELECT repeat('x', 1000) "
                "FROM generate_series(1, 2000)"
            )
            with pytest.raises(LakebaseUnavailable, match="out of disk") as caught:
                await endlessly(lambda: checker.add(session, 5000))
            assert not caught.value.outcome_unknown
            assert len(await session.get_items(1)) == 1
            database.execute("DROP TABLE ballast")
            await checker.add(session, 5000)
            verdict = checker.verdict(database)
            assert verdict.clean
            assert verdict.refused == 1
            database.execute("ALTER TABLE agent_messages SET TABLESPACE pg_default")


@contextmanager
def small_tablespace(own: OwnServer, database: str) -> Iterator[psycopg.Connection[Any]]:
    """A tablespace `small`, which a few megabytes fill."""
    with admin(own.local, database) as connection:
        folder = own.folder_on_small_disk()
        connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        yield connection
        connection.execute("DROP TABLESPACE small")


async def test_the_server_only_reads(own: OwnServer, own_database: str) -> None:
    """Reads go on and writes are refused, on open connections too; nothing has to be restarted."""
    async with on(own.local, own_database) as lakebase:
        session = lakebase.session("s")
        await session.add_items(BEFORE)
        with only_reading(own):
            async with asyncio.timeout(30):  # a server tells its backends when they get to it
                with pytest.raises(LakebaseUnavailable, match="only reads") as caught:
                    await endlessly(lambda: session.add_items(ADDED))
            assert not caught.value.outcome_unknown
            assert (await session.get_items())[:2] == BEFORE
            empty = on(own.local, "databricks_postgres")
            with pytest.raises(LakebaseUnavailable, match="only reads"):
                await empty.open()
        async with asyncio.timeout(30):
            await until_it_works(empty.open)
            await until_it_works(lambda: session.add_items(ADDED))
        await empty.close()


@contextmanager
def only_reading(own: OwnServer) -> Iterator[None]:
    def switch(state: str) -> None:
        with admin(own.local, "postgres") as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}")
            connection.execute("SELECT pg_reload_conf()")

    switch("on")
    try:
        yield
    finally:
        switch("off")
