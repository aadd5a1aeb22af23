"""The routes of conversations, called by OpenAI's official client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
import uvicorn
from agents import Agent
from agents.models.chatcmpl_converter import Converter
from fastapi import Depends, FastAPI, HTTPException, Request
from mlflow.genai.agent_server import AgentServer, get_request_headers, server
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
)

from lakebase_sessions import Lakebase, invoke_turn, load_conversations, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.server.conversations import (
    _Routes,
    add_conversations,
    conversations_router,
)
from lakebase_sessions.testing import OfflineModel

HELLO: Any = {"type": "message", "role": "user", "content": "Hello"}


def who(headers: Mapping[str, str]) -> str | None:
    return headers.get("x-user")


def words(item: Any) -> str:
    """The text of a message, of whichever of the client's many types."""
    return str(item.content[0].text)


@pytest.fixture
def app(lakebase: Lakebase, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    agent = Agent(name="Assistant", model=OfflineModel())

    def caller() -> str | None:
        return get_request_headers().get("x-user")

    async def invoke(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        return await invoke_turn(agent, request, user=caller, lakebase=lakebase)

    async def stream(
        request: ResponsesAgentRequest,
    ) -> AsyncIterator[ResponsesAgentStreamEvent]:
        async for event in stream_turn(agent, request, user=caller, lakebase=lakebase):
            yield event

    monkeypatch.setattr(server, "_invoke_function", invoke)
    monkeypatch.setattr(server, "_stream_function", stream)
    app = AgentServer("ResponsesAgent").app
    add_conversations(app, user=who, lakebase=lakebase)
    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://agent", headers={"x-user": "mia"}
    ) as http:
        yield http


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="none", base_url="http://agent", http_client=http, max_retries=0
    )


async def test_a_conversation(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[HELLO], metadata={"topic": "travel"})
    assert made.object == "conversation"
    assert made.metadata == {"topic": "travel"}
    assert await client.conversations.retrieve(made.id) == made
    changed = await client.conversations.update(made.id, metadata={"topic": "food"})
    assert changed.metadata == {"topic": "food"}
    deleted = await client.conversations.delete(made.id)
    assert deleted.deleted
    assert deleted.object == "conversation.deleted"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.conversations.retrieve(made.id)
    assert caught.value.code == "conversation_not_found"
    assert caught.value.type == "invalid_request_error"


