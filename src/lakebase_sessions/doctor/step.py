"""Step: one thing that was looked at, how it is, and what to do next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted


class Status(Enum):
    """How a step ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """What was found at one step.

    Attributes:
        name: The step's; it does not change between releases.
        seen: What was seen, without secrets.
        next: The command or the statement to run next; empty where there is nothing to do.
    """

    name: str
    status: Status
    seen: str
    next: str = ""


def ok(name: str, seen: str) -> Step:
    """All is well."""
    return Step(name, Status.OK, seen)


def warning(name: str, seen: str, next_: str = "") -> Step:
    """A session works, but something is not as it should be."""
    return Step(name, Status.WARNING, seen, next_)


def failed(name: str, seen: str, next_: str) -> Step:
    """A session comes to its end here."""
    return Step(name, Status.FAILED, seen, next_)


def our_command(wanted: Wanted, *words: str) -> str:
    """A command of ours about the same Lakebase."""
    options = {
        "--lakebase": wanted.target,
        "--database": wanted.database,
        "--schema": wanted.schema,
        "--profile": wanted.profile,
    }
    more = [word for name, value in options.items() if value for word in (name, value)]
    return shlex.join(["lakebase-sessions", *words, *more])
