"""Blocking work off the event loop: one daemon thread a job, its result awaitable by any loop.

Not `asyncio.to_thread`: its pool is the application's, its six threads may all be taken, and
`asyncio.run` waits at its end for whatever still hangs there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

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
