"""merge_history: what a client resends is not stored twice, and nothing new is lost."""

from __future__ import annotations

import copy
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner
from agents.memory import SQLiteSession
from hypothesis import given
from hypothesis import strategies as st

from lakebase_sessions import merge_history
from lakebase_sessions.conversation.history import parting, without_cut_off_outputs
from lakebase_sessions.conversation.soundness import refused
from lakebase_sessions.testing import OfflineModel

Items = list[Any]


def user(text: Any) -> Any:
    return {"role": "user", "content": text}


def assistant(text: str) -> Any:
    return {"role": "assistant", "content": text}


def call(call_id: str) -> Any:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def output(call_id: str, value: str = "7") -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


# --- every way in which a client may resend ----------------------------------------------------


def texts_of(item: Any) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def visible(items: Items) -> Items:
    """What a chat window shows: no tool items, no reasoning, no empty text."""
    return [item for item in items if "role" in item and texts_of(item)]


def as_strings(items: Items) -> Items:
    return [{"role": item["role"], "content": texts_of(item)} for item in visible(items)]


def as_parts(items: Items) -> Items:
    """Other ids, text in parts, as a Responses client keeps what it was sent."""
    return [
        {
            "type": "message",
            "id": f"msg_{uuid.uuid4().hex}",
            "status": "completed",
            "role": item["role"],
            "content": [
                {
                    "type": "output_text" if item["role"] == "assistant" else "input_text",
                    "text": texts_of(item),
                }
            ],
        }
        for item in visible(items)
    ]


def with_tools(items: Items) -> Items:
    """Everything, as in the `output` of earlier responses, and reasoning besides."""
    reasoning = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": []}
    return [reasoning, *copy.deepcopy(items)] if items else []


WAYS: dict[str, Callable[[Items], Items]] = {
    "nothing": lambda _: [],
    "strings": as_strings,
    "parts": as_parts,
    "with tools": with_tools,
}


def cuts(conversation: Items) -> Iterator[tuple[Items, Items]]:
    """Every point at which a new turn can begin: the history, and what is new."""
    for cut, item in enumerate(conversation):
        # the output of a tool that the client runs is a turn's beginning too
        if item.get("role") == "user" or item.get("type") == "function_call_output":
            yield conversation[:cut], [item]


@pytest.mark.parametrize("way", WAYS)
def test_real_conversations_resent_whole(conversations: list[dict[str, Any]], way: str) -> None:
    for conversation in conversations:
        for history, new in cuts(conversation["items"]):
            merged = merge_history(history, [*WAYS[way](history), *new])
            assert merged == [*history, *new], conversation["id"]


@pytest.mark.parametrize("way", ["strings", "parts"])
def test_real_conversations_resent_in_part(conversations: list[dict[str, Any]], way: str) -> None:
    """The client keeps only the end of the conversation, of any length."""
    for conversation in conversations:
        for history, new in cuts(conversation["items"]):
            resent = WAYS[way](history)
            for begin in range(len(resent)):
                assert merge_history(history, [*resent[begin:], *new]) == [*history, *new]


@pytest.mark.parametrize("way", WAYS)
def test_real_conversations_under_a_window(conversations: list[dict[str, Any]], way: str) -> None:
    """The session reads only the latest items; the client resends all it has seen."""
    for conversation in conversations:
        for history, new in cuts(conversation["items"]):
            for size in (4, 9):
                window = history[-size:]
                if not visible(window):
                    continue  # nothing to align with
                merged = merge_history(window, [*WAYS[way](history), *new])
                whole = without_cut_off_outputs(window)
                assert merged == [*whole, *new], (conversation["id"], size)


@given(st.data())
def test_short_words_that_repeat(data: st.DataObject) -> None:
    """Conversations of "yes" and "no": nothing but the position tells messages apart."""
    words = st.sampled_from(["yes", "no", "ok"])
    turns = data.draw(st.lists(st.tuples(words, words), max_size=8))
    history = [message for said, answered in turns for message in (user(said), assistant(answered))]
    new = [user(data.draw(words))]
    way = data.draw(st.sampled_from([*WAYS.values()]))
    assert merge_history(history, [*way(history), *new]) == [*history, *new]


# --- single rules ------------------------------------------------------------------------------

YES = [user("Sure?"), assistant("Sure."), user("yes"), assistant("Really?")]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([user("yes")], [user("yes")]),
        ([user("yes"), user("yes")], [user("yes"), user("yes")]),
        ([*YES, user("yes")], [user("yes")]),
        ([user("yes"), assistant("Really?"), user("yes")], [user("yes")]),
        ([*YES[:2], user("no")], [user("no")]),
        ([assistant("Really?")], [assistant("Really?")]),
        ([user("Sure?"), user("Hm")], [user("Sure?"), user("Hm")]),
        (YES, [assistant("Really?")]),
    ],
    ids=[
        "a genuine repetition",
        "two of them",
        "the whole conversation",
        "its end",
        "its beginning, and another answer",
        "the last item is never dropped",
        "a greeting that happens to be the same",
        "nothing new but the last",
    ],
)
def test_rules(sent: Items, kept: Items) -> None:
    assert merge_history(YES, sent) == [*YES, *kept]


