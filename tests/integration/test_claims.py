"""Two turns of a conversation at once: refused, or in line; two round trips where nobody is."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from agents import Agent, Runner, function_tool, set_tracing_disabled
from conftest import admin
from faults.backends import blocked
from processes import Fork
from proxy import Proxy
from refusing_model import RefusingModel
from scripted_model import ScriptedModel, call
from till import Chat, Till, asked

from lakebase_sessions import (
    ConfigurationError,
    ConversationBusy,
    ConversationConflict,
    Lakebase,
    LakebaseSession,
    TablesMissing,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.conversation import claim
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

pytestmark = pytest.mark.long

SET_BUSY = ("refuse", "wait")
KINDS = ("turn", "stepped_turn")


def said(role: str, content: str) -> Any:
    return {"role": role, "content": content}


def texts(items: Any) -> list[str]:
    return [item["content"] for item in items]


def claims_in(local: LocalLakebase, database: str) -> list[tuple[Any, ...]]:
    """Holder there or not, and how many wait, of each row."""
    with admin(local, database) as connection:
        return connection.execute(
            "SELECT holder IS NOT NULL, cardinality(waiting) FROM agent_claims"
        ).fetchall()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait ask often."""
    monkeypatch.setattr(claim, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(claim, "FIRST_IN_LINE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(claim, "PAUSE_SECONDS", 0.02)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LEASE_SECONDS", 0.6)


async def in_line(local: LocalLakebase, database: str, count: int) -> None:
    """Return once so many wait."""
    while claims_in(local, database) != [(True, count)]:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_second_turn_is_refused(lakebase: Lakebase, kind: str) -> None:
    session = lakebase.session("s")
    async with getattr(session, kind)(on_busy="refuse") as first:
        await first.get_items()
        for on_busy in ("refuse", "refuse"):
            async with getattr(session, kind)(on_busy=on_busy) as second:
                with pytest.raises(ConversationBusy, match="is under way since") as caught:
                    await second.get_items()
        assert caught.value.since is not None
        assert caught.value.http_status == 409
        await first.add_items([said("user", "1")])
    async with getattr(session, kind)(on_busy="refuse") as third:
        assert texts(await third.get_items()) == ["1"]


async def test_nothing_is_left_in_the_table(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Stored, failed, without anything to store, or never read."""
    session = lakebase.session("s")
    for kind, (read, add, fail) in itertools.product(
        KINDS, itertools.product((True, False), repeat=3)
    ):
        try:
            async with getattr(session, kind)(on_busy="wait") as turn:
                if read:
                    await turn.get_items()
                    assert claims_in(local, database) == [(True, 0)]
                if add:
                    await turn.add_items([said("user", "Hi")])
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert claims_in(local, database) == []


async def test_a_window_of_nothing_claims_too(lakebase: Lakebase) -> None:
    await lakebase.session("s").add_items([said("user", "0")])
    session = lakebase.session("s", history_limit=0)
    async with session.turn(on_busy="refuse") as first:
        assert await first.get_items() == []
        async with session.turn(on_busy="refuse") as second:
            with pytest.raises(ConversationBusy):
                await second.get_items()
        await first.add_items([said("user", "1")])
    assert texts(await lakebase.session("s").get_items()) == ["0", "1"]


async def test_none_neither_looks_nor_is_seen(lakebase: Lakebase) -> None:
    """As ever: storing decides, also against one that has the claim."""
    session = lakebase.session("s")
    await session.add_items([said("user", "0")])
    async with session.turn() as unseen:
        await unseen.get_items()
        with pytest.raises(ConversationConflict):
            async with session.turn(on_busy="refuse") as claimed:
                await claimed.get_items()
                async with session.turn() as other:
                    await other.get_items()
                    await other.add_items([said("user", "1")])
                await claimed.add_items([said("user", "2")])
    assert texts(await session.get_items()) == ["0", "1"]


async def test_a_conflict_gives_the_claim_up_too(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    with pytest.raises(ConversationConflict):
        async with session.turn(on_busy="refuse") as turn:
            await turn.get_items()
            await session.add_items([said("user", "1")])
            await turn.add_items([said("user", "2")])
    assert claims_in(local, database) == []


async def test_who_waits_sees_what_the_other_has_stored(
    lakebase: Lakebase, local: LocalLakebase, database: str, eager: None
) -> None:
    session = lakebase.session("s")

    async def second() -> list[str]:
        async with session.turn(on_busy="wait") as turn:
            seen = texts(await turn.get_items())
            await turn.add_items([said("user", "2")])
            return seen

    async with session.turn(on_busy="wait") as first:
        await first.get_items()
        waiting = asyncio.create_task(second())
        await in_line(local, database, 1)
        async with session.turn(on_busy="refuse") as third:
            with pytest.raises(ConversationBusy):
                await third.get_items()
        await first.add_items([said("user", "1")])
    assert await waiting == ["1"]
    assert texts(await session.get_items()) == ["1", "2"]
    assert claims_in(local, database) == []


async def test_waiting_has_an_end(
    lakebase: Lakebase, local: LocalLakebase, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "WAIT_SECONDS", 0.1)
    session = lakebase.session("s")
    async with session.turn(on_busy="wait") as first:
        await first.get_items()
        with pytest.raises(ConversationBusy, match=r"did not come within 0\.1 s"):
            async with session.turn(on_busy="wait") as second:
                await second.get_items()
        assert claims_in(local, database) == [(True, 0)]


async def test_a_cancelled_waiter_leaves_the_line(
    lakebase: Lakebase, local: LocalLakebase, database: str, eager: None
) -> None:
    session = lakebase.session("s")
    order = []

    async def run(name: str) -> None:
        async with session.turn(on_busy="wait") as turn:
            await turn.get_items()
            order.append(name)

    async with session.turn(on_busy="wait") as first:
        await first.get_items()
        waiting = []
        for count, name in enumerate("abc", start=1):
            waiting.append(asyncio.create_task(run(name)))
            await in_line(local, database, count)
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
        assert claims_in(local, database) == [(True, 2)]
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        assert claims_in(local, database) == [(True, 1)]
    await waiting[2]
    assert order == ["c"]


async def test_a_dead_waiter_loses_its_place(
    lakebase: Lakebase,
    local: LocalLakebase,
    database: str,
    eager: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim, "LOST_SECONDS", 0.3)
    session = lakebase.session("s")
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_claims (session_id, since, expires_at, waiting, seen_at) "
            "SELECT 's', now(), now(), '{dead}', ARRAY[now()]"
        )
    async with session.turn(on_busy="refuse") as refused:
        with pytest.raises(ConversationBusy, match="is about to begin") as caught:
            await refused.get_items()
    assert caught.value.since is None
    async with session.turn(on_busy="wait") as turn:
        await turn.get_items()


async def test_what_dead_workers_left_is_removed(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    with admin(local, database) as connection:
        connection.execute(
            "INSERT INTO agent_claims (session_id, holder, since, expires_at) "
            "SELECT name, 'dead', now(), now() - age::interval "
            "FROM (VALUES ('a', '2 hours'), ('b', '1 minute')) AS claim (name, age)"
        )
        async with lakebase.session("s").turn(on_busy="refuse") as turn:
            await turn.get_items()
        left = connection.execute("SELECT session_id FROM agent_claims").fetchall()
        assert left == [("b",)]
        async with lakebase.session("b").turn(on_busy="refuse") as turn:
            await turn.get_items()


async def test_a_run_that_is_longer_than_the_lease_keeps_its_claim(
    lakebase: Lakebase, short_lease: None
) -> None:
    session = lakebase.session("s")
    async with session.turn(on_busy="refuse") as first:
        await first.get_items()
        until = time.monotonic() + 3 * claim.LEASE_SECONDS
        while time.monotonic() < until:
            async with session.turn(on_busy="refuse") as second:
                with pytest.raises(ConversationBusy):
                    await second.get_items()
            await asyncio.sleep(0.05)
        await first.add_items([said("user", "1")])
    assert len(await session.get_items()) == 1


async def test_a_dead_workers_claim_runs_out(
    lakebase: Lakebase,
    local: LocalLakebase,
    database: str,
    eager: None,
    short_lease: None,
) -> None:
    """A process that is killed in its turn: who waits goes on, without what it had not stored."""

    async def hang() -> None:
        other = Lakebase("local", workspace_client=local.workspace_client(), database=database)
        async with other.session("s").stepped_turn(on_busy="wait") as turn:
            await turn.get_items()
            await turn.add_items([said("user", "1")])
            await asyncio.Event().wait()

    worker = Fork(lambda: asyncio.new_event_loop().run_until_complete(hang()))
    while len(await lakebase.session("s").get_items()) < 1:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(one_turn(lakebase.session("s"), "2"))
    await in_line(local, database, 1)
    worker.kill()
    assert await waiting == ["1"]
    assert texts(await lakebase.session("s").get_items()) == ["1", "2"]


async def one_turn(session: LakebaseSession, text: str) -> list[str]:
    """Add `text` in a turn that waits for others, and return what it has seen."""
    async with session.turn(on_busy="wait") as turn:
        seen = texts(await turn.get_items())
        await asyncio.sleep(0)
        await turn.add_items([said("user", text)])
    return seen


async def test_in_order_of_arrival_across_processes(
    lakebase: Lakebase, local: LocalLakebase, database: str, eager: None
) -> None:
    """Four in this process and four in others, one after another; nobody conflicts."""

    async def alone(text: str) -> None:
        async with Lakebase(
            "local", workspace_client=local.workspace_client(), database=database
        ) as other:
            await one_turn(other.session("s"), text)

    def process(text: str) -> None:
        asyncio.new_event_loop().run_until_complete(alone(text))

    session = lakebase.session("s")
    async with session.turn(on_busy="wait") as first:
        await first.get_items()
        here, elsewhere = [], []
        for number in range(1, 9):
            if number % 2:
                here.append(asyncio.create_task(one_turn(session, str(number))))
            else:
                elsewhere.append(Fork(partial(process, str(number))))
            await in_line(local, database, number)
        await first.add_items([said("user", "0")])
    await asyncio.gather(*here)
    for worker in elsewhere:
        await asyncio.to_thread(worker.join)
    assert texts(await session.get_items()) == list("012345678")


async def test_a_snapshot_from_before_the_claim_is_read_again(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """A claim that had to wait for the other's last write sees what that has written."""
    session = lakebase.session("s")
    await session.add_items([said("user", "0")])
    with admin(local, database) as other, other.transaction():
        # As the other turn's last statement does, that has not been committed yet.
        other.execute(
            "INSERT INTO agent_claims (session_id, holder, since, expires_at) "
            "VALUES ('s', NULL, now(), now())"
        )
        other.execute(
            "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
            ["s", '{"role": "user", "content": "1"}'],
        )
        other.execute("UPDATE agent_sessions SET updated_at = updated_at + interval '1 s'")
        reading = asyncio.create_task(one_turn(session, "2"))
        await blocked(local, database)
    assert await reading == ["0", "1"]
    assert texts(await session.get_items()) == ["0", "1", "2"]


async def test_one_who_gets_in_line_while_the_claim_is_given_up(
    lakebase: Lakebase, local: LocalLakebase, database: str, eager: None
) -> None:
    """Its getting in line is committed when giving up has its snapshot already, and waits."""
    session = lakebase.session("s")
    turn = session.turn(on_busy="wait")
    await turn.__aenter__()
    await turn.get_items()
    with admin(local, database) as other:
        with other.transaction():
            other.execute(
                "UPDATE agent_claims SET waiting = '{b}', seen_at = ARRAY[clock_timestamp()]"
            )
            giving_up = asyncio.create_task(turn.__aexit__(None, None, None))
            await blocked(local, database)
        await giving_up
        assert other.execute("SELECT holder, waiting FROM agent_claims").fetchall() == [
            (None, ["b"])
        ]


async def test_deleting_a_conversation_deletes_its_claim(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    async with session.turn(on_busy="refuse") as first:
        await first.get_items()
        await session.clear_session()
        assert claims_in(local, database) == []
        async with session.turn(on_busy="refuse") as second:
            await second.get_items()
        assert claims_in(local, database) == []


@pytest.mark.parametrize("all_of_the_user", [False, True], ids=["delete", "delete_user"])
async def test_so_does_the_store(
    lakebase: Lakebase, local: LocalLakebase, database: str, all_of_the_user: bool
) -> None:
    """An id has the user's name in it."""
    mine = lakebase.session("s", user="mia")
    other = lakebase.session("s", user="noah")
    for session in (mine, other):
        await session.add_items([said("user", "0")])
    async with mine.turn(on_busy="refuse") as turn, other.turn(on_busy="refuse") as theirs:
        await turn.get_items()
        await theirs.get_items()
        if all_of_the_user:
            async with lakebase.session("new", user="mia").turn(on_busy="refuse") as new:
                await new.get_items()  # a conversation that is not there yet
                assert len(claims_in(local, database)) == 3
                assert await lakebase.store.delete_user("mia") == 1
                assert len(claims_in(local, database)) == 1
        else:
            await lakebase.store.delete("s", user="mia")
        assert len(claims_in(local, database)) == 1


async def test_pruning_a_conversation_deletes_its_claim(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """One of a worker that died, say; who runs keeps the conversation, too."""
    session = lakebase.session("s")
    await session.add_items([said("user", "0")])
    async with session.turn(on_busy="refuse") as turn:
        await turn.get_items()
        assert [each async for each in lakebase.store.prune(older_than=timedelta(0))] == []
        with admin(local, database) as connection:
            connection.execute("UPDATE agent_claims SET expires_at = now()")
        assert [each.conversations async for each in lakebase.store.prune(older_than=timedelta(0))]
        assert claims_in(local, database) == []


async def test_a_turn_that_clears_its_conversation_keeps_the_claim(
    lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    session = lakebase.session("s")
    await session.add_items([said("user", "0")])
    async with session.stepped_turn(on_busy="refuse") as turn:
        await turn.get_items()
        await turn.clear_session()
        assert claims_in(local, database) == [(True, 0)]
        assert await turn.get_items() == []


async def test_no_tables_of_ours(lakebase: Lakebase, local: LocalLakebase, database: str) -> None:
    await lakebase.open()
    with admin(local, database) as connection:
        connection.execute("DROP TABLE agent_claims")
    async with (
        Lakebase(
            "local",
            workspace_client=local.workspace_client(),
            database=database,
            create_tables=False,
        ) as without,
        without.session("s").turn(on_busy="wait") as turn,
    ):
        with pytest.raises(TablesMissing, match="lakebase-sessions init"):
            await turn.get_items()


async def test_nothing_else_is_on_busy(lakebase: Lakebase) -> None:
    with pytest.raises(ConfigurationError, match="on_busy='queue'"):
        lakebase.session("s").turn(on_busy="queue")  # type: ignore[arg-type]


@pytest.fixture
async def proxied(local: LocalLakebase, database: str, proxy: Proxy) -> AsyncIterator[Lakebase]:
    async with Lakebase(
        "proxied", workspace_client=local.workspace_client(), database=database
    ) as lakebase:
        yield lakebase


@pytest.mark.parametrize("on_busy", SET_BUSY)
async def test_round_trips(proxied: Lakebase, proxy: Proxy, on_busy: Any) -> None:
    """Two for an atomic turn, one more for a plain one than without."""
    set_tracing_disabled(True)
    agent = Agent(name="A", model=OfflineModel())
    for _ in range(3):
        costs = []
        for turn in (
            proxied.session("s").turn(on_busy=on_busy),
            proxied.session("s").stepped_turn(),
            proxied.session("s").stepped_turn(on_busy=on_busy),
        ):
            before = proxy.round_trips
            async with turn as session:
                await Runner.run(agent, "Hi", session=session)
            costs.append(proxy.round_trips - before)
        assert costs == [2, 3, 4]
    before = proxy.round_trips
    with pytest.raises(RuntimeError):
        async with proxied.session("s").turn(on_busy=on_busy) as turn:
            await turn.get_items()
            raise RuntimeError
    assert proxy.round_trips - before == 2


async def test_how_often_one_asks_who_waits(
    proxied: Lakebase, lakebase: Lakebase, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most every pause, which begins short."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    async with lakebase.session("s").turn(on_busy="wait") as first:
        await first.get_items()
        monkeypatch.setattr(claim, "WAIT_SECONDS", 1.0)
        before = proxy.round_trips
        with pytest.raises(ConversationBusy):
            async with proxied.session("s").turn(on_busy="wait") as second:
                await second.get_items()
    # At 0, 0.05, 0.15, 0.35, 0.75 and 1.15 s; then it leaves the line. A slow machine asks less.
    assert proxy.round_trips - before <= 7


class CountingModel(OfflineModel):
    """Waits for a word before it answers, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.most_at_once = 0
        self._at_once = 0
        self.go_on = asyncio.Event()

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.go_on.wait()
        self._at_once -= 1
        return await super().get_response(*args, **kwargs)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.calls += 1
        await self.go_on.wait()
        async for event in super().stream_response(*args, **kwargs):
            yield event


def request(text: str) -> Any:
    from mlflow.types.responses import ResponsesAgentRequest

    return ResponsesAgentRequest(
        input=[{"role": "user", "content": text}],  # type: ignore[list-item]
        custom_inputs={"session_id": "s"},
    )


@pytest.mark.parametrize("atomic", [True, False])
async def test_ten_tabs_one_runs_and_nine_are_told(lakebase: Lakebase, atomic: bool) -> None:
    set_tracing_disabled(True)
    model = CountingModel()
    agent = Agent(name="A", model=model)

    async def send(number: int) -> Any:
        return await invoke_turn(
            agent, request(str(number)), lakebase=lakebase, atomic=atomic, on_busy="refuse"
        )

    sending = [asyncio.create_task(send(number)) for number in range(10)]
    while sum(task.done() for task in sending) < 9 or not model.calls:
        await asyncio.sleep(0.01)
    model.go_on.set()
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert sum(isinstance(outcome, ConversationBusy) for outcome in outcomes) == 9
    assert model.calls == 1
    assert len(await lakebase.session("s").get_items()) == 2


@pytest.mark.parametrize("atomic", [True, False])
async def test_ten_tabs_run_one_after_another(
    lakebase: Lakebase, local: LocalLakebase, database: str, eager: None, atomic: bool
) -> None:
    set_tracing_disabled(True)
    model = CountingModel()
    agent = Agent(name="A", model=model)

    async def send(number: int) -> Any:
        return await invoke_turn(
            agent, request(f"tab {number}"), lakebase=lakebase, atomic=atomic, on_busy="wait"
        )

    sending = []
    for number in range(10):
        sending.append(asyncio.create_task(send(number)))
        if number:
            await in_line(local, database, number)
        else:
            while not model.calls:
                await asyncio.sleep(0.01)
    assert model.calls == 1
    model.go_on.set()
    await asyncio.gather(*sending)
    assert model.most_at_once == 1
    items: Any = await lakebase.session("s").get_items()
    assert [item["content"] for item in items[::2]] == [f"tab {number}" for number in range(10)]
    assert {item["role"] for item in items[1::2]} == {"assistant"}
    assert claims_in(local, database) == []


@pytest.mark.parametrize("atomic", [True, False])
async def test_a_stream_is_refused_before_its_first_event(
    lakebase: Lakebase, local: LocalLakebase, database: str, atomic: bool
) -> None:
    set_tracing_disabled(True)
    model = CountingModel()
    agent = Agent(name="A", model=model)

    async def send() -> list[Any]:
        stream = stream_turn(
            agent, request("Hi"), lakebase=lakebase, atomic=atomic, on_busy="refuse"
        )
        return [event async for event in stream]

    first = asyncio.create_task(send())
    while not model.calls:
        await asyncio.sleep(0.01)
    (told,) = await send()
    assert (told.type, told.model_dump()["code"]) == ("error", "conversation_busy")
    model.go_on.set()
    assert (await first)[-1].type == "response.completed"
    assert model.calls == 1
    assert claims_in(local, database) == []


PAY: Any = [said("user", "Make the payment for Mia.")]


async def test_an_answer_waits_for_nobody_who_was_refused(lakebase: Lakebase) -> None:
    """While another turn is under way nobody takes the answer, and it counts afterwards."""
    till = Till()
    chat = Chat(lakebase, streamed=False, atomic=False, options={"on_busy": "refuse"})
    [waits] = asked(await chat(till.agent(), PAY))
    async with lakebase.session("s").turn(on_busy="refuse") as other:
        await other.get_items()
        with pytest.raises(ConversationBusy):
            await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == []
    await chat(till.agent(), approvals={waits["id"]: True})
    assert till.paid == ["Mia"]


@pytest.mark.parametrize("atomic", [False, True], ids=["plain", "atomic"])
async def test_an_answer_that_is_under_way_keeps_others_out(
    lakebase: Lakebase, local: LocalLakebase, database: str, atomic: bool
) -> None:
    session = lakebase.session("s")
    busy = []

    @function_tool(needs_approval=True)
    async def make_payment(to: str) -> str:
        async with session.turn(on_busy="refuse") as other:
            try:
                await other.get_items()
            except ConversationBusy as error:
                busy.append(error)
        return f"Paid {to}."

    agent = Agent(name="A", model=RefusingModel(), tools=[make_payment])
    chat = Chat(lakebase, streamed=False, atomic=atomic, options={"on_busy": "refuse"})
    [waits] = asked(await chat(agent, PAY))
    await chat(agent, approvals={waits["id"]: True})
    assert len(busy) == 1
    assert claims_in(local, database) == []


@pytest.mark.parametrize("on_edit", ["rewind", "fork"])
@pytest.mark.parametrize("atomic", [False, True], ids=["plain", "atomic"])
async def test_an_edit_claims_and_gives_up(
    lakebase: Lakebase, local: LocalLakebase, database: str, on_edit: Any, atomic: bool
) -> None:
    session = lakebase.session("s")
    busy = []

    @function_tool
    async def look_up() -> str:
        async with session.turn(on_busy="refuse") as other:
            try:
                await other.get_items()
            except ConversationBusy as error:
                busy.append(error)
        return "found"

    def agent() -> Agent[Any]:
        return Agent(name="A", model=ScriptedModel([call("look_up")]), tools=[look_up])

    options: dict[str, Any] = {"on_busy": "wait", "on_edit": on_edit}
    chat = Chat(lakebase, streamed=False, atomic=atomic, options=options)
    for number in (1, 2):
        await chat(agent(), [said("user", f"Question {number}")])
    resent = [said("user", "Question 1"), said("assistant", "Done."), said("user", "Edited")]
    by_content = [item for item in await session.get_items() if "role" in item]
    resent[1] = by_content[1]
    again: Any = {"turn": 1}
    for items, custom in ((resent, {}), ([said("user", "Again")], again)):
        answer = await chat(agent(), items, **custom)
        assert answer["custom_outputs"]["turn"] == (1 if custom else 2)
        assert claims_in(local, database) == []
    assert len(busy) == 4
