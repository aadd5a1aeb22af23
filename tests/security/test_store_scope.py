"""Any ids, users and texts, asked of the store: nobody sees, changes or deletes another's."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import admin
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from security.strategies import json_objects, json_values, texts
from security.test_conversations import ids, people

from lakebase_sessions import (
    ConversationNotFound,
    InvalidMetadata,
    InvalidQuery,
    InvalidSessionId,
    InvalidUser,
    Lakebase,
)
from lakebase_sessions.conversation.listing import Cursor
from lakebase_sessions.conversation.session_id import scope_to_user
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.postgres import indexes, listing

fuzzing = settings(
    deadline=None,
    max_examples=60,
    # One database for all examples: what others left in it changes nothing.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = itertools.count()


async def begin(lakebase: Lakebase, named: list[tuple[str, str]]) -> dict[str, set[str]]:
    """Conversations as users have named them: user to stored ids; of none that is refused."""
    await lakebase.session("x").clear_session()
    async for other in lakebase.store.list():
        await lakebase.store.delete(other.session_id)
    opened: dict[str, set[str]] = {}
    for user, session_id in named:
        with contextlib.suppress(InvalidSessionId, InvalidUser):
            session = lakebase.session(session_id, user=user)
            await session.add_items([{"role": "user", "content": user}])
            opened.setdefault(user, set()).add(session.session_id)
    await lakebase.session("mia").add_items([{"role": "user", "content": "of nobody"}])
    return opened


def called(session_id: str, user: str) -> str | None:
    """What a user's conversation of that id is stored as."""
    with contextlib.suppress(InvalidSessionId):
        return scope_to_user(session_id, user)
    return None


async def listed(lakebase: Lakebase, **filters: Any) -> set[str]:
    return {each.session_id async for each in lakebase.store.list(**filters)}


@fuzzing
@given(st.lists(st.tuples(people, ids), min_size=1, max_size=5, unique=True))
@example([("a", "a:a:x"), ("a", "a:x"), ("a:a", "x"), ("a%3Aa", "x"), ("A", "x")])
@example([("mia", "mia%40example.com:s"), ("mia@example.com", "s")])
@example([("mia", "mia%3A:s"), ("mia:", "s")])
@example([("mi", "a:s"), ("mia", "s"), ("mi_", "s"), ("%", "s"), ("mia\\", "s")])
async def test_a_user_has_their_own_and_no_others(
    lakebase: Lakebase, named: list[tuple[str, str]]
) -> None:
    opened = await begin(lakebase, named)
    everybodys = set().union(*opened.values())
    store = lakebase.store
    assert await listed(lakebase) == everybodys | {"mia"}
    for user, own in opened.items():
        for order in ("updated", "created"):
            assert await listed(lakebase, user=user, order=order) == own
        assert await store.count(user=user) == len(own)
        for stored in everybodys | {"mia"}:
            for method in (store.get, store.update, store.delete):
                meant = stored if stored in own else called(stored, user)
                if meant in own:  # one may call one's own conversation as another's is stored
                    assert (await store.get(stored, user=user)).session_id == meant
                    continue
                with pytest.raises((ConversationNotFound, InvalidSessionId)):
                    await method(stored, user=user)
    assert await listed(lakebase) == everybodys | {"mia"}
    for user, own in opened.items():
        assert await store.delete_user(user) == len(own)
        everybodys -= own
        assert await listed(lakebase) == everybodys | {"mia"}


@fuzzing
@given(texts, texts)
async def test_any_title_and_metadata_come_back_or_are_refused(
    lakebase: Lakebase, title: str, value: str
) -> None:
    session_id = f"described-{next(numbers)}"
    await lakebase.session(session_id).add_items([{"role": "user", "content": "Hi"}])
    before = await lakebase.store.get(session_id)
    metadata = {value: value, "id": session_id}
    try:
        found = await lakebase.store.update(session_id, title=title, metadata=metadata)
    except InvalidMetadata:
        assert await lakebase.store.get(session_id) == before
    else:
        assert (found.title, found.metadata) == (title.strip(), metadata)
        assert await listed(lakebase, metadata=metadata) == {session_id}


@fuzzing
@given(texts | json_values.map(lambda value: str(Cursor("updated", value, value))))  # type: ignore[arg-type]
async def test_any_place_to_go_on_from_is_one_or_is_refused(lakebase: Lakebase, after: str) -> None:
    with contextlib.suppress(InvalidQuery):
        await lakebase.store.page(after=after, user="mia")


@pytest.fixture(params=["walk", "index"])
async def searched(
    request: pytest.FixtureRequest,
    local: LocalLakebase,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Lakebase]:
    """With the index it is used, however few conversations there are."""
    monkeypatch.setattr(listing, "NEAR", 1)
    listing.page_of.cache_clear()
    if request.param == "index":
        with admin(local, database) as connection:
            connection.execute(indexes.create_function("pg_unicode_fast").encode())
            connection.execute(indexes.SEARCH.create().encode())
    async with Lakebase(
        "local", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        yield lakebase
    listing.page_of.cache_clear()


@fuzzing
@given(people, texts, texts, json_objects)
async def test_any_text_is_found_by_its_user_and_by_nobody_else(
    searched: Lakebase, other: str, before: str, words: str, item: Any
) -> None:
    """And whatever is written, the index has no write fail."""
    for each in [s async for s in searched.store.list()]:
        await searched.store.delete(each.session_id)
    session = searched.session("s", user="owner")
    await session.add_items([{"role": "user", "content": f"{before}\n{words}\n{before}"}, item])
    await session.add_items([{"role": "user", "content": item}])
    await session.add_items([{"role": "assistant", "content": [item]}])
    assert await listed(searched, search=words, user="owner") == {"owner:s"}
    with contextlib.suppress(InvalidUser):
        assert await listed(searched, search=words, user=other) == set()
