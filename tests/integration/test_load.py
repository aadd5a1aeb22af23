"""Many conversations at once against one worker of the agent server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from conftest import admin
from test_agent_server import (  # noqa: F401 - fixtures
    database_for_module,
    environment,
    running,
    server,
)

from lakebase_sessions.local import LocalLakebase

CONVERSATIONS = 200
TURNS = 5


async def converse(client: httpx.AsyncClient, number: int) -> list[str]:
    """One conversation of streamed turns; what the agent said."""
    answers = []
    for turn in range(TURNS):
        text = f"My number is {number}." if turn == 0 else "What is my number?"
        body = {
            "input": [{"role": "user", "content": text}],
            "custom_inputs": {"session_id": f"load-{number}"},
            "stream": True,
        }
        response = await client.post("/invocations", json=body)
        events = [
            json.loads(line.removeprefix("data: "))
            for line in response.text.splitlines()
            if line.startswith("data: {")
        ]
        assert events[-1]["type"] == "response.completed", events[-1]
        answers.append(events[-1]["response"]["output"][-1]["content"][0]["text"])
    return answers


async def test_every_turn_is_answered_and_every_history_complete(
    local: LocalLakebase,
    server: str,  # noqa: F811
    database_for_module: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """In order, without an error, and without a connection more than the pool may have."""
    # no reuse: the server may close an idle connection just when the next request goes out
    limits = httpx.Limits(max_connections=CONVERSATIONS, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server, limits=limits, timeout=110) as client:
        answers = await asyncio.gather(*(converse(client, n) for n in range(CONVERSATIONS)))
    for number, said in enumerate(answers):
        assert said == [
            f"Hello! I will remember: your number is {number}.",
            *[f"You said that your number is {number}."] * (TURNS - 1),
        ]
    with admin(local, database_for_module) as connection:
        rows = connection.execute(
            "SELECT session_id, message_data FROM agent_messages "
            "WHERE session_id LIKE 'load-%' ORDER BY created_at, id"
        ).fetchall()
        open_now = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s "
            "AND application_name = 'lakebase-sessions'",
            [database_for_module],
        ).fetchone()
    stored: dict[str, list[Any]] = {}
    for session_id, data in rows:
        stored.setdefault(session_id, []).append(json.loads(data))
    assert len(stored) == CONVERSATIONS
    for number, said in enumerate(answers):
        items = stored[f"load-{number}"]
        assert [item["role"] for item in items] == ["user", "assistant"] * TURNS
        assert [item["content"][0]["text"] for item in items[1::2]] == said
    assert open_now is not None
    assert 1 <= open_now[0] <= 15
