"""Every operation of a session, with what it returns and leaves behind, and ways to call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from lakebase_sessions import LakebaseSession, LakebaseUnavailable

Hook = Callable[[], Awaitable[None]]

BEFORE: list[Any] = [{"role": "user", "content": text} for text in ("first", "second")]
ADDED: list[Any] = [{"role": "user", "content": "third"}]


@dataclass(frozen=True)
class Operation:
    run: Callable[[LakebaseSession, Hook], Awaitable[Any]]
    """Does it on a conversation that holds `BEFORE`, and calls the hook before its statement."""
    returns: Any = None
    after: tuple[Any, ...] = tuple(BEFORE)
    """What the conversation holds when it has been done."""

    elsewhere: bool = False
    """It leaves this conversation as it is, and writes another one."""

    @property
    def writes(self) -> bool:
        return self.elsewhere or list(self.after) != BEFORE


def _one(call: Callable[[LakebaseSession], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def run(session: LakebaseSession, hook: Hook) -> Any:
        await hook()
        return await call(session)

    return run


def _turn(on_busy: Any = None) -> Callable[..., Awaitable[Any]]:
    async def run(session: LakebaseSession, hook: Hook) -> None:
        async with session.turn(on_busy=on_busy) as turn:
            assert await turn.get_items() == BEFORE
            await turn.add_items(ADDED)
            await hook()

    return run


async def _turns(session: LakebaseSession) -> list[Any]:
    return [(turn.number, turn.preview, turn.items) for turn in await session.turns()]


async def _rewind(session: LakebaseSession) -> None:
    await session.rewind(before_turn=1)


async def _restore(session: LakebaseSession, hook: Hook) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items(ADDED)
    branch = await session.rewind(before_turn=2)
    assert branch is not None
    await hook()
    await session.restore(branch)


async def _fork(session: LakebaseSession) -> None:
    await session.fork()


OPERATIONS = {
    "add_items": Operation(_one(lambda s: s.add_items(ADDED)), after=(*BEFORE, *ADDED)),
    "get_items": Operation(_one(lambda s: s.get_items()), returns=BEFORE),
    "get_items(limit)": Operation(_one(lambda s: s.get_items(1)), returns=BEFORE[1:]),
    "pop_item": Operation(_one(lambda s: s.pop_item()), returns=BEFORE[1], after=(BEFORE[0],)),
    "clear_session": Operation(_one(lambda s: s.clear_session()), after=()),
    "turn": Operation(_turn(), after=(*BEFORE, *ADDED)),
    "turn(on_busy)": Operation(_turn("refuse"), after=(*BEFORE, *ADDED)),
    "turns": Operation(_one(_turns), returns=[(1, "first", len(BEFORE))]),
    "rewind": Operation(_one(_rewind), after=()),
    "restore": Operation(_restore, after=(*BEFORE, *ADDED)),
    "fork": Operation(_one(_fork), elsewhere=True),
}
POOL_SIZE = len(OPERATIONS) + 2
"""Enough for all of them at once, and some stay idle."""

each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


async def fill_pool(session: LakebaseSession) -> None:
    """Open `POOL_SIZE` connections, so that all operations can run at once."""
    async with AsyncExitStack() as stack:
        for _ in range(POOL_SIZE):
            await stack.enter_async_context(session.engine.connect())


async def nothing() -> None:
    """A hook for an operation that nothing happens to."""


async def endlessly(call: Callable[[], Awaitable[object]]) -> None:
    """Again and again, until it fails."""
    while True:
        await call()


async def until_it_works(call: Callable[[], Awaitable[object]]) -> None:
    """Again and again, while the Lakebase is unavailable."""
    while True:
        with suppress(LakebaseUnavailable):
            await call()
            return
