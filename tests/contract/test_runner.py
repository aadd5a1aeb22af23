"""The Agents SDK's own Runner over a session: what it stores is what was said."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, SessionSettings, set_tracing_disabled

from lakebase_sessions import Lakebase
from lakebase_sessions.testing import OfflineModel


@pytest.fixture(autouse=True)
def no_tracing() -> None:
    set_tracing_disabled(True)


@pytest.fixture
def agent() -> Agent[Any]:
    return Agent(name="Assistant", model=OfflineModel())


def texts(items: list[Any]) -> list[str]:
    return [
        item["content"] if isinstance(item["content"], str) else item["content"][0]["text"]
        for item in items
    ]


async def test_a_conversation_is_remembered(lakebase: Lakebase, agent: Agent[Any]) -> None:
    await Runner.run(agent, "Hello, I live in SF!", session=lakebase.session("s"))
    question = "What city did I say I live in?"
    result = await Runner.run(agent, question, session=lakebase.session("s"))
    assert result.final_output == "You said that you live in SF."
    assert texts(await lakebase.session("s").get_items()) == [
        "Hello, I live in SF!",
        "Hello! I will remember: you live in SF.",
        question,
        "You said that you live in SF.",
    ]


async def test_streaming_stores_the_same(lakebase: Lakebase, agent: Agent[Any]) -> None:
    for session_id, streamed in (("plain", False), ("streamed", True)):
        for question in ("My name is Mia.", "What is my name?"):
            session = lakebase.session(session_id)
            if streamed:
                result = Runner.run_streamed(agent, question, session=session)
                assert [event.type async for event in result.stream_events()]
            else:
                await Runner.run(agent, question, session=session)
    plain = texts(await lakebase.session("plain").get_items())
    assert plain == texts(await lakebase.session("streamed").get_items())
    assert plain[-1] == "You said that your name is Mia."


async def test_the_runner_honours_the_history_limit(lakebase: Lakebase, agent: Agent[Any]) -> None:
    """Beyond the window the model really does not know."""
    await Runner.run(agent, "Hello, I live in SF!", session=lakebase.session("s"))
    await Runner.run(agent, "Nice weather today.", session=lakebase.session("s"))
    question = "What city did I say I live in?"
    result = await Runner.run(agent, question, session=lakebase.session("s", history_limit=2))
    assert result.final_output.startswith("I do not know")
    result = await Runner.run(
        agent,
        question,
        session=lakebase.session("s", history_limit=2),
        run_config=RunConfig(session_settings=SessionSettings(limit=50)),
    )
    assert result.final_output == "You said that you live in SF."
