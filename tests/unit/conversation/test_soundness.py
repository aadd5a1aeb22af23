"""What a model's API refuses: found, left out, and nothing else."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from agents.memory import SQLiteSession
from hypothesis import given, settings
from hypothesis import strategies as st
from refusing_model import PAIRS, Refused, RefusingModel, refuse

from lakebase_sessions import merge_history
from lakebase_sessions.conversation.soundness import refused, refused_for_good

Items = list[Any]


def user(text: str = "?") -> Any:
    return {"role": "user", "content": text}


def said(text: str = "!", **more: Any) -> Any:
    return {"type": "message", "role": "assistant", "content": text, **more}


def call(call_id: str, kind: str = "function_call", **more: Any) -> Any:
    name = "id" if kind == "mcp_approval_request" else "call_id"
    return {"type": kind, name: call_id, "name": "f", "arguments": "{}"} | more


def output(call_id: str, kind: str = "function_call") -> Any:
    name = "approval_request_id" if kind == "mcp_approval_request" else "call_id"
    return {"type": PAIRS[kind], name: call_id, "output": "7"}


def thought(number: int = 1) -> Any:
    return {"type": "reasoning", "id": f"rs_{number}", "summary": []}


def hosted(kind: str) -> Any:
    return {"type": kind, "id": f"{kind}_1", "status": "completed"}


def pruned(items: Items, stored: int | None = None) -> Items:
    left_out = {item.position for item in refused(items, stored)}
    return [item for at, item in enumerate(items) if at not in left_out]


SAID = said("Hm", id="msg_1")
HOSTED = ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call")
CASES: dict[str, tuple[Items, dict[int, str]]] = {
    "died": ([user(), call("a"), user()], {1: "no_output"}),
    "died at the end": ([user(), call("a")], {1: "no_output"}),
    "died while it thought": ([user(), thought(), user()], {1: "leads_nowhere"}),
    "died after it thought": (
        [user(), thought(), call("a"), user()],
        {1: "leads_nowhere", 2: "no_output"},
    ),
    "one of two calls": (
        [user(), thought(), call("a"), call("b"), output("b"), said()],
        {2: "no_output"},
    ),
    "the call was never stored": ([user(), output("a"), said()], {1: "no_call"}),
    "the output came first": ([user(), output("a"), call("a")], {1: "no_call", 2: "no_output"}),
    "an output of another kind": (
        [user(), call("a"), output("a", "shell_call")],
        {1: "no_output", 2: "no_call"},
    ),
    "the call twice": ([user(), call("a"), call("a"), output("a")], {1: "repeated"}),
    "the call again": (
        [user(), thought(1), call("a"), user(), thought(2), call("a"), output("a"), said()],
        {1: "leads_nowhere", 2: "repeated"},
    ),
    "the output twice": ([user(), call("a"), output("a"), output("a")], {3: "repeated"}),
    "thoughts before an output": (
        [user(), call("a"), thought(), output("a"), said()],
        {2: "leads_nowhere"},
    ),
    "a window": (
        [call("a", id="fc_1"), output("a"), SAID, user(), thought(), said()],
        {0: "no_reasoning", 1: "no_call", 2: "no_reasoning"},
    ),
    "a window that begins with thoughts": ([thought(), call("a"), output("a"), SAID], {}),
    "a window of a model that does not think": ([SAID, user(), said()], {}),
    "a greeting": ([said(), user(), thought(), said()], {}),
    "a greeting with the SDK's id": ([said(id="__fake_id__"), user(), thought(), said()], {}),
    "an id again": ([user(), *[call("a"), output("a")] * 3, said()], {}),
    "two thoughts": ([user(), thought(1), thought(2), said()], {}),
    "the platform's own": ([user(), thought(), *map(hosted, HOSTED), hosted("mcp_call")], {}),
    "the platform's own search for tools": (
        [user(), {"type": "tool_search_call", "call_id": None}, said()],
        {},
    ),
    "nothing": ([], {}),
    "a local shell": (
        [
            {"type": "local_shell_call", "id": "ls_1", "call_id": "a", "action": {}},
            {"type": "local_shell_call_output", "id": "a", "output": "12"},
        ],
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused_and_why(case: str) -> None:
    items, reasons = CASES[case]
    found = refused(items)
    assert {item.position: item.reason for item in found} == reasons
    assert all(item.item is items[item.position] for item in found)
    assert not refused(pruned(items))


@pytest.mark.parametrize("kind", PAIRS)
def test_every_kind_of_call(kind: str) -> None:
    pair = [user(), call("a", kind), output("a", kind), said()]
    assert refused(pair) == ()
    refuse(pair)
    for at, reason in ((1, "no_call"), (2, "no_output")):
        half = [item for place, item in enumerate(pair) if place != at]
        assert [item.reason for item in refused(half)] == [reason]
        with pytest.raises(Refused):
            refuse(half)


def test_what_it_says_holds_no_words() -> None:
    [found] = refused([user(), call("a", arguments="secret")])
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "odd", [{}, {"type": 7}, {"type": ["function_call"]}, "a string", None, 7, ["a"]], ids=repr
)
def test_what_it_does_not_know_stays(odd: Any) -> None:
    assert refused([user(), thought(), odd, user()]) == ()


def test_what_may_come_right_is_not_refused_for_good() -> None:
    """A run under way, an approval, a client's own tool: behind the last question."""
    waiting = [user(), thought(), call("a"), call("b", "mcp_approval_request"), said()]
    assert refused_for_good(waiting) == ()
    found = refused_for_good([*waiting, user()])
    assert [item.position for item in found] == [2, 3]
    assert [item.position for item in refused_for_good([user(), call("a"), output("b")])] == [2]
    assert refused_for_good([SAID, user(), thought(), said()]) == (), "it is no window"


