"""invoke_turn, stream_turn and the error handlers, inside this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from agents import Agent, Model, RunConfig, function_tool, set_tracing_disabled
from agents.models.fake_id import FAKE_RESPONSES_ID
from conftest import admin

from lakebase_sessions import (
    InvalidUser,
    Lakebase,
    add_error_handlers,
    current_user,
    invoke_turn,
    session_for,
    stream_turn,
)
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel


@pytest.fixture(scope="module")
def mlflow_types() -> Any:
    """MLflow's request and response classes."""
    import mlflow.types.responses

    set_tracing_disabled(True)
    mlflow.tracing.disable()
    return mlflow.types.responses


@function_tool
def get_weather(city: str) -> str:
    return f"It is sunny in {city}."


@function_tool
def get_trouble() -> str:
    raise RuntimeError("postgres is on fire")


def agent(model: Model | None = None, **options: Any) -> Agent[Any]:
    return Agent(name="A", model=model or OfflineModel(), tools=[get_weather], **options)


class PlaceholderModel(OfflineModel):
    """Gives items the id that all models behind the Chat Completions API share."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in super().stream_response(*args, **kwargs):
            for holder in (event, getattr(event, "item", None)):
                for name in ("item_id", "id"):
                    if getattr(holder, name, None):
                        setattr(holder, name, FAKE_RESPONSES_ID)
            yield event


class StuckModel(OfflineModel):
    """Never comes to its end."""

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for event in super().stream_response(*args, **kwargs):
            yield event
            if event.type == "response.output_text.delta":
                await asyncio.Event().wait()


def text_of(answer: Any) -> str:
    return str(answer.model_dump()["output"][-1]["content"][0]["text"])


def request(types: Any, text: str, session_id: Any = "s") -> Any:
    return types.ResponsesAgentRequest(
        input=[{"role": "user", "content": text}], custom_inputs={"session_id": session_id}
    )


async def test_users_are_kept_apart(mlflow_types: Any, lakebase: Lakebase) -> None:
    for user in ("mia", "noah"):
        answer = await invoke_turn(
            agent(), request(mlflow_types, f"My name is {user}."), user=user, lakebase=lakebase
        )
        assert (answer.custom_outputs or {})["session_id"] == f"{user}:s"
    stolen = request(mlflow_types, "What is my name?", "mia:s")
    answer = await invoke_turn(agent(), stolen, user="noah", lakebase=lakebase)
    assert "do not know" in text_of(answer)


async def test_what_is_passed_on_to_the_runner(mlflow_types: Any, lakebase: Lakebase) -> None:
    """run_config, context and the rest; a callback of one's own stays."""
    seen = []

    def callback(history: list[Any], new: list[Any]) -> list[Any]:
        seen.append(len(history))
        return history + new

    config: Any
    for config in (
        RunConfig(session_input_callback=callback),
        {"session_input_callback": callback},
    ):
        await invoke_turn(
            agent(),
            request(mlflow_types, "Hi"),
            lakebase=lakebase,
            history_limit=1,
            run_config=config,
            max_turns=3,
        )
    assert seen == [0, 1]


async def test_a_run_config_may_be_a_dict(mlflow_types: Any, lakebase: Lakebase) -> None:
    """As for the Runner; what is resent is still not stored twice."""
    first = {"role": "user", "content": "Hi"}
    for resent in ([first], [first, {"role": "assistant", "content": "I see."}, first]):
        await invoke_turn(
            agent(),
            mlflow_types.ResponsesAgentRequest(
                input=resent, custom_inputs={"session_id": "resent"}
            ),
            lakebase=lakebase,
            run_config={"workflow_name": "W"},
        )
    assert len(await lakebase.session("resent").get_items()) == 4


async def test_a_placeholder_becomes_an_id(mlflow_types: Any, lakebase: Lakebase) -> None:
    """One id an item, from added over the deltas to done; none is shared."""
    events = [
        event.model_dump()
        async for event in stream_turn(
            agent(PlaceholderModel()),
            request(mlflow_types, "What is the weather in Rome?"),
            lakebase=lakebase,
        )
    ]
    done = [e["item"]["id"] for e in events if e["type"] == "response.output_item.done"]
    assert len(set(done)) == 3
    assert FAKE_RESPONSES_ID not in str(events)
    ids = {e["item_id"] for e in events if e.get("item_id")}
    assert ids == {done[0], done[2]}


