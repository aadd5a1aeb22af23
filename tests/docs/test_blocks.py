"""The code blocks of README and docs, run exactly as they are printed.

The Python blocks of a page are run in their order, in one namespace: `setting` is what a page takes
for granted, such as an agent, a request and a conversation. Handlers that a block registers with
MLflow are asked something. `<!-- not run: why -->` in front of a block leaves it out.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import inspect
import json
import re
import textwrap
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

import psycopg
import pytest
from agents import Agent, Runner, Usage, function_tool, set_tracing_disabled
from conftest import admin

import lakebase_sessions
from lakebase_sessions import Lakebase
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase
from lakebase_sessions.testing import OfflineModel

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN_ELSEWHERE = {
    ("permissions", "sql"): "tests/integration/test_permissions.py",
    ("testing", "python"): "tests/docs/test_new_user.py, as tests",
}

KNOWN = {"python", "sql", "json", "yaml", "ini", "sh", "bash", "console", "text", "diff"}

HANDLERS = """
@invoke()
async def invoke_handler(request):
    return await invoke_turn(agent, request)

@stream()
async def stream_handler(request):
    async for event in stream_turn(agent, request):
        yield event
"""

pytestmark = pytest.mark.upstream_logs


class Block(NamedTuple):
    language: str
    code: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    found = []
    for match in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if text[: match.start()].rstrip().splitlines()[-1:] and re.match(
            r"<!-- not run: .+ -->", text[: match.start()].rstrip().splitlines()[-1]
        ):
            continue
        if match[2] == language and (page.stem, language) not in RUN_ELSEWHERE:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(language, textwrap.dedent(match[3]), line))
    return found


def client_of(app: Any) -> Any:
    """An httpx.Client of an app, without a network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette would rather have another package's
        from starlette.testclient import TestClient
    return TestClient(app)


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def model() -> OfflineModel:
    """As in docs/usage.md, where it is called like this and takes something."""
    model = OfflineModel(usage=Usage(requests=1, input_tokens=400, output_tokens=9))
    model.model = "databricks-claude-sonnet-4"
    return model


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's module of handlers, with none registered."""
    import mlflow.tracing
    from mlflow.genai.agent_server import server

    mlflow.tracing.disable()
    set_tracing_disabled(True)
    monkeypatch.setattr(server, "_invoke_function", None)
    monkeypatch.setattr(server, "_stream_function", None)
    return server


