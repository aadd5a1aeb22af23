"""Fixtures that several tests use, on those of the plugin (`lakebase_sessions.testing.plugin`)."""

from __future__ import annotations

import inspect
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner
from proxy import Proxy
from servers import docker_runs, local_lakebase

from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase

pytest_plugins = ["secrets_guard"]

# Click 8.1, the lowest version, mixes what commands write to the two streams, newer ones do not.
if "mix_stderr" in inspect.signature(CliRunner).parameters:
    CliRunner.__init__ = partialmethod(CliRunner.__init__, mix_stderr=False)  # type: ignore[assignment]

if TYPE_CHECKING:
    from databricks_openai.agents import AsyncDatabricksSession

CONVERSATIONS = Path(__file__).parents[2] / "shared" / "data" / "conversations.jsonl"

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        default="auto",
        metavar="container|embedded|DSN",
        help="where integration tests run: a throwaway Docker container, the embedded server, or "
        "a superuser's DSN with port 5432. Default: container if a Docker engine answers, else "
        "embedded.",
    )
    parser.addoption(
        "--pictures", action="store_true", help="the browser tests write those of the docs anew"
    )


_servers = pytest.StashKey[ExitStack]()
_local = pytest.StashKey[LocalLakebase]()


def server(config: pytest.Config) -> LocalLakebase:
    """The run's server, started by whoever asks first."""
    if _local not in config.stash:
        servers = config.stash[_servers] = ExitStack()
        try:
            config.stash[_local] = servers.enter_context(local_lakebase(choice(config)))
        except Exception as error:
            kind = config.option.postgres
            pytest.exit(f"--postgres={kind}: the server did not start: {error}", returncode=3)
    return config.stash[_local]


def choice(config: pytest.Config) -> str:
    """`container`, `embedded` or a DSN."""
    chosen: str = config.option.postgres
    if chosen == "auto":
        chosen = "container" if docker_runs() else "embedded"
    return chosen


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which server it is; it is started for that."""
    if config.option.collectonly or config.getoption("numprocesses", None):
        return None  # with pytest-xdist each worker has a server of its own
    with psycopg.connect(server(config).admin_dsn, dbname="postgres") as connection:
        row = connection.execute("SELECT current_setting('server_version')").fetchone()
        tls = connection.pgconn.ssl_in_use
    kind = choice(config) if choice(config) in ("container", "embedded") else "DSN"
    return f"postgres: {kind}, version {row[0] if row else '?'}, TLS {'on' if tls else 'off'}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if servers := config.stash.get(_servers, None):
        servers.close()


@pytest.fixture(scope="session")
def lakebase_server(pytestconfig: pytest.Config) -> LocalLakebase:
    """The plugin's, on the server that `--postgres` chooses."""
    return server(pytestconfig)


@pytest.fixture(scope="session")
def local_for_run(lakebase_server: LocalLakebase, lakebase_template: str) -> LocalLakebase:
    """The run's Lakebase, with a template database that has the tables."""
    return lakebase_server


@pytest.fixture
def local(local_for_run: LocalLakebase) -> Iterator[LocalLakebase]:
    """The run's Lakebase, without the faults of the test before."""
    yield local_for_run
    local_for_run.clear_faults()


@pytest.fixture
def empty_database(local: LocalLakebase) -> Iterator[str]:
    """A database without tables."""
    name = f"lakebase_sessions_test_{os.getpid()}_empty_{next(_numbers)}"
    local.create_database(name)
    yield name
    local.drop_database(name)


@pytest.fixture
def database(local: LocalLakebase, lakebase_database: str) -> str:
    """A database with the tables."""
    return lakebase_database


@pytest.fixture
async def lakebase(local: LocalLakebase, database: str) -> AsyncIterator[Lakebase]:
    """Like the plugin's, in an environment as it is, and closed on the test's loop."""
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=database)
    yield lakebase
    await lakebase.close()


@pytest.fixture
def proxy(local: LocalLakebase) -> Iterator[Proxy]:
    """A network to the run's server, at the host of the instance `proxied`."""
    with Proxy(local.host) as proxy:
        local.add_instance("proxied", read_write_dns=proxy.host)
        yield proxy
        local.remove_instance("proxied")


@pytest.fixture
async def upstream(local: LocalLakebase, database: str) -> AsyncIterator[AsyncDatabricksSession]:
    """The unmodified class on the same tables, for the conversation `s`."""
    from databricks_openai.agents import AsyncDatabricksSession

    session = AsyncDatabricksSession(
        "s",
        instance_name="local",
        workspace_client=local.workspace_client(),
        database=database,
        use_cached_engine=False,
    )
    yield session
    await session.engine.dispose()


@pytest.fixture
def environ(local: LocalLakebase, lakebase_environ: dict[str, str]) -> dict[str, str]:
    """The environment of an app on this test's database, as Databricks Apps would set it."""
    return lakebase_environ


@pytest.fixture(scope="session")
def conversations() -> list[dict[str, Any]]:
    """Real conversations with tool calls: `id` and `items`."""
    if not CONVERSATIONS.exists():
        pytest.skip(f"{CONVERSATIONS.name} is not part of the repository, and not beside it")
    return [json.loads(line) for line in CONVERSATIONS.read_text().splitlines()]


def admin(local: LocalLakebase, database: str) -> psycopg.Connection[Any]:
    """A superuser's connection, in autocommit."""
    return psycopg.connect(local.admin_dsn, dbname=database, autocommit=True)
