"""Load: conversations that read, add and do atomic turns at the same time, from several loops.

Each looks whether its reads show everything that was acknowledged to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from random import Random
from typing import Any, Literal

from faults.checker import Checker
from faults.subjects import Subject
from lakebase_sessions import LakebaseSession

Kind = Literal["get_items", "add_items", "turn", "pop_item", "clear_session"]

LATEST_CANCELLATION_SECONDS = 0.1
"""After the beginning of a call: a few round trips."""
CALLS_OF_A_CONVERSATION = 60
"""After so many it is left, and a new one begun: histories would grow for as long as we run."""


class Conversation:
    """A client that talks in one conversation after the other."""

    def __init__(self, load: Load, number: int) -> None:
        self.random = Random(f"{load.seed}-{number}")
        self.incomplete_reads = 0
        self.popped_twice = 0
        self.succeeded_at = 0.0
        """When the latest call that succeeded began."""
        self.running: asyncio.Task[object] | None = None
        self._load = load
        # The second of ten talks in the first one's conversations, to have conflicts.
        self._name = number - 1 if number % 10 == 1 else number
        self._pops = number % 10 == 9
        self._popped: set[str] = set()
        self._calls = 0
        self._acknowledged = 0

    async def run(self) -> None:
        while not self._load.stopping:
            if not self._load.paused:
                await self._call()
            await asyncio.sleep(self.random.uniform(0.0, self._load.longest_pause_seconds))

    async def _call(self) -> None:
        kind, work = self._next()
        began = time.monotonic()
        task = self.running = asyncio.ensure_future(self._load.calls.timed(kind, work))
        if self._load.cancelling:
            moment = self.random.uniform(0.0, LATEST_CANCELLATION_SECONDS)
            asyncio.get_running_loop().call_later(moment, task.cancel)
        await asyncio.wait({task})
        self.running = None
        if not task.cancelled() and task.exception() is None:
            self.succeeded_at = began

    def _next(self) -> tuple[Kind, Callable[[], Coroutine[Any, Any, None]]]:
        if self._calls % CALLS_OF_A_CONVERSATION == 0:
            self._acknowledged = 0
        session_id = f"{self._name}-{self._calls // CALLS_OF_A_CONVERSATION}"
        self._calls += 1
        if self._pops:
            session_id += "-pops"
            kinds: tuple[Kind, ...] = ("add_items", "pop_item", "pop_item", "clear_session")
            kind = self.random.choices(kinds, (8, 4, 4, 1))[0]
        else:
            kind = self.random.choice(("get_items", "add_items", "turn"))
        size = self.random.randint(1, 4)
        return kind, partial(self._work, kind, session_id, size)

    async def _work(self, kind: Kind, session_id: str, size: int) -> None:
        session = self._load.session(session_id)
        match kind:
            case "get_items":
                expected = self._acknowledged
                self.incomplete_reads += len(await session.get_items()) < expected
            case "add_items" if self._pops:
                await session.add_items([{"role": "user", "content": f"{self._calls}"}])
            case "turn" if isinstance(session, LakebaseSession):
                await self._load.checker.turn(session, (1, size))
                self._acknowledged += 1 + size
            case "add_items" | "turn":
                await self._load.checker.add(session, size)
                self._acknowledged += size
            case "pop_item":
                if item := await session.pop_item():
                    text = f"{session_id} {item}"
                    self.popped_twice += text in self._popped
                    self._popped.add(text)
            case "clear_session":
                await session.clear_session()


class Load:
    """Conversations, spread over the loops.

    Args:
        subject: What makes a session of an id, for every call anew.
        conversations: How many talk at the same time.
        seed: What each of them does is drawn from it.
        longest_pause_seconds: Between two calls of a conversation.
    """

    def __init__(
        self, subject: Subject, *, conversations: int, seed: int, longest_pause_seconds: float
    ) -> None:
        self.seed = seed
        self.longest_pause_seconds = longest_pause_seconds
        self.session = subject.session
        self.calls = subject.calls
        self.checker = Checker()
        self.stopping = False
        self.paused = False
        self.cancelling = False
        """Cancel each call, at some moment of its life."""
        self.conversations = [Conversation(self, number) for number in range(conversations)]
        self._loops = subject.loops
        self._running: list[Future[None]] = []

    def start(self) -> None:
        self._running = [
            self._loops.start(number, conversation.run())
            for number, conversation in enumerate(self.conversations)
        ]

    def stop(self) -> None:
        """Return when every conversation has come to the end of its call."""
        self.stopping = True
        for running in self._running:
            running.result()

    def pause(self) -> None:
        """Return when no call is under way; `paused = False` goes on."""
        self.paused = True
        while any(conversation.running for conversation in self.conversations):
            time.sleep(0.02)

    def have_succeeded_since(self, moment: float) -> bool:
        """Whether each conversation has made a call after `moment` that succeeded."""
        return all(conversation.succeeded_at > moment for conversation in self.conversations)
