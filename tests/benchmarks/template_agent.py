"""The server as the template writes it, for comparison: a new upstream session each request."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Runner, set_tracing_disabled
from databricks_openai.agents import AsyncDatabricksSession
from mlflow.genai.agent_server import AgentServer, stream
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentStreamEvent

from lakebase_sessions.testing import OfflineModel

set_tracing_disabled(True)
agent = Agent(name="Assistant", model=OfflineModel())


@stream()
async def stream_handler(
    request: ResponsesAgentRequest,
) -> AsyncIterator[ResponsesAgentStreamEvent | dict[str, Any]]:
    """Run, and pass on the model's events under new ids."""
    session = AsyncDatabricksSession(
        session_id=(request.custom_inputs or {}).get("session_id", ""),
        instance_name=os.environ["LAKEBASE_INSTANCE_NAME"],
    )
    history = await session.get_items()  # the template's deduplicate_input reads it all
    messages: list[Any] = [item.model_dump() for item in request.input]
    if len(history) >= len(messages) - 1:
        messages = [messages[-1]]
    result = Runner.run_streamed(agent, messages, session=session)
    item_id = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event":
            data = event.data.model_dump()
            if data["type"] == "response.output_item.added":
                item_id = str(uuid.uuid4())
                data["item"]["id"] = item_id
            elif data.get("item"):
                data["item"]["id"] = item_id
            elif data.get("item_id"):
                data["item_id"] = item_id
            yield data


app = AgentServer("ResponsesAgent").app
