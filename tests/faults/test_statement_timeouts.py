"""Statements that take too long, wait too long for a lock, or are cancelled by an operator.

Postgres has rolled back what it cancels, so nothing is unknown, and the connection stays in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from conftest import admin

from faults.backends import cancel_blocked, pids
from faults.operations import BEFORE, OPERATIONS, POOL_SIZE, fill_pool, nothing
from lakebase_sessions import Lakebase, LakebaseTimeout
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase
from lakebase_sessions.postgres.tables import LOCK

Obstacle = Callable[[LocalLakebase, str], AbstractContextManager[None]]


@contextmanager
def slow(local: LocalLakebase, database: str) -> Iterator[None]:
    """Every row that is read or written takes a minute."""
    with admin(local, database) as connection:
        connection.execute(
            "CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql VOLATILE AS "
            "'SELECT pg_sleep(60) IS NOT NULL'"
        )
        for table in ("agent_sessions", "agent_messages"):
            connection.execute(f"CREATE POLICY slow ON {table} USING (slow())")
            connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            connection.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        # The owner of a Lakebase is above policies.
        connection.execute(f'ALTER ROLE "{DEFAULT_USER}" NOBYPASSRLS')
        yield
        connection.execute(f'ALTER ROLE "{DEFAULT_USER}" BYPASSRLS')
        for table in ("agent_sessions", "agent_messages"):
            connection.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


@contextmanager
def locked(local: LocalLakebase, database: str) -> Iterator[None]:
    """Somebody has left a transaction open."""
    with admin(local, database) as connection, connection.transaction():
        connection.execute("LOCK TABLE agent_sessions, agent_messages")
        yield


@pytest.mark.parametrize(
    ("obstacle", "says"), [(slow, "statement_timeout"), (locked, "held a lock")]
)
async def test_each_operation_ends(
    obstacle: Obstacle, says: str, local: LocalLakebase, database: str
) -> None:
    async with on(local, database) as lakebase:
        sessions = {name: lakebase.session(name) for name in OPERATIONS}
        for session in sessions.values():
            await session.add_items(BEFORE)
        await fill_pool(session)
        connections = pids(local, database)
        with obstacle(local, database):
            async with asyncio.timeout(30):
                errors = await asyncio.gather(
                    *(OPERATIONS[name].run(sessions[name], nothing) for name in OPERATIONS),
                    return_exceptions=True,
                )
        for error in errors:
            assert isinstance(error, LakebaseTimeout), error
            assert says in str(error)
            assert not error.outcome_unknown
        for session in sessions.values():
            assert await session.get_items() == BEFORE
        assert connections == pids(local, database), "none was thrown away"


async def test_an_operator_cancels_a_write(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    await session.add_items(BEFORE)
    with locked(local, database):
        writing = asyncio.ensure_future(session.add_items(BEFORE))
        await cancel_blocked(local, database)
        with pytest.raises(LakebaseTimeout, match="or an operator") as caught:
            await writing
    assert not caught.value.outcome_unknown
    assert await session.get_items() == BEFORE


async def test_opening_does_not_wait_for_ever_for_who_creates_the_tables(
    local: LocalLakebase, empty_database: str
) -> None:
    lakebase = on(local, empty_database)
    with admin(local, empty_database) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        async with asyncio.timeout(30):
            with pytest.raises(LakebaseTimeout, match="held a lock"):
                await lakebase.open()
    assert await lakebase.session("s").get_items() == []
    await lakebase.close()


def on(local: LocalLakebase, database: str) -> Lakebase:
    return Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        pool_size=POOL_SIZE,
        call_timeout_seconds=0.5,
    )
