"""A conversation that is stored encrypted: the SDK's EncryptedSession around a LakebaseSession.

    uv run lakebase-sessions local     # or a Lakebase of your workspace
    uv run examples/encrypted.py       # with the three variables it printed

It prints what the agent says and what is in the table. Three things to know:

- Without ENCRYPTION_KEY this script makes a key and forgets it, and what it stored cannot be read
  again. Keep yours in a secret.
- The SDK's `ttl` is 10 minutes unless you say otherwise: items that are older count as absent.
- The key depends on the session id too. Take the stored one, as here: with `user=` it has the user
  in front.
"""

from __future__ import annotations

import asyncio
import os
import sys

from agents import Agent, Runner, set_tracing_disabled
from agents.extensions.memory import EncryptedSession
from cryptography.fernet import Fernet

from lakebase_sessions import LakebaseSessionsError, default_lakebase, session_for
from lakebase_sessions.testing import OfflineModel

TEN_YEARS_SECONDS = 10 * 365 * 24 * 60 * 60


async def main() -> None:
    key = os.environ.get("ENCRYPTION_KEY") or Fernet.generate_key().decode()
    agent = Agent(name="Assistant", model=OfflineModel())
    async with default_lakebase():
        stored = session_for()
        session = EncryptedSession(
            session_id=stored.session_id,
            underlying_session=stored,
            encryption_key=key,
            ttl=TEN_YEARS_SECONDS,
        )
        for question in ("Hello, I live in SF!", "What city did I say I live in?"):
            result = await Runner.run(agent, question, session=session)
            print(f"You:   {question}\nAgent: {result.final_output}")
        print(f"In the table, conversation {stored.session_id}:")
        for item in await stored.get_items():
            print(f"  {str(item)[:100]}…")


if __name__ == "__main__":
    set_tracing_disabled(True)  # the SDK would send traces to OpenAI
    try:
        asyncio.run(main())
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
