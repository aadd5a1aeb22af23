r"""An agent server that asks before it pays, and remembers that it has asked.

    uv run examples/approvals.py [--port 8000]

Ask for a payment, and end the server while it waits:

    curl -X POST http://localhost:8000/invocations -H "Content-Type: application/json" \
      -d '{"input": [{"role": "user", "content": "Make a payment for Mia."}]}'

Start it again and answer, with the two ids of the response's `custom_outputs`:

    curl -X POST http://localhost:8000/invocations -H "Content-Type: application/json" \
      -d '{"input": [], "custom_inputs": {"session_id": "…", "approvals": {"approval_…": true}}}'

The Lakebase has to outlive the server: one of your workspace, or `uv run lakebase-sessions local`
with the three variables it prints. The model is a small offline one.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

import uvicorn
from agents import Agent, function_tool, set_tracing_disabled
from mlflow.genai.agent_server import AgentServer, invoke, stream
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

from lakebase_sessions import add_error_handlers, current_user, invoke_turn, stream_turn
from lakebase_sessions.testing import OfflineModel


@function_tool(needs_approval=True)
async def make_payment(to: str) -> str:
    """Pay somebody."""
    print(f"Paid {to}.", flush=True)
    return f"Paid {to}."


agent = Agent(name="Till", model=OfflineModel(), tools=[make_payment])


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    set_tracing_disabled(True)  # the SDK would send traces to OpenAI
    app = AgentServer("ResponsesAgent").app
    add_error_handlers(app)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
