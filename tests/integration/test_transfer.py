"""Export and load: what was stored comes back, byte for byte, or not at all."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import psycopg
import pytest
from conftest import admin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from security.strategies import any_text, json_objects, texts

from lakebase_sessions import (
    ConversationExists,
    ConversationNotFound,
    InvalidExport,
    InvalidSessionId,
    Lakebase,
    TablesMissing,
    export_conversations,
    load_conversations,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.transfer.lines import HEADER

pytestmark = pytest.mark.long

CORRUPT = [
    "",
    "no JSON",
    '{"role": "user",\n "content": "two lines"}',
    '{"a":1}\r\n',
    ' {"blanks": [ 1,2 ]} ',
    '{"same":1,"same":2}',
    '{"not a number":NaN}',
    '{"huge":1e999,"digits":' + "9" * 5000 + "}",
    '{"role":"user","content":"\\u0000 \\ud800 \\\\u0000"}',
    '{"role":"user","content":"é \u2028 \u202e 日本 \x7f\x9b"}',
    '"a string"',
    "null",
    "[" * 500 + "]" * 500,
    '{"a":1},"item":{"b":2}',
    '{"a":1}}',
]


@pytest.fixture
async def elsewhere(local: LocalLakebase, lakebase_template: str) -> AsyncIterator[Lakebase]:
    """Another database with the tables."""
    local.create_database("elsewhere", template=lakebase_template)
    client = local.workspace_client()
    async with Lakebase("local", workspace_client=client, database="elsewhere") as lakebase:
        yield lakebase
    local.drop_database("elsewhere")


@pytest.fixture
def sql(local: LocalLakebase, database: str) -> Iterator[psycopg.Connection[Any]]:
    with admin(local, database) as connection:
        yield connection


async def exported(lakebase: Lakebase, **options: Any) -> bytes:
    return b"".join([line async for line in export_conversations(lakebase, **options)])


async def load(lakebase: Lakebase, source: bytes | Iterable[bytes], **options: Any) -> int:
    pieces = [source] if isinstance(source, bytes) else source
    loaded = 0
    async for progress in load_conversations(lakebase, pieces, **options):
        loaded = progress.conversations
    return loaded


def store_raw(sql: psycopg.Connection[Any], session_id: str, rows: list[str]) -> None:
    sql.execute("INSERT INTO agent_sessions VALUES (%s)", [session_id])
    with sql.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
            [(session_id, row) for row in rows],
        )


def fill(sql: psycopg.Connection[Any]) -> None:
    """A conversation with everything: title, branches that hang on branches, turns of all kinds."""
    store_raw(sql, "other", ['{"role":"user","content":"in between"}'])
    store_raw(sql, "s", [f'{{"n":{n}}}' for n in range(6)])
    [ids] = zip(
        *sql.execute("SELECT id FROM agent_messages WHERE session_id = 's' ORDER BY id").fetchall(),
        strict=True,
    )
    sql.execute(
        "INSERT INTO agent_conversations VALUES ('s', %s, %s, 'mother', 3)",
        ["A \x1b[31mtitle\u202e", json.dumps({"ü": "1", "b": 'x"\\'})],
    )
    sql.execute("UPDATE agent_sessions SET created_at = '1999-12-31 23:59:59.000001'")
    branches = [
        row[0]
        for row in sql.execute(
            "INSERT INTO agent_branches (session_id, after_item) "
            "VALUES ('s', %s), ('s', %s), ('s', NULL), ('s', 0) RETURNING id",
            [ids[3], ids[1]],
        )
    ]
    for branch, item in zip((1, 1, 0), (ids[2], ids[3], ids[5]), strict=True):
        sql.execute(
            "WITH item AS (DELETE FROM agent_messages WHERE id = %s RETURNING *) "
            "INSERT INTO agent_branch_items SELECT %s, id, message_data, created_at FROM item",
            [item, branches[branch]],
        )
    turns = [
        ("t0", None, 1, ids[0], ids[1], "completed", "m", "tr-1", '{"m": {"requests": 1}}', None),
        ("t1", branches[1], 2, ids[2], ids[3], "failed", None, None, "{}", None),
        ("t2", None, 2, ids[4], ids[4], "waiting", None, None, "{}", '{"state": "\\u0000"}'),
        ("t3", None, None, None, None, "completed", None, None, '{"m": {"requests": 2}}', None),
        ("gone", None, 7, ids[5] + 90, ids[5] + 91, "completed", None, None, "{}", None),
        ("half", branches[0], 8, ids[5] - 1, ids[5] + 91, "completed", None, None, "{}", None),
    ]
    for turn in turns:
        sql.execute(
            "INSERT INTO agent_turns (response_id, branch_id, number, first_item, last_item, "
            "status, model, trace_id, usage, state, session_id) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 's')",
            turn,
        )


async def test_export_load_export_gives_the_same_bytes(
    lakebase: Lakebase, elsewhere: Lakebase, conversations: list[dict[str, Any]]
) -> None:
    for conversation in conversations:
        session = lakebase.session(conversation["id"], user="mia@example.com")
        async with session.turn() as turn:
            await turn.add_items(conversation["items"])
    first = await exported(lakebase)
    assert await load(elsewhere, first) == len(conversations)
    assert await exported(elsewhere) == first
    again = elsewhere.session(conversations[0]["id"], user="mia@example.com")
    assert await again.get_items() == conversations[0]["items"]


async def test_everything_that_belongs_to_a_conversation(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any]
) -> None:
    fill(sql)
    first = await exported(lakebase)
    await load(elsewhere, first)
    assert await exported(elsewhere) == first
    await load(elsewhere, first, replace=True)
    assert await exported(elsewhere) == first
    [head] = [json.loads(line) for line in first.splitlines() if b'"mother"' in line]
    assert (head["items"], head["branches"], head["turns"]) == (6, 4, 6)
    assert head["created_at"].endswith("59.000001Z")


async def test_turns_and_branches_refer_to_the_same_items(
    lakebase: Lakebase,
    elsewhere: Lakebase,
    sql: psycopg.Connection[Any],
    local: LocalLakebase,
) -> None:
    fill(sql)
    await load(elsewhere, await exported(lakebase))
    query = """
        SELECT response_id, status, first.message_data, last.message_data, after.message_data
        FROM agent_turns AS turn
        LEFT JOIN agent_branches AS branch ON branch.id = turn.branch_id
        LEFT JOIN (
            SELECT id, message_data FROM agent_messages
            UNION SELECT id, message_data FROM agent_branch_items
        ) AS first ON first.id = turn.first_item
        LEFT JOIN (
            SELECT id, message_data FROM agent_messages
            UNION SELECT id, message_data FROM agent_branch_items
        ) AS last ON last.id = turn.last_item
        LEFT JOIN (
            SELECT id, message_data FROM agent_messages
            UNION SELECT id, message_data FROM agent_branch_items
        ) AS after ON after.id = branch.after_item
        WHERE response_id LIKE 't%' ORDER BY response_id
    """
    with admin(local, "elsewhere") as there:
        assert there.execute(query).fetchall() == sql.execute(query).fetchall()


async def test_rows_are_kept_as_they_are(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any], local: LocalLakebase
) -> None:
    store_raw(sql, "s", CORRUPT)
    first = await exported(lakebase)
    await load(elsewhere, first)
    with admin(local, "elsewhere") as there:
        rows = there.execute("SELECT message_data FROM agent_messages ORDER BY id").fetchall()
    assert [row for (row,) in rows] == CORRUPT
    assert await exported(elsewhere) == first
    for line in first.splitlines():
        json.loads(line)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_file_in_pieces_of_any_size(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any], size: int
) -> None:
    fill(sql)
    first = await exported(lakebase)
    await load(elsewhere, [first[at : at + size] for at in range(0, len(first), size)])
    assert await exported(elsewhere) == first


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_whatever_is_stored_comes_back(
    data: st.DataObject, lakebase: Lakebase, elsewhere: Lakebase
) -> None:
    stored = st.dictionaries(
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=9),
        st.lists(json_objects, min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    )
    conversations = data.draw(stored)
    for session_id, items in conversations.items():
        session = lakebase.session(session_id)
        await session.clear_session()
        async with session.turn() as turn:
            await turn.add_items(items)  # type: ignore[arg-type]
    first = await exported(lakebase)
    await load(elsewhere, first, replace=True)
    ids = list(conversations)
    assert await exported(elsewhere, session_ids=ids) == await exported(lakebase, session_ids=ids)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(any_text | texts, max_size=5))
async def test_any_text_comes_back(
    rows: list[str], lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any]
) -> None:
    storable = [row for row in rows if not re.search("[\0\ud800-\udfff]", row)]
    sql.execute("DELETE FROM agent_sessions WHERE session_id = 's'")
    store_raw(sql, "s", storable)
    first = await exported(lakebase)
    await load(elsewhere, first, replace=True)
    assert await exported(elsewhere) == first


async def test_a_long_conversation_takes_little_memory(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any]
) -> None:
    """50 MB, of which a fraction is held at a time, on the way out and on the way in."""
    sql.execute("INSERT INTO agent_sessions VALUES ('long')")
    sql.execute(
        "INSERT INTO agent_messages (session_id, message_data) "
        "SELECT 'long', json_build_object('role', 'user', 'content', repeat(md5(n::text), 312)) "
        "FROM generate_series(1, 5000) AS n"
    )
    size = 0

    async def passed_on() -> AsyncIterator[bytes]:
        nonlocal size
        async for line in export_conversations(lakebase):
            size += len(line)
            yield line

    await lakebase.open()
    tracemalloc.start()
    async for _ in load_conversations(elsewhere, passed_on()):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 50_000_000
    assert peak < 15_000_000, peak


async def test_some_conversations_or_one_users(lakebase: Lakebase) -> None:
    for user in ("mia", "mia2", None):
        for session_id in ("a", "b"):
            await lakebase.session(session_id, user=user).add_items([{"role": "user"}])  # type: ignore[list-item]
    assert b'"conversations":6}' in await exported(lakebase)
    one_users = await exported(lakebase, user="mia")
    assert one_users.count(b'{"conversation":"mia:') == 2
    assert one_users.count(b'"conversation":') == 2
    assert (await exported(lakebase, session_ids=["mia2:a", "b"])).count(b'"conversation":') == 2
    with pytest.raises(ConversationNotFound, match="'gone'"):
        await exported(lakebase, session_ids=["a", "gone"])
    with pytest.raises(ConversationNotFound, match="of this user"):
        await exported(lakebase, session_ids=["mia2:a"], user="mia")


async def test_pages_follow_each_other(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("INSERT INTO agent_sessions SELECT 's' || n FROM generate_series(1, 1001) AS n")
    sql.execute(
        "INSERT INTO agent_messages (session_id, message_data) "
        "SELECT 's' || n, n::text FROM generate_series(1, 1001) AS n"
    )
    first = await exported(lakebase)
    assert await load(elsewhere, first) == 1001
    assert await exported(elsewhere) == first


async def test_an_existing_conversation_is_not_overwritten(lakebase: Lakebase) -> None:
    session = lakebase.session("s")
    await session.add_items([{"role": "user", "content": "old"}])
    old = await exported(lakebase)
    await session.add_items([{"role": "user", "content": "new"}])
    with pytest.raises(ConversationExists, match=r"'s' is there already.*Nothing was loaded"):
        await load(lakebase, old)
    assert len(await session.get_items()) == 2
    await load(lakebase, old, replace=True)
    assert await session.get_items() == [{"role": "user", "content": "old"}]
    assert await exported(lakebase) == old


async def test_into_a_users_scope(lakebase: Lakebase, elsewhere: Lakebase) -> None:
    for user in (None, "mia"):
        await lakebase.session("a", user=user).add_items([{"role": "user", "content": str(user)}])
    source = await exported(lakebase, session_ids=["a"])
    await load(elsewhere, source, user="mia")
    scoped = await exported(lakebase, user="mia")
    with pytest.raises(ConversationExists):
        await load(elsewhere, scoped, user="mia")
    await load(elsewhere, scoped, user="mia", replace=True)
    await load(elsewhere, scoped, user="bob")
    assert len(await elsewhere.session("mia:a", user="bob").get_items()) == 1
    assert len(await elsewhere.session("a", user="mia").get_items()) == 1
    long = source.replace(b'"a"', b'"' + b"x" * 254 + b'"')
    with pytest.raises(InvalidSessionId):
        await load(elsewhere, long, user="mia")


@pytest.mark.parametrize("lines_missing", [1, 2, 3, 5])
async def test_a_file_that_was_cut_off(
    lakebase: Lakebase, elsewhere: Lakebase, sql: psycopg.Connection[Any], lines_missing: int
) -> None:
    fill(sql)
    lines = (await exported(lakebase, session_ids=["s"])).splitlines(keepends=True)
    with pytest.raises(InvalidExport, match="Nothing was loaded"):
        await load(elsewhere, lines[:-lines_missing])
    with pytest.raises(InvalidExport, match="Nothing was loaded"):
        await load(elsewhere, b"".join(lines)[:-20])
    assert (await exported(elsewhere)).count(b"\n") == 2


HEAD = {
    "conversation": "s",
    "created_at": "2026-11-25T08:30:00.000000Z",
    "updated_at": "2026-11-25T08:30:00Z",
}
AT = HEAD["created_at"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["nothing"],
        ["[1]"],
        ["{}"],
        [{"conversation": 7}],
        [{**HEAD, "title": 7}],
        [{**HEAD, "title": "\0"}],
        [{**HEAD, "metadata": {"a": ["\ud800"]}}],
        [{**HEAD, "created_at": "yesterday"}],
        [{**HEAD, "conversation": "\ud800"}],
        [{**HEAD, "items": True}],
        [HEAD, {"at": AT, "text": "\0"}],
        [HEAD, {"at": AT, "text": 7}],
        [HEAD, {"at": AT, "branch": 1, "item": {}}],
        [HEAD, {"at": 'a","item":1', "item": {}}],
        [HEAD, {"turn": "r", "created_at": AT, "status": "completed", "first": 1}],
        [HEAD, {"turn": "r", "created_at": AT, "status": "completed", "branch": 1}],
        [HEAD, {"turn": "r", "created_at": AT}],
        [HEAD, {"branch": 1, "created_at": AT, "after": 2}, {"at": AT, "item": {}}],
        [{"at": AT, "item": {}}],
        [{**HEAD, "items": 2}, {"at": AT, "item": {}}],
        [{"format": "lakebase-sessions", "version": 2}],
        [HEAD, {"conversations": 2}],
    ],
    ids=str,
)
async def test_what_is_no_export(lakebase: Lakebase, lines: list[Any]) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file = HEADER + "\n".join([*texts, '{"conversations":1}']).encode()
    with pytest.raises(InvalidExport) as caught:
        await load(lakebase, file)
    assert str(caught.value).endswith("Nothing was loaded.")
    assert (await exported(lakebase)).count(b"\n") == 2
    with pytest.raises(InvalidExport):
        await load(lakebase, "\n".join(texts).encode())


async def test_lines_that_somebody_else_wrote(lakebase: Lakebase) -> None:
    """Other order, blanks, a line break of Windows, no counts, an item in another notation."""
    file = b"\r\n".join(
        [
            b'{"version": 1, "format": "lakebase-sessions"}',
            b"",
            json.dumps(HEAD).encode(),
            b'{"item": {"role": "user", "content": "\\u00e9"}, "at": "2026-11-25T09:30:00+01:00"}',
            '{"at":"2026-11-25T08:30:00Z","item":{"role":"user", "x":"é"},"more":1}'.encode(),
            b'{"conversations": 1}',
        ]
    )
    await load(lakebase, file)
    assert await lakebase.session("s").get_items() == [
        {"role": "user", "content": "é"},
        {"role": "user", "x": "é"},
    ]


async def test_without_tables_of_our_own(
    local: LocalLakebase, empty_database: str, lakebase: Lakebase, sql: psycopg.Connection[Any]
) -> None:
    await lakebase.session("plain").add_items([{"role": "user", "content": "hello"}])
    fill(sql)
    plain = await exported(lakebase, session_ids=["plain"])
    client = local.workspace_client()
    async with Lakebase("local", workspace_client=client, database=empty_database):
        pass
    with admin(local, empty_database) as connection:
        connection.execute(
            "DROP TABLE agent_turns, agent_branch_items, agent_branches, agent_conversations"
        )
    async with Lakebase(
        "local", workspace_client=client, database=empty_database, create_tables=False
    ) as upstreams:
        await load(upstreams, plain)
        assert await exported(upstreams) == plain
        with pytest.raises(TablesMissing, match="lakebase-sessions init"):
            await load(upstreams, await exported(lakebase, session_ids=["s"]))
        assert await exported(upstreams) == plain


async def test_a_conversation_is_exported_as_of_one_moment(lakebase: Lakebase) -> None:
    """Whoever writes, or deletes it, while it is read is not seen."""
    session = lakebase.session("s")
    await session.add_items([{"role": "user", "content": str(n)} for n in range(2000)])
    seen: list[bytes] = []
    async for line in export_conversations(lakebase):
        if len(seen) == 10:
            await session.clear_session()
        seen.append(line)
    assert len(seen) == 2003
