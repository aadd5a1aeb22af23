"""Calls: how long they took, what they failed with, and whether they were allowed to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, TypeVar

from lakebase_sessions import ConversationConflict

T = TypeVar("T")


class Calls:
    """What is remembered of all calls, from any loop.

    Args:
        documented: What a call may fail with while a fault is in force.
    """

    def __init__(self, documented: type[Exception]) -> None:
        self.count = 0
        self.longest: dict[str, float] = {}
        """Seconds of the longest call of each kind."""
        self.errors: Counter[str] = Counter()
        """By class, and by what they say of the outcome."""
        self.wrong: list[str] = []
        """Errors of a call that began and ended in a calm, and those that are not documented."""
        self.calm_since = inf
        """Set while no fault is in force, and everything has recovered from the last one."""
        self._documented = documented
        self._lock = threading.Lock()

    async def timed(self, kind: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a call; what it raises is recorded and raised."""
        began = time.monotonic()
        try:
            return await call()
        except BaseException as error:
            with self._lock:
                self._failed(kind, error, began)
            raise
        finally:
            with self._lock:
                self.count += 1
                seconds = time.monotonic() - began
                self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)

    def _failed(self, kind: str, error: BaseException, began: float) -> None:
        unknown = getattr(error, "outcome_unknown", False)
        name = f"{type(error).__name__}{', outcome unknown' if unknown else ''}"
        self.errors[name] += 1
        # A conflict is an answer, a cancellation is ours: they are failures of nothing.
        if not isinstance(error, Exception) or isinstance(error, ConversationConflict):
            return
        if began > self.calm_since or not isinstance(error, self._documented):
            seconds = time.monotonic() - began
            self.wrong.append(f"{kind}: {name} after {seconds:.1f} s: {error}")
