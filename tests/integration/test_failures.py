"""What a user meets when something is wrong: the class, the cause and the cure.

The first part is the troubleshooting table of the document this project comes from, row by row,
each provoked for real.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from agents import Agent, Runner
from conftest import admin

from lakebase_sessions import (
    ConfigurationError,
    Lakebase,
    LakebaseTimeout,
    LakebaseUnavailable,
    MissingConfiguration,
    PermissionDenied,
    TargetNotFound,
    session_for,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

HELLO: Any = {"role": "user", "content": "hello"}


def made(local: LocalLakebase, database: str, **options: Any) -> Lakebase:
    return Lakebase(
        options.pop("target", "local"),
        workspace_client=local.workspace_client(options.pop("user", None)),
        database=database,
        **options,
    )


# --- the seed's table --------------------------------------------------------------------------


def test_row_1_the_variable_is_required(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAKEBASE_INSTANCE_NAME")
    monkeypatch.delenv("PGHOST")
    with pytest.raises(MissingConfiguration) as caught:
        session_for(session_id="s")
    assert "LAKEBASE_INSTANCE_NAME environment variable is required" in str(caught.value)
    assert "Set it in .env" in str(caught.value)


async def test_row_2_the_connection_is_closed_unexpectedly(
    local: LocalLakebase, database: str
) -> None:
    """The server goes away under a write: the outcome is not guessed, and the check is named."""
    async with made(local, database) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        with admin(local, database) as other:
            other.autocommit = False
            other.execute("SELECT * FROM agent_sessions FOR UPDATE")  # the write has to wait
            writing = asyncio.create_task(session.add_items([HELLO]))
            await asyncio.sleep(0.2)
            with admin(local, "postgres") as killer:
                killer.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = %s AND wait_event_type = 'Lock'",
                    [database],
                )
            with pytest.raises(LakebaseUnavailable) as caught:
                await writing
            other.rollback()
        assert caught.value.outcome_unknown
        assert "connection to Lakebase 'local' broke" in str(caught.value)
        assert "databricks database get-database-instance local" in str(caught.value)
        assert "read the conversation before you send it again" in str(caught.value)
        assert await session.get_items() == [HELLO], "and the next call works"


async def test_row_3_the_agent_does_not_remember(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A request without its id begins a new conversation, and the log says what to do."""
    caplog.set_level(logging.INFO, "lakebase_sessions")
    agent = Agent(name="Assistant", model=OfflineModel())
    first = session_for({"input": []})
    await Runner.run(agent, "Hello, I live in SF!", session=first)
    question = "What city did I say I live in?"

    lost = await Runner.run(agent, question, session=session_for({"input": []}))
    assert lost.final_output == "I do not know: nothing I was told says so."
    assert "pass the same session_id in custom_inputs" in caplog.text

    request = {"input": [], "custom_inputs": {"session_id": first.session_id}}
    found = await Runner.run(agent, question, session=session_for(request))
    assert found.final_output == "You said that you live in SF."


async def test_row_4_unable_to_resolve_the_hostname(local: LocalLakebase, database: str) -> None:
    wrong = "instance-00000000-0000-0000-0000-000000000000.database.azuredatabricks.net"
    lakebase = made(local, database, target=wrong)
    with pytest.raises(TargetNotFound) as caught:
        await lakebase.session("s").get_items()
    assert f"Unable to resolve hostname '{wrong}'" in str(caught.value)
    assert "Verify the hostname, or use the instance name" in str(caught.value)
    await lakebase.close()


async def test_row_5_permission_denied_by_the_workspace(
    local: LocalLakebase, database: str
) -> None:
    lakebase = made(local, database)
    with local.fault("/credentials", status=403), pytest.raises(PermissionDenied) as caught:
        await lakebase.session("s").get_items()
    assert "database` (or `postgres`) resource" in str(caught.value)
    assert "CAN_CONNECT_AND_CREATE" in str(caught.value)
    assert "databricks.yml" in str(caught.value)
    await lakebase.close()


