"""What is taken for an edit, against an oracle: clients that resend, edit, retry and stop."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from unit.conversation.clients import (
    Client,
    Items,
    Look,
    Turn,
    World,
    endings,
    look,
    plain,
    turns,
)

from lakebase_sessions import InvalidTurn
from lakebase_sessions.conversation.edits import (
    Edit,
    Stored,
    checked_turn,
    opening,
    replaced_from,
    turn_starts,
)
from lakebase_sessions.conversation.history import parting
from lakebase_sessions.conversation.items import encode

TURNS = 4
ODDITIES = int(os.environ.get("LAKEBASE_SESSIONS_ODDITIES", "2"))
"""In one conversation. 3 takes minutes; `-s --timeout=0` shows figures."""

TOOLS = {"no tools": (False, False), "tools": (True, False), "tools resent": (True, True)}

Cut = int | None


def rows(stored: Items) -> list[Stored]:
    return [Stored(place, said.item()) for place, said in enumerate(stored)]


def cut(stored: list[Stored], sent: list[Any]) -> Cut:
    return replaced_from(stored, parting([row.item for row in stored], sent))


def true_cut(world: World, turn: Turn) -> Cut:
    """The oracle: the turn of the first question behind all that the client still shows."""
    shown = {said.number for said in turn.shown}
    if turn.shown[-1] in world.stored:
        shown.remove(turn.shown[-1].number)  # to be answered again
    ends = max((at + 1 for at, said in enumerate(world.stored) if said.number in shown), default=0)
    asked = [at for at, said in enumerate(world.stored) if at >= ends and said.kind == "user"]
    starts = turn_starts(rows(world.stored))
    return max(start for start in starts if start <= asked[0]) if asked else None


def explore(clients: Iterable[Client]) -> dict[Look, dict[tuple[bool, Cut], int]]:
    """All that can be seen; whether the client only appended and what it replaces; its oddities."""
    found: dict[Look, dict[tuple[bool, Cut], int]] = {}
    for client in clients:
        worlds = {World(): 0}
        for _ in range(TURNS):
            following: dict[World, int] = {}
            for world, so_far in worlds.items():
                for turn in turns(world, client):
                    odd = so_far + turn.oddities
                    if odd > ODDITIES:
                        continue
                    right = true_cut(world, turn)
                    only_appends = turn.shown[: len(world.view)] == world.view
                    truths = found.setdefault(look(world.stored, turn.sent), {})
                    truth = only_appends, right
                    truths[truth] = min(odd, truths.get(truth, odd))
                    kept = World(world.stored[:right], world.view)
                    for ending in endings(kept, turn, client):
                        total = odd + ending.oddities
                        if total <= ODDITIES:
                            after = World(*plain(*ending.world))
                            following[after] = min(total, following.get(after, total))
            worlds = following
    return found


def likeliest(truths: dict[tuple[bool, Cut], int]) -> set[Cut]:
    fewest = min(truths.values())
    return {right for (_, right), oddities in truths.items() if oddities == fewest}


@pytest.mark.parametrize("repetitions", [False, True], ids=["", "words repeat"])
@pytest.mark.parametrize("resends", ["all", "anything"])
@pytest.mark.parametrize("tools", TOOLS)
def test_every_conversation(tools: str, resends: str, repetitions: bool) -> None:
    """An edit is never found where a client only appended, nor at another place."""
    kinds = ("all",) if resends == "all" else ("all", "unanswered", 2, 4)
    clients = [Client(kind, *TOOLS[tools], repetitions=repetitions) for kind in kinds]
    tally: Counter[str] = Counter()
    for seen, truths in explore(clients).items():
        sent = [said.item() for said in seen.sent]
        found = cut(rows(seen.stored), sent)
        right = likeliest(truths)
        verdict = "right" if found in right else "missed" if found is None else "wrong"
        tally[verdict + (", an edit" if found is not None else "")] += 1
        if min(truths.values()) > 2:
            continue
        assert verdict != "wrong", (seen, truths, found)
        if found is not None:
            assert (True, None) not in truths, (seen, truths, found)
        if verdict == "missed" and resends == "all" and not repetitions:
            # Nothing that the assistant has said, or not from the beginning.
            beginning = seen.sent[0][1:] == seen.stored[0][1:]
            known = {said[1:] for said in seen.stored if said.kind == "assistant"}
            assert not (beginning and any(said[1:] in known for said in seen.sent[:-1])), seen
    print(tools, resends, repetitions, dict(tally))
    assert tally["right, an edit"] > 30


def said(role: str, content: Any) -> Any:
    return {"role": role, "content": content}


U1, A1, U2, A2 = (
    said("user", "1"),
    said("assistant", "1!"),
    said("user", "2"),
    said("assistant", "2!"),
)


@pytest.mark.parametrize(
    ("stored", "sent", "place"),
    [
        ([U1, A1, U2, A2], [U1, A1, said("user", "2'")], 2),
        ([U1, A1, U2, A2], [U1, A1, U2], 2),
        ([U1, A1, U2, A2], [U1, A1, U2, A2, said("user", "3")], None),
        ([U1, A1, U2, A2], [U1, A1, U2, said("user", "3")], None),
        ([U1, A1, U2, A2], [U1, A1, U2, said("assistant", "2"), said("user", "3")], None),
        ([U1, A1, U2, said("user", "3"), A2], [U1, A1, U2, said("user", "3'")], 2),
        ([U1, A1, A2], [U1, A1, said("user", "2")], None),
        ([U1, A1, U2, A2], [U1], None),
        ([U1, A1, U2, A2], [A1, said("user", "2'")], None),
        ([U1, A1, U2, A2], [U1, said("user", "2'")], None),
        ([U1, A1, U1, A1], [U1, A1, U1], None),
        ([U1, A1, U2, U1, A2], [U1, A1, U2, U1], 2),
        ([U1, A1, U2, A2], [U1, said("assistant", [{"text": "1!"}]), said("user", "2'")], 2),
    ],
)
def test_places(stored: list[Any], sent: list[Any], place: Cut) -> None:
    assert cut([Stored(at, item) for at, item in enumerate(stored)], sent) == place


def test_turns_begin_at_records_and_else_at_users_words() -> None:
    system = said("system", "Be kind.")
    call: Any = {"type": "function_call", "call_id": "c"}
    stored = [
        Stored(1, U1),
        Stored(2, U1),
        Stored(3, A1),
        Stored(4, system, 7),
        Stored(5, U2),
        Stored(6, call),
        Stored(7, U1),
        Stored(8, A2),
        Stored(9, A2, 9),
        Stored(10, U1),
    ]
    assert turn_starts(stored) == [0, 3, 8, 9]


@pytest.mark.parametrize("turn", [0, -1, True, 1.0, "1", [], {}, "x" * 1000])
def test_what_is_no_number_of_a_turn(turn: object) -> None:
    with pytest.raises(InvalidTurn) as raised:
        checked_turn(turn)
    assert len(str(raised.value)) < 300


def test_what_can_be_an_edit() -> None:
    assert Edit.of([U1], None, "rewind") is None
    assert Edit.of([U1, A1, U2], None, "append") is None
    assert Edit.of([U1, A1, U2], None, "rewind", compared=False) is None
    assert Edit.of([U1, A1, U2], None, "rewind") is not None
    assert Edit.of([U1], 1, "rewind") is not None
    with pytest.raises(InvalidTurn):
        Edit.of([U1], 0, "append")
    with pytest.raises(ValueError, match="on_edit"):
        Edit.of([U1], None, "replace")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["Hi", ' "Où?" \n\t\\ ', "\U0001f600" * 200, "a" * 500, "\x00"])
def test_the_opening_is_found_in_its_row(text: str) -> None:
    for content in (text, [{"type": "input_text", "text": text}]):
        found = opening([said("system", "Be kind."), said("user", content), A1])
        (row,) = encode([said("user", text)])
        assert found
        assert found in row


def test_what_has_no_opening() -> None:
    picture = [{"type": "input_image", "image_url": "data:"}]
    assert opening([said("user", picture), A1]) is None
    assert opening([said("system", "Be kind.")]) is None
    assert opening([]) is None
