"""What a soak tries: this package, and the upstream class as the template uses it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol, Self, TypeVar

from agents.memory import Session
from databricks.sdk import WorkspaceClient
from databricks_openai.agents import AsyncDatabricksSession

from faults.calls import Calls
from lakebase_sessions import Lakebase, LakebaseSessionsError

T = TypeVar("T")

OPEN_FOR_SECONDS = 60.0
"""How long opening is tried again, while something is in the way."""


class Loops:
    """Event loops that run in a thread each."""

    def __init__(self, count: int) -> None:
        self._loops = [asyncio.new_event_loop() for _ in range(count)]
        self._threads = [
            threading.Thread(target=loop.run_forever, name="soak", daemon=True)
            for loop in self._loops
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for loop, thread in zip(self._loops, self._threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def __len__(self) -> int:
        return len(self._loops)

    def start(self, number: int, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` on one of the loops; equal numbers get the same."""
        return asyncio.run_coroutine_threadsafe(work, self._loops[number % len(self)])

    def start_on_each(self, make: Callable[[], Coroutine[Any, Any, T]]) -> list[Future[T]]:
        return [self.start(number, make()) for number in range(len(self))]


class Subject(Protocol):
    """What is tried, as a process that lives through everything."""

    promises: ClassVar[bool]
    """Whether it has promised what the soak looks at."""
    loops: Loops
    calls: Calls

    def session(self, session_id: str) -> Session: ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def use_in_new_loop(self) -> None:
        """One call in a loop that ends with it."""

    def restart(self) -> None:
        """Begin anew, as after a restart of the process."""


class Ours:
    """A Lakebase, used by all loops."""

    promises: ClassVar[bool] = True

    def __init__(self, make: Callable[[], Lakebase], loops: Loops) -> None:
        self.loops = loops
        self.calls = Calls(LakebaseSessionsError)
        self._make = make
        self._lakebase = make()

    def session(self, session_id: str) -> Session:
        return self._lakebase.session(session_id)

    def open(self) -> None:
        """A new one, on every loop, tried again while a fault is in the way."""
        lakebase = self._make()
        give_up_at = time.monotonic() + OPEN_FOR_SECONDS
        while True:
            opening = self.loops.start_on_each(lambda: self.calls.timed("open", lakebase.open))
            errors = [each.exception() for each in opening]
            if not any(errors):
                self._lakebase = lakebase
                return
            if time.monotonic() > give_up_at:
                raise BaseExceptionGroup("it does not open", [error for error in errors if error])
            time.sleep(0.1)

    def close(self) -> None:
        self.loops.start(0, self.calls.timed("close", self._lakebase.close)).result()

    def use_in_new_loop(self) -> None:
        session = self._lakebase.session("new loop")
        with contextlib.suppress(Exception):  # it is in the record of calls
            asyncio.run(self.calls.timed("first call in a loop", session.get_items))

    def restart(self) -> None:
        """It has to recover without."""


class Upstream:
    """A new `AsyncDatabricksSession` for each call, as in the template; engines are cached."""

    promises: ClassVar[bool] = False

    def __init__(self, instance: str, client: WorkspaceClient, database: str, loops: Loops) -> None:
        self.loops = loops
        self.calls = Calls(Exception)
        self._instance = instance
        self._client = client
        self._database = database

    def session(self, session_id: str) -> Session:
        return AsyncDatabricksSession(
            session_id,
            instance_name=self._instance,
            workspace_client=self._client,
            database=self._database,
        )

    def restart(self) -> None:
        AsyncDatabricksSession._lakebase_sql_alchemy_cache.clear()

    def _nothing(self) -> None:
        """There is nothing to open or to close, and other loops cannot share its engine."""

    open = close = use_in_new_loop = _nothing
