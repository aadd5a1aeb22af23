r"""An agent server whose agent remembers: MLflow's AgentServer on a Lakebase.

    uv run examples/agent_server.py [--port 8000] [--workers 4]

Configuration comes from the environment and from `.env`. Where neither names a Lakebase, one is
started on this machine; without AGENT_MODEL the model is a small offline one.

    curl -X POST http://localhost:8000/invocations -H "Content-Type: application/json" \
      -d '{"input": [{"role": "user", "content": "Hello, I live in SF!"}]}'

The agent is in agent.py. This file only starts it, and loads nothing heavy by itself: every
worker runs it again, and uvicorn gives up workers that do not answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext

import uvicorn
from dotenv import load_dotenv

from lakebase_sessions import LakebaseSessionsError, MissingConfiguration


def main() -> None:
    """Serve, on a Lakebase of this machine if none is configured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    load_dotenv()

    from lakebase_sessions import Lakebase

    local = None
    try:
        print(f"Sessions are kept in {Lakebase.from_env()!r}.")
    except MissingConfiguration:
        from lakebase_sessions.local import LocalLakebase

        print("No Lakebase is configured: starting one on this machine, gone when this ends.")
        local = LocalLakebase()
    if not os.environ.get("AGENT_MODEL"):
        print("No AGENT_MODEL is set: the model is a small one that runs offline.")
    with local or nullcontext():
        if local is not None:
            # Workers inherit it. Another login that is configured must not get in the way.
            os.environ.update(local.environ, DATABRICKS_AUTH_TYPE="pat")
        uvicorn.run(
            "agent:app",
            host="127.0.0.1",
            port=arguments.port,
            workers=arguments.workers,
            timeout_worker_healthcheck=60,  # importing MLflow takes longer than the default of 5
        )


if __name__ == "__main__":
    try:
        main()
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
