"""Any ids, users and items, in a real Postgres: nobody reads what is another's, nothing changes."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from security.strategies import json_objects, json_values, nested, texts

from lakebase_sessions import (
    InvalidItems,
    InvalidSessionId,
    InvalidUser,
    Lakebase,
    merge_history,
)
from lakebase_sessions.conversation.history import without_cut_off_outputs

fuzzing = settings(
    deadline=None,
    # One database for all examples: what others left in it changes nothing.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = itertools.count()


@fuzzing
@given(st.lists(json_objects, min_size=1, max_size=4))
@example([{"content": "\x00 \ud800 \U0001f30d '; -- %s {}"}])
@example([{}])
async def test_items_come_back_as_they_were_given(lakebase: Lakebase, items: list[Any]) -> None:
    session = lakebase.session(f"items-{next(numbers)}")
    await session.add_items(items)
    assert await session.get_items() == items
    assert await session.pop_item() == items[-1]
    async with session.turn() as turn:
        await turn.add_items(items)
    assert await session.get_items() == items[:-1] + items


async def test_an_item_that_is_stored_can_be_read(lakebase: Lakebase) -> None:
    """However deeply nested: stored, or refused; never stored and then passed over."""
    stored = []
    for depth in (10, 100, *range(200, 1000, 5)):
        session = lakebase.session(f"depth-{depth}")
        item: Any = {"role": "user", "content": nested(depth)}
        with contextlib.suppress(InvalidItems):
            await session.add_items([item])
            assert await in_a_deep_stack(30, session) == [item], depth
            stored.append(depth)
    assert {10, 100} <= {*stored}


async def in_a_deep_stack(frames: int, session: Any) -> Any:
    """What `get_items` returns to code that calls it from further down, such as the Runner."""
    return await (in_a_deep_stack(frames - 1, session) if frames else session.get_items())


odd_values = json_values | st.sampled_from(
    [{1: 1, "1": 2}, {"a", "b"}, b"bytes", 10**5000, float("nan"), object()]
)
odd_items = st.dictionaries(
    st.sampled_from(["role", "content", "type", "id", "call_id", "output", "text"]) | texts,
    st.sampled_from(["user", "assistant", "system", "message", "input_text"])
    | st.lists(st.fixed_dictionaries({"type": texts, "text": odd_values}), max_size=2)
    | odd_values,
    max_size=4,
)


@settings(deadline=None)
@given(st.lists(odd_items, max_size=4), st.lists(odd_items, max_size=4))
def test_any_history_can_be_merged(history: list[Any], new: list[Any]) -> None:
    """Also with what is no JSON, which `add_items` will refuse with a message of its own."""
    merged = merge_history(history, new)
    whole = without_cut_off_outputs(history)
    assert merged[: len(whole)] == whole
    assert all(any(item is given for given in new) for item in merged[len(whole) :])
    assert merged[-1:] == new[-1:] or not new


def test_a_history_that_is_nested_without_end_can_be_merged() -> None:
    deep: Any = {"role": "user", "content": [{"image": nested(5000)}]}
    call: Any = {"type": nested(5000), "call_id": nested(5000)}
    assert len(merge_history([deep, call], [deep, call, deep])) >= 3
    assert without_cut_off_outputs([deep, call]) == [deep, call]


people = st.sampled_from(["mia", "Mia", "mia:", "mia%3A", "mia@example.com", "mía"]) | texts
ids = st.sampled_from(["s", "s:s", ":s", "mia:s", "mia%3A:s", "mia%40example.com:s"]) | texts


@fuzzing
@given(st.lists(st.tuples(people, ids), min_size=2, max_size=5, unique=True))
@example([("a", "a:a:x"), ("a", "a:x"), ("a:a", "x"), ("a%3Aa", "x")])
async def test_a_conversation_holds_what_one_user_said(
    lakebase: Lakebase, named: list[tuple[str, str]]
) -> None:
    """Whatever ids are chosen, and whoever guesses the id that another user was handed out."""
    opened = []
    for user, session_id in named:
        with contextlib.suppress(InvalidSessionId, InvalidUser):
            opened.append((user, lakebase.session(session_id, user=user)))
    for user, session in opened:
        await session.add_items([{"said by": user}])  # type: ignore[list-item]
    for (user, _), (_, other_session) in itertools.product(opened, repeat=2):
        with contextlib.suppress(InvalidSessionId):
            guessed = lakebase.session(other_session.session_id, user=user)
            read: list[Any] = [*await guessed.get_items()]
            assert {item["said by"] for item in read} <= {user}