def test_what_is_new_counts_too() -> None:
    """A client's own tool answers; a client resends what never came; nothing follows at all."""
    died = [user(), thought(), call("a")]
    assert merge_history(died, [output("a")]) == [*died, output("a")]
    assert merge_history(died, [user("again")]) == [user(), user("again")]
    assert merge_history(died, []) == [user()]
    assert merge_history([], [user(), call("a"), user()]) == [user(), user()]
    assert merge_history([user()], [call("a")])[-1] == call("a"), "the last is never dropped"
    greeting = [SAID, user(), thought(), said(), user("new")]
    assert merge_history([], greeting) == greeting


def test_the_log_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lakebase_sessions")
    died = [user("once"), call("once"), user("again")]
    for _ in range(3):
        merge_history(died, [user("and again")])
        merge_history([output("cut off"), said(), *died], [user("under a window")])
    [record] = caplog.records
    assert "function_call: no_output" in record.getMessage()
    assert "session.repair()" in record.getMessage()
    merge_history([output("cut off"), said(), user()], [user()])
    assert len(caplog.records) == 1, "a window is no fault of the conversation"


def thoughtful(items: Items) -> Items:
    """Reasoning before each response, as the API sends it."""
    thought_of: Items = []
    for at, item in enumerate(items):
        kind = item.get("type")
        own = kind == "function_call" or item.get("role") == "assistant"
        before = items[at - 1].get("type") if at else None
        if own and before != "function_call":
            thought_of.append(thought(at))
        thought_of.append({**item, "id": f"it_{at}"} if own else item)
    return thought_of


def needs(items: Items) -> dict[str, str]:
    led: dict[str, str] = {}
    latest = ""
    for item in items:
        if item.get("type") == "reasoning":
            latest = item["id"]
        elif item.get("type") == "function_call" or item.get("role") == "assistant":
            led[item["id"]] = latest
    return led


def test_real_conversations_stay_as_they_are(conversations: list[dict[str, Any]]) -> None:
    for conversation in conversations:
        for items in (conversation["items"], thoughtful(conversation["items"])):
            refuse(items, needs(items) if items is not conversation["items"] else None)
            assert refused(items) == ()
            assert refused_for_good(items) == ()


@settings(deadline=None)
@given(data=st.data())
def test_any_part_of_a_real_conversation_can_be_made_right(
    conversations: list[dict[str, Any]], data: st.DataObject
) -> None:
    items = data.draw(st.sampled_from(conversations))["items"]
    if data.draw(st.booleans()):
        items = thoughtful(items)
    part = items[: data.draw(st.integers(1, 40))]
    kept = data.draw(st.lists(st.booleans(), min_size=len(part), max_size=len(part)))
    part = [item for item, stays in zip(part, kept, strict=True) if stays]
    if data.draw(st.booleans()):
        part = data.draw(st.permutations(part))
    check(part)


def test_any_window_of_a_conversation_with_thoughts(conversations: list[dict[str, Any]]) -> None:
    """What the API wants to see with the reasoning that a window has cut off goes with it."""
    for conversation in conversations:
        items = thoughtful(conversation["items"])
        for begin in range(len(items)):
            kept = pruned(items[begin:])
            if any(item.get("type") == "reasoning" for item in kept):
                refuse(kept, needs(items))


async def test_what_the_runner_makes_of_it(conversations: list[dict[str, Any]]) -> None:
    """It prunes and reorders what it is given once more, and the model is content with that."""
    chance = random.Random(7)
    model = RefusingModel()
    agent = Agent(name="A", model=model)
    config = RunConfig(session_input_callback=merge_history, tracing_disabled=True)
    for conversation in conversations:
        session = SQLiteSession("s")
        items = conversation["items"]
        await session.add_items([item for item in items if chance.random() < 0.8])
        for _ in range(2):
            await Runner.run(agent, "And?", session=session, run_config=config)
        session.close()


SOME = st.lists(
    st.sampled_from(
        [
            *(user(), said(), SAID, thought(1), thought(2), hosted("web_search_call")),
            *(make(name, kind) for make in (call, output) for name in "ab" for kind in PAIRS),
            *(call("a", id="fc_1"), output("a"), call("b"), output("b")) * 4,
        ]
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=500)
@given(SOME)
def test_anything_can_be_made_right(items: Items) -> None:
    check(items)


def check(items: Items) -> None:
    before = copy.deepcopy(items)
    kept = pruned(items)
    assert items == before
    refuse(kept)
    assert not refused(kept)
    for_good = {item.position for item in refused_for_good(items)}
    left = [item for at, item in enumerate(items) if at not in for_good]
    assert not refused_for_good(left)
    try:
        refuse(items)
    except Refused:
        assert len(kept) < len(items)
    else:
        assert all(item.reason in ("no_reasoning", "no_call") for item in refused(items))
