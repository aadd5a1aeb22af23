"""Work in the background: blocking work off the event loop, and waiting that is not broken off.

Blocking work gets one daemon thread a job, its result awaitable by any loop.
Not `asyncio.to_thread`: its pool is the application's, its six threads may all be taken, and
`asyncio.run` waits at its end for whatever still hangs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

with contextlib.suppress(ImportError):
    # A first CancelScope would load this on the event loop, which takes 60 ms.
    import anyio._backends._asyncio

T = TypeVar("T")


def in_thread(job: Callable[[], T], name: str) -> Future[T]:
    """Start `job` in a daemon thread; several loops and threads may wait for its future."""
    future: Future[T] = Future()
    # A running future cannot be cancelled: one impatient waiter must not take it from the others.
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=f"lakebase-sessions-{name}", daemon=True).start()
    return future


async def wait_for(future: Future[T], timeout_seconds: float) -> T:
    """The result of `future`, without blocking the loop.

    Raises:
        TimeoutError: It took longer; the job goes on, for those who still wait.
    """
    waited = asyncio.wrap_future(future)
    # Whoever gave up before the end does not want to read of it in the log.
    waited.add_done_callback(lambda done: done.cancelled() or done.exception())
    async with asyncio.timeout(timeout_seconds):
        return await asyncio.shield(waited)


async def settled(work: asyncio.Future[Any], timeout_seconds: float = math.inf) -> None:
    """Wait until `work` has ended, also where the waiting task is cancelled meanwhile.

    For a task that was cancelled and has to raise that when it is over. Shielded from anyio too,
    which Starlette uses: its scopes cancel again in every round of the loop, for as long as
    somebody in them awaits.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + timeout_seconds
    with anyio.CancelScope(shield=True):
        while not work.done() and (left := give_up_at - loop.time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work}, timeout=left if left < math.inf else None)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to. A cancellation is raised when it has ended, and does not reach it."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await settled(working)
        if not working.cancelled():
            working.exception()  # nobody else will look at it
        raise