async def test_a_client_that_goes_away(
    mlflow_types: Any, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Wherever it leaves: the conversation stays readable, no task and no connection is left."""
    await lakebase.open()
    tasks = asyncio.all_tasks()
    for events in range(1, 12):
        stream = stream_turn(
            agent(StuckModel() if events > 8 else None),
            request(mlflow_types, "What is the weather in Rome?" if events < 9 else "Hi", "gone"),
            lakebase=lakebase,
        )
        async with asyncio.timeout(20):
            for _ in range(min(events, 4 if events > 8 else events)):
                await anext(stream)
            await stream.aclose()
        assert asyncio.all_tasks() == tasks
    answer = await invoke_turn(
        agent(), request(mlflow_types, "My name is Mia.", "gone"), lakebase=lakebase
    )
    assert "your name is Mia" in text_of(answer)
    items = await lakebase.session("gone").get_items()
    calls = {dict(i).get("call_id") for i in items if dict(i).get("type") == "function_call"}
    outputs = {
        dict(i).get("call_id") for i in items if dict(i).get("type") == "function_call_output"
    }
    assert outputs <= calls
    with admin(local, "postgres") as connection:
        busy = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state <> 'idle'",
            [database],
        ).fetchone()
    assert busy == (0,)


async def test_a_consumer_that_is_cancelled(mlflow_types: Any, lakebase: Lakebase) -> None:
    """As a server does it when the connection closes."""
    await lakebase.open()
    tasks = asyncio.all_tasks()
    begun = asyncio.Event()

    async def consume() -> None:
        async for _ in stream_turn(
            agent(StuckModel()), request(mlflow_types, "Hi", "c"), lakebase=lakebase
        ):
            begun.set()

    consumer = asyncio.create_task(consume())
    await begun.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


@pytest.mark.filterwarnings("ignore")  # MLflow gives up tracing where it is warned
async def test_the_trace_has_the_session(
    mlflow_types: Any, lakebase: Lakebase, tmp_path: Any
) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/traces.db")
    mlflow.tracing.enable()
    with mlflow.start_span(name="turn") as span:
        await invoke_turn(agent(), request(mlflow_types, "Hi", "traced"), lakebase=lakebase)
    mlflow.flush_trace_async_logging()
    mlflow.tracing.disable()
    trace = mlflow.get_trace(span.trace_id)
    assert trace is not None
    assert trace.info.request_metadata["mlflow.trace.session"] == "traced"


# --- over HTTP, with faults ----------------------------------------------------------------------


@pytest.fixture
async def client(mlflow_types: Any, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """MLflow's own server with handlers of one line, in this process."""
    from mlflow.genai.agent_server import AgentServer, server

    async def handle(request: Any) -> Any:
        return await invoke_turn(agent(), request)

    async def handle_stream(request: Any) -> Any:
        async for event in stream_turn(agent(), request):
            yield event

    server._invoke_function, server._stream_function = handle, handle_stream
    app = AgentServer("ResponsesAgent").app
    add_error_handlers(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client
    from lakebase_sessions import default_lakebase

    await default_lakebase().close()


@pytest.mark.parametrize("stream", [False, True], ids=["invoke", "stream"])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"path": "/credentials", "status": 403}, 403, "permission_denied"),
        ({"path": "/instances/", "status": 500}, 503, "lakebase_unavailable"),
        ({"path": "/instances/", "status": 404}, 500, "target_not_found"),
    ],
    ids=["denied", "unavailable", "not found"],
)
async def test_statuses(
    client: httpx.AsyncClient,
    local: LocalLakebase,
    stream: bool,
    fault: Any,
    status: int,
    code: str,
) -> None:
    """The error's own status, with the cause, also where a stream has not begun."""
    body = {"input": [{"role": "user", "content": "Hi"}], "stream": stream}
    with local.fault(**fault):
        response = await client.post("/invocations", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert "Could not" in error["message"] or "no Lakebase instance" in error["message"]
    assert (await client.post("/invocations", json=body)).status_code == 200, "and it recovers"


async def test_a_stream_that_breaks_in_the_middle(
    mlflow_types: Any, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """The client gets an error event with our code; what was stored before stays."""
    stream = stream_turn(
        agent(), request(mlflow_types, "What is the weather in Rome?", "b"), lakebase=lakebase
    )
    events = [(await anext(stream)).model_dump()]
    with admin(local, database) as connection:
        connection.execute("ALTER TABLE agent_messages RENAME TO gone")
    events += [event.model_dump() async for event in stream]
    with admin(local, database) as connection:
        connection.execute("ALTER TABLE gone RENAME TO agent_messages")
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "error"
    assert events[-1]["code"] == "tables_missing"
    assert "response.completed" not in [event["type"] for event in events]
    stored = await lakebase.session("b").get_items()
    assert [dict(item)["content"] for item in stored] == ["What is the weather in Rome?"]


async def test_a_tools_own_error_is_no_lakebase_error(
    mlflow_types: Any, lakebase: Lakebase
) -> None:
    """The template takes any error that mentions postgres for one of the database."""
    troubled = Agent(name="A", model=OfflineModel(), tools=[get_trouble])
    answer = await invoke_turn(
        troubled, request(mlflow_types, "I am in trouble."), lakebase=lakebase
    )
    assert "postgres is on fire" in text_of(answer)


async def test_plain_apps_get_the_statuses_too(mlflow_types: Any, environ: dict[str, str]) -> None:
    from fastapi import FastAPI, HTTPException

    app = FastAPI()
    add_error_handlers(app)

    @app.get("/ours")
    async def ours() -> None:
        session_for({"custom_inputs": {"session_id": ["x"]}})

    @app.get("/theirs")
    async def theirs() -> None:
        raise HTTPException(418, "teapot", headers={"x-tea": "green"})

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        response = await client.get("/ours")
        assert (response.status_code, response.json()["error"]["code"]) == (
            400,
            "invalid_session_id",
        )
        response = await client.get("/theirs")
        assert (response.status_code, response.json()) == (418, {"detail": "teapot"})
        assert response.headers["x-tea"] == "green"


# --- current_user --------------------------------------------------------------------------------


def test_outside_an_app_there_is_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that anybody can send counts for nothing."""
    monkeypatch.delenv("DATABRICKS_APP_NAME", raising=False)
    assert current_user({"X-Forwarded-User": "mallory"}) is None


def test_inside_an_app_the_platform_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_APP_NAME", "app")
    assert current_user({"X-Forwarded-User": "1@2", "X-Forwarded-Email": "m@x.com"}) == "1@2"
    assert current_user({"x-forwarded-email": "m@x.com"}) == "m@x.com"
    with pytest.raises(InvalidUser, match="X-Forwarded-User"):
        current_user({})
    with pytest.raises(InvalidUser):
        current_user()
