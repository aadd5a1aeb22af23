"""A conversation whose user the context of the run says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, function_tool, set_tracing_disabled

from lakebase_sessions import InvalidUser, Lakebase, LakebaseSession, session_for
from lakebase_sessions.testing import OfflineModel

AGENT = Agent[Any](name="A", model=OfflineModel())


@pytest.fixture(autouse=True)
def _no_tracing() -> None:
    set_tracing_disabled(True)


@pytest.fixture
def shared(lakebase: Lakebase) -> LakebaseSession:
    """One object for everybody."""
    return session_for(session_id="s", user=lambda run: run.context.get("user"), lakebase=lakebase)


async def said_to(session: Any, user: str, text: str) -> str:
    result = await Runner.run(AGENT, text, session=session, context={"user": user})
    return str(result.final_output)


async def test_each_run_has_its_users_conversation(
    shared: LakebaseSession, lakebase: Lakebase
) -> None:
    """At the same time too: all of them are called alike."""
    users = [f"user-{n}@example.com" for n in range(8)]
    await asyncio.gather(*(said_to(shared, user, f"My name is {user}.") for user in users))
    answers = await asyncio.gather(*(said_to(shared, user, "What is my name?") for user in users))
    assert answers == [f"You said that your name is {user.removesuffix('.com')}." for user in users]
    for user in users:
        assert len(await lakebase.session("s", user=user).get_items()) == 4
    assert await lakebase.session("s").get_items() == []


async def test_the_id_that_a_client_was_given(shared: LakebaseSession, lakebase: Lakebase) -> None:
    """It has no user in it; one that has somebody else's opens an empty conversation."""
    assert shared.session_id == "s"
    await said_to(shared, "mia", "I live in SF")
    stolen = lakebase.session("mia:s", user=lambda run: run.context["user"])
    assert "do not know" in await said_to(stolen, "noah", "Where do I live?")
    assert "SF" in await said_to(stolen, "mia", "Where do I live?")


@pytest.mark.parametrize("context", [{}, {"user": None}, {"user": " "}, {"user": 7}])
async def test_a_context_without_a_user(shared: LakebaseSession, context: Any) -> None:
    """It is not everybody's conversation."""
    with pytest.raises(InvalidUser):
        await Runner.run(AGENT, "Hi", session=shared, context=context)


async def test_nothing_outside_a_run(shared: LakebaseSession) -> None:
    await said_to(shared, "mia", "Hi")
    item: Any = {"role": "user", "content": "Hi"}
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.get_items()
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.add_items([item])
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.pop_item()
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.clear_session()
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.turns()
    with pytest.raises(InvalidUser, match="only a run says"):
        await shared.fork()
    async with shared.turn() as turn:
        with pytest.raises(InvalidUser, match="only a run says"):
            await turn.get_items()


async def test_a_turn_is_one_users(shared: LakebaseSession, lakebase: Lakebase) -> None:
    async with shared.turn() as turn:
        await said_to(turn, "mia", "Hi")
        with pytest.raises(InvalidUser, match="Another user's run"):
            await said_to(turn, "noah", "Hi")
        assert turn.session_id == "mia:s"
    assert len(await lakebase.session("s", user="mia").get_items()) == 2
    assert await lakebase.session("s", user="noah").get_items() == []


async def test_a_user_who_changes_within_a_context(
    shared: LakebaseSession, lakebase: Lakebase
) -> None:
    """What is written goes where the context says, not where it said."""

    @function_tool
    def become_somebody(name: str) -> str:
        context["user"] = "noah"
        return name

    context = {"user": "mia"}
    agent = Agent[Any](name="A", model=OfflineModel(), tools=[become_somebody])
    await Runner.run(agent, "I am somebody for Noah", session=shared, context=context)
    mias = await lakebase.session("s", user="mia").get_items()
    noahs = await lakebase.session("s", user="noah").get_items()
    assert [item.get("type", item.get("role")) for item in mias] == ["user"]
    assert "user" not in [item.get("role") for item in noahs]


async def test_a_window_holds_here_too(lakebase: Lakebase) -> None:
    seen = []

    def callback(history: list[Any], new: list[Any]) -> list[Any]:
        seen.append(len(history))
        return history + new

    session = lakebase.session("s", user=lambda run: run.context["user"], history_limit=3)
    for _ in range(3):
        config = RunConfig(session_input_callback=callback)
        await Runner.run(AGENT, "Hi", session=session, context={"user": "mia"}, run_config=config)
    assert seen == [0, 2, 3]


@pytest.mark.parametrize("on_busy", [None, "refuse", "wait"])
async def test_a_turn_outside_a_run_reads_nobodys_conversation(
    lakebase: Lakebase, on_busy: Any
) -> None:
    """Not even to claim it: the id, as the client sent it, may be another user's."""
    await lakebase.session("secret", user="mia").add_items([{"role": "user", "content": "Hi"}])
    stolen = lakebase.session("mia:secret", user=lambda run: run.context["user"])
    async with stolen.turn(on_busy=on_busy) as turn:
        for reading in (turn.get_items, turn.pop_item, lambda: turn.resume(["approval"])):
            with pytest.raises(InvalidUser):
                await reading()
    async with lakebase.session("secret", user="mia").turn(on_busy="refuse") as turn:
        assert len(await turn.get_items()) == 1  # and nobody else's claim is on it
