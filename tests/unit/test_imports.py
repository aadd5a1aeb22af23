"""The public names, and what importing them costs: nothing until they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lakebase_sessions
from lakebase_sessions import errors

HEAVY = (
    "agents",
    "databricks",
    "databricks_ai_bridge",
    "databricks_openai",
    "mlflow",
    "openai",
    "pandas",
    "psycopg",
    "sqlalchemy",
)


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import lakebase_sessions",
        "from lakebase_sessions import get_session_id; get_session_id({'conversation': 'a'})",
        "from lakebase_sessions import LakebaseSessionsError, resolve_lakebase_instance_name",
        "from lakebase_sessions.workspace import settings; settings.ssl_mode_in('a')",
        "from lakebase_sessions.conversation.history import without_cut_off_outputs",
    ],
)
def test_what_needs_nothing_heavy_loads_nothing_heavy(statement: str) -> None:
    loaded = run(f"{statement}\nimport sys\nprint(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in loaded}.intersection(HEAVY)


def test_the_package_alone_loads_none_of_its_modules() -> None:
    loaded = run("import lakebase_sessions, sys\nprint(*sys.modules)").split()
    assert [name for name in loaded if name.startswith("lakebase_sessions")] == [
        "lakebase_sessions"
    ]


def test_importing_reads_no_environment_and_touches_no_network() -> None:
    run(
        """
import importlib, os, pathlib, sys
class Forbidden:
    def __getattr__(self, name):
        raise AssertionError(f"os.environ.{name} was used")
    __getitem__ = __contains__ = __iter__ = lambda self, *_: self.use
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "urllib.")):
        raise AssertionError(f"{event} at import")
os.environ = os.environb = Forbidden()
os.getenv = None
sys.addaudithook(watch)
import lakebase_sessions
for name in (
    "errors", "conversation.history", "conversation.session_id",
    "workspace.background", "workspace.credentials", "workspace.settings", "workspace.target",
):
    importlib.import_module(f"lakebase_sessions.{name}")
"""
    )


def test_all_is_sorted_and_without_repetitions() -> None:
    assert lakebase_sessions.__all__ == sorted(set(lakebase_sessions.__all__))


def test_all_equals_what_type_checkers_see() -> None:
    tree = ast.parse(Path(inspect.getfile(lakebase_sessions)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [
        alias.asname or alias.name
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]
    assert sorted(seen) == lakebase_sessions.__all__


def test_every_error_is_public() -> None:
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LakebaseSessionsError)
    }
    assert raised <= set(lakebase_sessions.__all__)


@pytest.mark.parametrize("name", lakebase_sessions.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(lakebase_sessions, name)
    assert value.__name__ == name
    assert value.__module__.startswith("lakebase_sessions.")
    assert value.__doc__, "a docstring of its own or an inherited one"
    assert vars(value).get("__doc__") if isinstance(value, type) else inspect.getdoc(value)
    assert getattr(lakebase_sessions, name) is value


def test_dir_lists_them_before_they_are_loaded() -> None:
    listed = run("import lakebase_sessions\nprint(*dir(lakebase_sessions))").split()
    assert set(lakebase_sessions.__all__) <= set(listed)


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'sesion_for'"):
        lakebase_sessions.sesion_for  # noqa: B018


@pytest.mark.long
def test_the_first_request_imports_nothing() -> None:
    """What a thread imports keeps the event loop from running, so it is loaded before."""
    script = """
import asyncio, os, sys
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions import default_lakebase, session_for
with LocalLakebase() as local:
    os.environ.update(local.environ)
    before = set(sys.modules)
    async def first_request():
        await session_for(session_id="s").get_items()
        await default_lakebase().close()
    asyncio.run(first_request())
    print(*(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
