"""Any sequence of turns, removals, rewinds, restores and forks, beside a model of it in Python."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakebase_sessions import Branch, Lakebase, LakebaseSession
from lakebase_sessions.conversation.item_pages import item_page, remove_item

Item = dict[str, str]
numbers = itertools.count()


@dataclass
class Node:
    """An item, once stored, and whether a record says that a turn begins with it."""

    item: Item
    recorded: bool
    record: object = None
    """That of its turn."""


@dataclass
class Kept:
    """A branch of the model: what it stood behind, and what it is."""

    after: Node | None
    nodes: list[Node]


@dataclass
class Model:
    """A conversation as lists, with every item that was ever there in the order it came in."""

    nodes: list[Node] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)
    ever: list[Node] = field(default_factory=list)

    def add(self, items: list[Item], *, recorded: bool) -> None:
        record = object() if recorded else None
        nodes = [Node(item, recorded and at == 0, record) for at, item in enumerate(items)]
        self.nodes += nodes
        self.ever += nodes

    def pop(self) -> Item | None:
        return self.nodes.pop().item if self.nodes else None

    def remove(self, at: int) -> None:
        node = self.nodes.pop(at)
        if node.recorded and at < len(self.nodes) and self.nodes[at].record is node.record:
            self.nodes[at].recorded = True

    def starts(self, nodes: list[Node]) -> list[int]:
        """Where turns begin."""
        asked = [node.item["role"] == "user" for node in nodes]
        return [
            at
            for at, node in enumerate(nodes)
            if node.recorded or (asked[at] and not (at and asked[at - 1]))
        ]

    def take_out(self, at: int) -> list[Node]:
        self.nodes, tail = self.nodes[:at], self.nodes[at:]
        return tail

    def after(self, at: int) -> Node | None:
        return self.nodes[at - 1] if at else None

    def holder(self, node: Node | None) -> Kept | None:
        return next((kept for kept in self.kept.values() if has(kept.nodes, node)), None)

    def hangs(self, kept: Kept) -> Node | None:
        """Where: what is nowhere any more was behind what came in before it."""
        if kept.after is None or has(self.nodes, kept.after) or self.holder(kept.after):
            return kept.after
        before = self.ever[: place(self.ever, kept.after)]
        return next((node for node in reversed(before) if has(self.nodes, node)), None)

    def restore(self, number: int) -> Kept | None:
        """Returns what was swapped out."""
        kept = self.kept.pop(number)
        back, base = kept.nodes, self.hangs(kept)
        while holder := self.holder(base):
            cut = place(holder.nodes, base) + 1
            back = holder.nodes[:cut] + back
            above = self.hangs(holder)
            holder.nodes, holder.after = holder.nodes[cut:], base
            base = above
        self.kept = {number: kept for number, kept in self.kept.items() if kept.nodes}
        at = 0 if base is None else place(self.nodes, base) + 1
        swapped_out = self.take_out(at)
        self.nodes += back
        return Kept(base, swapped_out) if swapped_out else None

    def turn_of(self, kept: Kept) -> int:
        base = self.hangs(kept)
        if holder := self.holder(base):
            nodes = holder.nodes[: place(holder.nodes, base) + 1]
            return self.turn_of(holder) + len(self.starts(nodes))
        nodes = [] if base is None else self.nodes[: place(self.nodes, base) + 1]
        return len(self.starts(nodes)) + 1


def has(nodes: list[Node], node: Node | None) -> bool:
    return any(one is node for one in nodes)


def place(nodes: list[Node], node: Node | None) -> int:
    return next(at for at, one in enumerate(nodes) if one is node)


def exchange(size: int) -> list[Item]:
    """A turn, unlike any other."""
    number = next(numbers)
    items = [{"role": "user", "content": f"{number}?"}]
    return items + [{"role": "assistant", "content": f"{number}.{n}"} for n in range(size)]


steps = st.one_of(
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("add"), st.integers(1, 3)),
    st.tuples(st.just("rewind"), st.integers(0, 9)),
    st.tuples(st.just("rewind"), st.integers(0, 9)),
    st.tuples(st.just("restore"), st.integers(0, 9)),
    st.tuples(st.just("restore"), st.integers(0, 9)),
    st.tuples(st.just("pop"), st.integers(1, 4)),
    st.tuples(st.just("remove"), st.integers(0, 9)),
    st.tuples(st.just("remove"), st.integers(0, 9)),
    st.tuples(st.just("replace"), st.integers(0, 9)),
    st.tuples(st.just("fork"), st.integers(0, 9)),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=4, max_size=20))
async def test_it_is_what_the_model_says(lakebase: Lakebase, taken: list[tuple[str, int]]) -> None:
    session, model = lakebase.session(f"tree-{next(numbers)}"), Model()
    for kind, number in taken:
        session, model = await take(session, model, kind, number)
    await check(session, model)


async def take(
    session: LakebaseSession, model: Model, kind: str, number: int
) -> tuple[LakebaseSession, Model]:
    """One step, in both. Returns the session to go on with."""
    starts = model.starts(model.nodes)
    match kind:
        case "add":
            items = exchange(number)
            await session.add_items(list[Any](items))
            model.add(items, recorded=False)
        case "turn":
            items = exchange(number)
            async with session.turn() as turn:
                await turn.get_items()
                await turn.add_items(list[Any](items))
            model.add(items, recorded=True)
        case "pop":
            for _ in range(number):
                assert await session.pop_item() == model.pop()
        case "remove" if model.nodes:
            at = number % len(model.nodes)
            page = await item_page(session, limit=at + 1)
            await remove_item(session, page.items[at][0])
            model.remove(at)
        case "rewind" if starts:
            cut = number % len(starts)
            branch = await session.rewind(before_turn=cut + 1)
            keep(model, branch, starts[cut])
        case "replace" if starts:
            cut, items = starts[number % len(starts)], exchange(1)
            async with session.turn() as turn:
                await turn.get_items()
                turn.replace(turn.stored[cut][0])
                await turn.add_items(list[Any](items))
            keep(model, (await session.branches())[0], cut)
            model.add(items, recorded=True)
        case "fork" if starts:
            cut = number % len(starts)
            fork = await session.fork(before_turn=cut + 1)
            copy = Model()
            copy.nodes = [replace(node) for node in model.nodes[: starts[cut]]]
            copy.ever = list(copy.nodes)
            await check(session, model)
            if number > 4:
                return fork, copy
            await check(fork, copy)
        case "restore" if model.kept:
            branch_id = sorted(model.kept)[number % len(model.kept)]
            swapped_out = await session.restore(branch_id)
            expected = model.restore(branch_id)
            assert (swapped_out is None) == (expected is None)
            if swapped_out is not None and expected is not None:
                model.kept[swapped_out.id] = expected
                assert swapped_out in await session.branches()
    return session, model


def keep(model: Model, branch: Branch | None, at: int) -> None:
    assert branch is not None
    after = model.after(at)
    model.kept[branch.id] = Kept(after, model.take_out(at))


async def check(session: LakebaseSession, model: Model) -> None:
    """Item by item, turn by turn, branch by branch."""
    assert await session.get_items() == [node.item for node in model.nodes]
    starts = model.starts(model.nodes)
    turns = await session.turns()
    assert [turn.number for turn in turns] == list(range(1, len(starts) + 1))
    ends = [*starts, len(model.nodes)][1:]
    assert [turn.items for turn in turns] == [
        end - start for start, end in zip(starts, ends, strict=bool(starts))
    ]
    first = [model.nodes[at].item for at in starts]
    assert [turn.preview for turn in turns] == [
        item["content"] if item["role"] == "user" else "" for item in first
    ]
    branches = {branch.id: branch for branch in await session.branches()}
    assert branches.keys() == model.kept.keys()
    for number, kept in model.kept.items():
        branch = branches[number]
        assert await session.branch_items(branch) == [node.item for node in kept.nodes]
        assert branch.turns == len(model.starts(kept.nodes))
        assert branch.turn == model.turn_of(kept)
