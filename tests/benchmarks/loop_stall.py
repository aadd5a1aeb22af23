"""How long the event loop stands still while a Lakebase is opened, and while a token is renewed.

    uv run tests/benchmarks/loop_stall.py

Every call to the control plane is delayed by 300 ms. A ticker measures the longest time that the
loop did not come back to it; 20 first requests run beside it, then the token is renewed under
load. Upstream's class runs in the same way, in a process of its own, on the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rich.console import Console
from rich.table import Table

REQUESTS = 20
DELAY_SECONDS = 0.3
RUNS = 5
TOKEN_LIFETIME_SECONDS = 6.0


class Ticker:
    """Wakes up every millisecond and notes by how much it came too late."""

    def __init__(self) -> None:
        self.worst_ms = 0.0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.05)
        self.worst_ms = 0.0
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await asyncio.sleep(0.05)
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            asleep_at = time.perf_counter()
            await asyncio.sleep(0.001)
            late_ms = (time.perf_counter() - asleep_at) * 1000 - 1
            self.worst_ms = max(self.worst_ms, late_ms)


async def measured(read: Callable[[int], Awaitable[Any]], lifetime: float) -> dict[str, float]:
    """The worst stalls, in ms, of 20 first requests, and of turns over a token's whole life."""
    async with Ticker() as opening:
        began_at = time.perf_counter()
        await asyncio.gather(*(read(number) for number in range(REQUESTS)))
        took_ms = (time.perf_counter() - began_at) * 1000
    async with Ticker() as renewal:
        end = time.perf_counter() + lifetime
        while time.perf_counter() < end:
            await read(0)
            await asyncio.sleep(0.02)
    return {"open": opening.worst_ms, "took": took_ms, "renewal": renewal.worst_ms}


def ours() -> dict[str, float]:
    """One process of an app with this package."""
    from lakebase_sessions import session_for

    async def read(number: int) -> object:
        return await session_for(session_id=number).get_items()

    return asyncio.run(measured(read, float(os.environ["RENEWAL_SECONDS"])))


def upstream() -> dict[str, float]:
    """One process of an app as the template writes it, a new object each request."""
    from databricks_openai.agents import AsyncDatabricksSession

    # The template's token cache is 15 minutes; here it expires when ours renews.
    cache_seconds = int(float(os.environ["RENEWAL_SECONDS"]) * 2 / 3)

    async def read(number: int) -> object:
        session = AsyncDatabricksSession(
            str(number),
            instance_name="local",
            token_cache_duration_seconds=cache_seconds,
            pool_recycle=1,  # connections come and go, as they do over an hour
        )
        return await session.get_items()

    return asyncio.run(measured(read, float(os.environ["RENEWAL_SECONDS"])))


def main() -> None:
    """Run both in turns, in fresh processes, and print the medians and the worst."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", choices=["ours", "upstream"])
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(globals()[arguments.measure]()))
        return

    from lakebase_sessions.local import LocalLakebase

    found: dict[str, list[dict[str, float]]] = {"ours": [], "upstream": []}
    for _ in range(arguments.runs):
        for name, results in found.items():
            with LocalLakebase(token_lifetime_seconds=TOKEN_LIFETIME_SECONDS) as local:
                local.fault("/api/", delay_seconds=DELAY_SECONDS)
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", name],
                    env=os.environ
                    | local.environ
                    | {"RENEWAL_SECONDS": str(TOKEN_LIFETIME_SECONDS)},
                    stdout=subprocess.PIPE,
                    check=True,
                )
            results.append(json.loads(done.stdout.splitlines()[-1]))

    table = Table(
        "",
        "stall at open, ms (median / worst)",
        "20 first requests, ms",
        "stall at renewal, ms (median / worst)",
        title=f"{arguments.runs} runs, control plane at {DELAY_SECONDS * 1000:g} ms a call",
    )
    for name, results in found.items():
        columns = {key: [result[key] for result in results] for key in results[0]}
        table.add_row(
            name,
            f"{statistics.median(columns['open']):.1f} / {max(columns['open']):.1f}",
            f"{statistics.median(columns['took']):.0f}",
            f"{statistics.median(columns['renewal']):.1f} / {max(columns['renewal']):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
