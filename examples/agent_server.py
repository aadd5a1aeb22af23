r"""An agent server whose agent remembers: MLflow's AgentServer on a Lakebase.

    uv run examples/agent_server.py [--port 8000] [--workers 4]

Configuration comes from the environment and from `.env`. Where neither names a Lakebase, one is
started on this machine; without AGENT_MODEL the model is a small offline one.

    curl -X POST http://localhost:8000/invocations -H "Content-Type: application/json" \
      -d '{"input": [{"role": "user", "content": "Hello, I live in SF!"}]}'
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from dotenv import load_dotenv

load_dotenv()  # before anything reads the environment

import agent  # noqa: E402, F401 - registers the handlers
from fastapi import FastAPI  # noqa: E402
from mlflow.genai.agent_server import AgentServer  # noqa: E402

from lakebase_sessions import (  # noqa: E402
    LakebaseSessionsError,
    MissingConfiguration,
    add_error_handlers,
    default_lakebase,
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Each worker finds its Lakebase and sees to the tables before it takes requests."""
    async with default_lakebase():
        yield


server = AgentServer("ResponsesAgent")
app = server.app
app.router.lifespan_context = lifespan
add_error_handlers(app)


def main() -> None:
    """Serve, on a Lakebase of this machine if none is configured."""
    try:
        print(f"Sessions are kept in {default_lakebase()!r}.")
        local = None
    except MissingConfiguration:
        from lakebase_sessions.local import LocalLakebase

        local = LocalLakebase()
        print("No Lakebase is configured: starting one on this machine, gone when this ends.")
    if not os.environ.get("AGENT_MODEL"):
        print("No AGENT_MODEL is set: the model is the offline one of offline_model.py.")
    with local or nullcontext():
        if local is not None:
            os.environ.update(local.environ)  # workers inherit it
        server.run("agent_server:app", host="127.0.0.1")


if __name__ == "__main__":
    try:
        main()
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
