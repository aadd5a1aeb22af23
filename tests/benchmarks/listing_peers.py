# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "agno==3.1.10",
#     "google-adk==2.13.0",
#     "psycopg[binary]>=3.2",
#     "sqlalchemy[asyncio]>=2",
# ]
# ///
"""What agno's and ADK's own classes take to list the conversations that `store.py` has made.

`store.py` runs it with uv, in an environment of its own, on the same server: the rows are copied to
the tables that these classes make. Each line: the first time and the median, in milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from agno.db.base import SessionType
from agno.db.postgres import AsyncPostgresDb
from google.adk.sessions import DatabaseSessionService
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

AGNO = """
INSERT INTO agno.sessions (session_id, session_type, agent_id, user_id, session_data, metadata,
    created_at, updated_at)
SELECT session_id, 'agent', 'agent', split_part(session_id, ':', 1),
    jsonb_build_object('session_name', title), metadata,
    extract(epoch FROM created_at)::bigint, extract(epoch FROM updated_at)::bigint
FROM public.agent_sessions JOIN public.agent_conversations USING (session_id)
"""
ADK = """
INSERT INTO adk.sessions (app_name, user_id, id, state, create_time, update_time)
SELECT 'app', split_part(session_id, ':', 1), session_id, jsonb_build_object('title', title),
    created_at, updated_at
FROM public.agent_sessions JOIN public.agent_conversations USING (session_id)
"""


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def measured(name: str, operation: Callable[[], Awaitable[Any]], times: int) -> None:
    spent = []
    for _ in range(times):
        begun = time.perf_counter()
        await operation()
        spent.append((time.perf_counter() - begun) * 1000)
    print(f"{name:52} {spent[0]:8.1f} {statistics.median(spent):8.1f}", flush=True)


async def agno(engine: AsyncEngine) -> None:
    db = AsyncPostgresDb(db_engine=engine, db_schema="agno", session_table="sessions")
    list_page = partial(
        db.get_sessions,
        session_type=SessionType.AGENT,
        sort_by="updated_at",
        sort_order="desc",
        limit=50,
        include_runs=False,
    )
    await db._get_table(table_type="sessions", create_table_if_not_found=True)
    await db._get_table(table_type="runs", create_table_if_not_found=True)
    await run(engine, AGNO, "ANALYZE agno.sessions")
    await measured("agno: list, all, first page", list_page, 20)
    await measured("agno: list, user-7, first page", partial(list_page, user_id="user-7"), 20)
    await measured("agno: list, all, page 2,000", partial(list_page, page=2000), 20)


async def adk(engine: AsyncEngine) -> None:
    service = DatabaseSessionService(db_engine=engine)
    await service.prepare_tables()
    await run(engine, ADK, "ANALYZE adk.sessions")
    await measured(
        "ADK: list, user-7, all 100 (it has no pages)",
        partial(service.list_sessions, app_name="app", user_id="user-7"),
        20,
    )
    await measured(
        "ADK: list, all 200,000 (it has no pages)",
        partial(service.list_sessions, app_name="app"),
        3,
    )


async def main() -> None:
    """Copy, list, print."""
    for schema, listing in (("agno", agno), ("adk", adk)):
        engine = create_async_engine(
            os.environ["LISTING_PEERS_URL"],
            connect_args={"options": f"-csearch_path={schema} -cstatement_timeout=0"},
        )
        await run(engine, f"CREATE SCHEMA {schema}")
        await listing(engine)
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
