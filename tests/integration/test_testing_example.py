"""examples/testing: its tests pass as they stand, on a machine that has nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "testing"

pytestmark = pytest.mark.long


def test_its_tests_pass(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "project")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=folder,
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
