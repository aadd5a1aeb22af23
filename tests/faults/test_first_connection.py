"""A network that fails while SQLAlchemy asks the first connection of an engine about the server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from proxy import Proxy
from sqlalchemy import event
from sqlalchemy.pool import Pool

from lakebase_sessions import Lakebase, LakebaseTimeout
from lakebase_sessions.local import LocalLakebase


@contextmanager
def at_the_first_connection(do: Callable[[], object]) -> Iterator[None]:
    """Once it is open, and before anything is asked: class-wide listeners come first."""

    connections = itertools.count()

    def connected(_connection: Any, _record: Any) -> None:
        if next(connections) == 0:
            do()

    event.listen(Pool, "connect", connected)
    yield
    event.remove(Pool, "connect", connected)
    assert next(connections), "there was no connection"


async def test_it_breaks_and_is_replaced(local: LocalLakebase, proxy: Proxy, database: str) -> None:
    lakebase = Lakebase("proxied", workspace_client=local.workspace_client(), database=database)
    with at_the_first_connection(proxy.drop):
        assert await lakebase.session("s").get_items() == []
    await lakebase.close()


async def test_it_goes_silent_and_is_given_up(
    local: LocalLakebase, proxy: Proxy, database: str
) -> None:
    lakebase = Lakebase(
        "proxied",
        workspace_client=local.workspace_client(),
        database=database,
        call_timeout_seconds=1,
        open_timeout_seconds=2,
    )
    with at_the_first_connection(lambda: setattr(proxy, "deaf", True)):
        async with asyncio.timeout(15):
            with pytest.raises(LakebaseTimeout):
                await lakebase.session("s").get_items()
    proxy.deaf = False
    assert await lakebase.session("s").get_items() == []
    await lakebase.close()
