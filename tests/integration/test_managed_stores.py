"""To and from managed session stores, by the SDK's own client, in a local workspace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from conftest import admin

from lakebase_sessions.cli import main
from lakebase_sessions.local import LocalLakebase

pytestmark = pytest.mark.long

STORE = "session-stores/support"


@pytest.fixture
def sql(
    local: LocalLakebase, database: str, environ: dict[str, str]
) -> Iterator[psycopg.Connection[Any]]:
    with admin(local, database) as connection:
        yield connection


@pytest.fixture
def kit(local: LocalLakebase) -> Any:
    """`w.agent_kit`, with one empty store."""
    agentkit = pytest.importorskip("databricks.sdk.service.agentkit")
    kit: Any = local.workspace_client().agent_kit
    if not list(kit.list_session_stores()):
        kit.create_session_store(agentkit.SessionStore(), "support")
    for session in list(kit.list_sessions(STORE)):
        kit.delete_session(session.name)
    return kit


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def store(sql: psycopg.Connection[Any], session_id: str, count: int) -> list[Any]:
    items = [{"role": "user", "content": f"{n} \0 é"} for n in range(count)]
    sql.execute("INSERT INTO agent_sessions VALUES (%s)", [session_id])
    with sql.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
            [(session_id, json.dumps(item)) for item in items],
        )
    return items


def read(sql: psycopg.Connection[Any], session_id: str) -> list[Any]:
    rows = sql.execute(
        "SELECT message_data FROM agent_messages WHERE session_id = %s ORDER BY created_at, id",
        [session_id],
    ).fetchall()
    return [json.loads(row) for (row,) in rows]


def test_there_and_back(sql: psycopg.Connection[Any], kit: Any) -> None:
    items = store(sql, "mia%40example.com:trip-7", 250)
    sql.execute(
        "INSERT INTO agent_conversations VALUES (%s, 'Seattle', '{\"a\": \"b\"}')",
        ["mia%40example.com:trip-7"],
    )
    store(sql, "plain", 1)
    assert "Stored 2 sessions" in run("export", STORE).stderr
    session = kit.get_session(f"{STORE}/sessions/trip-7")
    assert session.actor_id == "mia@example.com"
    assert session.metadata == {"a": "b", "title": "Seattle"}
    sent = kit.list_session_items(session.name, order_by="create_time asc", page_size=100)
    assert [item.data for item in sent] == items
    sql.execute("DELETE FROM agent_sessions")
    told = json.loads(run("load", STORE, "-o", "json").stdout)
    assert told == {"conversations": 2, "items": 251}
    assert read(sql, "mia%40example.com:trip-7") == items
    assert len(read(sql, "plain")) == 1
    assert sql.execute("SELECT title, metadata FROM agent_conversations").fetchall() == [
        ("Seattle", {"a": "b"})
    ]


def test_a_session_that_is_there_stays(sql: psycopg.Connection[Any], kit: Any) -> None:
    store(sql, "a", 1)
    run("export", STORE)
    store(sql, "b", 1)
    assert "session 'a'" in run("export", STORE, code=1).stderr
    run("export", STORE, "--yes")
    assert len(list(kit.list_sessions(STORE))) == 2
    run("load", STORE, code=1)
    run("load", STORE, "--replace", "--yes")


def test_what_fails_halfway_leaves_no_session(
    sql: psycopg.Connection[Any], kit: Any, local: LocalLakebase
) -> None:
    store(sql, "a", 1)
    with local.fault("items:append", status=403):
        run("export", STORE, code=1)
    assert list(kit.list_sessions(STORE)) == []


@pytest.mark.parametrize("name", ["session-stores/gone", "session-stores/../x", "session-stores/"])
def test_no_such_store(sql: psycopg.Connection[Any], kit: Any, name: str) -> None:
    store(sql, "a", 1)
    run("load", name, code=1)
    run("export", name, code=1)


@pytest.mark.parametrize("session_id", ["a/../../token", "..", "mia:a b", "a?x"])
def test_an_id_that_would_lead_elsewhere(
    sql: psycopg.Connection[Any], kit: Any, session_id: str
) -> None:
    store(sql, session_id, 1)
    assert "cannot name a managed session" in run("export", STORE, code=1).stderr


def test_an_sdk_that_is_too_old(
    sql: psycopg.Connection[Any], kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from databricks.sdk import WorkspaceClient

    monkeypatch.delattr(WorkspaceClient, "agent_kit")
    assert "databricks-sdk>=0.162" in run("load", STORE, code=1).stderr
