"""The examples, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_quickstart_on_a_bare_machine() -> None:
    """No workspace, no configuration: it starts a Lakebase, remembers, and leaves nothing."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATABRICKS_", "LAKEBASE_", "PG"))
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, EXAMPLES / "quickstart.py"],
            capture_output=True,
            text=True,
            env=environment | {"TMPDIR": folder},
            check=False,
        )
        assert not postgres_processes(folder)
    assert done.returncode == 0, done.stderr
    assert "You said that you live in SF." in done.stdout
    first, second = re.findall(r"^Process (\d+)", done.stdout, re.MULTILINE)
    assert first != second, "the answer comes from another process"
    assert re.search(r"│ 4 │ assistant │ You said that you live in SF\.", done.stdout)


def test_the_quickstart_on_a_configured_lakebase(environ: dict[str, str]) -> None:
    """The same code, by environment variables alone."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Using <Lakebase" in done.stdout
    assert "You said that you live in SF." in done.stdout


def postgres_processes(folder: str) -> list[list[str]]:
    """The command lines of the servers on a data folder in `folder`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "postgres" and any(folder in word for word in process.cmdline()):
                found.append(process.cmdline())
    return found
