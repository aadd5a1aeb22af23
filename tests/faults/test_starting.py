"""A deployment of many workers that start at once on an empty database."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any

from conftest import admin
from processes import Fork

from faults.backends import blocked
from lakebase_sessions import Lakebase, PermissionDenied
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.tables import LOCK, create

HELLO: Any = {"role": "user", "content": "hello"}
READER = "reader@example.com"
WORKERS = 50


def made(local: LocalLakebase, database: str, user: str | None = None) -> Lakebase:
    return Lakebase(
        "local",
        workspace_client=local.workspace_client(user),
        database=database,
        call_timeout_seconds=30,  # so many processes need their time on a small machine
        open_timeout_seconds=60,
    )


def test_fifty_workers_one_of_which_may_not_create_tables(
    local: LocalLakebase, empty_database: str
) -> None:
    """Each stores its item; the one who is refused at first does so once the tables are there."""
    add_reader(local, empty_database)
    starting, start = os.pipe()

    async def add(user: str | None) -> None:
        lakebase = made(local, empty_database, user)
        async with asyncio.timeout(60):
            while True:
                with suppress(PermissionDenied):  # until the tables are there
                    await lakebase.session("s").add_items([HELLO])
                    return

    def work(user: str | None) -> None:
        os.close(start)
        os.read(starting, 1)  # returns when nobody holds the other end any more
        asyncio.run(add(user))

    workers = [Fork(lambda: work(READER))]
    workers += [Fork(lambda: work(None)) for _ in range(WORKERS - 1)]
    os.close(start)
    for worker in workers:
        worker.join()
    os.close(starting)
    with admin(local, empty_database) as connection:
        found = connection.execute("SELECT count(*) FROM agent_messages").fetchone()
    assert found == (WORKERS,)


async def test_tables_that_are_created_while_one_who_may_not_waits(
    local: LocalLakebase, empty_database: str
) -> None:
    """When its turn comes they are there, so there is nothing to be refused."""
    add_reader(local, empty_database)
    lakebase = made(local, empty_database, READER)
    with admin(local, empty_database) as creator:
        creator.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        opening = asyncio.ensure_future(lakebase.open())
        await blocked(local, empty_database)
        creator.execute(create().encode())
        creator.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        await opening
    await lakebase.session("s").add_items([HELLO])
    await lakebase.close()


def add_reader(local: LocalLakebase, database: str) -> None:
    """One who may use whatever tables there are, and create none."""
    local.add_user(READER, can_create=False)
    with admin(local, database) as connection:
        for creator in ("CURRENT_USER", '"developer@example.com"'):
            for kind in ("TABLES", "SEQUENCES"):
                connection.execute(
                    f'ALTER DEFAULT PRIVILEGES FOR ROLE {creator} GRANT ALL ON {kind} TO "{READER}"'
                )
