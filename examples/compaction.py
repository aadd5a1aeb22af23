"""A long conversation made short: the SDK's compaction session around a LakebaseSession.

    uv run lakebase-sessions local     # or a Lakebase of your workspace
    uv run examples/compaction.py      # with the three variables it printed

When enough has been said, OpenAI's `responses.compact` is asked for a shorter history, and that
replaces the stored one. With OPENAI_API_KEY the call goes to OpenAI; without, a stand-in answers
that keeps what the user said and puts one opaque item in place of the rest, as OpenAI does.

The Runner calls the compaction itself after a turn whose model is behind the Responses API. Served
models are behind Chat Completions, whose answers have no response id: there you call it, as here.
Replacing is deleting and adding, two statements: let nobody else write to the conversation then.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httpx
from agents import Agent, Runner, set_tracing_disabled
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

from lakebase_sessions import LakebaseSessionsError, default_lakebase, session_for
from lakebase_sessions.testing import OfflineModel

QUESTIONS = ("Hello, I live in SF!", "My dog is Rex.", "What city did I say I live in?")
MOST_ANSWERS = 2
"""With so many items that are not the user's, the history is compacted."""


def compact(request: httpx.Request) -> httpx.Response:
    """What OpenAI's compaction answers, made here."""
    said = [item for item in json.loads(request.content)["input"] if item.get("role") == "user"]
    messages = [
        {"type": "message", "id": f"msg_{number}", "status": "completed"}
        | item
        | {"content": [{"type": "input_text", "text": item["content"]}]}
        for number, item in enumerate(said)
    ]
    rest = {"type": "compaction", "id": "cmp_1", "encrypted_content": "what the agent said"}
    tokens: dict[str, Any] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    tokens["input_tokens_details"] = {"cached_tokens": 0}
    tokens["output_tokens_details"] = {"reasoning_tokens": 0}
    return httpx.Response(
        200,
        json={
            "id": "resp_1",
            "object": "response.compaction",
            "created_at": 0,
            "output": [*messages, rest],
            "usage": tokens,
        },
    )


def client() -> AsyncOpenAI:
    """OpenAI, or the stand-in for it."""
    if os.environ.get("OPENAI_API_KEY"):
        return AsyncOpenAI()
    transport = httpx.MockTransport(compact)
    return AsyncOpenAI(api_key="offline", http_client=httpx.AsyncClient(transport=transport))


async def main() -> None:
    agent = Agent(name="Assistant", model=OfflineModel())
    async with default_lakebase(), client() as openai:
        stored = session_for()
        session = OpenAIResponsesCompactionSession(
            session_id=stored.session_id,
            underlying_session=stored,
            client=openai,
            should_trigger_compaction=lambda history: (
                len(history["compaction_candidate_items"]) >= MOST_ANSWERS
            ),
        )
        for question in QUESTIONS:
            result = await Runner.run(agent, question, session=session)
            print(f"You:   {question}\nAgent: {result.final_output}")
            before = len(await stored.get_items())
            await session.run_compaction()
            after = await stored.get_items()
            print(f"       {before} items stored, after compaction {len(after)}")
        print(f"In the table, conversation {stored.session_id}:")
        for item in after:
            print(f"  {json.dumps(item)}")


if __name__ == "__main__":
    set_tracing_disabled(True)  # the SDK would send traces to OpenAI
    try:
        asyncio.run(main())
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
