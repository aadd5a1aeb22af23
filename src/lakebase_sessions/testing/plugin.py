"""The pytest plugin: a Lakebase of its own for each test.

pytest loads it wherever the package is installed, so nothing is imported before a fixture is used.
The fixtures are plain functions: they go with pytest-asyncio in either mode, with anyio, and with
tests that are not async. What a test has opened on its loop is closed from another one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from lakebase_sessions.lakebase import Lakebase
    from lakebase_sessions.local import Fault, LocalLakebase

TEMPLATE = "lakebase_sessions_template"
SETTINGS = {
    "lakebase_dsn": (
        "superuser's DSN of a PostgreSQL on port 5432 for the tests, in place of the embedded one"
    ),
    "lakebase_postgres_version": "version of the embedded PostgreSQL: 16 or 18 (default: 18)",
}
"""Each is an ini option and, with hyphens, one of the command line, which comes first."""

pytest.register_assert_rewrite("lakebase_sessions.testing.contract")

_numbers = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every setting, both ways."""
    group = parser.getgroup("lakebase", "a Lakebase for tests (lakebase-sessions)")
    for name, text in SETTINGS.items():
        metavar = name.removeprefix("lakebase_").upper()
        group.addoption(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=text)
        parser.addini(name, text)


def _setting(config: pytest.Config, name: str) -> str | None:
    return config.getoption(name) or config.getini(name) or None


@pytest.fixture(scope="session")
def lakebase_server(pytestconfig: pytest.Config) -> Iterator[LocalLakebase]:
    """A `LocalLakebase` for the run; under pytest-xdist one for each worker."""
    from lakebase_sessions.errors import LocalLakebaseError  # noqa: PLC0415
    from lakebase_sessions.local import LocalLakebase  # noqa: PLC0415

    dsn = _setting(pytestconfig, "lakebase_dsn")
    version = _setting(pytestconfig, "lakebase_postgres_version") or "18"
    if dsn and hasattr(pytestconfig, "workerinput"):
        pytest.fail(
            "lakebase_dsn names one server, and each worker of pytest-xdist needs its own: run "
            "without `-n`, or without lakebase_dsn, so that each worker starts an embedded one.",
            pytrace=False,
        )
    if version not in ("16", "18"):
        pytest.fail(f"lakebase_postgres_version is {version!r}; use 16 or 18.", pytrace=False)
    try:
        server = LocalLakebase(dsn=dsn, postgres_version=int(version)).start()
    except LocalLakebaseError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lakebase_template(lakebase_server: LocalLakebase) -> Iterator[str]:
    """The database, with the session tables, that those of the tests are copies of."""
    from lakebase_sessions.lakebase import Lakebase  # noqa: PLC0415

    async def make_tables() -> None:
        client = lakebase_server.workspace_client()
        async with Lakebase("local", workspace_client=client, database=TEMPLATE):
            pass

    lakebase_server.drop_database(TEMPLATE)  # a DSN's server may have one of a run that was killed
    lakebase_server.create_database(TEMPLATE)
    _run(make_tables())
    yield TEMPLATE
    lakebase_server.drop_database(TEMPLATE)


@pytest.fixture
def lakebase_database(
    pytestconfig: pytest.Config, lakebase_server: LocalLakebase, lakebase_template: str
) -> Iterator[str]:
    """The name of a database of the test's own, dropped at its end."""
    number = pytestconfig.stash[_numbers] = pytestconfig.stash.get(_numbers, 0) + 1
    name = f"lakebase_sessions_test_{os.getpid()}_{number}"
    lakebase_server.create_database(name, template=lakebase_template)
    yield name
    lakebase_server.drop_database(name)


@pytest.fixture
def lakebase_environ(
    lakebase_server: LocalLakebase, lakebase_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The variables that lead to the test's database, set; those of any other place are not.

    `session_for()` in the code under test finds it: the process-wide default is made anew.
    """
    from lakebase_sessions import factory  # noqa: PLC0415

    for name in list(os.environ):
        if name.startswith(("DATABRICKS_", "LAKEBASE_", "PG")):
            monkeypatch.delenv(name)
    variables = lakebase_server.environ | {
        "DATABRICKS_AUTH_TYPE": "pat",  # another login that is configured must not get in the way
        "PGHOST": lakebase_server.host,
        "PGDATABASE": lakebase_database,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(factory, "_default", None)
    yield variables
    if factory._default is not None:
        _run(factory._default.close())


@pytest.fixture
def lakebase(
    lakebase_server: LocalLakebase,
    lakebase_database: str,
    lakebase_environ: dict[str, str],  # noqa: ARG001 - so that the code under test is there, too
) -> Iterator[Lakebase]:
    """A `Lakebase` on a database of the test's own, which `session_for()` leads to as well."""
    from lakebase_sessions.lakebase import Lakebase  # noqa: PLC0415

    client = lakebase_server.workspace_client()
    lakebase = Lakebase("local", workspace_client=client, database=lakebase_database)
    yield lakebase
    _run(lakebase.close())


@pytest.fixture
def lakebase_fault(lakebase_server: LocalLakebase) -> Iterator[Callable[..., Fault]]:
    """`LocalLakebase.fault`: calls to the workspace misbehave until the test ends."""
    yield lakebase_server.fault
    lakebase_server.clear_faults()


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread: here a loop may be running, or be set for the tests to come."""
    import asyncio  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(1, thread_name_prefix="lakebase-sessions") as executor:
        executor.submit(asyncio.run, coroutine).result()
