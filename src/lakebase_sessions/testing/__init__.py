"""What tests of an agent's memory are made of: a model that runs offline.

The pytest plugin is in `plugin.py` and is there as soon as the package is installed; so the names
here are loaded on first use, and a suite that uses none of them pays nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakebase_sessions.testing.model import OfflineModel

_HOMES = {"OfflineModel": "model"}

__all__ = ["OfflineModel"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
