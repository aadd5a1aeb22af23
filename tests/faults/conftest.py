"""Fixtures: a server that can be stopped, a network that can be broken."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import choice

from faults.own_server import OwnServer, own_server
from faults.witness import Witness
from lakebase_sessions.local import LocalLakebase

_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them take long."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def witness(local: LocalLakebase, database: str) -> Iterator[Witness]:
    """Postgres' own view of this test's database."""
    with Witness(local, database) as witness:
        yield witness


@pytest.fixture(scope="session")
def own(pytestconfig: pytest.Config) -> Iterator[OwnServer]:
    """One server for the whole run, to be stopped and started."""
    # Not pytest's folder: the next run that starts shuts others out, and so PostgreSQL's user.
    with (
        tempfile.TemporaryDirectory(prefix="lakebase-own-") as folder,
        own_server(choice(pytestconfig), Path(folder)) as own,
    ):
        yield own


@pytest.fixture
def own_database(own: OwnServer) -> Iterator[str]:
    """A database on that server, without tables."""
    name = f"lakebase_sessions_test_{next(_numbers)}"
    own.local.create_database(name)
    yield name
    own.start()  # a test that failed may have left it stopped
    own.local.drop_database(name)
