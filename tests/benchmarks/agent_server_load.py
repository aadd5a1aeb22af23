"""Turns a second and their p50 and p99, beside the template's way of doing it.

    uv run tests/benchmarks/agent_server_load.py

200 conversations of 5 streamed turns at once against one worker; both servers on the same
embedded PostgreSQL, in turns, with the same model.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

CONVERSATIONS = 200
TURNS = 5
RUNS = 3
PORT = 8765
HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


async def load(address: str) -> tuple[float, list[float], int]:
    """Seconds in all, seconds of each turn, and how many turns failed."""
    durations: list[float] = []
    failed = 0
    limits = httpx.Limits(max_connections=CONVERSATIONS, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=300) as client:

        async def converse(number: int) -> None:
            nonlocal failed
            for turn in range(TURNS):
                text = "My name is Mia." if turn == 0 else "What is my name?"
                body = {
                    "input": [{"role": "user", "content": text}],
                    "custom_inputs": {"session_id": f"{time.time_ns()}"[:8] + f"-{number}"},
                    "stream": True,
                }
                began_at = time.perf_counter()
                response = await client.post("/invocations", json=body)
                durations.append(time.perf_counter() - began_at)
                failed += '"response.completed"' not in response.text

        began_at = time.perf_counter()
        await asyncio.gather(*(converse(number) for number in range(CONVERSATIONS)))
        return time.perf_counter() - began_at, durations, failed


def measure(app: str) -> tuple[float, float, float, int]:
    """Turns a second, p50 and p99 in ms, failures: of one server, fresh, on a fresh Lakebase."""
    from lakebase_sessions.local import LocalLakebase

    with LocalLakebase() as local:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", app, "--port", str(PORT), "--log-level", "error"],
            env=os.environ
            | local.environ
            | {"PYTHONPATH": f"{EXAMPLES}:{HERE}", "MLFLOW_TRACE_SAMPLING_RATIO": "0"},
        )
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"http://127.0.0.1:{PORT}/health")
                    break
                time.sleep(0.2)
            seconds, durations, failed = asyncio.run(load(f"http://127.0.0.1:{PORT}"))
        finally:
            server.terminate()
            server.wait(20)
    cuts = statistics.quantiles(durations, n=100)
    return len(durations) / seconds, cuts[49] * 1000, cuts[98] * 1000, failed


def main() -> None:
    """Run both servers in turns and print the medians."""
    found: dict[str, list[tuple[float, float, float, int]]] = {}
    for _ in range(RUNS):
        for name, app in (("lakebase-sessions", "agent:app"), ("template", "template_agent:app")):
            found.setdefault(name, []).append(measure(app))
    table = Table("", "turns / s", "p50, ms", "p99, ms", "failed turns")
    for name, results in found.items():
        rate, p50, p99, _ = (statistics.median(column) for column in zip(*results, strict=True))
        failures = sum(result[3] for result in results)
        table.add_row(name, f"{rate:.0f}", f"{p50:.0f}", f"{p99:.0f}", str(failures))
    Console().print(table)


if __name__ == "__main__":
    main()
