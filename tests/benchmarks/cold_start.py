"""A fresh process: how long importing takes, and then the first answer.

    python tests/benchmarks/cold_start.py ours|upstream

Prints both as JSON, in seconds and milliseconds. footprint.py sets the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time


async def first_answer(competitor: str) -> dict[str, float]:
    """Import, then do what the first request to a worker does."""
    began_at = time.perf_counter()
    if competitor == "ours":
        from lakebase_sessions import session_for

        imported_at = time.perf_counter()
        await session_for(session_id="cold").get_items()
    else:
        from databricks_openai.agents import AsyncDatabricksSession

        imported_at = time.perf_counter()
        instance = os.environ["LAKEBASE_INSTANCE_NAME"]
        await AsyncDatabricksSession(session_id="cold", instance_name=instance).get_items()
    answered_at = time.perf_counter()
    return {
        "import": imported_at - began_at,
        "first answer": (answered_at - imported_at) * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(first_answer(sys.argv[1]))))
