"""The atomic turn: held back, then stored whole, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agents import Agent, Runner, Session, set_tracing_disabled
from conftest import admin
from databricks_openai.agents import AsyncDatabricksSession

from lakebase_sessions import (
    ConversationConflict,
    InvalidItems,
    InvalidLimit,
    Lakebase,
    LakebaseSession,
    LakebaseUnavailable,
    TurnNotOpen,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

pytestmark = pytest.mark.upstream_logs


def said(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.fixture
def session(lakebase: Lakebase) -> LakebaseSession:
    return lakebase.session("s")


async def test_items_that_were_read_are_the_callers_own(session: LakebaseSession) -> None:
    """Whatever is done to them: the next read has them as they are stored."""
    await session.add_items(said("a", "b"))
    async with session.turn() as turn:
        for _ in range(3):
            items: list[Any] = await turn.get_items()
            assert items == said("a", "b")
            items.pop()
            items[0]["content"] = "changed"
    assert await session.get_items() == said("a", "b")


async def test_reads_inside_see_what_is_held_back_and_others_see_it_at_the_end(
    session: LakebaseSession,
) -> None:
    await session.add_items(said("a", "b"))
    async with session.turn() as turn:
        assert isinstance(turn, Session)
        assert await turn.get_items() == said("a", "b")
        await turn.add_items(said("c"))
        await turn.add_items([])
        await turn.add_items(said("d", "e"))
        assert await turn.get_items() == said("a", "b", "c", "d", "e")
        assert await turn.get_items(limit=4) == said("b", "c", "d", "e")
        assert await turn.get_items(limit=2) == said("d", "e")
        assert await turn.get_items(limit=0) == []
        assert await session.get_items() == said("a", "b")
    assert await session.get_items() == said("a", "b", "c", "d", "e")


async def test_what_is_held_back_is_what_it_was_when_it_was_added(session: LakebaseSession) -> None:
    async with session.turn() as turn:
        items: Any = said("a")
        await turn.add_items(items)
        items[0]["content"] = "changed"
        items = await turn.get_items()
        items[0]["content"] = "changed"
        assert await turn.get_items() == said("a")
    assert await session.get_items() == said("a")


async def test_pop_and_clear_are_held_back_too(session: LakebaseSession) -> None:
    await session.add_items(said("a", "b", "c"))
    async with session.turn() as turn:
        await turn.add_items(said("d"))
        assert [await turn.pop_item() for _ in range(3)] == said("d", "c", "b")
        assert await turn.get_items(limit=5) == said("a")
        await turn.add_items(said("e"))
        assert await session.get_items() == said("a", "b", "c")
    assert await session.get_items() == said("a", "e")

    async with session.turn() as turn:
        await turn.clear_session()
        assert await turn.get_items() == []
        assert await turn.pop_item() is None
        await turn.add_items(said("f"))
    assert await session.get_items() == said("f")

    async with session.turn() as turn:
        await turn.clear_session()
    assert await session.get_items() == []


async def test_corrupt_rows_do_not_count(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await session.add_items(said("a", "b", "c", "d"))
    with admin(local, database) as connection:
        connection.execute(
            "UPDATE agent_messages SET message_data = '{' WHERE message_data ~ '\"(b|d)\"'"
        )
    async with session.turn() as turn:
        assert await turn.get_items(limit=1) == said("c")
        assert await turn.get_items(limit=2) == said("a", "c")
        assert await turn.pop_item() == said("c")[0]
        assert await turn.get_items(limit=1) == said("a")
    assert await session.get_items() == said("a")


async def test_the_latest_items_of_a_history_without_cut_off_outputs(lakebase: Lakebase) -> None:
    session = lakebase.session("s", history_limit=2)
    call: Any = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "1", "output": "x"}
    await session.add_items([call, output, *said("a")])
    async with session.turn() as turn:
        assert await turn.get_items() == said("a")
        assert await turn.get_items(limit=2) == [output, *said("a")]


class Trouble(Exception):
    pass


@pytest.mark.parametrize("trouble", [Trouble, asyncio.CancelledError, GeneratorExit])
async def test_a_turn_that_raises_stores_nothing(
    session: LakebaseSession, trouble: type[BaseException]
) -> None:
    await session.add_items(said("a"))
    with pytest.raises(trouble):
        async with session.turn() as turn:
            await turn.pop_item()
            await turn.add_items(said("b"))
            raise trouble
    assert await session.get_items() == said("a")


async def test_a_run_that_is_cancelled_stores_nothing(session: LakebaseSession) -> None:
    begun = asyncio.Event()

    class Stuck(OfflineModel):
        async def get_response(self, *_arguments: Any, **_options: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    async def run() -> None:
        async with session.turn() as turn:
            await Runner.run(Agent(name="A", model=Stuck()), "Hi", session=turn)

    set_tracing_disabled(True)
    running = asyncio.create_task(run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await session.get_items() == []


Write = Callable[[LakebaseSession, AsyncDatabricksSession], Awaitable[Any]]


async def _atomically(session: LakebaseSession, _: AsyncDatabricksSession) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        await turn.add_items(said("x"))


async def _clear_and_add(session: LakebaseSession, _: AsyncDatabricksSession) -> None:
    await session.clear_session()
    await session.add_items(said("x"))


WRITES: dict[str, Write] = {
    "add_items": lambda ours, _: ours.add_items(said("x")),
    "pop_item": lambda ours, _: ours.pop_item(),
    "clear_session": lambda ours, _: ours.clear_session(),
    "clear and add": _clear_and_add,
    "an atomic turn": _atomically,
    "upstream's add_items": lambda _, upstream: upstream.add_items(said("x")),
    "upstream's pop_item": lambda _, upstream: upstream.pop_item(),
    "upstream's clear_session": lambda _, upstream: upstream.clear_session(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
async def test_a_write_of_anybody_in_between_is_a_conflict(
    session: LakebaseSession, upstream: AsyncDatabricksSession, write: Write
) -> None:
    await session.add_items(said("a", "b"))
    with pytest.raises(ConversationConflict, match="nothing of the turn was stored"):
        async with session.turn() as turn:
            await turn.get_items(limit=1)
            await turn.add_items(said("mine"))
            await write(session, upstream)
            theirs = await session.get_items()
    assert await session.get_items() == theirs != said("a", "b")


@pytest.mark.parametrize("name", ["add_items", "an atomic turn", "upstream's add_items"])
async def test_in_a_new_conversation_too(
    session: LakebaseSession, upstream: AsyncDatabricksSession, name: str
) -> None:
    with pytest.raises(ConversationConflict):
        async with session.turn() as turn:
            await turn.get_items()
            await turn.add_items(said("mine"))
            await WRITES[name](session, upstream)
    assert await session.get_items() == said("x")


async def test_a_write_between_two_readings_is_a_conflict_at_once(session: LakebaseSession) -> None:
    await session.add_items(said("a", "b"))
    async with session.turn() as turn:
        await turn.get_items(limit=1)
        await session.add_items(said("c"))
        assert await turn.get_items(limit=1) == said("b"), "what was read stays"
        with pytest.raises(ConversationConflict):
            await turn.get_items()


async def test_without_a_reading_there_is_no_condition(session: LakebaseSession) -> None:
    await session.add_items(said("a"))
    async with session.turn() as turn:
        await turn.add_items(said("b"))
        await session.add_items(said("x"))
    assert await session.get_items() == said("a", "x", "b")


async def test_a_turn_that_only_reads_writes_nothing_and_conflicts_with_nobody(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    async with session.turn() as turn:
        await turn.get_items()
        await session.add_items(said("x"))
    assert await session.get_items() == said("x")


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
async def test_of_ten_at_once_one_is_stored(session: LakebaseSession, known: bool) -> None:
    """Ten turns, all of which have read before the first one stores."""
    if known:
        await session.add_items(said("a"))
    everybody_has_read = asyncio.Barrier(10)

    async def run(number: int) -> None:
        async with session.turn() as turn:
            await turn.get_items()
            await everybody_has_read.wait()
            await turn.add_items(said(f"{number} asks"))
            await turn.add_items(said(f"{number} is answered"))

    outcomes = await asyncio.gather(*map(run, range(10)), return_exceptions=True)
    (winner,) = (number for number, outcome in enumerate(outcomes) if outcome is None)
    assert sum(isinstance(outcome, ConversationConflict) for outcome in outcomes) == 9
    stored = said(f"{winner} asks", f"{winner} is answered")
    assert await session.get_items() == said("a") * known + stored


async def test_bad_input_is_refused_where_it_is_given(session: LakebaseSession) -> None:
    async with session.turn() as turn:
        await turn.add_items(said("a"))
        not_json: Any = {"role": object()}
        with pytest.raises(InvalidItems):
            await turn.add_items([*said("b"), not_json])
        with pytest.raises(InvalidLimit):
            await turn.get_items(limit=-1)
    assert await session.get_items() == said("a")


async def test_a_turn_is_used_inside_its_block_and_once(session: LakebaseSession) -> None:
    turn = session.turn()
    with pytest.raises(TurnNotOpen, match="has not begun"):
        await turn.add_items(said("a"))
    async with turn:
        pass
    for use in (turn.get_items, turn.pop_item, turn.clear_session, lambda: turn.add_items([])):
        with pytest.raises(TurnNotOpen, match="is over"):
            await use()
    with pytest.raises(TurnNotOpen, match="begins once"):
        await turn.__aenter__()


async def test_a_connection_that_breaks_under_it_is_told_as_unknown(
    session: LakebaseSession, local: LocalLakebase, database: str
) -> None:
    await session.add_items(said("a"))
    with admin(local, database) as other:
        other.autocommit = False

        async def run() -> None:
            async with session.turn() as turn:
                await turn.get_items()
                await turn.add_items(said("b"))
                other.execute("SELECT * FROM agent_sessions FOR UPDATE")

        running = asyncio.create_task(run())
        with admin(local, "postgres") as killer:
            killed = 0
            while not killed:
                await asyncio.sleep(0.01)
                killed = killer.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = %s AND wait_event_type = 'Lock'",
                    [database],
                ).rowcount
        with pytest.raises(LakebaseUnavailable) as caught:
            await running
        other.rollback()
    assert caught.value.outcome_unknown
    assert await session.get_items() == said("a")


# --- in a handler ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_types() -> Any:
    """MLflow's request and response classes."""
    import mlflow.types.responses

    set_tracing_disabled(True)
    mlflow.tracing.disable()
    return mlflow.types.responses


