"""An agent that remembers, from one process to the next.

Needs nothing but this repository:

    pip install uv && uv run examples/quickstart.py

Where the environment names a Lakebase (LAKEBASE_INSTANCE_NAME and the others of the README), that
one is used, by the same code; else one is started on this machine and removed at the end. The
model is a small offline one that knows only the conversation; `--model NAME` takes a served model
of your workspace.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from contextlib import nullcontext

from agents import Agent, Model, Runner, set_tracing_disabled
from databricks_openai.agents import AsyncDatabricksSession
from rich.console import Console
from rich.table import Table

from lakebase_sessions import (
    LakebaseSessionsError,
    MissingConfiguration,
    default_lakebase,
    session_for,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

console = Console(highlight=False)


async def ask(question: str, session_id: str | None, model: str | Model) -> str:
    """One turn of the conversation; returns its session id."""
    agent = Agent(name="Assistant", instructions="You are a helpful assistant.", model=model)
    # What a request handler gets. The session is all that this package adds to it.
    request = {"input": question, "custom_inputs": {"session_id": session_id}}
    session = session_for(request)
    result = await Runner.run(agent, question, session=session)
    console.print(f"  [bold]You:[/]   {question}")
    console.print(f"  [bold]Agent:[/] {result.final_output}")
    return session.session_id


async def show(session_id: str) -> None:
    """Read the conversation back with the plain upstream class."""
    lakebase = await default_lakebase().open()
    autoscaling = lakebase.name.startswith("projects/")
    upstream = AsyncDatabricksSession(
        session_id,
        instance_name=None if autoscaling else lakebase.name,
        autoscaling_endpoint=lakebase.name if autoscaling else None,
        database=lakebase.database,
        schema=lakebase.schema,
    )
    table = Table("", "role", "content", title=f"{lakebase.database}, session {session_id}")
    for number, item in enumerate(await upstream.get_items(), start=1):
        fields = dict(item)
        content = fields.get("content")
        if isinstance(content, list):
            content = " ".join(part["text"] for part in content)
        table.add_row(str(number), str(fields.get("role")), str(content))
    console.print(table)
    await upstream.engine.dispose()
    await lakebase.close()


def conversation(arguments: argparse.Namespace) -> None:
    """Two turns in two processes, then what is stored."""
    model = model_named(arguments.model)
    console.print(f"Process {os.getpid()} begins a conversation:")
    session_id = asyncio.run(ask("Hello, I live in SF!", None, model))
    console.print(f"  [bold]Id:[/]    {session_id}\n")

    again = [sys.executable, __file__, "--session-id", session_id]
    if arguments.model:
        again += ["--model", arguments.model]
    subprocess.run(again, check=True)

    console.print("\nThe same rows, read with upstream's AsyncDatabricksSession:")
    asyncio.run(show(session_id))


def model_named(name: str | None) -> str | Model:
    """The served model `name`, or the offline one."""
    if name is None:
        return OfflineModel()
    from agents import set_default_openai_api, set_default_openai_client
    from databricks_openai import AsyncDatabricksOpenAI

    set_default_openai_client(AsyncDatabricksOpenAI())
    set_default_openai_api("chat_completions")
    return name


def main() -> None:
    """Read the arguments, and see that there is a Lakebase."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="a served model, such as databricks-claude-sonnet-4-5")
    parser.add_argument("--session-id", help="ask once more in this conversation, and end")
    arguments = parser.parse_args()
    set_tracing_disabled(True)  # the SDK would send traces to OpenAI

    if arguments.session_id:
        console.print(f"Process {os.getpid()} goes on with it:")
        question = "What city did I say I live in?"
        asyncio.run(ask(question, arguments.session_id, model_named(arguments.model)))
        return
    try:
        lakebase = default_lakebase()
        console.print(f"Using {lakebase!r}.\n")
        local = None
    except MissingConfiguration as missing:
        if arguments.model:
            sys.exit(f"A served model needs a workspace, and a Lakebase in it. {missing}")
        console.print("No Lakebase is configured: starting one on this machine.\n")
        local = LocalLakebase()
    with local or nullcontext():
        if local is not None:
            # Another login that is configured must not get in the way.
            os.environ.update(local.environ, DATABRICKS_AUTH_TYPE="pat")
        conversation(arguments)


if __name__ == "__main__":
    try:
        main()
    except LakebaseSessionsError as error:
        sys.exit(f"{error.code}: {error}")