@pytest.fixture
async def setting(
    local: LocalLakebase,
    handlers: Any,
    environ: dict[str, str],
    empty_database: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[dict[str, Any]]:
    """What the pages take for granted; `trip-7` has three turns."""
    from cryptography.fernet import Fernet
    from mlflow.types.responses import ResponsesAgentRequest
    from openai import AsyncOpenAI

    async def small_model(*_question: object) -> str:
        return "A trip"

    monkeypatch.chdir(tmp_path)
    local.add_instance("my-instance")
    lakebase = lakebase_sessions.default_lakebase()
    other = Lakebase("local", workspace_client=local.workspace_client(), database=empty_database)
    agent = Agent[Any](name="Assistant", model=model())
    for text in ("Hello, I live in SF!", "My dog is Rex.", "Where do I live?"):
        said: dict[str, Any] = {"input": [{"role": "user", "content": text}]}
        said |= {"custom_inputs": {"session_id": "trip-7"}}
        await lakebase_sessions.invoke_turn(agent, ResponsesAgentRequest.model_validate(said))
    yield {name: getattr(lakebase_sessions, name) for name in lakebase_sessions.__all__} | {
        "Agent": Agent,
        "Caller": SimpleNamespace,
        "LocalLakebase": LocalLakebase,
        "ResponsesAgentRequest": ResponsesAgentRequest,
        "ResponsesAgentResponse": object,
        "Runner": Runner,
        "agent": agent,
        "another_lakebase": other,
        "ask_a_small_model": small_model,
        "asynccontextmanager": contextlib.asynccontextmanager,
        "function_tool": function_tool,
        "items": [{"role": "user", "content": "Hello"}],
        "key": Fernet.generate_key().decode(),
        "lakebase": lakebase,
        "messages": "Hello, I live in SF!",
        "openai": AsyncOpenAI(api_key="offline"),
        "request": {"input": "Hello", "custom_inputs": {"session_id": "trip"}},
        "session": lakebase.session("trip-7"),
        "store": lakebase.store,
    }
    await other.close()
    local.remove_instance("my-instance")
    with admin(local, "databricks_postgres") as connection:
        connection.execute("DROP SCHEMA IF EXISTS agent_memory CASCADE")


@pytest.mark.parametrize("page", pages_with("python"))
async def test_python(
    page: Path, setting: dict[str, Any], handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai
    from mlflow.genai.agent_server import AgentServer, invoke, stream

    names = setting | {"AgentServer": AgentServer, "invoke": invoke, "stream": stream}
    for block in blocks(page, "python"):
        code = compile(
            "\n" * block.line + block.code,
            str(page),
            "exec",
            ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        handlers._invoke_function = None
        if "OpenAI(" in block.code:
            # The client and the server are real; what lies between is not a network.
            if handlers._stream_function is None:
                exec(HANDLERS, names)
            served = client_of(names.get("app") or AgentServer("ResponsesAgent").app)
            names["OpenAI"] = functools.partial(openai.OpenAI, http_client=served)
            monkeypatch.setattr(openai, "OpenAI", names["OpenAI"])
        else:
            handlers._stream_function = None
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)
        else:
            await asyncio.to_thread(run, code, names)
        await ask_the_handlers(handlers, names)
    if page.stem == "fastapi":
        with client_of(names["app"]) as client:
            first = client.post("/chat", json={"text": "Hello, I live in SF!"}).json()
            again = {"text": "Where do I live?", "session_id": first["session_id"]}
            assert client.post("/chat", json=again).json()["text"].endswith("you live in SF.")


def run(code: CodeType, names: dict[str, Any]) -> None:
    """Run it as a script's main thread does, which has a loop for `Runner.run_sync`."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        eval(code, names)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def ask_the_handlers(handlers: Any, names: dict[str, Any]) -> None:
    """What a block has registered answers."""
    request = names["ResponsesAgentRequest"](input=[{"role": "user", "content": "My cat is Tom."}])
    if isinstance(names.get("agent"), Agent):
        names["agent"].model = OfflineModel()
    if handlers._invoke_function is not None:
        answer = await handlers._invoke_function(request)
        assert "Tom" in str(answer.output)
    if handlers._stream_function is not None:
        events = [event async for event in handlers._stream_function(request)]
        assert events[-1].type == "response.completed"


@pytest.mark.parametrize("page", pages_with("sql"))
def test_sql(page: Path, setting: dict[str, Any], local: LocalLakebase, database: str) -> None:
    """As the one whose tables these are."""
    local.add_user("new@example.com", role=False)
    client = local.workspace_client()
    with psycopg.connect(
        host=local.host,
        dbname=database,
        user=DEFAULT_USER,
        password=client.database.generate_database_credential(instance_names=["local"]).token,
        autocommit=True,
    ) as connection:
        for block in blocks(page, "sql"):
            for statement in re.sub(r"--.*", "", block.code).split(";"):
                if statement.strip():
                    connection.execute(statement.encode())


@pytest.mark.parametrize("page", pages_with("json"))
def test_json(page: Path) -> None:
    """One value, or one a line."""
    for block in blocks(page, "json"):
        try:
            json.loads(block.code)
        except json.JSONDecodeError:
            for line in block.code.splitlines():
                json.loads(line)


def test_what_is_not_run_here_is_run_elsewhere_or_says_why() -> None:
    for page in PAGES:
        for language in re.findall(r"^ *```(\w+)$", page.read_text(), re.MULTILINE):
            assert language in KNOWN, f"{page.name}: nobody runs or reads {language} here"


def test_the_bundle_of_the_page_is_the_example() -> None:
    """Every line of what docs/databricks_apps.md prints stands in the example's bundle."""
    bundle = (ROOT / "examples" / "databricks_app" / "databricks.yml").read_text()
    known = {
        re.sub(r"[\"']|#.*", "", line).strip().removeprefix("- ") for line in bundle.splitlines()
    }
    [printed] = blocks(ROOT / "docs" / "databricks_apps.md", "yaml")
    for line in printed.code.splitlines():
        assert line.strip().removeprefix("- ") in known
