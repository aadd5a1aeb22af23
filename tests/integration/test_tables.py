"""The tables: made once, by whoever may, and by nobody when they are there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import admin

from lakebase_sessions import Lakebase, PermissionDenied, TablesMissing
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.tables import OWN, create

HELLO: Any = {"role": "user", "content": "hello"}
READER = "reader@example.com"


def made(local: LocalLakebase, database: str, user: str | None = None, **options: Any) -> Lakebase:
    return Lakebase(
        "local", workspace_client=local.workspace_client(user), database=database, **options
    )


async def test_they_are_made_at_the_first_use(local: LocalLakebase, empty_database: str) -> None:
    async with made(local, empty_database) as lakebase:
        await lakebase.session("s").add_items([HELLO])
        assert await lakebase.session("s").get_items() == [HELLO]


@pytest.mark.parametrize("schema", ["memory", 'od"d schema\\ with spaces', "Ünïcode"])
async def test_a_schema_is_made_too(local: LocalLakebase, empty_database: str, schema: str) -> None:
    async with made(local, empty_database, schema=schema) as lakebase:
        await lakebase.session("s").add_items([HELLO])
        assert await lakebase.session("s").get_items() == [HELLO]
        assert lakebase.schema == schema
    with admin(local, empty_database) as connection:
        found = connection.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'agent_%'"
        ).fetchall()
    assert found == [(schema,)]


async def test_tables_in_public_are_not_the_schemas(local: LocalLakebase, database: str) -> None:
    async with made(local, database) as public, made(local, database, schema="mine") as mine:
        await public.session("s").add_items([HELLO])
        assert await mine.session("s").get_items() == []


async def test_many_who_start_together(local: LocalLakebase, empty_database: str) -> None:
    lakebases = [made(local, empty_database, schema="together") for _ in range(15)]
    await asyncio.gather(*(lakebase.open() for lakebase in lakebases))
    await asyncio.gather(*(lakebase.close() for lakebase in lakebases))


async def test_one_who_comes_late_stands_in_nobodys_way(
    local: LocalLakebase, database: str
) -> None:
    """To whom the tables were missing, and who makes them when they are there and written to."""
    with admin(local, database) as writer, admin(local, database) as late, writer.transaction():
        writer.execute("LOCK agent_sessions, agent_messages IN ROW EXCLUSIVE MODE")
        writer.execute(f"LOCK {', '.join(OWN)} IN ROW EXCLUSIVE MODE".encode())
        late.execute("SET lock_timeout = '2s'")
        late.execute(create().encode())


@pytest.mark.long
def test_many_processes_that_start_together(
    local: LocalLakebase, empty_database: str, environ: dict[str, str]
) -> None:
    script = (
        "import asyncio\n"
        "from lakebase_sessions import session_for\n"
        "asyncio.run(session_for(session_id='s').add_items([{'role': 'user', 'content': 'x'}]))\n"
    )
    variables = os.environ | {"PGDATABASE": empty_database}
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=variables, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    with admin(local, empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM agent_messages").fetchone() == (4,)


async def test_nothing_privileged_runs_when_they_are_there(
    local: LocalLakebase, database: str
) -> None:
    """A role that may not create anything works on tables that somebody else made."""
    local.add_user(READER, can_create=False)
    with admin(local, database) as connection:
        connection.execute("CREATE SCHEMA ready")
        connection.execute("CREATE TABLE ready.agent_sessions (LIKE agent_sessions INCLUDING ALL)")
        connection.execute("CREATE TABLE ready.agent_messages (LIKE agent_messages INCLUDING ALL)")
        for grant in ("USAGE ON SCHEMA ready", "ALL ON ALL TABLES IN SCHEMA ready"):
            connection.execute(f'GRANT {grant} TO "{READER}"')
        connection.execute(f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{READER}"')
    async with made(local, database, READER, schema="ready") as lakebase:
        await lakebase.session("s").add_items([HELLO])
        assert await lakebase.session("s").get_items() == [HELLO]


async def test_one_to_whom_the_schema_is_closed_is_told_so(
    local: LocalLakebase, empty_database: str
) -> None:
    """Postgres says that there is no schema, and means that there is none for them."""
    local.add_user(READER, can_create=False)
    with admin(local, empty_database) as connection:
        connection.execute("CREATE SCHEMA closed")
        connection.execute(f'GRANT CREATE ON DATABASE {empty_database} TO "{READER}"'.encode())
    lakebase = made(local, empty_database, READER, schema="closed")
    with pytest.raises(PermissionDenied, match="may not create the session tables"):
        await lakebase.open()
    await lakebase.close()


@pytest.mark.parametrize("schema", [None, "memory"])
async def test_one_who_may_not_create_is_told_what_to_do(
    local: LocalLakebase, empty_database: str, schema: str | None
) -> None:
    local.add_user(READER, can_create=False)
    lakebase = made(local, empty_database, READER, schema=schema)
    with pytest.raises(PermissionDenied, match="may not create the session tables") as caught:
        await lakebase.open()
    assert READER in str(caught.value)
    assert "CAN_CONNECT_AND_CREATE" in str(caught.value)
    await lakebase.close()


async def test_they_are_missing_and_may_not_be_made(
    local: LocalLakebase, empty_database: str
) -> None:
    lakebase = made(local, empty_database, create_tables=False)
    with pytest.raises(TablesMissing, match="create_tables is False"):
        await lakebase.session("s").get_items()
    await lakebase.close()


async def test_they_vanish_while_in_use(local: LocalLakebase, database: str) -> None:
    """A table dropped under a running app is named; when it is back, so is the app."""
    async with made(local, database) as lakebase:
        await lakebase.session("s").add_items([HELLO])
        with admin(local, database) as connection:
            connection.execute("ALTER TABLE agent_messages RENAME TO gone")
        with pytest.raises(TablesMissing, match="agent_messages"):
            await lakebase.session("s").get_items()
        with admin(local, database) as connection:
            connection.execute("ALTER TABLE gone RENAME TO agent_messages")
        assert await lakebase.session("s").get_items() == [HELLO]
