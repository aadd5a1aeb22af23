"""The store: what is listed, in which order, page by page; described, counted, deleted."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession
from proxy import Proxy

from lakebase_sessions import (
    Conversation,
    ConversationNotFound,
    InvalidMetadata,
    InvalidQuery,
    InvalidSessionId,
    InvalidUser,
    Lakebase,
    TablesMissing,
)
from lakebase_sessions.conversation.listing import Cursor
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import listing


def said(role: str, content: Any) -> Any:
    return {"role": role, "content": content}


async def ids(lakebase: Lakebase, **filters: Any) -> list[str]:
    return [conversation.session_id async for conversation in lakebase.store.list(**filters)]


async def begun(lakebase: Lakebase, *session_ids: str, user: str | None = None) -> None:
    for session_id in session_ids:
        await lakebase.session(session_id, user=user).add_items(
            [said("user", f"I am {session_id}")]
        )


async def test_a_conversation_as_it_is_listed(lakebase: Lakebase) -> None:
    session = lakebase.session("trip", user="mia@example.com")
    before = datetime.now(UTC) - timedelta(minutes=1)
    await session.add_items([said("user", "  How is\nthe weather? "), said("assistant", "Sunny.")])
    (found,) = [each async for each in lakebase.store.list(user="mia@example.com")]
    assert found == Conversation(
        session_id=session.session_id,
        title="How is the weather?",
        titled=False,
        preview="How is the weather?",
        metadata={},
        created_at=found.created_at,
        updated_at=found.updated_at,
        items=2,
        turns=1,
        forked_from=None,
    )
    assert before < found.created_at <= found.updated_at < before + timedelta(minutes=3)
    assert await lakebase.store.get("trip", user="mia@example.com") == found
    assert await lakebase.store.get(session.session_id) == found


async def test_the_latest_used_come_first_or_the_latest_begun(lakebase: Lakebase) -> None:
    await begun(lakebase, "a", "b", "c", "a")
    assert await ids(lakebase) == ["a", "c", "b"]
    assert await ids(lakebase, order="created") == ["c", "b", "a"]


@pytest.mark.parametrize("order", ["updated", "created"])
@pytest.mark.parametrize("user", [None, "mia"])
@pytest.mark.parametrize("metadata", [None, {"kind": "even"}, {"kind": "rare"}])
async def test_pages_are_the_list_in_pieces(
    lakebase: Lakebase,
    order: Any,
    user: str | None,
    metadata: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the statement looks through before it ends."""
    monkeypatch.setattr(listing, "FEW", 4)
    monkeypatch.setattr(listing, "PASSED", 5)
    listing.page_of.cache_clear()
    try:
        for number in range(23):
            owner = "mia" if number % 3 else "ben"
            await begun(lakebase, f"{number:02}", user=owner)
            kind = "even" if number % 2 == 0 else "rare" if number in (5, 11) else "odd"
            await lakebase.store.update(f"{number:02}", user=owner, metadata={"kind": kind})
        wanted = [
            number
            for number in range(22, -1, -1)
            if (user is None or number % 3)
            and (metadata is None or number in ((5, 11) if metadata["kind"] == "rare" else ()))
            | (metadata == {"kind": "even"} and number % 2 == 0)
        ]
        filters: Any = {"user": user, "order": order, "metadata": metadata}
        paged: list[Conversation] = []
        after = None
        for _ in range(40):
            page = await lakebase.store.page(limit=3, after=after, **filters)
            assert len(page.conversations) <= 3
            paged += page.conversations
            after = page.next
            if after is None:
                break
        assert [int(each.session_id.partition(":")[2]) for each in paged] == wanted
        assert [each async for each in lakebase.store.list(**filters)] == paged
        assert await lakebase.store.count(user=user, metadata=metadata) == len(wanted)
    finally:
        listing.page_of.cache_clear()


async def test_conversations_of_one_moment_are_listed_once_each(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, *"abcdefg")
    with admin(local, database) as connection:
        connection.execute("UPDATE agent_sessions SET updated_at = now(), created_at = now()")
    for order in ("updated", "created"):
        found, after = [], None
        while True:
            page = await lakebase.store.page(order=order, limit=2, after=after)
            found += [each.session_id for each in page.conversations]
            if (after := page.next) is None:
                break
        assert found == list("gfedcba")


