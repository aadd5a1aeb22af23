"""Database tokens: real ones that Postgres checks, with lives of seconds."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from conftest import admin

from faults.checker import Checker
from faults.tokens import drop_connections, end_token, mints
from lakebase_sessions import (
    Lakebase,
    LakebaseSession,
    LakebaseUnavailable,
    PermissionDenied,
)
from lakebase_sessions.local import DEFAULT_ENDPOINT, DEFAULT_INSTANCE, LocalLakebase, http_server
from lakebase_sessions.postgres import pool
from lakebase_sessions.workspace.api import ASSUMED_LIFETIME_SECONDS, Token, Workspace
from lakebase_sessions.workspace.target import Target

pytestmark = pytest.mark.long

HELLO: Any = {"role": "user", "content": "hello"}
LIFETIME_SECONDS = 3.0
RUN_SECONDS = float(os.environ.get("TOKEN_FAULTS_SECONDS", "6"))
"""How long conversations go on while their tokens come and go; a minute by hand."""
HOUR = 3600.0
targets = pytest.mark.parametrize("target", [DEFAULT_INSTANCE, DEFAULT_ENDPOINT])


@pytest.fixture
def brief(local: LocalLakebase, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalLakebase]:
    """The run's Lakebase, with tokens that live for seconds."""
    tokens = local._started_server().tokens
    monkeypatch.setattr(tokens, "_lifetime", timedelta(seconds=LIFETIME_SECONDS))
    tokens._tokens.clear()
    yield local
    tokens._tokens.clear()


SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(local: LocalLakebase, monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the platform's clock so many seconds ahead of everybody else's."""
    plane = local._started_plane()
    mint = plane.mint

    def set_clock(ahead_seconds: float) -> None:
        ahead = timedelta(seconds=ahead_seconds)

        def mint_ahead(user: str) -> tuple[str, datetime]:
            token, expires = mint(user)
            return token, expires + ahead

        def date(_handler: object) -> str:
            return format_datetime(datetime.now(UTC) + ahead, usegmt=True)

        monkeypatch.setattr(plane, "mint", mint_ahead)
        monkeypatch.setattr(http_server._Handler, "date_time_string", date)

    return set_clock


def credentials_of(lakebase: Lakebase) -> Any:
    assert lakebase._place is not None
    return lakebase._place.credentials


def new_token(local: LocalLakebase, target: str) -> Token:
    workspace = Workspace(local.workspace_client(), call_timeout_seconds=10)
    return Target(target, local.host).token(workspace)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own timeout is the bound."""
    while not condition():
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("target", "ahead_seconds"),
    [(DEFAULT_INSTANCE, 0.0), (DEFAULT_ENDPOINT, -600.0)],
    ids=["the clocks agree", "ours is ten minutes ahead"],
)
async def test_fifty_conversations_outlive_their_tokens(
    brief: LocalLakebase,
    database: str,
    target: str,
    ahead_seconds: float,
    set_clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dozens of logins a second, and no call fails; the workspace is asked about once a second."""
    monkeypatch.setattr(pool, "LIFETIME_SECONDS", 0.05)
    set_clock(ahead_seconds)
    checker = Checker()

    async def converse(session: LakebaseSession) -> None:
        while time.monotonic() < end:
            await checker.add(session, 2)

    async with Lakebase(
        target,
        workspace_client=brief.workspace_client(),
        database=database,
        # Few: a new token ends the old one here, and whoever was refused for that must not queue
        # behind everybody else's logins until the next one has come.
        pool_size=4,
        max_overflow=0,
    ) as lakebase:
        before, end = mints(brief), time.monotonic() + RUN_SECONDS
        await asyncio.gather(*(converse(lakebase.session(str(n))) for n in range(50)))
        minted = mints(brief) - before
    with admin(brief, database) as connection:
        verdict = checker.verdict(connection)
        query = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        [logins] = connection.execute(query).fetchone() or [0]
    assert verdict.clean
    assert logins > 50
    assert RUN_SECONDS / LIFETIME_SECONDS - 1 <= minted <= 2 * RUN_SECONDS


@targets
@pytest.mark.parametrize("ahead_seconds", [-HOUR, -HOUR + 10, -600.0, 0.0, 600.0, HOUR])
def test_a_tokens_life_does_not_depend_on_our_clock(
    local: LocalLakebase, target: str, ahead_seconds: float, set_clock: SetClock
) -> None:
    """Neither does a fresh token seem to be at its end, nor one at its end to be fresh."""
    end_token(local)
    set_clock(ahead_seconds)
    assert HOUR - 60 < new_token(local, target).lifetime_seconds <= HOUR


@targets
@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 01 Jan 2099 00:00:00 GMT"])
def test_a_life_that_cannot_be_told_is_assumed(
    local: LocalLakebase, monkeypatch: pytest.MonkeyPatch, target: str, date: str
) -> None:
    """A proxy may have its own idea of the Date header, or none."""
    monkeypatch.setattr(http_server._Handler, "date_time_string", lambda _handler: date)
    assert new_token(local, target).lifetime_seconds == ASSUMED_LIFETIME_SECONDS


@targets
def test_an_expiry_that_is_not_named_is_assumed(local: LocalLakebase, target: str) -> None:
    with local.fault("/credentials", body={"token": "a.b.c"}):
        assert new_token(local, target).lifetime_seconds == ASSUMED_LIFETIME_SECONDS


async def test_renewal_fails_for_a_while(
    brief: LocalLakebase, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Open connections serve on; a new one gets an error that says so; then all is well again."""
    async with Lakebase(
        "local", workspace_client=brief.workspace_client(), database=database
    ) as lakebase:
        session = lakebase.session("s")
        with brief.fault("/credentials", status=500):
            await until(lambda: "could not be renewed" in caplog.text)
            await until(lambda: not credentials_of(lakebase)._valid(None))
            await session.add_items([HELLO])  # the connection that is there needs no token
            drop_connections(brief, database)
            with pytest.raises(LakebaseUnavailable, match="get a database token for 'local'"):
                await session.get_items()
        assert await session.get_items() == [HELLO]


@targets
async def test_a_token_that_dies_early_is_replaced(
    local: LocalLakebase, database: str, target: str
) -> None:
    """Somebody else's renewal may end a token here; one new token is fetched, once."""
    async with Lakebase(
        target, workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        end_token(local)
        drop_connections(local, database)
        before = mints(local)
        assert await session.get_items() == [HELLO]
        assert mints(local) == before + 1


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
        before = mints(local)
        with pytest.raises(PermissionDenied, match="not permitted to log in"):
            await lakebase.session("s").get_items()
        assert mints(local) == before + 1


@targets
async def test_a_revoked_identity_is_refused_at_the_next_connection(
    local: LocalLakebase, database: str, target: str
) -> None:
    """What is open serves on, as on the platform; each call after that asks once, and no more."""
    user = f"revoked-{'endpoint' if '/' in target else 'instance'}@example.com"
    local.add_user(user)
    async with Lakebase(
        target, workspace_client=local.workspace_client(user), database=database, schema=user
    ) as lakebase:
        session = lakebase.session("s")
        local.revoke_user(user)
        await session.add_items([HELLO])
        drop_connections(local, database)
        for _ in range(3):
            before = mints(local)
            with pytest.raises(PermissionDenied, match="may not use this database instance"):
                await session.get_items()
            assert mints(local) == before + 1


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
async def test_a_lakebase_that_is_dropped_renews_no_longer(
    local: LocalLakebase, database: str
) -> None:
    """Without having been closed: its thread ends with it."""
    before = set(threading.enumerate())
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=database)
    await lakebase.open()
    [timer] = [
        thread for thread in set(threading.enumerate()) - before if "token-timer" in thread.name
    ]
    del lakebase

    def ended() -> bool:
        gc.collect()
        return not timer.is_alive()

    await until(ended)


async def test_no_token_in_any_log(
    local: LocalLakebase, empty_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in part either, at the lowest level, when opening, renewing, or failing to."""
    caplog.set_level(logging.DEBUG)
    lakebase = Lakebase("local", workspace_client=local.workspace_client(), database=empty_database)
    shown, tokens = "", []
    async with lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        tokens.append(credentials_of(lakebase).token)
        end_token(local)
        drop_connections(local, empty_database)
        with local.fault("/credentials", status=500), pytest.raises(LakebaseUnavailable):
            await session.get_items()
        assert await session.get_items() == [HELLO]
        tokens.append(credentials_of(lakebase).token)
        shown = repr(lakebase) + repr(session) + repr(tokens)
    for token in tokens:
        for part in (token.value[:10], token.value[10:20], token.value[-5:]):
            assert part not in shown + caplog.text
    for logger in ("databricks.sdk", "databricks_ai_bridge", "urllib3"):
        assert any(record.name.startswith(logger) for record in caplog.records), "it did log"
