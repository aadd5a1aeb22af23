"""Witness: what Postgres itself says of a test's database."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

from conftest import admin

from lakebase_sessions.local import LocalLakebase


class Witness:
    """An administrator's connection to a database, for as long as the block lasts."""

    def __init__(self, local: LocalLakebase, database: str) -> None:
        self.connection = admin(local, database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.connection.close()

    def store(self, session_id: str, items: list[Any]) -> None:
        self.connection.execute("INSERT INTO agent_sessions VALUES (%s)", [session_id])
        for item in items:
            self.connection.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
                [session_id, json.dumps(item)],
            )

    def stored(self, session_id: str) -> list[Any]:
        rows = self.connection.execute(
            "SELECT message_data FROM agent_messages WHERE session_id = %s ORDER BY created_at, id",
            [session_id],
        )
        return [json.loads(row) for (row,) in rows]

    def clients(self) -> set[int]:
        """The process ids of the backends that serve others than this connection."""
        rows = self.connection.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in rows}

    async def sees_clients(self, at_most: int) -> None:
        """Return once there are so few; a connection that was closed ends a moment later."""
        async with asyncio.timeout(10):
            while len(self.clients()) > at_most:
                await asyncio.sleep(0.005)