async def test_a_list_may_be_bounded(lakebase: Lakebase) -> None:
    await begun(lakebase, "a", "b", "c")
    assert await ids(lakebase, limit=2) == ["c", "b"]
    assert await ids(lakebase, limit=0) == []
    first = await lakebase.store.page(limit=1)
    assert await ids(lakebase, after=first.next) == ["b", "a"]


async def test_a_walk_by_creation_meets_all_that_were_there(lakebase: Lakebase) -> None:
    """Also what is used meanwhile."""
    await begun(lakebase, *(f"{number}" for number in range(120)))
    met = []
    async for conversation in lakebase.store.list(order="created"):
        met.append(conversation.session_id)
        if len(met) == 50:
            await begun(lakebase, "0", "1", "80", "new")
    assert met == [f"{number}" for number in range(119, -1, -1)]


async def test_by_when_they_were_used(lakebase: Lakebase) -> None:
    await begun(lakebase, "a", "b", "c")
    times = {each.session_id: each.updated_at async for each in lakebase.store.list()}
    assert await ids(lakebase, updated_since=times["b"]) == ["c", "b"]
    assert await ids(lakebase, updated_before=times["b"]) == ["a"]
    assert await lakebase.store.count(updated_since=times["b"], updated_before=times["c"]) == 1
    naive = times["c"].astimezone().replace(tzinfo=None)
    assert await ids(lakebase, updated_since=naive) == ["c"]


async def test_turns_are_counted_as_the_session_counts_them(lakebase: Lakebase) -> None:
    """With and without their records, after pops and rewinds."""
    session = lakebase.session("s")

    async def counted() -> int:
        found = await lakebase.store.get("s")
        assert found.turns == len(await session.turns())
        assert found.items == len(await session.get_items())
        return found.turns

    await session.add_items([said("user", "1"), said("user", "1"), said("assistant", "1")])
    assert await counted() == 1
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items([said("user", "2"), said("assistant", "2"), said("user", "2")])
    assert await counted() == 2
    await session.add_items([said("user", "3"), said("assistant", "3")])
    assert await counted() == 2
    await session.add_items([said("user", "3"), said("assistant", "3")])
    assert await counted() == 3
    await session.pop_item()
    await session.pop_item()
    assert await counted() == 2
    await session.rewind(before_turn=2)
    assert await counted() == 1


@pytest.mark.parametrize(
    ("content", "preview"),
    [
        ("é 世界 🌍 \x00 \ud800 \\u0000 \\", "é 世界 🌍 � � \\u0000 \\"),
        ([{"type": "input_text", "text": "a"}, {"type": "input_image"}], "a"),
        ([], ""),
        (7, ""),
        ("word " * 100, "word " * 15 + "word…"),
        ("天" * 100, "天" * 79 + "…"),
        ("x" * 100_000, "x" * 79 + "…"),
    ],
)
async def test_the_preview_is_the_first_words_of_the_user(
    lakebase: Lakebase, content: Any, preview: str
) -> None:
    await lakebase.session("s").add_items([said("assistant", "no"), said("user", content)])
    assert (await lakebase.store.get("s")).preview == preview


async def test_rows_that_are_no_items_do_no_harm(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, "s")
    with admin(local, database) as connection:
        for row in ('{"role": "user"', '["user"]', "", '"user"', '{"role":{"user":"user"}}'):
            connection.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES ('s', %s)", [row]
            )
    found = await lakebase.store.get("s")
    assert (found.items, found.turns, found.preview) == (6, 1, "I am s")


async def test_a_title_and_metadata(lakebase: Lakebase) -> None:
    await begun(lakebase, "s", "t")
    used = (await lakebase.store.get("s")).updated_at
    assert (await lakebase.store.update("s", title=" A trip ")).title == "A trip"
    found = await lakebase.store.update("s", metadata={"topic": "é", "b": ""})
    assert (found.title, found.titled, found.metadata) == ("A trip", True, {"topic": "é", "b": ""})
    assert found == await lakebase.store.get("s")
    assert found.updated_at == used
    assert await ids(lakebase) == ["t", "s"]
    assert await ids(lakebase, metadata={"topic": "é"}) == ["s"]
    assert await ids(lakebase, metadata={"topic": "é", "b": "c"}) == []
    found = await lakebase.store.update("s", title=None, metadata={"b": "c"})
    assert (found.title, found.titled, found.metadata) == ("I am s", False, {"b": "c"})
    assert (await lakebase.store.update("s", metadata=None)).metadata == {}
    assert await lakebase.store.update("s") == await lakebase.store.get("s")


