"""What a process has to bear beside turns: its start, a loop that stands still, session objects."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from agents.memory import Session
from benchmarks import loop_stall
from benchmarks.competitors import OURS, TEMPLATE
from benchmarks.report import SESSIONS, Footprint
from databricks_openai.agents import AsyncDatabricksSession
from processes import environment

from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase

HERE = Path(__file__).parent
SCRIPT_NAMES = {OURS: "ours", TEMPLATE: "upstream"}


async def session_objects(local: LocalLakebase) -> Footprint:
    """Microseconds to make one, and the KB of one that has been used."""
    client = local.workspace_client()

    def upstream(session_id: str) -> Session:
        return AsyncDatabricksSession(session_id, instance_name="local", workspace_client=client)

    async with Lakebase("local", workspace_client=client) as lakebase:
        return {
            OURS: await _of_one(lakebase.session, SESSIONS),
            TEMPLATE: await _of_one(upstream, SESSIONS // 20),
        }


async def _of_one(make: Callable[[str], Session], count: int) -> dict[str, float]:
    await make("first").get_items()
    began_at = time.perf_counter()
    for number in range(count):
        make(f"visitor-{number}")
    took = time.perf_counter() - began_at
    gc.collect()
    tracemalloc.start()
    sessions = [make(f"visitor-{number}") for number in range(count)]
    for session in sessions:
        await session.get_items()
    gc.collect()
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"us": took / count * 1e6, "KB": size / count / 1000}


def cold_start(local: LocalLakebase, runs: int) -> Footprint:
    """Seconds to import, and milliseconds to the first answer."""

    def once(script_name: str) -> dict[str, float]:
        return _in_process([HERE / "cold_start.py", script_name], local.environ)

    return _in_turns(once, runs)


def loop_stalls(runs: int) -> Footprint:
    """Milliseconds for which the loop stands still, as loop_stall.py measures them."""
    lifetime = loop_stall.TOKEN_LIFETIME_SECONDS

    def once(script_name: str) -> dict[str, float]:
        with LocalLakebase(token_lifetime_seconds=lifetime) as local:
            local.fault("/api/", delay_seconds=loop_stall.DELAY_SECONDS)
            return _in_process(
                [HERE / "loop_stall.py", "--measure", script_name],
                local.environ | {"RENEWAL_SECONDS": str(lifetime)},
            )

    return _in_turns(once, runs)


def _in_turns(once: Callable[[str], dict[str, float]], runs: int) -> Footprint:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SCRIPT_NAMES}
    for _ in range(runs):
        for name, script_name in SCRIPT_NAMES.items():
            found[name].append(once(script_name))
    return {
        name: {key: statistics.median(run[key] for run in runs_) for key in runs_[0]}
        for name, runs_ in found.items()
    }


def _in_process(command: list[str | Path], variables: dict[str, str]) -> dict[str, float]:
    """What a fresh process prints."""
    variables = environment(variables)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # imports take twice as long with it
    done = subprocess.run(
        [sys.executable, *command], env=variables, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
