"""The guard over the whole suite (`secrets_guard.py`) finds whatever leaks, wherever it leaks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

FOUND = {
    "test_print": "Captured stdout call: a secret",
    "test_print_of_a_workspace_token": "Captured stdout call: a secret",
    "test_child": "Captured stderr call: a secret",
    "test_child_whose_output_is_read": "output of a process: a secret",
    "test_beginning_in_a_debug_log": "logger somebody, DEBUG: part of a secret",
    "test_end_in_a_debug_log": "logger somebody, DEBUG: part of a secret",
    "test_log_that_goes_nowhere": "logger silent, DEBUG: a secret",
    "test_logged_exception": "logger somebody, DEBUG: a secret",
    "test_caught_exception": "an exception that was caught: a secret",
    "test_cause_of_a_caught_exception": "an exception that was caught: a secret",
    "test_print_of_upstream": "Captured stdout call: a secret",
    "test_nothing": "test_child_with_a_log0/server.log: a secret",
}


def test_whatever_leaks_is_found(tmp_path: Path) -> None:
    """Of a suite that leaks on purpose, each leak fails its own test, with where it was."""
    Path(tmp_path, "pytest.ini").write_text("[pytest]\n")
    command: list[str | Path] = [
        *(sys.executable, "-m", "pytest", "-c", tmp_path / "pytest.ini", "--noconftest"),
        *("-p", "secrets_guard", "-p", "no:cacheprovider", "-rfE"),
        *("--basetemp", tmp_path / "base", TESTS / "security" / "leaks.py"),
    ]
    variables = os.environ | {"PYTHONPATH": str(TESTS), "COLUMNS": "300"}
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    summary = re.findall(r"^(?:FAILED|ERROR) .*::(\w+) - (.*)$", run.stdout, re.MULTILINE)
    assert dict(summary) == FOUND, run.stdout
    assert len(summary) == len(FOUND)
