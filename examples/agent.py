"""The agent and its two handlers. All that concerns memory is in the two calls at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from agents import Agent, function_tool, set_tracing_disabled
from mlflow.genai.agent_server import invoke, stream
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)
from offline_model import OfflineModel

from lakebase_sessions import current_user, invoke_turn, stream_turn


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


if model := os.environ.get("AGENT_MODEL"):  # a served model, such as databricks-claude-sonnet-4-5
    from agents import set_default_openai_api, set_default_openai_client
    from databricks_openai import AsyncDatabricksOpenAI

    set_default_openai_client(AsyncDatabricksOpenAI())
    set_default_openai_api("chat_completions")

set_tracing_disabled(True)  # the SDK would send traces to OpenAI; MLflow has its own
agent = Agent(
    name="Assistant",
    instructions="You are a helpful assistant.",
    model=model or OfflineModel(),
    tools=[get_weather],
)


@invoke()
async def invoke_handler(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
    """Answer at once."""
    return await invoke_turn(agent, request, user=current_user())


@stream()
async def stream_handler(
    request: ResponsesAgentRequest,
) -> AsyncIterator[ResponsesAgentStreamEvent]:
    """Answer in events."""
    async for event in stream_turn(agent, request, user=current_user()):
        yield event
