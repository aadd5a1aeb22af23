"""A Lakebase that moves to another host: the workspace names the new one, the old one is dead.

Both hosts are proxies in front of one server, as a failover keeps what was acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from conftest import admin
from proxy import Proxy

from faults.checker import Checker
from faults.operations import ADDED, BEFORE, OPERATIONS, until_it_works
from lakebase_sessions import Lakebase, LakebaseUnavailable
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.workspace import place

INSTANCE = "moving"
ENDPOINT = "projects/moving/branches/production/endpoints/primary"


class Hosts:
    """Two hosts, and the name that leads to one of them."""

    def __init__(self, local: LocalLakebase, current: Proxy, standby: Proxy) -> None:
        self._local = local
        self.current = current
        self.standby = standby
        standby.refuse()
        self._point()

    def fail_over(self) -> None:
        """The old host is gone, and the other one takes over."""
        self.current.refuse()
        self.current.drop()
        self.move()

    def move(self) -> None:
        """The other host takes over, whatever the old one does."""
        self.current, self.standby = self.standby, self.current
        self.current.accept()
        self._point()

    def _point(self) -> None:
        self._local.add_instance(INSTANCE, read_write_dns=self.current.host)
        self._local.add_endpoint(ENDPOINT, host=self.current.host)

    def lookups(self) -> int:
        """How often the workspace was asked where the Lakebase is."""
        return sum(request.path.endswith(f"/{INSTANCE}") for request in self._local.requests)


@pytest.fixture
def hosts(local: LocalLakebase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    # The tests are shorter than the rest between two questions to the workspace.
    monkeypatch.setattr(place, "LOOK_UP_SECONDS", 0.1)
    with Proxy(local.host) as one, Proxy(local.host) as other:
        yield Hosts(local, one, other)
        local.remove_instance(INSTANCE)
        local.remove_endpoint(ENDPOINT)


def made(
    local: LocalLakebase,
    database: str,
    target: str = INSTANCE,
    *,
    call_timeout_seconds: float = 10,
) -> Lakebase:
    return Lakebase(
        target,
        workspace_client=local.workspace_client(),
        database=database,
        call_timeout_seconds=call_timeout_seconds,
    )


async def test_every_operation_follows_it_to_its_new_host(
    hosts: Hosts, local: LocalLakebase, database: str
) -> None:
    """Who comes after the failover notices nothing, also in the middle of a turn."""
    async with made(local, database) as lakebase:
        sessions = [lakebase.session(name) for name in OPERATIONS]
        for session in sessions:
            await session.add_items(BEFORE)
        all_there = asyncio.Barrier(len(OPERATIONS))

        async def fail_over() -> None:
            if await all_there.wait() == 0:
                hosts.fail_over()
            await all_there.wait()

        returned = await asyncio.gather(
            *(
                operation.run(session, fail_over)
                for operation, session in zip(OPERATIONS.values(), sessions, strict=True)
            )
        )
        assert returned == [operation.returns for operation in OPERATIONS.values()]
        for operation, session in zip(OPERATIONS.values(), sessions, strict=True):
            assert await session.get_items() == list(operation.after)
        assert hosts.current.accepted


async def test_whatever_it_was_named_by(hosts: Hosts, local: LocalLakebase, database: str) -> None:
    """A host that was configured itself is gone from the workspace: its Lakebase is not."""
    async with (
        made(local, database, ENDPOINT) as by_endpoint,
        made(local, database, hosts.current.host) as by_host,
    ):
        sessions = [by_endpoint.session("s"), by_host.session("s")]
        await sessions[0].add_items(BEFORE)
        hosts.fail_over()
        histories = await asyncio.gather(*(session.get_items() for session in sessions))
    assert histories == [BEFORE, BEFORE]


async def test_under_load_there_and_back(hosts: Hosts, local: LocalLakebase, database: str) -> None:
    """Writes in flight are reported as unknown; nothing that was acknowledged is lost."""
    checker = Checker()

    async def converse(number: int) -> None:
        session = lakebase.session(f"s{number}")
        for _ in range(40):
            with suppress(LakebaseUnavailable):
                await checker.add(session, 3)

    async with made(local, database) as lakebase, asyncio.timeout(60):
        talking = asyncio.gather(*(converse(number) for number in range(5)))
        for acknowledged in (30, 100):
            while _acknowledged(checker) < acknowledged:
                await asyncio.sleep(0.01)
            hosts.fail_over()
        await talking
    with admin(local, database) as connection:
        verdict = checker.verdict(connection)
    assert verdict.clean, verdict
    assert verdict.refused == 0
    assert verdict.unknown <= 10, "at most those in flight at the two failovers"


def _acknowledged(checker: Checker) -> int:
    return sum(batch.outcome == "acknowledged" for batch in checker.batches)


async def test_an_old_host_that_falls_silent(
    hosts: Hosts, local: LocalLakebase, database: str
) -> None:
    """Nobody says that the connections are dead: some calls end late, and then it goes on."""
    async with made(local, database, call_timeout_seconds=0.5) as lakebase, asyncio.timeout(60):
        session = lakebase.session("s")
        await session.add_items(BEFORE)
        hosts.current.deaf = True
        hosts.move()
        await until_it_works(session.get_items)
        assert await session.get_items() == BEFORE


async def test_an_old_host_that_only_reads(
    hosts: Hosts, local: LocalLakebase, database: str
) -> None:
    """It lives on as a copy, and so do connections to it: a write that it refuses ends them."""
    with admin(local, "postgres") as connection:
        connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    async with made(local, database) as lakebase, asyncio.timeout(60):
        session = lakebase.session("s")
        assert await session.get_items() == []
        with admin(local, "postgres") as connection:
            connection.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        hosts.current.refuse()  # who is in stays, and goes on to be what he was
        hosts.move()
        await until_it_works(lambda: session.add_items(ADDED))
        assert await session.get_items() == ADDED
        assert hosts.current.accepted


async def test_the_workspace_is_down_as_well(
    hosts: Hosts, local: LocalLakebase, database: str
) -> None:
    """The calls end within their bound, and succeed once the workspace says where to go."""
    async with made(local, database, call_timeout_seconds=0.5) as lakebase, asyncio.timeout(60):
        session = lakebase.session("s")
        await session.add_items(BEFORE)
        with local.fault(status=503):
            hosts.fail_over()
            with pytest.raises(LakebaseUnavailable) as caught:
                await session.add_items(ADDED)
            assert not caught.value.outcome_unknown
        await until_it_works(session.get_items)
        await session.add_items(ADDED)
        assert await session.get_items() == BEFORE + ADDED


async def test_a_host_that_is_down_and_stays_the_one(
    hosts: Hosts, local: LocalLakebase, database: str
) -> None:
    """The workspace is not asked by each of many requests that wait for the host."""
    async with made(local, database, call_timeout_seconds=0.5) as lakebase, asyncio.timeout(60):
        sessions = [lakebase.session(f"s{number}") for number in range(50)]
        await asyncio.gather(*(session.add_items(BEFORE) for session in sessions))
        asked = hosts.lookups()
        hosts.current.refuse()
        hosts.current.drop()
        errors = await asyncio.gather(
            *(session.get_items() for session in sessions), return_exceptions=True
        )
        assert all(isinstance(error, LakebaseUnavailable) for error in errors), errors
        assert 0 < hosts.lookups() - asked < len(sessions) / 2
        hosts.current.accept()
        assert await sessions[0].get_items() == BEFORE
