"""A workspace that refuses, fails, talks nonsense or is silent: when opening, and when renewing.

Each time a bounded wait ends in the right class after a few calls, and all is well when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from databricks.sdk import WorkspaceClient

from faults.tokens import drop_connections, end_token
from lakebase_sessions import (
    Lakebase,
    LakebaseSession,
    LakebaseTimeout,
    LakebaseUnavailable,
    PermissionDenied,
    TargetNotFound,
)
from lakebase_sessions.local import DEFAULT_ENDPOINT, DEFAULT_INSTANCE, LocalLakebase
from lakebase_sessions.testing.plugin import TEMPLATE
from lakebase_sessions.workspace.target import CALL_TIMEOUT_SECONDS

PATIENCE_SECONDS = 20.0
"""Longer than any bound here, shorter than for ever."""
MOST_CALLS = 8
"""That one operation makes to a workspace that fails. Usually it is one; pauses are random."""


class Failure(NamedTuple):
    """What the workspace does, and what has to come of it."""

    fault: dict[str, Any]
    error: type[Exception]

    @property
    def call_timeout_seconds(self) -> float:
        """A short one where it is waited for, the default where it must not strike."""
        return 0.3 if self.error is LakebaseTimeout else CALL_TIMEOUT_SECONDS


FAILURES = {
    "401": Failure({"status": 401}, PermissionDenied),
    "403": Failure({"status": 403}, PermissionDenied),
    "404": Failure({"status": 404}, TargetNotFound),
    "429, come back in an hour": Failure(
        {"status": 429, "headers": {"Retry-After": "3600"}}, LakebaseTimeout
    ),
    "429, come back at once": Failure(
        {"status": 429, "headers": {"Retry-After": "0"}}, LakebaseTimeout
    ),
    "500": Failure({"status": 500}, LakebaseUnavailable),
    "500, a page of HTML": Failure(
        {"status": 500, "body": "<html>Bad Gateway</html>"}, LakebaseUnavailable
    ),
    "503": Failure({"status": 503}, LakebaseTimeout),
    "malformed JSON": Failure({"body": '{"token": "eyJ'}, LakebaseUnavailable),
    "no JSON object": Failure({"body": "[]"}, LakebaseUnavailable),
    "an empty body": Failure({"body": ""}, LakebaseUnavailable),
    "an empty object": Failure({"body": {}}, LakebaseUnavailable),
    "numbers for names": Failure(
        {"body": {"token": 1, "read_write_dns": 1, "status": {"hosts": {"host": 1}}}},
        LakebaseUnavailable,
    ),
    "slow": Failure({"delay_seconds": 60.0}, LakebaseTimeout),
    "hanging": Failure({"hang": True}, LakebaseTimeout),
    "hanging up": Failure({"drop": True}, LakebaseTimeout),
}
failures = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)

targets = pytest.mark.parametrize(
    "target", [DEFAULT_INSTANCE, DEFAULT_ENDPOINT], ids=["instance", "endpoint"]
)


@pytest.fixture(scope="module")
def database(local_for_run: LocalLakebase) -> Iterator[str]:
    """One for all: nothing is written."""
    name = "lakebase_sessions_test_control_plane"
    local_for_run.create_database(name, template=TEMPLATE)
    yield name
    local_for_run.drop_database(name)


def made(
    client: WorkspaceClient, database: str, failure: Failure, target: str = DEFAULT_INSTANCE
) -> Lakebase:
    return Lakebase(
        target,
        workspace_client=client,
        database=database,
        call_timeout_seconds=failure.call_timeout_seconds,
    )


async def fails(session: LakebaseSession, expected: type[Exception]) -> str:
    """The message of the error that a read ends with."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(expected) as caught:
            await session.get_items()
    assert caught.type is expected
    return str(caught.value)


async def recovers(session: LakebaseSession) -> None:
    """It may take another try, as long as a call that failed is on its way back."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                assert await session.get_items() == []
            except LakebaseUnavailable:
                continue
            return


@failures
@targets
async def test_opening(local: LocalLakebase, database: str, target: str, failure: Failure) -> None:
    """The Lakebase cannot be looked up."""
    lakebase = made(local.workspace_client(), database, failure, target)
    session = lakebase.session("s")
    path = f"/{target}" if "/" in target else f"/instances/{target}"
    with local.fault(path, **failure.fault) as fault:
        await fails(session, failure.error)
        assert 1 <= fault.hits <= MOST_CALLS
    await recovers(session)
    await lakebase.close()


@failures
@targets
async def test_renewing(local: LocalLakebase, database: str, target: str, failure: Failure) -> None:
    """The next connection meets it, and its error says what could not be had."""
    lakebase = made(local.workspace_client(), database, failure, target)
    session = lakebase.session("s")
    await recovers(session)
    end_token(local)
    drop_connections(local, database)
    with local.fault("/credentials", **failure.fault) as fault:
        assert "database token" in await fails(session, failure.error)
        assert 1 <= fault.hits <= MOST_CALLS
    await recovers(session)
    await lakebase.close()


# --- a service principal, which logs in with OAuth -----------------------------------------------


@pytest.fixture
def principal(local: LocalLakebase) -> WorkspaceClient:
    """Somebody whose OAuth token has to be fetched for every call."""
    oauth = f"{local.url}/oidc/v1"
    endpoints = {"authorization_endpoint": f"{oauth}/authorize", "token_endpoint": f"{oauth}/token"}
    token = {
        "access_token": local.environ["DATABRICKS_TOKEN"],
        "token_type": "Bearer",
        "expires_in": 0,
    }
    local.fault("/.well-known/oauth-authorization-server", body=endpoints)
    local.fault("/oidc/v1/token", body=token)
    return WorkspaceClient(host=local.url, client_id="app", client_secret="for-tests-only")


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (
            Failure({"status": 401, "body": {"error": "invalid_client"}}, PermissionDenied),
            "databricks auth describe",
        ),
        (Failure({"status": 503}, LakebaseUnavailable), "is failing"),
        (
            Failure(
                {"status": 502, "headers": {"Content-Type": "text/html"}, "body": "<html>"},
                LakebaseUnavailable,
            ),
            "is failing",
        ),
        (Failure({"body": "{not json"}, LakebaseUnavailable), "makes no sense"),
        (Failure({"drop": True}, LakebaseUnavailable), "cannot be reached"),
        (Failure({"hang": True}, LakebaseTimeout), "no database token within"),
    ],
    ids=["revoked", "503", "502, a page of HTML", "malformed JSON", "hanging up", "hanging"],
)
async def test_logging_in_again(
    local: LocalLakebase, database: str, principal: WorkspaceClient, failure: Failure, says: str
) -> None:
    """A login that runs out with the database token, and cannot be had again."""
    lakebase = made(principal, database, failure)
    session = lakebase.session("s")
    await recovers(session)
    end_token(local)
    drop_connections(local, database)
    with local.fault("/oidc/v1/token", **failure.fault):
        assert says in await fails(session, failure.error)
    await recovers(session)
    await lakebase.close()
