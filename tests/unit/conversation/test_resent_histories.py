"""merge_history against an oracle: edits, retries, lost answers and stops, resent in every way."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.conversation.clients import (
    Client,
    Items,
    Look,
    Right,
    World,
    endings,
    explore,
    right,
    turns,
)

from lakebase_sessions import merge_history
from lakebase_sessions.conversation import history as history_module
from lakebase_sessions.conversation.history import parting
from lakebase_sessions.conversation.soundness import refused

TURNS = 4
ODDITIES = int(os.environ.get("LAKEBASE_SESSIONS_ODDITIES", "2"))
"""In one conversation. 3 takes minutes; `-k every_conversation -s --timeout=0` shows figures."""

RESENT: tuple[str | int, ...] = ("all", "unanswered", 2, 4)
TOOLS = {"no tools": (False, False), "tools": (True, False), "tools resent": (True, True)}


def kept(stored: Items, sent: Items) -> Right:
    """The places of what is taken for new."""
    return parting([said.item() for said in stored], [said.item() for said in sent]).new


def known_words(look: Look) -> list[int]:
    """The places of what was resent of the assistant's, calls included, and is stored."""
    stored = {said for said in look.stored if said.kind in ("assistant", "call")}
    return [place for place, said in enumerate(look.sent[:-1]) if said in stored]


def likeliest(rights: dict[Right, int]) -> list[Right]:
    fewest = min(rights.values())
    return [answer for answer, oddities in rights.items() if oddities == fewest]


def verdict(look: Look, rights: dict[Right, int]) -> str:
    """Whether it is what is right in a likeliest world, and if not, what is wrong."""
    found = kept(*look)
    answers = likeliest(rights)
    if found in answers:
        return "right"
    return "stored twice" if any({*found} > {*answer} for answer in answers) else "lost"


@pytest.mark.parametrize("limit", [None, 3, 6])
@pytest.mark.parametrize("tools", TOOLS)
def test_every_conversation_without_words_that_repeat(tools: str, limit: int | None) -> None:
    """Exactly what was never stored, if anything is resent that the assistant has said."""
    clients = [Client(resends, *TOOLS[tools], repetitions=False) for resends in RESENT]
    tally: Counter[str] = Counter()
    for look, rights in explore(clients, TURNS, ODDITIES, limit).items():
        found = verdict(look, rights)
        tally[found] += 1
        if found == "stored twice":
            assert not known_words(look), (look, rights)
        if found == "lost":  # three oddities: it was not sent in time, but what came after it was
            assert all(answer[0] < known_words(look)[-1] for answer in likeliest(rights))
    print(tools, limit, dict(tally))
    assert tally["right"] > 20 * tally["lost"]


@pytest.mark.long
@pytest.mark.parametrize("limit", [None, 3, 6])
@pytest.mark.parametrize("tools", TOOLS)
def test_every_conversation_with_words_that_repeat(tools: str, limit: int | None) -> None:
    """Nothing is lost within two oddities, and stored twice only what content cannot tell."""
    clients = [Client(resends, *TOOLS[tools]) for resends in RESENT]
    tally: Counter[str] = Counter()
    for look, rights in explore(clients, TURNS, ODDITIES, limit).items():
        found = verdict(look, rights)
        tally[found] += 1
        if found == "right" or min(rights.values()) > 2:
            continue
        assert found == "stored twice", (look, rights)
        known = known_words(look)
        # Said twice: which one the client means is not to be seen. (Of a window it is not even to
        # be seen that it was said twice.)
        twice = known and (look.stored + look.sent).count(look.sent[known[-1]]) > 2
        assert not known or twice or limit, (look, rights)
    print(tools, limit, dict(tally))
    assert tally["right"] > 20 * tally["lost"]


def rendered(items: Items, data: st.DataObject) -> list[Any]:
    """As a client may send them: text as a string or in parts, ids or none."""
    sent = [said.item() for said in items]
    for item in sent:
        if "content" in item and data.draw(st.booleans()):
            kind = "output_text" if item["role"] == "assistant" else "input_text"
            parts = [{"type": kind, "text": item["content"]}]
            item |= {"type": "message", "id": "msg_1", "content": parts}
    return sent


@settings(deadline=None)
@given(st.data())
def test_long_conversations(data: st.DataObject) -> None:
    """Any number of oddities, one after another."""
    tools, shows_tools = data.draw(st.sampled_from([*TOOLS.values()]))
    resends = data.draw(st.sampled_from(RESENT))
    client = Client(resends, tools, shows_tools, repetitions=False)
    world = World()
    for _ in range(data.draw(st.integers(1, 25))):
        turn = data.draw(st.sampled_from([*turns(world, client)]))
        sent = rendered(turn.sent, data)
        stored: list[Any] = [said.item() for said in world.stored]
        parted = parting(stored, sent)
        everything = [*stored, *(sent[place] for place in parted.new)]
        dropped = {item.position for item in refused(everything, len(stored))}
        assert merge_history(stored, sent) == [
            item
            for at, item in enumerate(everything)
            if at not in dropped or at == len(everything) - 1
        ]
        answer = right(world.stored, turn.sent)
        old = [said for said in turn.sent[:-1] if said in world.stored]
        if any(turn.sent.index(said) > answer[0] for said in old):
            return  # it was not sent in time, but what came after it was: taken for old
        if any(said.kind in ("assistant", "call") for said in old):
            assert parted.new == answer
            assert parted.stored == max(world.stored.index(said) for said in old) + 1
        else:
            assert {*parted.new} >= {*answer}
        world = data.draw(st.sampled_from([*endings(world, turn, client)])).world


def steps(stored: list[Any], sent: list[Any]) -> int:
    """How many lines are executed: the same on every machine."""
    count = 0

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != history_module.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parting(stored, sent)
    finally:
        sys.settrace(before)
    return count


def conversation(length: int, words: int) -> list[Any]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": str(at // 2 % words)} for at in range(length)]


@pytest.mark.parametrize("words", [1, 2, 7, 10_000])
@pytest.mark.parametrize(
    ("stored_part", "sent_part"),
    [
        (slice(None), slice(None)),
        (slice(None), slice(0, -3)),
        (slice(None), slice(0, None, 2)),
        (slice(-50, None), slice(None)),
        (slice(None), slice(None, None, -1)),
    ],
    ids=["all", "a beginning", "users only", "under a window", "backwards"],
)
def test_the_time_it_takes_grows_with_the_history(
    words: int, stored_part: slice, sent_part: slice
) -> None:
    """Not with its square, however often the same is said, and whatever a client sends."""
    new: Any = {"role": "user", "content": "new"}
    small, large = (
        steps(said[stored_part], [*said[sent_part], new])
        for said in (conversation(length, words) for length in (400, 1600))
    )
    assert large < 5 * small
