"""The offline model answers from its items, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, function_tool

from lakebase_sessions.testing import OfflineModel

QUIET = RunConfig(tracing_disabled=True)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


@pytest.fixture
def agent() -> Agent[Any]:
    return Agent(name="Assistant", model=OfflineModel(), tools=[get_weather])


async def test_what_is_in_the_items_it_knows(agent: Agent[Any]) -> None:
    told = ["Hello, I live in SF!", "My favourite colour is blue."]
    items: list[Any] = [{"role": "user", "content": text} for text in told]
    for question, answer in (
        ("Where do I live?", "You said that you live in SF."),
        ("What is my favourite colour?", "You said that your favourite colour is blue."),
    ):
        asked = [*items, {"role": "user", "content": question}]
        assert (await Runner.run(agent, asked, run_config=QUIET)).final_output == answer


async def test_it_keeps_nothing_from_one_run_to_the_next(agent: Agent[Any]) -> None:
    await Runner.run(agent, "Hello, I live in SF!", run_config=QUIET)
    result = await Runner.run(agent, "Where do I live?", run_config=QUIET)
    assert result.final_output.startswith("I do not know")


async def test_it_calls_the_tool_that_is_asked_for(agent: Agent[Any]) -> None:
    result = await Runner.run(agent, "What is the weather in Rome?", run_config=QUIET)
    assert result.final_output == "It is sunny in Rome."


async def test_streaming_says_the_same(agent: Agent[Any]) -> None:
    result = Runner.run_streamed(agent, "What is the weather in Rome?", run_config=QUIET)
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == result.final_output == "It is sunny in Rome."
