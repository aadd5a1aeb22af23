"""What `uv build` makes: wheel and sdist hold what they should, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lakebase_sessions"

pytestmark = pytest.mark.skipif(
    not SOURCE.exists() or shutil.which("uv") is None, reason="needs the checkout and uv"
)

NEVER = (".venv", "__pycache__", "uv.lock", "mlflow.db", "mlruns", ".env", "_build", ".pyc", ".ci")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["uv", "build", "--quiet", "--out-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def written_version() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def modules() -> set[str]:
    return {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(archive.read(metadata).decode())
    information = metadata.removesuffix("/METADATA")
    files = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert names == modules() | {f"{information}/{name}" for name in files}
    assert "lakebase_sessions/py.typed" in names
    assert described["License-Expression"] == "Apache-2.0"


def test_the_sdist(built: Path) -> None:
    """What builds, tests and documents the package; an archive's first folder is the version."""
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in modules()} <= names
    assert {name.partition("/")[0] for name in names} == {
        *("src", "tests", "docs", "examples", "pyproject.toml", ".gitignore"),
        *("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "PKG-INFO"),
    }
    odd = [name for name in names if set(name.split("/")) & set(NEVER) or name.endswith(NEVER)]
    assert not odd


def test_the_version_is_said_once() -> None:
    """`--version` reads what is installed, and that has it from pyproject.toml."""
    version = written_version()
    command = Path(sys.executable).with_name("lakebase-sessions")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == version
    for path in SOURCE.rglob("*.py"):
        assert f'"{version}"' not in path.read_text(), f"{path} says the version, too"


def test_the_changelog_has_this_version() -> None:
    assert f"## [{written_version()}]" in (ROOT / "CHANGELOG.md").read_text()
