"""examples/chat as it is, with a model that counts tokens and can be made to wait.

python chat_server.py [--port 8000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from openai.types.responses import ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from lakebase_sessions.testing import OfflineModel

GATE = Path("go")
"""Whoever says "wait for me" gets an answer that waits, behind its first word, for this file."""


class PacedModel(OfflineModel):
    """As the offline one, with a usage and a gate."""

    async def stream_response(self, *given: Any, **options: Any) -> AsyncIterator[Any]:
        items = given[1] if len(given) > 1 else options["input"]
        waits = "wait for me" in str(items[-1])
        async for event in super().stream_response(*given, **options):
            if event.type == "response.completed":
                event.response.usage = usage(str(items), str(event.response.output))
            yield event
            if event.type == "response.output_text.delta":
                while waits and not GATE.exists():
                    await asyncio.sleep(0.02)


def usage(asked: str, said: str) -> ResponseUsage:
    tokens = len(asked) // 4, len(said) // 4
    return ResponseUsage(
        input_tokens=tokens[0],
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=tokens[1],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=sum(tokens),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "chat"))
    import app

    app.agent.model = PacedModel()
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app.app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
