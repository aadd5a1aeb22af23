"""Any ids, users and texts, asked of the store: nobody sees, changes or deletes another's."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from security.strategies import json_values, texts
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


async def listed(lakebase: Lakebase, **filters: Any) -> set[str]:
    return {each.session_id async for each in lakebase.store.list(**filters)}


@fuzzing
@given(st.lists(st.tuples(people, ids), min_size=1, max_size=5, unique=True))
@example([("a", "a:a:x"), ("a", "a:x"), ("a:a", "x"), ("a%3Aa", "x"), ("A", "x")])
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
                if stored in own:
                    assert (await store.get(stored, user=user)).session_id == stored
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
