"""Database tokens: real ones that Postgres checks, with lives of seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TEMPLATE, admin, choice
from servers import local_lakebase

from lakebase_sessions import Lakebase, LakebaseUnavailable, PermissionDenied
from lakebase_sessions.local import LocalLakebase

HELLO: Any = {"role": "user", "content": "hello"}
LIFETIME_SECONDS = 3.0


@pytest.fixture(scope="module")
def brief(pytestconfig: pytest.Config) -> Iterator[LocalLakebase]:
    """A Lakebase whose tokens live for seconds."""
    if choice(pytestconfig) not in ("container", "embedded"):
        pytest.skip("a DSN has one LocalLakebase at a time, and the run has it")
    with local_lakebase(choice(pytestconfig), token_lifetime_seconds=LIFETIME_SECONDS) as lakebase:
        yield lakebase


def minted(local: LocalLakebase) -> int:
    return sum(call.path.endswith("/credentials") for call in local.requests)


def drop_connections(local: LocalLakebase, database: str) -> None:
    with admin(local, "postgres") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [database],
        )


async def until(condition: Any) -> None:
    """Wait for a condition; the test's own timeout is the bound."""
    while not condition():
        await asyncio.sleep(0.05)


async def test_a_token_is_renewed_before_it_expires(brief: LocalLakebase) -> None:
    """Connections opened over three lifetimes log in without a request that waits for a token."""
    async with Lakebase("local", workspace_client=brief.workspace_client()) as lakebase:
        credentials = lakebase._place.result().credentials  # type: ignore[union-attr]
        end = time.monotonic() + 3 * LIFETIME_SECONDS
        waited = 0
        while time.monotonic() < end:
            drop_connections(brief, "databricks_postgres")
            await lakebase.session("s").add_items([HELLO])
            waited += not credentials._valid(None)
            await asyncio.sleep(0.1)
        assert waited == 0
        assert minted(brief) >= 3


async def test_renewal_fails_for_a_while(
    brief: LocalLakebase, caplog: pytest.LogCaptureFixture
) -> None:
    """Open connections serve on; a new one gets an error that says so; then all is well again."""
    async with Lakebase("local", workspace_client=brief.workspace_client()) as lakebase:
        session = lakebase.session("s2")
        with brief.fault("/credentials", status=500):
            await until(lambda: "could not be renewed" in caplog.text)
            await session.add_items([HELLO])
            credentials = lakebase._place.result().credentials  # type: ignore[union-attr]
            await until(lambda: not credentials._valid(None))
            await session.pop_item()  # the connection that is there needs no token
            await session.add_items([HELLO])
            drop_connections(brief, "databricks_postgres")
            with pytest.raises(LakebaseUnavailable, match="get a database token for 'local'"):
                await session.get_items()
        assert await session.get_items() == [HELLO]


async def test_a_token_that_dies_early_is_replaced(local: LocalLakebase, database: str) -> None:
    """Somebody else's renewal may end a token here; one new token is fetched, once."""
    user = "rotated@example.com"
    local.add_user(user)
    client = local.workspace_client(user)
    async with Lakebase(
        "local", workspace_client=client, database=database, schema="rotated"
    ) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        local._started_roles()._tokens.clear()
        client.database.generate_database_credential(instance_names=["local"])
        drop_connections(local, database)
        before = minted(local)
        assert await session.get_items() == [HELLO]
        assert minted(local) == before + 1


async def test_a_role_that_may_not_log_in_is_not_asked_for_ever(
    local: LocalLakebase, database: str
) -> None:
    """A refused login costs one new token and one more attempt, then it is the caller's."""
    user = "locked@example.com"
    local.add_user(user)
    async with Lakebase(
        "local", workspace_client=local.workspace_client(user), database=database, schema="locked"
    ) as lakebase:
        with admin(local, "postgres") as connection:
            connection.execute(f'ALTER ROLE "{user}" NOLOGIN')
        drop_connections(local, database)
        before = minted(local)
        with pytest.raises(PermissionDenied, match="not permitted to log in"):
            await lakebase.session("s").get_items()
        assert minted(local) == before + 1


async def test_no_token_in_any_log(
    local: LocalLakebase, empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in part either, at the lowest level; upstream logs the ends of those it mints."""
    caplog.set_level(logging.DEBUG)
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=empty_database)
    async with lakebase:
        await lakebase.session("s").add_items([HELLO])
        token = lakebase._place.result().credentials.token  # type: ignore[union-attr]
        assert token is not None
        shown = repr(lakebase) + repr(lakebase.session("s")) + repr(token) + caplog.text
    for part in (token.value[:10], token.value[-5:], token.value[10:20]):
        assert part not in shown
    assert "databricks_ai_bridge" in caplog.text, "upstream did log"


def test_the_template_is_there(local: LocalLakebase) -> None:
    with admin(local, TEMPLATE) as connection:
        assert connection.execute("SELECT count(*) FROM agent_sessions").fetchone() == (0,)
