"""Fixtures: a server that can be stopped, a network that can be broken."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import choice
from proxy import Proxy

from faults.own_server import OwnServer, own_server
from lakebase_sessions.local import LocalLakebase

_numbers = itertools.count(1)


@pytest.fixture
def proxy(local: LocalLakebase) -> Iterator[Proxy]:
    """A network to the run's server, at the host of the instance `proxied`."""
    with Proxy(local.host) as proxy:
        local.add_instance("proxied", read_write_dns=proxy.host)
        yield proxy
        local.remove_instance("proxied")


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