async def test_items(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create()
    added = await client.conversations.items.create(
        made.id, items=[HELLO, {"type": "message", "role": "assistant", "content": "Hi."}]
    )
    assert [item.type for item in added.data] == ["message", "message"]
    assert added.first_id == added.data[0].id
    newest = await client.conversations.items.list(made.id)
    assert [item.id for item in newest.data] == [item.id for item in reversed(added.data)]
    first = await client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
    assert first == added.data[0]
    assert first.type == "message"
    assert first.content[0].type == "input_text"
    assert first.content[0].text == "Hello"
    left = await client.conversations.items.delete(added.data[0].id, conversation_id=made.id)
    assert left.id == made.id
    assert [item.id async for item in client.conversations.items.list(made.id)] == [
        added.data[1].id
    ]
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages(client: openai.AsyncOpenAI, order: Any) -> None:
    said: list[Any] = [HELLO | {"content": str(number)} for number in range(7)]
    made = await client.conversations.create(items=said)
    listed = client.conversations.items.list(made.id, limit=3, order=order)
    found = [words(item) async for item in listed]
    expected = [str(number) for number in range(7)]
    assert found == (expected if order == "asc" else expected[::-1])


async def test_another_users_is_not_found(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    made = await client.conversations.create(items=[HELLO])
    item_id = (await client.conversations.items.list(made.id)).data[0].id
    assert item_id
    tom = client.with_options(default_headers={"x-user": "tom"})
    for call in (
        tom.conversations.retrieve(made.id),
        tom.conversations.retrieve(f"mia:{made.id}"),
        tom.conversations.update(made.id, metadata={}),
        tom.conversations.delete(made.id),
        tom.conversations.items.create(made.id, items=[HELLO]),
        tom.conversations.items.retrieve(item_id, conversation_id=made.id),
        tom.conversations.items.delete(item_id, conversation_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    with pytest.raises(openai.NotFoundError):
        await tom.conversations.items.list(made.id)
    for method, path in (
        ("GET", "turns"),
        ("GET", "usage"),
        ("GET", "branches"),
        ("GET", "branches/1/items"),
        ("POST", "branches/1/restore"),
        ("POST", "fork"),
        ("POST", "rewind"),
    ):
        body = {"before_turn": 1} if path == "rewind" else None
        answer = await http.request(
            method, f"/conversations/{made.id}/{path}", json=body, headers={"x-user": "tom"}
        )
        assert answer.status_code == 404, path
    assert await client.conversations.retrieve(made.id) == made
    listed = (await http.get("/conversations", headers={"x-user": "tom"})).json()
    assert listed["data"] == []


async def test_what_a_side_bar_needs(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    answer: Any = {"type": "message", "role": "assistant", "content": "Hi."}
    made = await client.conversations.create(
        items=[HELLO, answer, HELLO | {"content": "And now?"}, answer]
    )
    path = f"/conversations/{made.id}"
    (listed,) = (await http.get("/conversations")).json()["data"]
    assert (listed["id"], listed["preview"], listed["title"]) == (made.id, "Hello", None)
    for words, found in (("AND now", 1), ("hi", 1), ("nobody said this", 0)):
        page = (await http.get("/conversations", params={"search": words})).json()
        assert len(page["data"]) == found
    renamed = (await http.post(path, json={"title": "Greetings"})).json()
    assert renamed["title"] == "Greetings"
    turns = (await http.get(f"{path}/turns")).json()["data"]
    assert [(turn["number"], turn["preview"], turn["items"]) for turn in turns] == [
        (1, "Hello", 2),
        (2, "And now?", 2),
    ]
    fork = (await http.post(f"{path}/fork", json={"before_turn": 2})).json()
    assert (fork["items"], fork["forked_from"]) == (2, made.id)
    stored = [item.id async for item in client.conversations.items.list(made.id, order="asc")]
    rewound = (await http.post(f"{path}/rewind", json={"before_turn": 2})).json()
    assert rewound["branch"]["items"] == 2
    (branch,) = (await http.get(f"{path}/branches")).json()["data"]
    assert (branch["after"], branch["first"]) == (stored[1], stored[2])
    kept = (await http.get(f"{path}/branches/{branch['id']}/items")).json()["data"]
    assert [item["id"] for item in kept] == stored[2:]
    assert kept[0]["content"][0]["text"] == "And now?"
    assert len([item async for item in client.conversations.items.list(made.id)]) == 2
    await http.post(f"{path}/branches/{branch['id']}/restore")
    assert len([item async for item in client.conversations.items.list(made.id)]) == 4
    assert (await http.get(f"{path}/usage")).json()["requests"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("GET", "/conversations/x/items?limit=0", None, "limit"),
        ("GET", "/conversations/x/items?limit=many", None, "limit"),
        ("GET", "/conversations/x/items?order=up", None, "order"),
        ("GET", "/conversations/x/items?include=secrets", None, "include"),
        ("POST", "/conversations", {"metadata": {"a": 1}}, "metadata.a"),
        ("POST", "/conversations", {"id": ".."}, "id"),
        ("POST", "/conversations/x/fork", {"id": "."}, "id"),
        ("POST", "/conversations", {"colour": "red"}, "colour"),
        ("POST", "/conversations/x/items", {}, "items"),
        ("POST", "/conversations/x/rewind", {}, "before_turn"),
    ],
)
async def test_what_is_wrong_is_named(
    http: httpx.AsyncClient, method: str, path: str, body: Any, param: str
) -> None:
    answer = await http.request(method, path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


CALL: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    "item",
    [
        {"foo": 1},
        {"id": "item_1"},
        {"type": "poem", "text": "Hello"},
        {"type": ["message"]},
        {"type": "item_reference", "id": "item_1"},
        {"type": "function_call", "call_id": "c1"},
        {"role": "user"},
        {"role": "guest", "content": "Hello"},
        {"role": ["user"], "content": "Hello"},
        {"role": "user", "content": None},
        {"role": "user", "content": ["Hello"]},
        {"role": "user", "content": [{"type": "input_texxt", "text": "Hello"}]},
        {"role": "user", "content": [{"type": "input_text"}]},
        {"role": "user", "content": [{"type": "output_text", "text": "Hello"}]},
        {"role": "assistant", "content": [{"type": "input_text", "text": "Hello"}]},
    ],
)
async def test_what_is_no_item_is_refused(http: httpx.AsyncClient, item: Any) -> None:
    made = (await http.post("/conversations", json={"items": [HELLO]})).json()
    path = f"/conversations/{made['id']}/items"
    for answer in (
        await http.post("/conversations", json={"items": [HELLO, item]}),
        await http.post(path, json={"items": [HELLO, item]}),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "items"
        assert "items[1]" in answer.json()["error"]["message"]
    assert len((await http.get(path)).json()["data"]) == 1


async def test_items_that_are_taken_can_be_sent_to_a_model(
    http: httpx.AsyncClient, lakebase: Lakebase
) -> None:
    words: Any = [
        {"type": "input_text", "text": "Look!"},
        {"type": "input_image", "image_url": "data:,x"},
    ]
    items: Any = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": words},
        {"role": "user", "content": "Look!", "id": "msg_1", "status": "completed"},
        {"type": "reasoning", "summary": []},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "Nothing"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I have looked."}]},
        {"type": "message", "role": "assistant", "content": "Yes.", "status": "completed"},
    ]
    made = (await http.post("/conversations", json={"items": items})).json()
    path = f"/conversations/{made['id']}/items"
    assert Converter.items_to_messages(await lakebase.session(made["id"], user="mia").get_items())
    listed = (await http.get(path, params={"order": "asc"})).json()["data"]
    again = await http.post(path, json={"items": listed})  # what is listed can be given
    assert again.status_code == 200
    assert Converter.items_to_messages(await lakebase.session(made["id"], user="mia").get_items())


async def test_an_export_can_be_loaded(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, lakebase: Lakebase
) -> None:
    made = await client.conversations.create(items=[HELLO], metadata={"topic": "travel"})
    other = await client.conversations.create(items=[HELLO])
    answer = await http.get(f"/conversations/{made.id}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert other.id not in answer.text
    await client.conversations.delete(made.id)
    loaded = [done async for done in load_conversations(lakebase, [answer.content])]
    assert loaded[-1].conversations == 1
    assert await client.conversations.retrieve(made.id) == made
    refused = await http.get(f"/conversations/{made.id}/export", headers={"x-user": "tom"})
    assert refused.status_code == 404


# --- what the client sends to the agent itself ---------------------------------------------------


@pytest.mark.parametrize("as_object", [False, True])
async def test_a_response_in_a_conversation(client: openai.AsyncOpenAI, as_object: bool) -> None:
    made = await client.conversations.create(items=[HELLO | {"content": "My name is Mia."}])
    conversation: Any = {"id": made.id} if as_object else made.id
    response = await client.responses.create(
        model="agent", conversation=conversation, input="What is my name?"
    )
    assert "Mia" in response.output_text
    said = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert len(said) == 3


async def test_a_streamed_response_in_a_conversation(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(items=[HELLO | {"content": "My name is Mia."}])
    events = [
        event
        async for event in await client.responses.create(
            model="agent", conversation=made.id, input="What is my name?", stream=True
        )
    ]
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "Mia" in events[-1].response.output_text


async def test_a_response_in_a_conversation_that_is_not_there_begins_it(
    client: openai.AsyncOpenAI,
) -> None:
    await client.responses.create(model="agent", conversation="trip-7", input="Hello")
    tom = client.with_options(default_headers={"x-user": "tom"})
    await tom.responses.create(model="agent", conversation="trip-7", input="And I am Tom.")
    for each, text in ((client, "Hello"), (tom, "And I am Tom.")):
        said = [item async for item in each.conversations.items.list("trip-7", order="asc")]
        assert words(said[0]) == text
        assert len(said) == 2


async def test_one_of_conversation_and_previous_response(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(
            model="agent", conversation="x", previous_response_id="resp_1", input="Hi"
        )
    assert caught.value.param == "previous_response_id"


async def test_a_previous_response_that_is_not_there(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="agent", previous_response_id="resp_1", input="Hi")
    assert caught.value.code == "previous_response_not_found"


async def test_a_previous_response_counts_beside_outputs_that_are_sent_back(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    made = await client.conversations.create()
    first = await client.responses.create(model="agent", conversation=made.id, input="Hello")
    second = await client.responses.create(model="agent", conversation=made.id, input="And?")
    sent_back: Any = {"custom_inputs": second.model_dump()["custom_outputs"]}
    await client.responses.create(
        model="agent", previous_response_id=first.id, input="Or?", extra_body=sent_back
    )
    turns = (await http.get(f"/conversations/{made.id}/turns")).json()["data"]
    assert [turn["preview"] for turn in turns] == ["Hello", "Or?"]


async def test_a_response_is_gone_back_to_when_an_item_is_gone(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    made = await client.conversations.create(items=[HELLO])
    second: Any = None
    for text in ("And?", "Or?"):
        second = await client.responses.create(model="agent", conversation=made.id, input=text)
    oldest = await client.conversations.items.list(made.id, order="asc", limit=2)
    for item in oldest.data:
        await client.conversations.items.delete(item.id or "", conversation_id=made.id)
    third = await client.responses.create(
        model="agent", previous_response_id=second.id, input="So?"
    )
    turns = (await http.get(f"/conversations/{made.id}/turns")).json()["data"]
    assert [turn["preview"] for turn in turns] == ["", "Or?", "So?"]
    assert third.model_dump()["custom_outputs"]["turn"] == 3


@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize(
    "session_id", ["acme/42", "trip/items", "trip/items/item_1", "a/turns", "/", "%2F", "ü/ /é"]
)
async def test_an_id_with_a_slash(lakebase: Lakebase, session_id: str, proxy: bool) -> None:
    agent_server = AgentServer("ResponsesAgent", enable_chat_proxy=proxy)
    add_conversations(agent_server.app, lakebase=lakebase)
    await lakebase.session(session_id).add_items([HELLO])
    await lakebase.session("trip").add_items([HELLO, HELLO])
    path = f"/conversations/{quote(session_id, safe='')}"
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(agent_server.app), base_url="http://agent"
    ) as http:
        assert (await http.get(path)).json()["id"] == session_id
        [item] = (await http.get(f"{path}/items")).json()["data"]
        assert (await http.get(f"{path}/items/{item['id']}")).json() == item
        assert len((await http.get(f"{path}/turns")).json()["data"]) == 1
        assert (await http.post(path, json={"title": "Trip"})).json()["title"] == "Trip"
        assert (await http.delete(path)).json()["id"] == session_id
        assert (await http.get(path)).json()["error"]["code"] == "conversation_not_found"
        assert (await http.get("/conversations/trip/items/items")).status_code == 404
        listed = (await http.get("/conversations")).json()["data"]
        assert [(each["id"], each["items"]) for each in listed] == [("trip", 2)]


@pytest.mark.parametrize("mount", ["", "/agents/a b"])
async def test_an_id_with_a_slash_in_an_app_in_an_app(lakebase: Lakebase, mount: str) -> None:
    await lakebase.session("acme/42").add_items([HELLO])
    agent, app = FastAPI(), FastAPI()
    agent.include_router(conversations_router(lakebase=lakebase))
    app.mount(mount, agent)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=f"http://agent{mount}"
    ) as http:
        assert (await http.get("/conversations/acme%2F42")).json()["id"] == "acme/42"
        assert (await http.get("/conversations/acme/42")).status_code == 404
        assert (await http.get("/conversations/")).is_redirect
        assert (await http.patch("/conversations/acme%2F42")).status_code == 405


@pytest.mark.parametrize("mount", ["", "/agents/first"])
async def test_only_the_agents_own_requests_are_rewritten(lakebase: Lakebase, mount: str) -> None:
    agent = FastAPI()

    @agent.post("/responses")
    @agent.post("/surveys/7/responses")
    async def echo(request: Request) -> Any:
        return await request.json()

    add_conversations(agent, lakebase=lakebase)
    app = FastAPI()
    app.mount(mount, agent)
    said = {"input": "Hello", "conversation": "trip-7"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=f"http://agent{mount}"
    ) as http:
        assert (await http.post("/surveys/7/responses", json=said)).json() == said
        rewritten = (await http.post("/responses", json=said)).json()
        assert rewritten["custom_inputs"] == {"session_id": "trip-7"}


async def test_the_synchronous_client(app: FastAPI) -> None:
    """Over a socket: it has no transport to an app in the same process."""
    listener = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    task = asyncio.create_task(serving.serve([listener]))
    try:
        await asyncio.to_thread(_use, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        serving.should_exit = True
        await task


def _use(base_url: str) -> None:
    with openai.OpenAI(
        api_key="none", base_url=base_url, default_headers={"x-user": "mia"}, max_retries=0
    ) as client:
        made = client.conversations.create(items=[HELLO], metadata={"topic": "travel"})
        assert client.conversations.retrieve(made.id) == made
        assert client.conversations.update(made.id, metadata={}).metadata == {}
        (item,) = client.conversations.items.create(made.id, items=[HELLO]).data
        assert item.id
        assert client.conversations.items.retrieve(item.id, conversation_id=made.id) == item
        assert len(list(client.conversations.items.list(made.id, limit=1))) == 2
        client.conversations.items.delete(item.id, conversation_id=made.id)
        assert client.conversations.delete(made.id).deleted


async def test_beside_mlflows_chat_proxy(lakebase: Lakebase) -> None:
    agent_server = AgentServer("ResponsesAgent", enable_chat_proxy=True)
    add_conversations(agent_server.app, lakebase=lakebase)
    async with (
        agent_server.proxy_client,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(agent_server.app), base_url="http://agent"
        ) as http,
    ):
        made = (await http.post("/conversations", json={"items": [HELLO]})).json()
        listed = (await http.get("/conversations")).json()
        assert [each["id"] for each in listed["data"]] == [made["id"]]
        items = await http.get(f"/conversations/{made['id']}/items")
        assert items.json()["object"] == "list"
        assert (await http.get("/nobody")).status_code == 404


async def test_an_apps_own_dependencies_hold(lakebase: Lakebase) -> None:
    def no_guests(request: Request) -> None:
        if "x-user" not in request.headers:
            raise HTTPException(403)

    app = FastAPI(dependencies=[Depends(no_guests)])
    add_conversations(app, lakebase=lakebase)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://agent"
    ) as http:
        assert (await http.get("/conversations")).status_code == 403
        assert (await http.get("/conversations", headers={"x-user": "mia"})).status_code == 200


async def test_an_export_that_nobody_reads_keeps_no_connection(
    local: LocalLakebase, database: str
) -> None:
    async with Lakebase(
        "local",
        workspace_client=local.workspace_client(),
        database=database,
        pool_size=1,
        max_overflow=0,
    ) as lakebase:
        session = lakebase.session("s")
        await session.add_items([{"role": "user", "content": "x" * 100_000}] * 10)
        request = Request({"type": "http", "headers": []})
        sent = (await _Routes(None, lakebase).export(request, "s")).body_iterator
        for _ in range(3):
            assert await anext(aiter(sent))
        assert len(await session.get_items()) == 10
        async for _ in sent:
            pass