class MeddledWith(OfflineModel):
    """While it thinks, somebody else writes."""

    def __init__(self, session: LakebaseSession) -> None:
        self.session = session

    async def get_response(self, *arguments: Any, **options: Any) -> Any:
        await self.session.add_items(said("I live in Rome."))
        return await super().get_response(*arguments, **options)

    async def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        await self.session.add_items(said("I live in Rome."))
        async for event in super().stream_response(*arguments, **options):
            yield event


def request(types: Any, text: str) -> Any:
    return types.ResponsesAgentRequest(
        input=[{"role": "user", "content": text}], custom_inputs={"session_id": "s"}
    )


async def test_invoke_turn(mlflow_types: Any, lakebase: Lakebase, session: LakebaseSession) -> None:
    agent = Agent(name="A", model=OfflineModel())
    options: Any = {"lakebase": lakebase, "atomic": True}
    await invoke_turn(agent, request(mlflow_types, "I live in Oslo."), **options)
    answer = await invoke_turn(agent, request(mlflow_types, "Where do I live?"), **options)
    assert "Oslo" in str(answer.output)
    assert len(await session.get_items()) == 4

    meddled_with = Agent(name="A", model=MeddledWith(session))
    with pytest.raises(ConversationConflict):
        await invoke_turn(meddled_with, request(mlflow_types, "Hi"), **options)
    assert (await session.get_items())[4:] == said("I live in Rome.")


