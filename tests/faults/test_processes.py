"""Forks at any moment, as by gunicorn's preload, and processes that are killed."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from conftest import admin
from processes import Fork

from faults.backends import blocked
from faults.interruption import with_step
from faults.witness import Witness
from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase

HELLO: Any = {"role": "user", "content": "hello"}


def minted(local: LocalLakebase) -> int:
    return sum(call.path.endswith("/credentials") for call in local.requests)


def in_threads(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `work` in so many threads at once, each with a loop of its own."""
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(lambda: asyncio.run(work())) for _ in range(count)]:
            done.result()


async def test_workers_of_an_opened_parent(
    lakebase: Lakebase, local: LocalLakebase, witness: Witness
) -> None:
    """gunicorn --preload: opened in the parent, and used in its workers and in the parent.

    Each process logs in once, for all of its threads, and leaves the others' connections alone.
    """

    async def add() -> None:
        for _ in range(5):
            await lakebase.session("s").add_items([HELLO])

    await add()
    parents_own = witness.clients()
    before = minted(local)
    workers = [Fork(partial(in_threads, add, 3)) for _ in range(3)]
    await add()
    for worker in workers:
        await asyncio.to_thread(worker.join)
    await witness.sees_clients(at_most=1)
    assert witness.clients() == parents_own
    assert minted(local) == before + len(workers)
    await add()
    assert len(witness.stored("s")) == 5 * (3 + 3 * 3)


async def talk(lakebase: Lakebase, session_id: str) -> None:
    session = lakebase.session(session_id)
    await session.add_items([HELLO])
    assert await session.get_items() == [HELLO]


async def talk_and_close(lakebase: Lakebase, session_id: str) -> None:
    await talk(lakebase, session_id)
    await lakebase.close()


@pytest.mark.parametrize("state", ["not open", "open"])
async def test_fork_at_every_step(
    local: LocalLakebase, database: str, witness: Witness, state: str
) -> None:
    """A child begins anew, whatever it finds half done, and the parent does not notice."""
    for at in itertools.count():
        lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=database)
        if state == "open":
            await lakebase.open()
        children: list[Fork] = []
        fork = partial(forked, partial(talk_and_close, lakebase, f"child {at}"), children)
        parent, came_to_it = await with_step(partial(talk, lakebase, f"parent {at}"), at, fork)
        parent.result()
        for child in children:
            await asyncio.to_thread(child.join)
        await talk_and_close(lakebase, f"parent after {at}")
        await witness.sees_clients(at_most=0)
        if not came_to_it:
            break


def forked(work: Callable[[], Coroutine[Any, Any, None]], children: list[Fork]) -> None:
    children.append(Fork(lambda: asyncio.run(work())))


async def test_a_killed_process(
    lakebase: Lakebase, local: LocalLakebase, database: str, witness: Witness
) -> None:
    """Its write is whole or absent, its connection ends, and others do not notice."""
    session = lakebase.session("s")
    await session.add_items([HELLO])
    with admin(local, database) as blocker, blocker.transaction():
        blocker.execute("SELECT * FROM agent_sessions FOR UPDATE")
        child = Fork(lambda: asyncio.run(session.add_items([HELLO, HELLO])))
        await blocked(local, database)
        child.kill()
    await witness.sees_clients(at_most=1)
    assert len(await session.get_items()) in (1, 3)
    await session.add_items([HELLO])


@pytest.mark.long
def test_processes_that_end_without_closing(environ: dict[str, str], witness: Witness) -> None:
    """Neither a parent nor its child has anything to say at exit, and no connection stays."""
    script = """
import asyncio, os, sys
from lakebase_sessions import session_for
async def add(text):
    await session_for(session_id="s").add_items([{"role": "user", "content": text}])
    return len(await session_for(session_id="s").get_items())
loop = asyncio.new_event_loop()
assert loop.run_until_complete(add("parent")) == 1
child = os.fork()
if child == 0:
    sys.exit(asyncio.run(add("child")) != 2)  # what is registered for the exit is run, too
assert os.waitpid(child, 0)[1] == 0
assert loop.run_until_complete(add("parent again")) == 3
loop.close()
"""
    done = subprocess.run(
        # Python 3.12 says at every fork that there are threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    asyncio.run(witness.sees_clients(at_most=0))
