"""An agent server with a chat page, on a Lakebase: nothing else keeps what was said.

    uv run examples/chat/app.py [--port 8000]

Then open http://localhost:8000. Without a workspace it runs on `uv run lakebase-sessions local`,
with the three variables that prints. The model is a small offline one; AGENT_MODEL names a served
one instead.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from agents import Agent, function_tool, set_tracing_disabled
from fastapi import FastAPI
from mlflow.genai.agent_server import AgentServer, invoke, stream
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)
from page import add_page

from lakebase_sessions import (
    add_conversations,
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


@function_tool(needs_approval=True)
def book_table(place: str) -> str:
    """Book a table somewhere; asks first."""
    return f"There is a table for you in {place}."


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
    tools=[get_weather, book_table],
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
add_conversations(app, user=current_user)
add_page(app)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
