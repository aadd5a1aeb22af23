r"""An agent that remembers behind plain FastAPI.

    uv run lakebase-sessions local               # or a Lakebase of your workspace
    uv run examples/fastapi_app.py [--port 8000] # with the three variables it printed

    curl -X POST http://localhost:8000/chat -H "Content-Type: application/json" \
      -d '{"text": "Hello, I live in SF!"}'

The answer has a `session_id`; send it with the next message. POST /chat/stream answers in events.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from agents import Agent, Runner, set_tracing_disabled
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

from lakebase_sessions import (
    LakebaseSession,
    LakebaseSessionsError,
    add_error_handlers,
    current_user,
    default_lakebase,
    session_for,
)
from lakebase_sessions.testing import OfflineModel

set_tracing_disabled(True)  # the SDK would send traces to OpenAI
agent = Agent(name="Assistant", model=OfflineModel())


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Find the Lakebase and see to the tables before the first request."""
    async with default_lakebase():
        yield


app = FastAPI(lifespan=lifespan)
add_error_handlers(app)


class Message(BaseModel):
    """What a user says, and in which conversation; without an id a new one begins."""

    text: str
    session_id: str | None = None


class Answer(BaseModel):
    """What the agent says, and the id to send with the next message."""

    text: str
    session_id: str


@app.post("/chat")
async def chat(message: Message, request: Request) -> Answer:
    """Answer at once."""
    session = session_for(session_id=message.session_id, user=current_user(request.headers))
    result = await Runner.run(agent, message.text, session=session)
    return Answer(text=result.final_output, session_id=session.session_id)


@app.post("/chat/stream")
async def chat_stream(message: Message, request: Request) -> StreamingResponse:
    """Answer word by word, as server-sent events."""
    session = session_for(session_id=message.session_id, user=current_user(request.headers))
    return StreamingResponse(words(message.text, session), media_type="text/event-stream")


async def words(text: str, session: LakebaseSession) -> AsyncIterator[str]:
    """The words of the answer, each with the session id."""
    result = Runner.run_streamed(agent, text, session=session)
    try:
        async for event in result.stream_events():
            if event.type != "raw_response_event":
                continue
            if isinstance(event.data, ResponseTextDeltaEvent):
                yield sse(delta=event.data.delta, session_id=session.session_id)
    except LakebaseSessionsError as error:  # add_error_handlers turns a first one into a status
        yield sse(type="error", code=error.code, message=str(error))
    finally:
        result.cancel()  # if the client has gone; a run that has ended is not concerned


def sse(**fields: str) -> str:
    return f"data: {json.dumps(fields)}\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)
