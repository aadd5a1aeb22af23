"""The agent, its two handlers and its app: what remembers is invoke_turn and stream_turn."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents import Agent, function_tool, set_tracing_disabled
from fastapi import FastAPI
from mlflow.genai.agent_server import AgentServer, invoke, stream
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

from lakebase_sessions import (
    add_error_handlers,
    current_user,
    default_lakebase,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.testing import OfflineModel


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
    return await invoke_turn(agent, request, user=current_user)


@stream()
async def stream_handler(
    request: ResponsesAgentRequest,
) -> AsyncIterator[ResponsesAgentStreamEvent]:
    """Answer in events."""
    async for event in stream_turn(agent, request, user=current_user):
        yield event


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Each worker finds its Lakebase and sees to the tables before it takes requests."""
    async with default_lakebase():
        yield


app = AgentServer("ResponsesAgent").app
app.router.lifespan_context = lifespan
add_error_handlers(app)
