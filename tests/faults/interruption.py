"""Interrupt an operation at its n-th await: at one of its own, or of a task that it starts.

A caller that waits for such a task is suspended once, whatever happens inside. Counting the
awaits of all tasks together meets the moments between two awaits of the caller as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Literal

import pytest

Operation = Callable[[], Coroutine[Any, Any, object]]
How = Literal["waiting", "answered", "twice", "everything", "timeout"]

HOW: dict[How, str] = {
    "waiting": "cancelled while it waits",
    "answered": "cancelled when what it waits for has come, before it has seen that",
    "twice": "cancelled while it waits, and again at the next await",
    "everything": "cancelled with every task that it has started, as at the end of asyncio.run",
    "timeout": "an asyncio.timeout around it expires",
}
every_how = pytest.mark.parametrize("how", HOW)


@dataclass(frozen=True)
class Suspension:
    """An await that does not return at once."""

    number: int
    """From 0, in the order in which they happen."""
    future: asyncio.Future[Any] | None
    """What is waited for; None is a turn of the loop."""
    tasks: list[asyncio.Task[Any]]
    """The operation's own, then those that it has started."""


async def observed(
    operation: Operation, suspended: Callable[[Suspension], None]
) -> asyncio.Task[Any]:
    """Run `operation` in a task, which is returned when it and all that it started have ended.

    Args:
        operation: What to run.
        suspended: Called at each suspension up to the operation's end.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []
    count = 0

    def tell(future: asyncio.Future[Any] | None) -> None:
        nonlocal count
        if tasks and not tasks[0].done():
            count += 1
            suspended(Suspension(count - 1, future, tasks))

    def observed_task(_loop: object, coroutine: Any, /, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(_Observed(coroutine, tell), loop=loop, **options)
        tasks.append(task)
        return task

    loop.set_task_factory(observed_task)
    try:
        operated = loop.create_task(operation())
        async with asyncio.timeout(30):
            while pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending)
    finally:
        loop.set_task_factory(None)
        tasks.clear()  # their errors hold frames, and those hold connections
    return operated


async def with_step(
    operation: Operation, at: int, do: Callable[[], object]
) -> tuple[asyncio.Task[Any], bool]:
    """Run `operation` and call `do` at suspension `at`; False if it ended before that."""
    came_to_it = False

    def suspended(suspension: Suspension) -> None:
        nonlocal came_to_it
        if suspension.number == at:
            came_to_it = True
            do()

    return await observed(operation, suspended), came_to_it


async def interrupted(operation: Operation, at: int, how: How) -> bool:
    """Run `operation` and interrupt it at suspension `at`; False if it ended before that.

    That it was interrupted has to reach the caller.
    """
    came_to_it = struck = False
    limit = asyncio.timeout(None)

    async def limited() -> None:
        async with limit:
            await operation()

    def suspended(suspension: Suspension) -> None:
        nonlocal came_to_it
        own, *others = suspension.tasks

        def strike(*_future: object) -> None:
            nonlocal struck
            if own.done():
                return
            struck = True
            if how == "timeout":
                limit.reschedule(asyncio.get_running_loop().time())
                return
            own.cancel()
            for other in others if how == "everything" else ():
                other.cancel()

        if suspension.number == at:
            came_to_it = True
            if how == "answered" and suspension.future is not None:
                # Before the callback that wakes the task up, which is added after this.
                suspension.future.add_done_callback(strike)
            else:
                strike()
        elif how == "twice" and suspension.number == at + 1:
            strike()

    task = await observed(limited, suspended)
    if not struck:
        task.result()
    elif how == "timeout":
        assert isinstance(task.exception(), TimeoutError), task
    else:
        assert task.cancelled(), task
    return came_to_it


class _Observed(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each future on which it is suspended."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        tell: Callable[[asyncio.Future[Any] | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._tell = tell

    def send(self, value: Any) -> Any:
        future = self._coroutine.send(value)
        self._tell(future)
        return future

    def throw(self, *error: Any) -> Any:
        try:
            future = self._coroutine.throw(*error)
        finally:
            del error  # else it would hold this frame, and this frame would hold it
        self._tell(future)
        return future

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("Only a task runs it.")