@pytest.mark.parametrize(
    "described",
    [
        {"title": ""},
        {"title": " "},
        {"title": "a" * 201},
        {"title": "\x00"},
        {"title": "\ud800"},
        {"title": 7},
        {"metadata": {f"{number}": "" for number in range(17)}},
        {"metadata": {"a" * 65: ""}},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {"a": 1}},
        {"metadata": {1: "a"}},
        {"metadata": {"a": "\x00"}},
        {"metadata": {"\udfff": "a"}},
        {"metadata": ["a"]},
    ],
)
async def test_what_is_beyond_the_bounds_is_refused(lakebase: Lakebase, described: Any) -> None:
    await begun(lakebase, "s")
    with pytest.raises(InvalidMetadata):
        await lakebase.store.update("s", **described)
    assert (await lakebase.store.get("s")).titled is False


async def test_what_is_within_the_bounds_is_not(lakebase: Lakebase) -> None:
    await begun(lakebase, "s")
    metadata = {f"{number:064}": "🌍" * 512 for number in range(16)}
    found = await lakebase.store.update("s", title="🌍" * 200, metadata=metadata)
    assert (found.title, found.metadata) == ("🌍" * 200, metadata)


@pytest.mark.parametrize(
    "asked",
    [
        {"order": "title"},
        {"limit": 0},
        {"limit": 101},
        {"limit": "5"},
        {"limit": True},
        {"after": ""},
        {"after": "e30"},
        {"after": "WyJ1cGRhdGVkIiwibm93Iiwic-J_"},
        {"updated_since": "yesterday"},
        {"updated_before": 5},
        {"updated_since": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))},
    ],
)
async def test_a_query_that_makes_no_sense(lakebase: Lakebase, asked: Any) -> None:
    with pytest.raises(InvalidQuery):
        await lakebase.store.page(**asked)


@pytest.mark.parametrize("key", ["2026-01-01\0", "2026-W01-1", "2026-01-01\ud80000:00:00", "now"])
async def test_a_forged_place_leads_nowhere(lakebase: Lakebase, key: str) -> None:
    with pytest.raises(InvalidQuery):
        await lakebase.store.page(after=str(Cursor("updated", key, "s")))


@pytest.mark.parametrize("response_id", ["resp\0", "\ud800", ""])
async def test_what_no_response_is_called_is_nobodys(lakebase: Lakebase, response_id: str) -> None:
    assert await lakebase.store.find_response(response_id) is None


async def test_a_page_of_another_order_leads_nowhere(lakebase: Lakebase) -> None:
    await begun(lakebase, "a", "b")
    first = await lakebase.store.page(limit=1)
    with pytest.raises(InvalidQuery, match="Begin the listing anew"):
        await lakebase.store.page(order="created", after=first.next)


async def test_deleting(lakebase: Lakebase, local: LocalLakebase, database: str) -> None:
    await begun(lakebase, "a", "b")
    await lakebase.store.update("a", title="A")
    await lakebase.store.delete("a")
    assert await ids(lakebase) == ["b"]
    for missing in (lakebase.store.get, lakebase.store.update, lakebase.store.delete):
        with pytest.raises(ConversationNotFound, match="'a'"):
            await missing("a")
    with admin(local, database) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM agent_messages), "
            "(SELECT count(*) FROM agent_conversations)"
        ).fetchone()
    assert left == (1, 0)