def test_no_input_goes_on_from_the_history() -> None:
    assert merge_history(YES, []) == YES
    assert merge_history([], []) == []


def test_a_new_system_message_is_kept_and_a_stored_one_is_not_stored_again() -> None:
    system: Any = {"role": "system", "content": "Be brief."}
    other: Any = {"role": "system", "content": "Be kind."}
    history = [system, *YES]
    assert merge_history(history, [system, *YES, user("x")]) == [*history, user("x")]
    assert merge_history(history, [system, user("x")]) == [*history, user("x")]
    assert merge_history(history, [system, *YES[2:], user("x")]) == [*history, user("x")]
    assert merge_history(history, [other, user("x")]) == [*history, other, user("x")]
    assert merge_history(YES, [system, *YES, user("x")]) == [*YES, system, user("x")]
    assert merge_history(YES, [*YES, system, user("x")]) == [*YES, system, user("x")]


def test_several_new_messages_after_tool_calls() -> None:
    """The template counts: after a few tool calls it drops all but the last of these."""
    history = [user("a"), call("1"), output("1"), call("2"), output("2"), assistant("b")]
    new: Items = [{"role": "system", "content": "s"}, user("c"), user("d")]
    assert merge_history(history, new) == [*history, *new]
    assert merge_history(history, [*as_strings(history), *new]) == [*history, *new]


def test_tool_outputs_of_the_client() -> None:
    history = [user("a"), call("1"), call("2")]
    outputs = [output("1"), output("2")]
    assert merge_history(history, outputs) == [*history, *outputs]
    assert merge_history(history, [user("a"), *outputs]) == [*history, *outputs]
    assert merge_history(history, [*history, *outputs]) == [*history, *outputs]


def test_call_ids_that_a_model_uses_again() -> None:
    history = [user("a"), call("1"), output("1"), assistant("b"), user("c"), call("1")]
    assert merge_history(history, [*history, output("1")]) == [*history, output("1")]


def test_images_and_parts() -> None:
    """A picture is compared too; text is text however it is cut up."""
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"}
    other = {**picture, "image_url": "data:image/png;base64,BB=="}
    text = {"type": "input_text", "text": "What is this?"}
    history = [user([text, picture]), assistant("A cat.")]
    undetailed = {name: value for name, value in picture.items() if name != "detail"}
    assert merge_history(history, [user([text, undetailed]), assistant("A cat."), user("Hm")]) == [
        *history,
        user("Hm"),
    ]
    changed = [user([text, other]), assistant("A cat, too."), user("Hm")]
    assert merge_history(history, changed) == [*history, *changed]


@pytest.mark.parametrize(
    "odd", [{}, {"role": "tool", "content": "x"}, {"role": 7}, {"type": "new"}]
)
def test_odd_items_are_kept(odd: Any) -> None:
    assert merge_history(YES, [odd, user("x")]) == [*YES, odd, user("x")]


# --- histories that diverge ---------------------------------------------------------------------

U1, A1, U2, A2, U3, A3 = (
    role(f"{role.__name__} {number}") for number in (1, 2, 3) for role in (user, assistant)
)
PART = assistant("assist")
FAILURE = assistant("Sorry, something went wrong.")


@pytest.mark.parametrize(
    ("stored", "view", "kept"),
    [
        ([U1, A1, U2, A2], [U1, A1], []),
        ([U1, A1, U2, A2, U3, A3], [U1, A1, U2], []),
        ([U1, A1, U2], [U1, A1, U2], []),
        ([U1, A1, U2], [U1, A1], []),
        ([U1, call("1"), output("1")], [U1], []),
        ([U1, call("1"), output("1")], [U1, call("1"), output("1")], []),
        ([U1, A1], [U1, A1, U2], [U2]),
        ([U1, A1], [U1], []),
        ([U1, A1, U2, A2], [U1, A1, U2], []),
        ([U1, A1, U2, A2, U3, A3], [U1, A1, U2, U3], []),
        ([U1, A1, U2, A2], [U1, A1, U2, PART], [PART]),
        ([U1, A1], [U1, PART], [PART]),
        ([U1, A1, U2], [U1, A1, U2, PART], [PART]),
        ([U1, A1, U2, A2], [U1, A1, A2], []),
        ([U1, A1, U2, A2], [U1, U2, A2], []),
        ([U1, A1, U2, A2], [U1, A1, U2, FAILURE], [FAILURE]),
        ([U1, FAILURE, U2, A2], [U1, FAILURE, U2, A2, U3, FAILURE], [U3, FAILURE]),
        ([U1, A1, U2, FAILURE, U3], [U1, A1, U2, FAILURE, U3, FAILURE], [FAILURE]),
    ],
    ids=[
        "the last question edited, or asked again",
        "a question edited whose answer was lost",
        "failed",
        "failed and taken back",
        "failed after a tool",
        "failed after a tool that is resent",
        "nothing stored",
        "the first answer lost",
        "an answer lost",
        "two answers lost",
        "an answer stopped",
        "the first answer stopped",
        "cut off",
        "a question left out",
        "an answer left out",
        "a failure shown as an answer",
        "another in the same words, nothing stored",
        "another in the same words, the question stored",
    ],
)
def test_a_view_that_has_left_what_is_stored(stored: Items, view: Items, kept: Items) -> None:
    """What is new is stored, once, and the turns after it add what they add and no more."""
    view = list(view)
    for number in range(6):
        new = user(f"more {number}")
        merged = merge_history(stored, [*view, new])
        assert merged == [*stored, *(kept if number == 0 else []), new]
        answer = assistant(f"answer {number}")
        stored, view = [*merged, answer], [*view, new, answer]


