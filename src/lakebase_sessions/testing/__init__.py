"""What tests of an agent's memory are made of: an offline model, a contract for sessions.

The pytest plugin is in `plugin.py` and is there as soon as the package is installed; so the names
here are loaded on first use, and a suite that uses none of them pays nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakebase_sessions.testing.contract import SessionContract
    from lakebase_sessions.testing.model import OfflineModel

_HOMES = {"OfflineModel": "model", "SessionContract": "contract"}

__all__ = ["OfflineModel", "SessionContract"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
