"""A full pool: many readers at once, beside psycopg_pool on the same server in the same run.

uv run --group bench tests/benchmarks/pool.py
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest and mypy begin

import psycopg
from psycopg_pool import AsyncConnectionPool

from lakebase_sessions import Lakebase, LakebaseSession
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import queries

READERS = 64
ROUNDS = 5
SECONDS = 2.0
MOST_CONNECTIONS = 15
ITEMS: list[Any] = [{"role": "user", "content": f"message {n}"} for n in range(10)]

Read = Callable[[], Awaitable[object]]


async def loops(read: Read) -> tuple[float, list[float]]:
    """Reads a second, and how long each took, in ms."""
    took: list[float] = []
    end = time.perf_counter() + SECONDS

    async def loop() -> None:
        while (began := time.perf_counter()) < end:
            await read()
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(loop() for _ in range(READERS)))
    return len(took) / SECONDS, sorted(took)


def percentile(took: list[float], share: float) -> float:
    """Of sorted times."""
    return took[int(share * (len(took) - 1))]


async def cpu_us(call: Callable[[], Awaitable[object]], times: int = 2000) -> float:
    """CPU of this process for one call."""
    await call()
    began = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - began) / times * 1e6


async def measure(local: LocalLakebase) -> None:
    """All of it."""
    async with Lakebase("local", workspace_client=local.workspace_client()) as lakebase:
        session = lakebase.session("s")
        await session.add_items(ITEMS)
        theirs = AsyncConnectionPool(
            local.admin_dsn,
            kwargs={"dbname": "databricks_postgres", "autocommit": True},
            min_size=MOST_CONNECTIONS,
            open=False,
            num_workers=2,
        )
        await theirs.open(wait=True)

        async def read_theirs() -> object:
            async with theirs.connection() as connection:
                cursor = connection.cursor()
                await cursor.execute(queries.ALL_ITEMS, {"session_id": "s"}, prepare=True)
                return await cursor.fetchall()

        async def checkout_theirs() -> None:
            await theirs.putconn(await theirs.getconn())

        async def checkout_ours() -> None:
            pool = _pool(session)
            pool.put_back(await pool.take(time.monotonic() + 10))

        found: dict[str, list[tuple[float, ...]]] = {"ours": [], "psycopg_pool": []}
        for _ in range(ROUNDS):
            for name, read in (("ours", session.get_items), ("psycopg_pool", read_theirs)):
                rate, took = await loops(read)
                found[name].append((rate, *(percentile(took, share) for share in (0.5, 0.99, 1))))
        for name, rounds in found.items():
            rate, p50, p99, most = (
                statistics.median(column) for column in zip(*rounds, strict=True)
            )
            print(
                f"{name:13} {rate:7.0f} reads/s  p50 {p50:5.1f}  p99 {p99:5.1f} ({p99 / p50:.1f} x)"
                f"  max {most:5.1f} ms"
            )
        print(f"checkout and return: {await cpu_us(checkout_ours):.1f} us of CPU,", end=" ")
        print(f"psycopg_pool {await cpu_us(checkout_theirs):.1f} us")
        await theirs.close()

        fresh = await _fresh_read(local)
        await asyncio.gather(*(session.get_items() for _ in range(READERS)))
        with psycopg.connect(local.admin_dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = 'databricks_postgres' AND pid <> pg_backend_pid()"
            )
        await session.get_items()
        after = await cpu_us(session.get_items)
        print(f"a read: {fresh:.0f} us of CPU, after the server closed all: {after:.0f} us")


async def _fresh_read(local: LocalLakebase) -> float:
    async with Lakebase("local", workspace_client=local.workspace_client()) as lakebase:
        return await cpu_us(lakebase.session("s").get_items)


def _pool(session: LakebaseSession) -> Any:
    return session._loop_engine.pool  # type: ignore[union-attr]


if __name__ == "__main__":
    with LocalLakebase() as local:
        asyncio.run(measure(local))