async def test_stream_turn(mlflow_types: Any, lakebase: Lakebase, session: LakebaseSession) -> None:
    """`response.completed` says that it is stored; a conflict is an `error` event instead."""
    agent = Agent(name="A", model=OfflineModel())
    options: Any = {"lakebase": lakebase, "atomic": True}
    stored = [
        (event.type, len(await session.get_items()))
        async for event in stream_turn(agent, request(mlflow_types, "I live in Oslo."), **options)
    ]
    assert dict(stored)["response.output_text.delta"] == 0
    assert stored[-1] == ("response.completed", 2)

    meddled_with = Agent(name="A", model=MeddledWith(session))
    events = [e async for e in stream_turn(meddled_with, request(mlflow_types, "Hi"), **options)]
    assert events[-1].type == "error"
    assert events[-1].model_dump()["code"] == "conversation_conflict"
    assert "response.completed" not in [event.type for event in events]
    assert (await session.get_items())[2:] == said("I live in Rome.")


async def test_a_client_that_goes_away_leaves_nothing(
    mlflow_types: Any, lakebase: Lakebase, session: LakebaseSession
) -> None:
    agent = Agent(name="A", model=OfflineModel())
    stream = stream_turn(agent, request(mlflow_types, "Hi"), lakebase=lakebase, atomic=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.aclose()
    assert await session.get_items() == []
