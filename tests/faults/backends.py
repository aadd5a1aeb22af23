"""Postgres' own view of its clients: who is there, who waits for a lock, and the end of them."""

from __future__ import annotations

import asyncio
from typing import LiteralString

from conftest import admin

from lakebase_sessions.local import LocalLakebase


def pids(local: LocalLakebase, database: str, condition: LiteralString = "true") -> set[int]:
    """The backends in `database`."""
    query: LiteralString = f"SELECT pid FROM pg_stat_activity WHERE datname = %s AND {condition}"
    with admin(local, "postgres") as connection:
        return {pid for (pid,) in connection.execute(query, [database])}


async def gone(local: LocalLakebase, database: str) -> None:
    """Return once nobody is connected to `database`, so that nothing is under way any more."""
    while pids(local, database):
        await asyncio.sleep(0.01)


async def blocked(local: LocalLakebase, database: str) -> list[int]:
    """The backends that wait for a lock in `database`, once there are any."""
    while not (found := pids(local, database, "wait_event_type = 'Lock'")):
        await asyncio.sleep(0.01)
    return list(found)


async def kill_blocked(local: LocalLakebase, database: str) -> None:
    """Terminate a statement that waits for a lock, and its connection."""
    waiting = await blocked(local, database)
    with admin(local, "postgres") as connection:
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) pid", [waiting])


async def cancel_blocked(local: LocalLakebase, database: str) -> None:
    """Cancel a statement that waits for a lock."""
    waiting = await blocked(local, database)
    with admin(local, "postgres") as connection:
        connection.execute("SELECT pg_cancel_backend(pid) FROM unnest(%s) pid", [waiting])
