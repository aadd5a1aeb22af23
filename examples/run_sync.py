"""An agent that remembers in a plain script, without async code.

    uv run lakebase-sessions local                       # or a Lakebase of your workspace
    uv run examples/run_sync.py trip-7 "Hello, I live in SF!"   # with the three variables
    uv run examples/run_sync.py trip-7 "What city did I say I live in?"

The second run is another process, and knows the answer.
"""

from __future__ import annotations

import sys

from agents import Agent, Runner, set_tracing_disabled

from lakebase_sessions import LakebaseSessionsError, session_for
from lakebase_sessions.testing import OfflineModel

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    set_tracing_disabled(True)  # the SDK would send traces to OpenAI
    agent = Agent(name="Assistant", model=OfflineModel())
    try:
        session = session_for(session_id=sys.argv[1])
        result = Runner.run_sync(agent, sys.argv[2], session=session)
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
    print(result.final_output)
