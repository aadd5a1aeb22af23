"""Pure functions on lists of items."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import pytest
from agents.run_internal.items import _TOOL_CALL_TO_OUTPUT_TYPE
from hypothesis import given, settings
from hypothesis import strategies as st

from lakebase_sessions.conversation.history import without_cut_off_outputs

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

Item = dict[str, Any]

KINDS = {
    "function_call": "function_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "custom_tool_call": "custom_tool_call_output",
}
"""Calls that an agent answers, and the items that answer them."""


def whole(items: list[Item]) -> list[Item]:
    return cast("list[Item]", without_cut_off_outputs(cast("list[TResponseInputItem]", items)))


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def said(text: str) -> Item:
    return {"type": "message", "role": "assistant", "content": text}


def call(call_id: str, kind: str = "function_call") -> Item:
    return {"type": kind, "call_id": call_id, "name": "look_up", "arguments": "{}"}


def output(call_id: str, kind: str = "function_call") -> Item:
    return {"type": KINDS[kind], "call_id": call_id, "output": "12"}


def test_a_whole_conversation_stays_as_it_is() -> None:
    items = [user("?"), call("a"), output("a"), said("12"), user("thanks")]
    assert whole(items) == items


def test_the_empty_one_too() -> None:
    assert whole([]) == []


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_output_whose_call_was_cut_off_goes(kind: str) -> None:
    assert whole([output("a", kind), said("12"), user("And now?")]) == [
        said("12"),
        user("And now?"),
    ]


@pytest.mark.parametrize(("kind", "answer"), list(_TOOL_CALL_TO_OUTPUT_TYPE.items()))
def test_every_pair_that_the_agents_sdk_knows(kind: str, answer: str) -> None:
    """The SDK's table is private; if it moves, look at whether a kind was added."""
    pair: list[Item] = [{"type": kind, "call_id": "a"}, {"type": answer, "call_id": "a"}]
    assert whole(pair) == pair
    assert whole(pair[1:]) == []


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_output_whose_call_is_there_stays(kind: str) -> None:
    items = [call("a", kind), output("a", kind)]
    assert whole(items) == items


def test_parallel_calls_cut_in_the_middle_of_the_calls() -> None:
    items = [call("b"), output("a"), output("b"), said("done")]
    assert whole(items) == [call("b"), output("b"), said("done")]


def test_parallel_calls_cut_in_the_middle_of_the_outputs() -> None:
    items = [output("b"), output("c"), said("done"), user("?"), call("d"), output("d")]
    assert whole(items) == [said("done"), user("?"), call("d"), output("d")]


def test_parallel_calls_whose_outputs_came_in_another_order() -> None:
    items = [call("a"), call("b"), output("b"), output("a")]
    assert whole(items) == items


def test_a_call_after_its_output_answers_nothing() -> None:
    assert whole([output("a"), call("a")]) == [call("a")]


def test_a_call_without_an_output_stays() -> None:
    """It may be the one that is being answered; the Runner takes care of the others."""
    assert whole([user("?"), call("a")]) == [user("?"), call("a")]


def test_calls_that_the_platform_answers_need_no_output() -> None:
    items: list[Item] = [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]
    assert whole(items) == items


def test_an_output_that_names_its_call_by_id() -> None:
    """As the API's own type of it has it: no `call_id`, and `id` is the call's."""
    items: list[Item] = [
        {"type": "local_shell_call", "id": "ls_1", "call_id": "a", "action": {}},
        {"type": "local_shell_call_output", "id": "a", "output": "12"},
    ]
    assert whole(items) == items
    assert whole(items[1:]) == []


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"type": None, "role": "user", "content": "x"},
        {"type": 7},
        {"type": ["function_call_output"]},
        {"type": "function_call"},
        {"type": "function_call", "call_id": ["a"]},
        {"type": "message_call_output_of_sorts", "call_id": "a"},
        "a bare string",
        None,
        7,
        ["a"],
    ],
    ids=repr,
)
def test_what_it_does_not_know_stays(odd: Any) -> None:
    """A row that somebody else wrote is not a reason to lose the conversation."""
    assert whole([odd, user("?")]) == [odd, user("?")]


def test_an_output_with_an_odd_call_id_goes() -> None:
    assert whole([{"type": "function_call_output", "call_id": {"a": 1}, "output": ""}]) == []


def test_the_list_it_is_given_does_not_change() -> None:
    items = [output("a"), user("?")]
    before = copy.deepcopy(items)
    whole(items)
    assert items == before


@st.composite
def conversations(draw: st.DrawFn) -> list[Item]:
    """Turns with rounds of parallel calls of any kind, answered in any order."""
    items: list[Item] = []
    number = 0
    for turn in range(draw(st.integers(1, 4))):
        items.append(user(f"question {turn}"))
        for _ in range(draw(st.integers(0, 3))):
            kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4))
            calls = [(f"call_{number + at}", kind) for at, kind in enumerate(kinds)]
            number += len(calls)
            items += [call(call_id, kind) for call_id, kind in calls]
            items += [output(call_id, kind) for call_id, kind in draw(st.permutations(calls))]
        items.append(said(f"answer {turn}"))
    return items


def is_output(item: Item) -> bool:
    return item.get("type") in KINDS.values()


@settings(deadline=None)
@given(conversations(), st.data())
def test_any_window_keeps_all_but_the_outputs_without_their_call(
    conversation: list[Item], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(conversation)))
    stop = data.draw(st.integers(start, len(conversation)))
    window = conversation[start:stop]
    kept = whole(window)

    called: set[str] = set()
    for item in kept:
        assert not is_output(item) or item["call_id"] in called
        if item.get("type") in KINDS:
            called.add(item["call_id"])
    lost = [item for item in window if item not in kept]
    assert all(is_output(item) and item["call_id"] not in called for item in lost)
    assert kept == [item for item in window if item in kept]  # in the order they had
    assert whole(kept) == kept
    assert not kept or not is_output(kept[0])


@settings(deadline=None)
@given(conversations())
def test_a_whole_conversation_loses_nothing(conversation: list[Item]) -> None:
    assert whole(conversation) == conversation
