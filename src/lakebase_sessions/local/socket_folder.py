"""Folders for Unix sockets, which a client gets as a host."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

MAX_LENGTH = 86
"""A socket's path may have 103 bytes on macOS and 107 on Linux; its name takes 14 of them."""

# Upstream puts the host into a conninfo without quotes, and libpq splits it at commas.
_PLAIN = re.compile(r"[A-Za-z0-9/._+~@-]+")


def fits(folder: Path) -> bool:
    """Return whether the path can be a host."""
    return len(str(folder)) <= MAX_LENGTH and _PLAIN.fullmatch(str(folder)) is not None


def make_temporary() -> Path:
    """Make a folder that nobody else can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lakebase-")).resolve()
    if not fits(folder):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="lakebase-", dir="/tmp"))
    return folder
