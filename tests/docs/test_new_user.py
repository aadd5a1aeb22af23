"""A new user's path, from an empty folder and with nothing but what is printed.

The wheel in an environment of its own, a local Lakebase in a terminal, the README's script and
commands, and the tests of docs/testing.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import START_TIMEOUT_SECONDS, environment

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),  # a cold cache downloads what a user downloads
    pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv"),
]


def printed(page: str, language: str, word: str = "") -> str:
    """The blocks of a page that have a word in them."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in found if word in block)


def done(command: list[str | Path], folder: Path, variables: dict[str, str]) -> str:
    finished = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_everything_works_as_printed(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    bare = environment({})
    bare.pop("VIRTUAL_ENV", None)

    wheels = tmp_path / "dist"
    done(["uv", "build", "--quiet", "--wheel", "-o", wheels, ROOT], folder, bare)
    [wheel] = wheels.glob("*.whl")
    done(["uv", "venv", "--quiet", "--python", sys.executable, ".venv"], folder, bare)
    python = folder / ".venv" / "bin" / "python"
    install: list[str | Path] = [
        "uv",
        "pip",
        "install",
        "--quiet",
        "--compile-bytecode",
        "--python",
        python,
    ]
    done([*install, f"{wheel}[local]", "pytest", "pytest-asyncio"], folder, bare)
    bare["PATH"] = f"{python.parent}{os.pathsep}{bare['PATH']}"

    [name] = re.findall(r"A script, say `(.*?)`:", (ROOT / "README.md").read_text())
    (folder / name).write_text(printed("README.md", "python", "run_sync"))
    with a_local_lakebase(folder, bare) as exports:
        (folder / "use.sh").write_text(f"{exports}\n{printed('README.md', 'sh', name)}")
        shown = done(["bash", "-e", "use.sh"], folder, bare)
    assert shown.count("You said that you live in SF.") == 2, "said, and shown from the table"

    (folder / "pytest.ini").write_text(printed("docs/testing.md", "ini"))
    (folder / "test_agent.py").write_text(printed("docs/testing.md", "python"))
    assert "2 passed" in done([python, "-m", "pytest"], folder, bare)


@contextlib.contextmanager
def a_local_lakebase(folder: Path, variables: dict[str, str]) -> Iterator[str]:
    """What `lakebase-sessions local` prints, while it runs; Ctrl-C ends it."""
    with (folder / "local.env").open("w") as output:
        process = subprocess.Popen(
            [folder / ".venv" / "bin" / "lakebase-sessions", "local"],
            cwd=folder,
            env=variables,
            stdout=output,
        )
    try:
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        while (exports := (folder / "local.env").read_text()).count("export ") < 3:
            assert process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
        yield exports
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
