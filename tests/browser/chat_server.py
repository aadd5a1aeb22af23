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
from agents import Usage

from lakebase_sessions.testing import OfflineModel

GATE = Path("go")
"""An answer to "wait for me" waits, behind its first word, until there is this file."""


class GatedModel(OfflineModel):
    """The offline one, with a gate."""

    async def stream_response(self, *given: Any, **options: Any) -> AsyncIterator[Any]:
        items = given[1] if len(given) > 1 else options["input"]
        waits = "wait for me" in str(items[-1])
        async for event in super().stream_response(*given, **options):
            yield event
            if event.type == "response.output_text.delta":
                while waits and not GATE.exists():
                    await asyncio.sleep(0.02)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "chat"))
    import app

    app.agent.model = GatedModel(
        usage=Usage(requests=1, input_tokens=90, output_tokens=12, total_tokens=102)
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app.app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
