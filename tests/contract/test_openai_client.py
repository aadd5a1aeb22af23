"""OpenAI's official client, sync and async: each method of `conversations`, each parameter."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
import uvicorn
from agents import Agent
from fastapi import FastAPI
from mlflow.genai.agent_server import AgentServer, server
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse
from openai.resources.conversations import Conversations, Items

from lakebase_sessions import Lakebase, add_conversations, invoke_turn
from lakebase_sessions.testing import OfflineModel

EXTRAS: dict[str, Any] = {
    "extra_headers": {"x-request": "1"},
    "extra_query": {"trace": "1"},
    "extra_body": {},
    "timeout": 60,
}
"""What every method takes."""

Call = Callable[..., Any]


@pytest.fixture
async def base_url(lakebase: Lakebase, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Of an agent server, over a socket: the synchronous client has no other way."""
    agent = Agent(name="Assistant", model=OfflineModel())

    async def invoke(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        return await invoke_turn(agent, request, lakebase=lakebase)

    monkeypatch.setattr(server, "_invoke_function", invoke)
    app: FastAPI = AgentServer("ResponsesAgent").app
    add_conversations(app, lakebase=lakebase)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    task = asyncio.create_task(serving.serve([listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    serving.should_exit = True
    await task


def synchronous(base_url: str, steps: Callable[[Call], None]) -> None:
    with openai.OpenAI(api_key="none", base_url=base_url, max_retries=0) as client:
        steps(lambda name, *given, **named: _method(client, name)(*given, **named))


def asynchronous(base_url: str, steps: Callable[[Call], None]) -> None:
    with asyncio.Runner() as runner:
        client = openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0)

        async def call(name: str, *given: Any, **named: Any) -> Any:
            return await _method(client, name)(*given, **named)

        steps(lambda name, *given, **named: runner.run(call(name, *given, **named)))
        runner.run(client.close())


def _method(client: Any, name: str) -> Any:
    for part in name.split("."):
        client = getattr(client, part)
    return client


both = pytest.mark.parametrize("run", [synchronous, asynchronous])


@both
async def test_each_method_with_each_parameter(base_url: str, run: Any) -> None:
    used: dict[str, set[str]] = defaultdict(set)

    def steps(bare: Call) -> None:
        def call(name: str, **named: Any) -> Any:
            used[name] |= set(named)
            return bare(f"conversations.{name}", **named)

        every_method(call)

    await asyncio.to_thread(run, base_url, steps)
    for resource, prefix in ((Conversations, ""), (Items, "items.")):
        for name in ("create", "retrieve", "update", "delete", "list"):
            if method := getattr(resource, name, None):
                documented = set(inspect.signature(method).parameters) - {"self"}
                assert used[f"{prefix}{name}"] == documented, f"{prefix}{name}"


def every_method(call: Call) -> None:
    hello = {"type": "message", "role": "user", "content": "Hello"}
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "encrypted_content": "secret",
    }
    made = call(
        "create",
        items=[hello],
        metadata={"topic": "travel"},
        **EXTRAS | {"extra_body": {"title": "Trip"}},
    )
    named = {"conversation_id": made.id}
    assert (made.metadata, made.title) == ({"topic": "travel"}, "Trip")
    assert call("retrieve", **named, **EXTRAS) == made
    changed = call("update", **named, metadata={"topic": "food"}, **EXTRAS)
    assert (changed.id, changed.metadata, changed.title) == (made.id, {"topic": "food"}, "Trip")

    wanted = {"include": ["reasoning.encrypted_content"]}
    added = call("items.create", **named, items=[thought, hello], **wanted, **EXTRAS)
    assert [item.type for item in added.data] == ["reasoning", "message"]
    assert added.data[0].encrypted_content == "secret"
    one = {"item_id": added.data[0].id, **named}
    assert call("items.retrieve", **one).encrypted_content is None
    assert call("items.retrieve", **one, **wanted, **EXTRAS).encrypted_content == "secret"

    listed = call("items.list", **named)
    assert [item.type for item in listed.data] == ["message", "reasoning", "message"]
    page = call("items.list", **named, order="asc", limit=1, **EXTRAS)
    assert [item.type for item in page.data] == ["message"]
    assert page.has_more
    rest = call("items.list", **named, order="asc", after=page.data[0].id, limit=2, **wanted)
    assert [item.id for item in rest.data] == [item.id for item in added.data]
    assert rest.data[0].encrypted_content == "secret"
    assert not rest.has_more

    assert call("items.delete", **one, **EXTRAS).id == made.id
    with pytest.raises(openai.NotFoundError):
        call("items.retrieve", **one)
    gone = call("delete", **named, **EXTRAS)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError):
        call("retrieve", **named)


@both
async def test_a_previous_response(base_url: str, lakebase: Lakebase, run: Any) -> None:
    """It goes on behind that one; what stood there becomes a branch."""
    told: list[Any] = []

    def steps(call: Call) -> None:
        def ask(text: str, **named: Any) -> Any:
            return call("responses.create", model="agent", input=text, **named)

        made = call("conversations.create")
        first = ask("My name is Mia.", conversation=made.id)
        second = ask("What is my name?", previous_response_id=first.id)
        assert second.output_text == "You said that your name is Mia."
        third = ask("My dog is Rex.", previous_response_id=second.id)
        other = ask("My cat is Tom.", previous_response_id=first.id)
        assert len({first.id, second.id, third.id, other.id}) == 4
        told.append(made.id)
        with pytest.raises(openai.BadRequestError):
            ask("And now?", previous_response_id="resp_of_nobody")

    await asyncio.to_thread(run, base_url, steps)
    session = lakebase.session(told[0])
    previews = [turn.preview for turn in await session.turns()]
    assert previews == ["My name is Mia.", "My cat is Tom."]
    [branch] = await session.branches()
    assert (branch.preview, branch.turns) == ("What is my name?", 2)
