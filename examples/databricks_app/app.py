"""An agent that remembers, as a Databricks App: the agent, its two handlers, and a chat page.

    uv run app.py

README.md says how it is deployed, and how it runs on a laptop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from agents import (
    Agent,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from databricks_openai import AsyncDatabricksOpenAI
from dotenv import load_dotenv
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

load_dotenv()  # on a laptop; the platform sets the environment itself
set_default_openai_client(AsyncDatabricksOpenAI())
set_default_openai_api("chat_completions")  # what Databricks' models speak
set_tracing_disabled(True)  # the SDK would send traces to OpenAI; MLflow has its own


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


agent = Agent(
    name="Assistant",
    instructions="You are a helpful assistant.",
    model=os.environ.get("AGENT_MODEL", "databricks-claude-sonnet-4-5"),
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
    """Find the Lakebase and see to the tables before the first request."""
    async with default_lakebase():
        yield


app = AgentServer("ResponsesAgent").app
app.router.lifespan_context = lifespan
add_error_handlers(app)
add_conversations(app, user=current_user)
add_page(app)


def main() -> None:
    """Serve where Databricks Apps look for it."""
    port = int(os.environ.get("DATABRICKS_APP_PORT", "8000"))
    uvicorn.run(app, host="0.0.0.0", port=port)  # noqa: S104 - the platform's proxy is outside


if __name__ == "__main__":
    main()
