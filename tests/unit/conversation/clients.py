"""Clients that resend conversations in every way, and an oracle that knows what is stored.

Every item has a number, which is not in what is sent: the oracle tells by it what is new, where
`merge_history` has nothing but the content. What is out of the ordinary, such as an answer that is
lost or words that were used before, is an oddity. `explore` takes every turn that is possible; of
several conversations that look the same, those with the fewest oddities are the likeliest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Said(NamedTuple):
    """An item. `kind` is a role, `reasoning`, `call` or `output`; `words` stand for its text."""

    number: int
    kind: str
    words: int

    def item(self) -> Any:
        """As it is stored and sent."""
        match self.kind:
            case "reasoning":
                return {"type": "reasoning", "id": f"rs_{self.number}", "summary": []}
            case "call":
                call = {"type": "function_call", "name": "f", "arguments": "{}"}
                return {**call, "call_id": f"call_{self.words}"}
            case "output":
                call_id = f"call_{self.words}"
                return {"type": "function_call_output", "call_id": call_id, "output": "7"}
            case role:
                return {"role": role, "content": f"{role} {self.words}"}


Items = tuple[Said, ...]
Right = tuple[int, ...]
"""The places, in what was sent, of what has to be stored."""


@dataclass(frozen=True)
class Client:
    """How a client goes about it, and what talks to it, in all turns of a conversation."""

    resends: str | int = "all"
    """All, the latest so many items, or `unanswered`: only what is new or has no answer."""
    tools: bool = False
    """Whether the agent thinks and calls a tool before it answers."""
    shows_tools: bool = False
    """Whether the client resends that."""
    repetitions: bool = True
    """Whether users and the assistant may use the same words again."""

    def sends(self, view: Items, new: Items) -> Items:
        if isinstance(self.resends, int):
            return (*view, *new)[-self.resends - len(new) :]
        if self.resends == "all":
            return view + new
        answered = [at for at, said in enumerate(view) if said.kind == "assistant"]
        return view[answered[-1] + 1 if answered else 0 :] + new

    def words(self, items: Items, kind: str) -> Iterator[tuple[int, bool]]:
        """What may be said next, and whether it was said before."""
        fresh = max((said.words + 1 for said in items if said.kind == kind), default=0)
        yield fresh, False
        if self.repetitions:
            yield from ((used, True) for used in range(fresh))


class World(NamedTuple):
    """A conversation between two turns."""

    stored: Items = ()
    view: Items = ()


class Turn(NamedTuple):
    """What a client sends, and shows."""

    sent: Items
    shown: Items
    oddities: int


class Ending(NamedTuple):
    """How a turn ended."""

    kind: str
    world: World
    oddities: int


def right(stored: Items, sent: Items) -> Right:
    """The oracle: what was never stored, and the last item."""
    numbers = {said.number for said in stored}
    last = len(sent) - 1
    return tuple(at for at, said in enumerate(sent) if said.number not in numbers or at == last)


def turns(world: World, client: Client) -> Iterator[Turn]:
    """What the client may do next: say something, edit, regenerate, leave something out."""
    number = _number(world)
    for view, again, oddities in _views(world.view, client):
        if again:
            yield Turn(client.sends(view, again), view + again, oddities)
            continue
        everything = world.stored + world.view
        for words, used in client.words(everything, "user"):
            new = (Said(number, "user", words),)
            yield Turn(client.sends(view, new), view + new, oddities + used)
            for more, used_too in client.words(everything + new, "user"):
                two = (*new, Said(number + 1, "user", more))
                yield Turn(client.sends(view, two), view + two, oddities + used + used_too + 1)


def _views(view: Items, client: Client) -> Iterator[tuple[Items, Items, int]]:
    """What is left of the view, and what is sent again if nothing new is said."""
    yield view, (), 0
    if client.resends == "unanswered":
        return
    asked = [at for at, said in enumerate(view) if said.kind == "user"]
    for at in asked[-1:]:
        yield view[:at], (view[at],), 1  # regenerated
    for at in asked:
        if at:
            yield view[:at], (), 1  # edited
    for at, said in enumerate(view):
        if said.kind in ("user", "assistant"):
            yield view[:at] + view[at + 1 :], (), 1  # left out


def endings(world: World, turn: Turn, client: Client) -> Iterator[Ending]:
    """How the turn may end, if what is right has been stored."""
    stored = world.stored + tuple(turn.sent[at] for at in right(world.stored, turn.sent))
    number = _number(World(world.stored, turn.shown))
    steps: Items = ()
    if client.tools:
        steps = tuple(
            Said(number + at, kind, number if at else 0)
            for at, kind in enumerate(("reasoning", "call", "output"))
        )
    shown = turn.shown + (steps if client.shows_tools else ())
    choices = list(client.words(world.stored + turn.shown, "assistant"))
    part = (*shown, Said(number + 4, "assistant", choices[0][0] + 1))
    for words, used in choices:
        answer = Said(number + 3, "assistant", words)
        answered = stored + steps + (answer,)
        yield Ending("answered", World(answered, (*shown, answer)), used)
        yield Ending("lost", World(answered, turn.shown), used + 1)
        yield Ending("stopped", World(answered, part), used + 1)
    yield Ending("failed", World(stored + steps, shown), 1)
    yield Ending("taken back", World(stored + steps, turn.shown[:-1]), 1)
    yield Ending("cut off", World(stored + steps, part), 1)
    yield Ending("nothing stored", World(world.stored, turn.shown), 1)
    yield Ending("nothing stored, cut off", World(world.stored, part), 1)


def _number(world: World) -> int:
    """One that is not taken."""
    return max((said.number for said in world.stored + world.view), default=-1) + 1


class Look(NamedTuple):
    """What can be seen of a turn. Numbers mean nothing here."""

    stored: Items
    """Or a window of it."""
    sent: Items


def explore(
    clients: Iterable[Client], number_of_turns: int, oddities: int, limit: int | None = None
) -> dict[Look, dict[Right, int]]:
    """All that can be seen within so many turns and oddities, and what is right then.

    The same can be seen in different worlds: each thing that is right in one, with the fewest
    oddities of such a world.
    """
    found: dict[Look, dict[Right, int]] = {}
    for client in clients:
        worlds = {World(): 0}
        for _ in range(number_of_turns):
            following: dict[World, int] = {}
            for world, so_far in worlds.items():
                for turn in turns(world, client):
                    odd = so_far + turn.oddities
                    if odd > oddities:
                        continue
                    window = world.stored if limit is None else world.stored[-limit:]
                    rights = found.setdefault(look(window, turn.sent), {})
                    answer = right(world.stored, turn.sent)
                    rights[answer] = min(odd, rights.get(answer, odd))
                    for ending in endings(world, turn, client):
                        total = odd + ending.oddities
                        if total <= oddities:
                            after = World(*plain(*ending.world))
                            following[after] = min(total, following.get(after, total))
            worlds = following
    return found


def look(stored: Items, sent: Items) -> Look:
    return Look(
        *(tuple(said._replace(number=0) for said in items) for items in plain(stored, sent))
    )


def plain(*parts: Items) -> tuple[Items, ...]:
    """Numbers and words in the order of their appearance: many worlds differ in nothing else."""
    numbers: dict[int, int] = {}
    words: dict[str, dict[int, int]] = {}

    def renumbered(said: Said) -> Said:
        known = words.setdefault("call" if said.kind == "output" else said.kind, {})
        return Said(
            numbers.setdefault(said.number, len(numbers)),
            said.kind,
            known.setdefault(said.words, len(known)),
        )

    return tuple(tuple(renumbered(said) for said in items) for items in parts)
