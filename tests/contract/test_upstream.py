"""The same tables in the same format: rows of either class are read by the other."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions import Lakebase, LakebaseSession
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres.indexes import LISTING

pytestmark = pytest.mark.upstream_logs


def numbered(count: int, start: int = 0) -> list[Any]:
    return [{"role": "user", "content": f"message {n} ü"} for n in range(start, start + count)]


async def test_real_conversations_both_ways(
    lakebase: Lakebase, upstream: AsyncDatabricksSession, conversations: list[dict[str, Any]]
) -> None:
    """All 50 conversations: written by ours, read by upstream, and the other way round."""
    for conversation in conversations:
        items = conversation["items"]
        upstream.session_id = conversation["id"]
        await lakebase.session(conversation["id"]).add_items(items)
        assert await upstream.get_items() == items

        upstream.session_id = f"{conversation['id']}-upstream"
        await upstream.add_items(items)
        assert await lakebase.session(upstream.session_id).get_items() == items


async def test_every_operation_takes_turns(
    lakebase: Lakebase, upstream: AsyncDatabricksSession
) -> None:
    """Writers and readers of either kind on one conversation."""
    ours = lakebase.session("s")
    await upstream.add_items(numbered(2))
    await ours.add_items(numbered(2, start=2))
    await upstream.add_items(numbered(2, start=4))
    assert await ours.get_items() == await upstream.get_items() == numbered(6)
    for limit in (0, 1, 4, 10):
        assert await ours.get_items(limit=limit) == await upstream.get_items(limit=limit)
    assert await ours.pop_item() == numbered(6)[5]
    assert await upstream.pop_item() == numbered(6)[4]
    await ours.clear_session()
    assert await upstream.get_items() == []
    await ours.add_items(numbered(1))
    await upstream.clear_session()
    assert await ours.get_items() == []


async def test_the_stored_rows_are_alike(
    lakebase: Lakebase,
    upstream: AsyncDatabricksSession,
    local: LocalLakebase,
    database: str,
    conversations: list[dict[str, Any]],
) -> None:
    """Byte for byte, but for ids and times."""
    items = conversations[0]["items"]
    await lakebase.session("ours").add_items(items)
    upstream.session_id = "theirs"
    await upstream.add_items(items)
    query = "SELECT message_data FROM agent_messages WHERE session_id = %s ORDER BY id"
    with admin(local, database) as connection:
        ours = connection.execute(query, ["ours"]).fetchall()
        theirs = connection.execute(query, ["theirs"]).fetchall()
    assert ours == theirs


@pytest.mark.parametrize("schema", [None, "memory"])
async def test_the_tables_are_alike(
    local: LocalLakebase, empty_database: str, schema: str | None
) -> None:
    """Ours in one database, upstream's in another: the catalogs differ by our indexes alone."""
    client = local.workspace_client()
    async with Lakebase(
        "local", workspace_client=client, database=empty_database, schema=schema
    ) as lakebase:
        await lakebase.session("s").add_items(numbered(1))
    other = f"{empty_database}_upstream"
    local.create_database(other)
    session = AsyncDatabricksSession(
        "s",
        instance_name="local",
        workspace_client=client,
        database=other,
        schema=schema,
        use_cached_engine=False,
    )
    await session.add_items(numbered(1))
    await session.engine.dispose()
    added = {index.name for index in LISTING}
    ours = [each for each in catalog(local, empty_database) if each[1] not in added]
    theirs = catalog(local, other)
    local.drop_database(other)
    assert ours == theirs
    assert len(ours) > 10


def catalog(local: LocalLakebase, database: str) -> list[tuple[Any, ...]]:
    """Columns, constraints and indexes of the session tables."""
    with admin(local, database) as connection:
        return [
            *connection.execute(
                "SELECT table_schema, table_name, column_name, data_type, column_default, "
                "is_nullable, character_maximum_length FROM information_schema.columns "
                "WHERE table_name IN ('agent_sessions', 'agent_messages') "
                "ORDER BY 1, 2, ordinal_position"
            ).fetchall(),
            *connection.execute(
                "SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE conrelid::regclass::text ~ '(^|\\.)agent_(sessions|messages)$' ORDER BY 1"
            ).fetchall(),
            *connection.execute(
                "SELECT schemaname, indexname, indexdef FROM pg_indexes "
                "WHERE tablename IN ('agent_sessions', 'agent_messages') ORDER BY 1, 2"
            ).fetchall(),
        ]


async def test_what_upstream_sets_up_is_there(
    lakebase: Lakebase, upstream: AsyncDatabricksSession
) -> None:
    """A session in use has every attribute that upstream's constructor gives one."""
    ours = lakebase.session("s")
    await ours.get_items()
    assert [name for name in vars(upstream) if not hasattr(ours, name)] == []


def test_the_signatures_are_upstreams() -> None:
    for name in ("get_items", "add_items", "pop_item", "clear_session"):
        ours = inspect.signature(getattr(LakebaseSession, name))
        theirs = inspect.signature(getattr(AsyncDatabricksSession, name))
        # The Agents SDK hands the run's context to who names it; upstream does not.
        *shared, wrapper = ours.parameters.values()
        assert (wrapper.name, wrapper.kind) == ("wrapper", inspect.Parameter.KEYWORD_ONLY)
        assert ours.replace(parameters=shared) == theirs
