"""The MLflow trace and the turn, bound to each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from agents import Agent, set_tracing_disabled
from conftest import admin
from mlflow.types.responses import ResponsesAgentRequest
from till import PAY, Chat, Till, asked

from lakebase_sessions import Lakebase, invoke_turn, stream_turn
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import OfflineModel

pytestmark = [
    pytest.mark.long,  # each sets up a database of MLflow's
    pytest.mark.filterwarnings("ignore"),  # MLflow's own
]


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[None]:
    """Traces that are kept, of this test alone."""
    set_tracing_disabled(True)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/traces.db")
    mlflow.tracing.enable()
    yield
    mlflow.tracing.disable()


class Slow(OfflineModel):
    """Lets others come in between."""

    async def get_response(self, *arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.01)
        return await super().get_response(*arguments, **options)

    async def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for event in super().stream_response(*arguments, **options):
            await asyncio.sleep(0.001)
            yield event


AGENT = Agent[Any](name="A", model=Slow())


def said(text: str, session_id: str) -> dict[str, Any]:
    return {
        "input": [{"role": "user", "content": text}],
        "custom_inputs": {"session_id": session_id},
    }


def metadata_of(trace_id: str) -> dict[str, str]:
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_trace(trace_id)
    assert trace is not None
    return dict(trace.info.request_metadata)


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "plain"])
async def test_the_trace_has_session_and_user(
    tracing: None, lakebase: Lakebase, local: LocalLakebase, database: str, atomic: bool
) -> None:
    request = ResponsesAgentRequest(**said("Hi", "s"))
    with mlflow.start_span(name="turn") as span:
        answer = await invoke_turn(
            AGENT, request, user="mia@example.com", lakebase=lakebase, atomic=atomic
        )
    assert answer.custom_outputs is not None
    assert answer.custom_outputs["trace_id"] == span.trace_id
    found = metadata_of(span.trace_id)
    assert found["mlflow.trace.session"] == "mia%40example.com:s"
    assert found["mlflow.trace.user"] == "mia@example.com"
    with admin(local, database) as connection:
        assert connection.execute("SELECT trace_id FROM agent_turns").fetchall() == [
            (span.trace_id,)
        ]


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "plain"])
async def test_the_trace_of_a_turn_that_goes_into_a_fork_is_the_forks(
    tracing: None, lakebase: Lakebase, atomic: bool
) -> None:
    await invoke_turn(AGENT, ResponsesAgentRequest(**said("Hi", "s")), lakebase=lakebase)
    edited = said("Edited", "s")
    edited["custom_inputs"]["turn"] = 1
    with mlflow.start_span(name="turn") as span:
        answer = await invoke_turn(
            AGENT,
            ResponsesAgentRequest(**edited),
            lakebase=lakebase,
            atomic=atomic,
            on_edit="fork",
        )
    assert answer.custom_outputs is not None
    assert answer.custom_outputs["session_id"] != "s"
    found = metadata_of(span.trace_id)
    assert found["mlflow.trace.session"] == answer.custom_outputs["session_id"]


async def test_an_answer_without_a_trace_leaves_that_of_the_question(
    tracing: None, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    chat = Chat(lakebase, streamed=False, atomic=False)
    till = Till()
    with mlflow.start_span(name="turn") as span:
        [waits] = asked(await chat(till.agent(), PAY))
    await chat(till.agent(), approvals={waits["id"]: True})
    with admin(local, database) as connection:
        assert connection.execute("SELECT trace_id FROM agent_turns").fetchall() == [
            (span.trace_id,)
        ]


async def test_without_a_span_there_is_none(
    tracing: None, lakebase: Lakebase, local: LocalLakebase, database: str
) -> None:
    """Also where there was one before."""
    with mlflow.start_span(name="another"):
        pass
    answer = await invoke_turn(AGENT, ResponsesAgentRequest(**said("Hi", "s")), lakebase=lakebase)
    assert answer.custom_outputs
    assert "trace_id" not in answer.custom_outputs
    with admin(local, database) as connection:
        assert connection.execute("SELECT trace_id FROM agent_turns").fetchall() == [(None,)]


@pytest.fixture
def autolog() -> Iterator[None]:
    """MLflow's tracing of the Agents SDK."""
    set_tracing_disabled(False)
    mlflow.openai.autolog()
    yield
    mlflow.openai.autolog(disable=True)
    set_tracing_disabled(True)


@pytest.mark.parametrize("streamed", [False, True], ids=["invoke", "stream"])
async def test_the_runs_own_span(
    tracing: None, autolog: None, lakebase: Lakebase, streamed: bool
) -> None:
    """Where there is none around the handler, autolog's, which is there while the run lasts."""
    request = ResponsesAgentRequest(**said("Hi", "s"))
    outputs: list[Any]
    if streamed:
        events = stream_turn(AGENT, request, user="mia", lakebase=lakebase)
        outputs = [event.custom_outputs async for event in events if event.custom_outputs]
    else:
        answer = await invoke_turn(AGENT, request, user="mia", lakebase=lakebase)
        outputs = [answer.custom_outputs]
    found = metadata_of(outputs[0]["trace_id"])
    assert (found["mlflow.trace.session"], found["mlflow.trace.user"]) == ("mia:s", "mia")


@pytest.fixture
async def client(tracing: None, lakebase: Lakebase) -> AsyncIterator[httpx.AsyncClient]:
    """MLflow's own server, in this process."""
    from mlflow.genai.agent_server import AgentServer, server

    async def handle(request: Any) -> Any:
        return await invoke_turn(AGENT, request, lakebase=lakebase)

    async def handle_stream(request: Any) -> Any:
        async for event in stream_turn(AGENT, request, lakebase=lakebase):
            yield event

    server._invoke_function, server._stream_function = handle, handle_stream
    transport = httpx.ASGITransport(app=AgentServer("ResponsesAgent").app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client:
        yield client
    server._invoke_function = server._stream_function = None


async def test_many_requests_at_once(
    client: httpx.AsyncClient, local: LocalLakebase, database: str
) -> None:
    """Each answer names its own request's trace, as MLflow does."""

    async def turn(number: int) -> tuple[str, str, str]:
        body = said(f"My number is {number}.", f"s{number}") | {"stream": number % 2 == 0}
        response = await client.post(
            "/invocations", json=body, headers={"x-mlflow-return-trace-id": "true"}
        )
        if number % 2:
            answer = response.json()
            return (
                answer["custom_outputs"]["session_id"],
                answer["custom_outputs"]["trace_id"],
                answer["metadata"]["trace_id"],
            )
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        named = {json.dumps(e["custom_outputs"]) for e in events if e.get("custom_outputs")}
        assert len(named) == 1
        outputs = json.loads(named.pop())
        (mlflows,) = (event["trace_id"] for event in events if "trace_id" in event)
        return outputs["session_id"], outputs["trace_id"], mlflows

    found = await asyncio.gather(*map(turn, range(24)))
    assert [session for session, _, _ in found] == [f"s{number}" for number in range(24)]
    assert all(ours == mlflows for _, ours, mlflows in found)
    assert len({trace for _, trace, _ in found}) == 24
    for session, trace, _ in found:
        assert metadata_of(trace)["mlflow.trace.session"] == session
    with admin(local, database) as connection:
        rows = connection.execute("SELECT session_id, trace_id FROM agent_turns").fetchall()
    assert sorted(rows) == sorted((session, trace) for session, trace, _ in found)