def test_a_failure_that_repeats_after_an_edit() -> None:
    """No part of the view is the end of what is stored: only the order of its words tells."""
    stored = [U1, A1, U2, A2, U2, FAILURE, U3, A3]
    again = user("again")
    view = [U1, A1, U2, FAILURE, U3, A3, again, FAILURE]
    assert merge_history(stored, [*view, user("x")]) == [*stored, again, FAILURE, user("x")]


def test_reasoning_goes_with_what_it_led_to() -> None:
    """It may be empty, and all of it looks the same then."""
    thought: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
    stored = [U1, thought, call("1"), output("1"), A1]
    assert merge_history(stored, [*stored[:4], U2]) == [*stored, U2]
    other = [U1, {**thought, "id": "rs_2"}, call("2"), output("2"), U2]
    assert merge_history(stored, other) == [*stored, *other[1:]]


def test_call_ids_that_a_model_uses_again_for_a_new_output() -> None:
    history = [U1, call("1"), output("1"), A1, U2, call("1")]
    sent = [U2, call("1"), output("1"), U3]
    assert merge_history(history, sent) == [*history, output("1"), U3]


# --- where a view ends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "sent", "end", "from_beginning"),
    [
        ([], [U1], 0, False),
        ([U1, A1], [U2], 0, False),
        ([U1, A1], [U1, A1, U2], 2, True),
        ([U1, A1, U2, A2], [U1, A1, U2], 2, True),
        ([U1, A1, U2, A2, U3, A3], [U2, A2, U1], 4, False),
        ([U1, A1, U2, A2], [U1, A1, U2, U3], 3, True),
        ([U1, A1, U2, A2, U3, A3], [U1, A1, A2, U1], 4, True),
        ([U1, call("1"), output("1"), A1], [U1, A1, U2], 4, True),
        ([U1, call("1"), output("1"), A1], [U1, call("1"), output("1"), U2], 3, True),
        ([U1, A1], [U1, U2], 1, False),
    ],
    ids=[
        "an empty conversation",
        "only what is new",
        "goes on",
        "edited",
        "edited, of a window",
        "an answer lost",
        "left something out, and edited",
        "tool items not shown",
        "tool items shown, the answer lost",
        "nothing of the assistant's",
    ],
)
def test_where_a_view_ends(stored: Items, sent: Items, end: int, from_beginning: bool) -> None:
    parted = parting(stored, sent)
    assert (parted.stored, parted.from_beginning) == (end, from_beginning)
    assert parted.new[-1] == len(sent) - 1


SOME = st.lists(st.sampled_from([*YES, call("1"), output("1"), {"role": "system", "content": "s"}]))


@given(SOME, SOME)
def test_whatever_is_sent(history: Items, sent: Items) -> None:
    """What stays is in order, nothing is made up, and a model would refuse none of it."""
    history, sent = ([copy.deepcopy(item) for item in items] for items in (history, sent))
    before = copy.deepcopy(history)
    merged = merge_history(history, sent)
    assert history == before
    given = [*history, *sent]
    places = [next(n for n, item in enumerate(given) if item is kept) for kept in merged]
    assert places == sorted(places)
    if sent:
        assert merged[-1] is sent[-1]
    last = len(merged) - 1 if sent else None
    assert all(item.position == last for item in refused(merged))


async def test_the_runner_stores_what_is_new(conversations: list[dict[str, Any]]) -> None:
    """Through the SDK's own persistence, the history resent in a random way each time."""
    random.seed(7)
    agent = Agent(name="Assistant", model=OfflineModel())
    config = RunConfig(session_input_callback=merge_history, tracing_disabled=True)
    session = SQLiteSession("s")
    said = [item for item in conversations[0]["items"] if item.get("role") == "user"]
    for item in said:
        stored = await session.get_items()
        way = random.choice([*WAYS.values()])
        sent = [*way(list(stored)), item]
        await Runner.run(agent, sent, session=session, run_config=config)
    stored = await session.get_items()
    assert [dict(item) for item in stored if dict(item)["role"] == "user"] == said
    assert len(stored) == 2 * len(said)
    session.close()