async def test_row_5_permission_denied_by_postgres(local: LocalLakebase, database: str) -> None:
    """The role is there, its rights are not: at connecting, and at the statement."""
    user = "guest@example.com"
    local.add_user(user)
    with admin(local, database) as connection:
        connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC, "{user}"')
    lakebase = made(local, database, user=user)
    with pytest.raises(PermissionDenied, match="CAN_CONNECT_AND_CREATE"):
        await lakebase.open()
    with admin(local, database) as connection:
        connection.execute(f'GRANT CONNECT ON DATABASE "{database}" TO "{user}"')
    with pytest.raises(PermissionDenied, match="CAN_CONNECT_AND_CREATE"):
        await lakebase.session("s").get_items()
    await lakebase.close()


# --- more of the same kind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "error", "says"),
    [
        ("/instances/local", 400, ConfigurationError, "read the Lakebase instance 'local'"),
        ("/instances/local", 501, LakebaseUnavailable, "tried again with the next request"),
        ("/instances/local", 504, LakebaseTimeout, "tried again with the next request"),
        ("/scim/v2/Me", 403, PermissionDenied, "who this is"),
        ("/credentials", 404, TargetNotFound, "get a database token"),
    ],
)
async def test_what_the_workspace_answers(
    local: LocalLakebase, database: str, path: str, status: int, error: Any, says: str
) -> None:
    lakebase = made(local, database, call_timeout_seconds=1)
    with local.fault(path, status=status), pytest.raises(error, match=says):
        await lakebase.session("s").get_items()
    assert await lakebase.session("s").get_items() == [], "recovers without a restart"
    await lakebase.close()


async def test_opening_is_bounded_as_a_whole(local: LocalLakebase, database: str) -> None:
    """Many slow answers, each within its own bound, end with the bound of the whole."""
    lakebase = made(local, database, call_timeout_seconds=5, open_timeout_seconds=1)
    with (
        local.fault(delay_seconds=0.8),
        pytest.raises(LakebaseTimeout, match="not open within 1 s"),
    ):
        await lakebase.session("s").get_items()
    await lakebase.close()


async def test_no_workspace_at_all(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A laptop without a login hears about the local Lakebase."""
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="lakebase-sessions local"):
        await session_for(session_id="s").get_items()


async def test_a_host_where_nobody_listens(local: LocalLakebase, database: str) -> None:
    local.add_instance("deaf", read_write_dns="127.0.0.254")
    lakebase = made(local, database, target="deaf", call_timeout_seconds=1)
    with pytest.raises(
        LakebaseUnavailable, match="databricks database get-database-instance deaf"
    ) as caught:
        await lakebase.session("s").add_items([HELLO])
    assert not caught.value.outcome_unknown, "it never got there"
    local.remove_instance("deaf")
    await lakebase.close()


async def test_a_database_that_is_not_there(local: LocalLakebase) -> None:
    lakebase = made(local, "no_such_database")
    with pytest.raises(TargetNotFound, match="no_such_database"):
        await lakebase.open()
    await lakebase.close()


async def test_a_pool_that_is_too_small(local: LocalLakebase, database: str) -> None:
    lakebase = made(local, database, pool_size=1, max_overflow=0, call_timeout_seconds=1)
    session = lakebase.session("s")
    await session.get_items()
    async with session.engine.connect():
        with pytest.raises(LakebaseTimeout, match="pool_size"):
            await session.get_items()
    assert await session.get_items() == []
    await lakebase.close()


async def test_connections_killed_while_idle_reach_nobody(
    local: LocalLakebase, database: str
) -> None:
    """Scale-to-zero, a restart: reads and writes go on as if nothing had been."""
    async with made(local, database) as lakebase:
        session = lakebase.session("s")
        for number in range(10):
            await asyncio.gather(*(lakebase.session("warm").get_items() for _ in range(5)))
            with admin(local, "postgres") as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = %s",
                    [database],
                )
            await session.add_items([HELLO])
            assert len(await session.get_items()) == number + 1


async def test_a_read_that_breaks_is_repeated(local: LocalLakebase, database: str) -> None:
    async with made(local, database) as lakebase:
        session = lakebase.session("s")
        await session.add_items([HELLO])
        with admin(local, database) as other:
            other.autocommit = False
            other.execute("LOCK TABLE agent_messages")
            reading = asyncio.create_task(session.get_items())
            await asyncio.sleep(0.2)
            with admin(local, "postgres") as killer:
                killer.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = %s AND wait_event_type = 'Lock'",
                    [database],
                )
            await asyncio.sleep(0.2)
            other.rollback()
        assert await reading == [HELLO]
