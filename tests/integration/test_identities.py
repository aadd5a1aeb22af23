"""Whose connection it is: two users, one instance name."""

from __future__ import annotations

import pytest
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy import text

from lakebase_sessions import Lakebase, LakebaseSession, PermissionDenied
from lakebase_sessions.local import LocalLakebase

MIA = "mia@example.com"
NOAH = "noah@example.com"


async def postgres_user(session: AsyncDatabricksSession) -> str:
    async with session.engine.connect() as connection:
        name: str = (await connection.execute(text("SELECT current_user"))).scalar_one()
        return name


@pytest.fixture
def two_users(local: LocalLakebase, database: str) -> LocalLakebase:
    local.add_user(MIA)
    local.add_user(NOAH)
    return local


async def test_each_identity_reaches_postgres_as_itself(
    two_users: LocalLakebase, empty_database: str
) -> None:
    """With upstream's cache the second user gets the first one's connections (next test)."""
    users = []
    for user in (MIA, NOAH):
        lakebase = Lakebase(
            "local",
            workspace_client=two_users.workspace_client(user),
            database=empty_database,
            schema=user.partition("@")[0],
        )
        async with lakebase:
            session: LakebaseSession = lakebase.session("s")
            await session.add_items([{"role": "user", "content": f"I am {user}"}])
            users.append(await postgres_user(session))
            assert lakebase.user == user
    assert users == [MIA, NOAH]


@pytest.mark.upstream_logs
async def test_upstream_mixes_them_up(two_users: LocalLakebase, database: str) -> None:
    """Why engines are not taken from upstream's cache: its key leaves out the identity."""
    sessions = [
        AsyncDatabricksSession(
            "s",
            instance_name="local",
            workspace_client=two_users.workspace_client(user),
            database=database,
            create_tables=False,
        )
        for user in (MIA, NOAH)
    ]
    users = [await postgres_user(session) for session in sessions]
    await sessions[0].engine.dispose()
    AsyncDatabricksSession._lakebase_sql_alchemy_cache.clear()
    assert users == [MIA, MIA]


async def test_a_revoked_identity_is_told_so(local: LocalLakebase, database: str) -> None:
    """At the next connection, by its own class, without endless attempts."""
    local.add_user("leaver@example.com")
    lakebase = Lakebase(
        "local",
        workspace_client=local.workspace_client("leaver@example.com"),
        database=database,
        create_tables=False,
    )
    await lakebase.open()
    local.revoke_user("leaver@example.com")
    with admin(local, "postgres") as connection:  # what was open goes on, as on the platform
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [database],
        )
    with pytest.raises(PermissionDenied, match="CAN_CONNECT_AND_CREATE"):
        await lakebase.session("s").get_items()
    await lakebase.close()
