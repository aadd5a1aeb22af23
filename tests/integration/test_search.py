"""Search in what was said: in every script, of whoever wrote it, with the index and without."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import admin

from lakebase_sessions import InvalidQuery, Lakebase
from lakebase_sessions.access.indexing import make_indexes
from lakebase_sessions.access.site import Site, Wanted
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import indexes, listing


def said(role: str, content: Any) -> Any:
    return {"role": role, "content": content}


@pytest.fixture(params=["walk", "index"])
async def searched(
    request: pytest.FixtureRequest,
    local: LocalLakebase,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Lakebase]:
    """Few conversations do not make the statement look at the index: it is as if they were many."""
    monkeypatch.setattr(listing, "NEAR", 1)
    listing.page_of.cache_clear()
    if request.param == "index":
        with admin(local, database) as connection:
            asked = connection.execute(
                f"SELECT {indexes.STATE}".encode(), indexes.STATE_PARAMETERS
            ).fetchone()
            assert asked is not None
            connection.execute(indexes.create_function(asked[0]).encode())
            connection.execute(indexes.SEARCH.create().encode())
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        assert (await lakebase.engine_here()).finds_words is (request.param == "index")
        yield lakebase
    listing.page_of.cache_clear()


async def found(lakebase: Lakebase, search: str, **filters: Any) -> set[str]:
    return {each.session_id async for each in lakebase.store.list(search=search, **filters)}


TEXTS = {
    "french": "Je voudrais une CRÈME BRÛLÉE, s'il vous plaît",
    "german": "Die Straße nach MÜNCHEN",
    "greek": "ΟΔΥΣΣΕΥΣ και Όμηρος",
    "turkish": "İstanbul'a DİYARBAKIR",
    "russian": "Съешь ЁЖИКА",
    "chinese": "北京今天天气怎么样",
    "japanese": "東京タワーはどこですか",
    "arabic": "أين المكتبة",
    "thai": "สวัสดีครับ",
    "emoji": "nice 🌍🚀 trip",
    "decomposed": "cafe\u0301 noir",
    "percent": "100% of_it \\ 'quoted' \"so\"",
    "control": "a\x00b \ud800c \\u0041",
    "english": "The quick brown FOX",
}


SEARCHES: list[tuple[str, set[str]]] = [
    ("crème brûlée", {"french"}),
    ("CRÈME", {"french"}),
    ("creme", set()),
    ("strasse nach münchen", {"german"}),
    ("STRASSE", {"german"}),
    ("οδυσσευσ", {"greek"}),
    ("Οδυσσεύς", set()),
    ("istanbul", {"turkish"}),
    ("ёжика", {"russian"}),
    ("天气", {"chinese"}),
    ("京", {"chinese", "japanese"}),
    ("タワー", {"japanese"}),
    ("المكتبة", {"arabic"}),
    ("สวัสดี", {"thai"}),
    ("🌍🚀", {"emoji"}),
    ("CAFÉ", {"decomposed"}),
    ("100%", {"percent"}),
    ("0%", {"percent"}),
    ("%", {"percent"}),
    ("of_it", {"percent"}),
    ("ofxit", set()),
    ("'quoted' \"so\"", {"percent"}),
    ("a\x00b", {"control"}),
    ("\ud800c \\u0041", {"control"}),
    ("u0041", {"control"}),
    ("quick BROWN fox", {"english"}),
    ("  quick ", {"english"}),
    ("quick fox", set()),
    ("x", {"english"}),
    ("role", set()),
    ("user", set()),
]


async def test_in_every_script(searched: Lakebase) -> None:
    for name, text in TEXTS.items():
        await searched.session(name).add_items([said("user", text)])
    for search, wanted in SEARCHES:
        assert await found(searched, search) == wanted, search


async def test_what_was_said_and_nothing_else(
    searched: Lakebase, local: LocalLakebase, database: str
) -> None:
    part = {"type": "output_text", "text": "needle"}
    items: dict[str, Any] = {
        "assistant": said("assistant", [{"type": "output_text", "text": "hay"}, part]),
        "refusal": said("assistant", [{"type": "refusal", "refusal": "no Needle"}]),
        "system": said("system", "needle"),
        "call": {"type": "function_call", "name": "needle", "arguments": '{"role":"user needle"}'},
        "output": {"type": "function_call_output", "output": "needle"},
        "other": said("user", {"text": "needle"}),
        "key": {"role": "user", "needle": "needle", "content": ["needle"]},
    }
    for name, item in items.items():
        await searched.session(name).add_items([item])
    with admin(local, database) as connection:
        for row in ('{"role":"user","content":"needle"', '["user needle"]', '"user needle"'):
            connection.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES ('call', %s)", [row]
            )
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('output', %s)",
            [json.dumps(said("user", "ein Nädelchen"), ensure_ascii=False, indent=1)],
        )
    assert await found(searched, "needle") == {"assistant", "refusal"}
    assert await found(searched, "NÄDEL") == {"output"}


@pytest.mark.parametrize(
    ("row", "search"),
    [
        (r'{"role":"user","content":"\u0054he\u0020lot"}', "THE LOT"),
        ('{"role":"user","content":"\uff34\uff28\uff25 lot"}', "the lot"),  # full width
        ('{"role":"user","content":"\u212aelvin"}', "kelvin"),
        (r'{"role":"user","content":"either\/or"}', "EITHER/or"),
        (r'{"role":"user","content":"say \"so\" and\tgo"}', 'SAY "so" and\tgo'),
        ('{"role":"user","content":[{"text":"one"},{"text":"two"}]}', "One\nTwo"),
    ],
)
async def test_however_it_was_written(
    searched: Lakebase, local: LocalLakebase, database: str, row: str, search: str
) -> None:
    with admin(local, database) as connection:
        connection.execute("INSERT INTO agent_sessions (session_id) VALUES ('s')")
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES ('s', %s)", [row]
        )
    assert await found(searched, search) == {"s"}


async def test_with_the_other_filters(searched: Lakebase, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        session = searched.session(f"{number:02}", user="mia" if number % 2 else "ben")
        words = "a needle" if number % 3 == 0 else "hay"
        await session.add_items([said("user", words), said("assistant", "Well.")])
        if number % 5 == 0:
            await searched.store.update(session.session_id, metadata={"five": "yes"})
    assert len(await found(searched, "needle")) == 10
    assert await found(searched, "needle", user="mia") == {
        f"mia:{number:02}" for number in range(3, 30, 6)
    }
    assert await found(searched, "needle", metadata={"five": "yes"}) == {"ben:00", "mia:15"}
    for few, walked in ((1, 4), (1000, 4), (1, 100)):
        monkeypatch.setattr(listing, "FEW_SAID", few)
        monkeypatch.setattr(listing, "WALKED", walked)
        listing.page_of.cache_clear()
        pages, after = [], None
        while True:
            page = await searched.store.page(search="needle", limit=3, after=after)
            pages += [each.session_id[-2:] for each in page.conversations]
            if (after := page.next) is None:
                break
        assert pages == [f"{number:02}" for number in range(27, -1, -3)]


async def test_an_empty_box_is_no_search_and_a_book_is_refused(searched: Lakebase) -> None:
    await searched.session("s").add_items([said("user", "Hi")])
    assert await found(searched, "") == await found(searched, "  ") == {"s"}
    for search in ("x" * 201, 7):
        with pytest.raises(InvalidQuery):
            await searched.store.page(search=search)  # type: ignore[arg-type]


async def test_the_indexes_are_made_on_tables_in_use(
    local: LocalLakebase, database: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were made by somebody else's class, too; a making that was broken off is no
    hindrance, and a second time nothing is left to do."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    names = [index.name for index in (*indexes.LISTING, indexes.SEARCH)]
    with admin(local, database) as connection:
        for name in names:
            connection.execute(f"DROP INDEX IF EXISTS {name}".encode())
        connection.execute(indexes.create_function("default").encode())
        connection.execute(indexes.SEARCH.create().encode())
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)",
            [indexes.SEARCH.name],
        )
    site = Site.find(Wanted())
    with admin(local, database) as connection:
        owner = connection.execute(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'agent_sessions'"
        ).fetchone()
        assert owner is not None
        connection.execute(
            f'GRANT ALL ON FUNCTION agent_said_grams TO "{site.user}"; '
            f'ALTER FUNCTION agent_said_grams OWNER TO "{owner[0]}"'.encode()
        )
    states = [made.state for made in await make_indexes(site, search=True)]
    assert states == ["made"] * 4
    assert [made.state for made in await make_indexes(site, search=True)] == ["there"] * 4
    with admin(local, database) as connection:
        valid = connection.execute(
            "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indexrelid "
            "WHERE relname = ANY (%s) AND indisvalid",
            [names],
        ).fetchone()
    assert valid == (4,)
