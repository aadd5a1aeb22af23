"""Whatever a client sends: an answer or a refusal, never a 500, and never somebody else's words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from agents import Agent, set_tracing_disabled
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from security.strategies import json_objects, json_values, nested, texts

from lakebase_sessions import (
    TargetNotFound,
    add_error_handlers,
    current_user,
    default_lakebase,
    invoke_turn,
    stream_turn,
)
from lakebase_sessions.testing import OfflineModel

fuzzing = settings(
    deadline=None,
    max_examples=150,
    # The server and the database are the same for all examples, which is what a server is like.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def client(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """MLflow's own server, as in a Databricks App: the platform names the user in a header."""
    import mlflow
    from mlflow.genai.agent_server import AgentServer, server

    set_tracing_disabled(True)
    mlflow.tracing.disable()
    monkeypatch.setenv("DATABRICKS_APP_NAME", "app")
    agent = Agent(name="A", model=OfflineModel())

    async def handle(request: Any) -> Any:
        return await invoke_turn(agent, request, user=current_user)

    async def handle_stream(request: Any) -> AsyncIterator[Any]:
        async for event in stream_turn(agent, request, user=current_user):
            yield event

    monkeypatch.setattr(server, "_invoke_function", handle)
    monkeypatch.setattr(server, "_stream_function", handle_stream)
    app = AgentServer("ResponsesAgent").app
    add_error_handlers(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client
    await default_lakebase().close()


parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "input_image", "input_file"]), "text": texts}
)
items = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "developer"]),
            "content": texts | st.lists(parts, max_size=3),
        },
        optional={"type": st.just("message"), "id": texts, "status": st.just("completed")},
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call"), "call_id": texts, "name": texts, "arguments": texts},
        optional={"role": json_values, "content": json_values, "unknown": json_values},
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call_output"), "call_id": texts, "output": texts}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["file_search_call", "computer_call", "web_search_call"])},
        optional={"id": json_values, "role": json_values, "unknown": json_values},
    ),
)
"""Items that MLflow lets through to the handlers."""
bodies = st.fixed_dictionaries(
    {"input": st.lists(items, max_size=4), "stream": st.booleans()},
    optional={
        "custom_inputs": st.fixed_dictionaries({"session_id": json_values}) | json_objects,
        "context": st.fixed_dictionaries({"conversation_id": texts}),
        "conversation": json_values,
        "user": texts,
        "session_id": json_values,
    },
)
malformed_bodies = st.builds(
    lambda body, name, value: body | {name: value},
    bodies,
    st.sampled_from(["input", "stream", "custom_inputs", "context", "user", "metadata"]),
    json_values | st.lists(json_objects, max_size=3) | st.sampled_from([nested(200), nested(950)]),
)
headers = st.just(b"mia") | st.binary(max_size=30).filter(
    lambda value: not set(value) & set(b"\r\n\x00")
)


@fuzzing
@given(body=bodies | malformed_bodies, user=headers)
@example(body={"input": [], "custom_inputs": {"session_id": "\ud800"}}, user=b"mia")
@example(body={"input": [], "stream": True, "custom_inputs": {"session_id": [1]}}, user=b"mia")
@example(body={"input": [{"type": "computer_call", "x": nested(120)}] * 3}, user=b"mia")
async def test_no_request_ends_in_a_500(
    client: httpx.AsyncClient, body: dict[str, Any], user: bytes
) -> None:
    response = await client.post(
        "/invocations",
        content=json.dumps(body).encode(),
        headers={b"X-Forwarded-User": user, b"Content-Type": b"application/json"},
    )
    assert response.status_code in (200, 400), response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        events = [json.loads(line) for line in lines[:-1]]
        assert events[-1]["type"] == "response.completed", events[-1]


# --- what an answer tells -----------------------------------------------------------------------


async def test_a_status_that_the_application_chose_stays() -> None:
    """An error of this package says what is where; who hides it behind a 404 means to."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/hidden")
    async def hidden() -> None:
        try:
            raise TargetNotFound("There is no Lakebase instance 'inner-name'")
        except TargetNotFound as error:
            raise HTTPException(404, "no such conversation") from error

    @app.get("/wrapped")
    async def wrapped() -> None:
        try:
            raise TargetNotFound("There is no Lakebase instance 'inner-name'")
        except TargetNotFound as error:
            raise HTTPException(500, str(error)) from error  # as AgentServer does

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.get("/hidden")
        assert (answer.status_code, answer.json()) == (404, {"detail": "no such conversation"})
        assert (await client.get("/wrapped")).json()["error"]["code"] == "target_not_found"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": ["lakebase_timeout"], "message": "x"},
        {"type": "error", "code": {}, "message": "x"},
        {"type": ["error"]},
        {"type": "error", "code": "somebody_elses"},
    ],
)
async def test_streams_of_others_pass_as_they_are(event: dict[str, Any]) -> None:
    app = FastAPI()
    add_error_handlers(app)
    line = f"data: {json.dumps(event)}\n\n"

    @app.get("/")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter([line]), media_type="text/event-stream")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, line)
