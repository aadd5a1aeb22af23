"""A travel agent that remembers, as it would run in production."""

from __future__ import annotations

from agents import Agent, Model, Runner, function_tool, set_tracing_disabled

from lakebase_sessions import session_for

set_tracing_disabled(True)  # the SDK would send traces to OpenAI


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


def travel_agent(model: str | Model = "databricks-claude-sonnet-4-5") -> Agent[None]:
    """The agent; tests give it a model that runs offline."""
    return Agent(name="Travel agent", model=model, tools=[get_weather])


async def answer(agent: Agent[None], message: str, *, session_id: str, user: str) -> str:
    """One turn of a user's conversation."""
    session = session_for(session_id=session_id, user=user)
    result = await Runner.run(agent, message, session=session)
    return str(result.final_output)