async def test_deleting_a_user(lakebase: Lakebase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakebase_sessions.conversation.store.DELETED_AT_ONCE", 2)
    await begun(lakebase, *"abcde", user="mia")
    await begun(lakebase, *"ab", user="mia2")
    await begun(lakebase, "mia", "c")
    assert await lakebase.store.delete_user("mia") == 5
    assert await lakebase.store.delete_user("mia") == 0
    assert sorted(await ids(lakebase)) == ["c", "mia", "mia2:a", "mia2:b"]


@pytest.mark.parametrize("nobody", ["", " ", 7])
async def test_nobody_is_not_everybody(lakebase: Lakebase, nobody: Any) -> None:
    await begun(lakebase, "a")
    for method in (lakebase.store.page, lakebase.store.count):
        with pytest.raises(InvalidUser):
            await method(user=nobody)
    with pytest.raises(InvalidUser):
        await lakebase.store.delete_user(nobody)
    with pytest.raises(InvalidUser):
        await lakebase.store.delete("a", user=nobody)
    with pytest.raises(InvalidSessionId):
        await lakebase.store.get("")


@pytest.mark.upstream_logs
async def test_conversations_of_the_class_upstream(
    lakebase: Lakebase, upstream: AsyncDatabricksSession
) -> None:
    await upstream.add_items([said("user", "Hello"), said("assistant", "Hi")])
    found = await lakebase.store.get("s")
    assert (found.preview, found.items, found.turns) == ("Hello", 2, 1)
    await lakebase.store.update("s", title="Theirs")
    await upstream.add_items([said("user", "More")])
    assert (await lakebase.store.get("s")).title == "Theirs"
    await upstream.clear_session()
    assert await ids(lakebase) == []


async def test_without_own_tables_all_works_but_titles_and_metadata(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    await begun(lakebase, "a", "b", user="mia")
    with admin(local, database) as connection:
        connection.execute(
            "DROP TABLE agent_turns, agent_branch_items, agent_branches, agent_conversations"
        )
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, create_tables=False
    ) as without:
        store = without.store
        assert await ids(without, user="mia") == ["mia:b", "mia:a"]
        found = await store.get("a", user="mia")
        assert (found.title, found.metadata, found.turns) == ("I am a", {}, 1)
        assert await store.count() == 2
        for needing in (store.update("a", user="mia", title="A"), store.page(metadata={"a": "b"})):
            with pytest.raises(TablesMissing, match="lakebase-sessions init"):
                await needing
        await store.delete("a", user="mia")
        assert await store.delete_user("mia") == 1


async def test_each_is_one_round_trip(local: LocalLakebase, database: str, proxy: Proxy) -> None:
    async with Lakebase(
        "proxied", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        await begun(lakebase, *(f"{number}" for number in range(7)), user="mia")
        store = lakebase.store
        later = (await store.page(limit=3)).next
        for _ in range(7):
            costs = []
            for operation in (
                store.page,
                lambda: store.page(limit=3, after=later),
                lambda: store.page(user="mia", order="created"),
                lambda: store.page(metadata={"a": "b"}),
                lambda: store.count(user="mia"),
                lambda: store.get("1", user="mia"),
                lambda: store.update("1", user="mia", title="One"),
            ):
                before = proxy.round_trips
                await operation()
                costs.append(proxy.round_trips - before)
            assert set(costs) == {1}, costs


async def test_a_cancelled_change_is_whole_or_absent(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Whoever waits for a lock, and is cancelled, is told only when the outcome is certain."""
    await begun(lakebase, "s")
    with admin(local, database) as connection, connection.transaction():
        connection.execute("SELECT FROM agent_sessions FOR UPDATE")
        deleting = asyncio.ensure_future(lakebase.store.delete("s"))
        await asyncio.sleep(0.2)
        deleting.cancel()
        await asyncio.sleep(0.2)
        assert not deleting.done()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    assert await ids(lakebase) == []


async def test_the_sql_of_the_docs(lakebase: Lakebase, local: LocalLakebase, database: str) -> None:
    """As written, on whatever items there are."""
    text = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    await lakebase.session("s", user="mia").add_items(
        [
            said("user", "\x00 \ud800 \\u0000 \\\\u"),
            {"type": "function_call", "name": "f", "arguments": "\x00", "call_id": "c"},
        ]
    )
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES "
            "('mia:s', ''), ('mia:s', '[1]'), ('mia:s', '{')"
        )
        _, _, users, calls = (
            connection.execute(statement.encode()).fetchall()
            for statement in re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
        )
    assert [count for _, count in users] == [1]
    assert calls == [("f", 1)]
