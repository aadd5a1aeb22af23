"""The walk: the steps in the order in which a session takes them, up to the one that fails."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg

from lakebase_sessions.access import site
from lakebase_sessions.access.objects import REQUIRED, objects_in, schema_of
from lakebase_sessions.doctor import finding, network, server, tables
from lakebase_sessions.doctor.step import Status, Step, failed, ok, our_command
from lakebase_sessions.errors import (
    LakebaseSessionsError,
    check_running,
    from_statement_error,
)
from lakebase_sessions.workspace.target import Address, resolve

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.postgres.connection import Connection
    from lakebase_sessions.workspace.place import Place


async def walk(
    wanted: Wanted, *, pool: int = 15, workers: int = 1, write: bool = False
) -> AsyncIterator[Step]:
    """The steps of a session, each as it was found; a failed one is the last.

    Args:
        wanted: Which Lakebase, and as whom.
        pool: Most connections of a worker.
        workers: How many there are to be.
        write: Store a turn, in a conversation of its own, and remove it.
    """
    walker = _Walker(wanted)
    async for step in walker.steps(pool=pool, workers=workers, write=write):
        yield step
        if step.status is Status.FAILED:
            break
    await walker.close()


class _Walker:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._place: Place | None = None
        self._connection: Connection | None = None
        self._step = "environment"
        self._next = finding.NEXT["environment"]

    async def steps(self, *, pool: int, workers: int, write: bool) -> AsyncIterator[Step]:
        """All steps; an error ends them with the one that it happened at."""
        try:
            async for step in self._to_a_token():
                yield step
            async for step in self._to_the_database():
                yield step
            async for step in self._in_the_database(pool=pool, workers=workers):
                yield step
            if write:
                yield await self._turn()
        except LakebaseSessionsError as error:
            yield failed(self._step, str(error), self._next)
        except psycopg.Error as error:
            name = self._place.name if self._place else ""
            broken = self._connection is None or self._connection.closed
            ours = from_statement_error(error, name, broken=broken, writing=False)
            yield failed(self._step, str(ours), self._next)

    async def close(self) -> None:
        """Leave nothing open."""
        if self._connection is not None:
            await self._connection.close()
        if self._place is not None:
            self._place.credentials.close()

    def _at(self, step: str, next_: str) -> None:
        self._step, self._next = step, next_

    async def _to_a_token(self) -> AsyncIterator[Step]:
        settings = self._wanted.settings()
        yield finding.environment(settings)
        self._at("workspace login", finding.NEXT["workspace login"])
        workspace = await asyncio.to_thread(self._wanted.workspace)
        yield ok("workspace login", workspace.login)
        self._at("identity", finding.NEXT["identity"])
        user = await asyncio.to_thread(workspace.user_name)
        yield ok("identity", f"'{user}', which is the Postgres role")
        self._at("target", finding.NEXT["target"])
        address = Address.parse(settings.target)
        target = await asyncio.to_thread(resolve, address, workspace)
        yield ok("target", f"'{target.name}' at {target.host}")
        self._at("compute", check_running(target.name))
        yield await asyncio.to_thread(finding.compute, target, workspace)
        self._at("token", our_command(self._wanted, "grant", user))
        self._place = self._wanted.place(settings, workspace, target, user)
        await asyncio.to_thread(self._place.credentials.renew_now)
        held = self._place.credentials.token
        assert held is not None, "renew_now raises where there is none"  # noqa: S101
        yield finding.token(held)

    async def _to_the_database(self) -> AsyncIterator[Step]:
        place = self._place
        assert place is not None, "the steps before have found it"  # noqa: S101
        step, addresses = await asyncio.to_thread(network.dns, place)
        yield step
        if step.status is Status.FAILED:
            return
        yield await asyncio.to_thread(network.tcp, place, addresses)
        began = time.monotonic()
        try:
            self._connection = await site.connected(place)
        except LakebaseSessionsError as error:
            for step in network.refused(place, error, self._grant()):
                yield step
            return
        for step in network.connected(place, self._connection, time.monotonic() - began):
            yield step

    def _grant(self) -> str:
        user = self._place.user if self._place else ""
        return our_command(self._wanted, "grant", user)

    async def _in_the_database(self, *, pool: int, workers: int) -> AsyncIterator[Step]:
        connection, place = self._connection, self._place
        if connection is None or place is None:
            return
        self._at("server version", check_running(place.name))
        yield await server.version(connection)
        self._at("schema", check_running(place.name))
        name = await schema_of(connection, place.schema)
        objects = await objects_in(connection, name)
        init, grant = our_command(self._wanted, "init"), self._grant()
        inside = tables.Inside(connection, place.user, name, objects, init, grant)
        yield await tables.schema(inside)
        self._at("tables", init)
        yield await tables.tables(inside)
        if {each.bare_name for each in objects} >= set(REQUIRED):
            self._at("privileges", grant)
            yield await tables.privileges(inside)
            yield await tables.default_privileges(inside)
            self._at("conversations", check_running(place.name))
            yield await server.conversations(connection, objects)
        self._at("server", check_running(place.name))
        yield await server.clock(connection)
        yield await server.round_trip(connection)
        yield await server.room(connection, pool=pool, workers=workers)

    async def _turn(self) -> Step:
        """A turn as sessions store it, in a conversation of its own."""
        from databricks.sdk import WorkspaceClient  # noqa: PLC0415

        from lakebase_sessions.lakebase import Lakebase  # noqa: PLC0415 - loads the Agents SDK

        place, wanted = self._place, self._wanted
        assert place is not None, "the steps before have found it"  # noqa: S101
        self._at("turn", our_command(wanted, "init"))
        item: Any = {"role": "user", "content": "lakebase-sessions doctor --write"}
        client = WorkspaceClient(profile=wanted.profile) if wanted.profile else None
        async with Lakebase(
            wanted.target,
            database=place.database,
            schema=place.schema,
            workspace_client=client,
            create_tables=False,
        ) as lakebase:
            session = lakebase.session(f"lakebase-sessions-doctor-{uuid.uuid4()}")
            began = time.perf_counter()
            try:
                async with session.turn() as turn:
                    await turn.add_items([item])
                seconds = time.perf_counter() - began
                read = await session.get_items()
            finally:
                await session.clear_session()
        if read != [item]:
            return failed("turn", f"{len(read)} items were read where 1 was stored", self._next)
        return ok("turn", f"stored within {seconds * 1000:.0f} ms, read, and removed")
