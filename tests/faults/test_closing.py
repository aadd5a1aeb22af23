"""Lakebase.close() and the ends of event loops, at every await of what is under way."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from conftest import admin

from faults.backends import blocked
from faults.checker import Checker
from faults.interruption import HOW, How, every_how, interrupted, with_step
from faults.witness import Witness
from lakebase_sessions import Lakebase, LakebaseNotOpen, LakebaseUnavailable
from lakebase_sessions.local import LocalLakebase

BEFORE: list[Any] = [{"role": "user", "content": "before"}]
ADDED: list[Any] = [{"role": "user", "content": f"added {n}"} for n in range(2)]


def made(local: LocalLakebase, database: str) -> Lakebase:
    return Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        pool_size=1,  # so that others wait for it
        max_overflow=0,
        call_timeout_seconds=2,
    )


@pytest.fixture
def other_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread, and ends as those of `asyncio.run` do."""
    runner = asyncio.Runner()
    loop = runner.get_loop()
    end = asyncio.Event()
    thread = threading.Thread(target=runner.run, args=(end.wait(),))
    thread.start()
    yield loop
    loop.call_soon_threadsafe(end.set)
    thread.join()
    runner.close()  # what is still under way is cancelled, and waited for


@every_how
async def test_cancelled_close(
    local: LocalLakebase,
    database: str,
    witness: Witness,
    other_loop: asyncio.AbstractEventLoop,
    how: How,
) -> None:
    """No connection stays, of this loop and of another, whether or not somebody waits for it."""
    for at in itertools.count():
        lakebase = made(local, database)
        session = lakebase.session("s")
        await session.get_items()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.get_items(), other_loop))
        came_to_it = await interrupted(lakebase.close, at, how)
        await witness.sees_clients(at_most=0)
        with pytest.raises(LakebaseNotOpen):
            await session.get_items()
        if not came_to_it:
            break


# "answered" is no way to cut anything off: what close() waits for is that it has ended.
@pytest.mark.parametrize("how", [how for how in HOW if how != "answered"])
async def test_cancelled_close_under_writes(
    local: LocalLakebase, database: str, witness: Witness, how: How
) -> None:
    """Whoever does not wait for the end of what is under way cuts it off."""
    lakebase = made(local, database)
    session = lakebase.session("s")
    await session.add_items(BEFORE)
    with admin(local, database) as blocker, blocker.transaction():
        blocker.execute("SELECT * FROM agent_sessions FOR UPDATE")
        writing = asyncio.create_task(session.add_items(ADDED))
        await blocked(local, database)
        waiting = asyncio.create_task(session.add_items(ADDED))  # for the pool's connection
        await asyncio.sleep(0)
        assert await interrupted(lakebase.close, 0, how)
    with pytest.raises(LakebaseUnavailable) as caught:
        await writing
    assert caught.value.outcome_unknown
    with pytest.raises(LakebaseNotOpen):
        await waiting
    await witness.sees_clients(at_most=0)
    assert witness.stored("s") in (BEFORE, BEFORE + ADDED)


@pytest.mark.parametrize("state", ["not open", "cold", "warm"])
async def test_close_at_every_step(
    local: LocalLakebase, database: str, witness: Witness, state: str
) -> None:
    """What has begun is done, or refused and not done; then nothing is open."""
    for at in itertools.count():
        lakebase = made(local, database)
        session = lakebase.session(at)
        if state != "not open":
            await session.get_items()
        if state == "cold":
            session._loop_engine.pool.close_idle()  # type: ignore[union-attr]
        closing: list[asyncio.Task[None]] = []
        adding, came_to_it = await with_step(
            partial(session.add_items, ADDED), at, partial(start_closing, lakebase, closing)
        )
        await asyncio.gather(*closing)
        refused = isinstance(adding.exception(), LakebaseNotOpen)
        assert refused or adding.exception() is None
        assert witness.stored(str(at)) == ([] if refused else ADDED)
        if not came_to_it:
            await lakebase.close()
            break
        await witness.sees_clients(at_most=0)


def start_closing(lakebase: Lakebase, closing: list[asyncio.Task[None]]) -> None:
    closing.append(asyncio.get_running_loop().create_task(lakebase.close()))


async def test_close_under_threads(local: LocalLakebase, database: str, witness: Witness) -> None:
    """Threads with loops of their own find it closed; what they were told is stored is stored."""
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=database)
    checker = Checker()
    started = threading.Barrier(5)
    ends: list[BaseException] = []

    async def use(number: int) -> None:
        await checker.add(lakebase.session(number), 2)
        started.wait()
        while True:
            await checker.add(lakebase.session(number), 2)

    def run(number: int) -> None:
        try:
            asyncio.run(use(number))
        except BaseException as error:
            ends.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(started.wait)
    await lakebase.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in ends] == [LakebaseNotOpen] * 4
    await witness.sees_clients(at_most=0)
    verdict = checker.verdict(witness.connection)
    assert verdict.clean, verdict
    assert (verdict.unknown, verdict.refused) == (0, 4)


@pytest.mark.parametrize("state", ["not open", "open"])
def test_run_that_ends_at_every_step(
    local: LocalLakebase, database: str, witness: Witness, state: str
) -> None:
    """asyncio.run cancels what is under way when its coroutine returns; the next run goes on."""
    lakebase = made(local, database)
    for at in itertools.count():
        if state == "not open":
            asyncio.run(lakebase.close())
            lakebase = made(local, database)
        session = lakebase.session(at)

        async def main(at: int = at, session: Any = session) -> bool:
            """Whether it ends at suspension `at`."""
            reached = asyncio.Event()
            if state == "open":
                await session.get_items()
            adding = asyncio.create_task(
                with_step(partial(session.add_items, ADDED), at, reached.set)
            )
            adding.add_done_callback(lambda _: reached.set())
            await reached.wait()
            return not adding.done()

        came_to_it = asyncio.run(main())
        assert asyncio.run(session.get_items()) in ([[], ADDED] if came_to_it else [ADDED])
        asyncio.run(witness.sees_clients(at_most=1))
        if not came_to_it:
            break
    asyncio.run(lakebase.close())
    asyncio.run(witness.sees_clients(at_most=0))
