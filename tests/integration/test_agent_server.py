"""The agent server, started as a user starts it and driven over HTTP."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import TEMPLATE, admin

from lakebase_sessions.local import LocalLakebase

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def running(
    arguments: list[str], environment: dict[str, str], folder: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The example server as a subprocess; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / "agent_server.py", "--port", str(port), *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        give_up_at = time.monotonic() + 90
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health").is_success:
                    break
            if process.poll() is not None or time.monotonic() > give_up_at:
                pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield address, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def database_for_module(local_for_run: LocalLakebase) -> Iterator[str]:
    name = f"lakebase_sessions_server_{os.getpid()}"
    local_for_run.create_database(name, template=TEMPLATE)
    yield name
    local_for_run.drop_database(name)


@pytest.fixture(scope="module")
def environment(
    local_for_run: LocalLakebase, database_for_module: str, tmp_path_factory: Any
) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATABRICKS_", "LAKEBASE_", "PG"))
    }
    traces = tmp_path_factory.mktemp("mlflow")
    return (
        inherited
        | local_for_run.environ
        | {
            "PGHOST": local_for_run.host,
            "PGDATABASE": database_for_module,
            "MLFLOW_TRACKING_URI": traces.as_uri(),
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
            "MLFLOW_TRACE_SAMPLING_RATIO": "0",
        }
    )


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: Any) -> Iterator[str]:
    with running([], environment, tmp_path_factory.mktemp("server")) as (address, _process):
        yield address


def stored(local: LocalLakebase, database: str, session_id: str) -> list[Any]:
    with admin(local, database) as connection:
        rows = connection.execute(
            "SELECT message_data FROM agent_messages WHERE session_id = %s ORDER BY id",
            [session_id],
        ).fetchall()
    return [json.loads(row[0]) for row in rows]


def said(text: str, session_id: str | None = None, **more: Any) -> dict[str, Any]:
    custom = {"custom_inputs": {"session_id": session_id}} if session_id else {}
    return {"input": [{"role": "user", "content": text}], **custom, **more}


def say(text: str) -> Any:
    """As the openai client takes it; MLflow's server refuses a bare string as input."""
    return {"input": [{"role": "user", "content": text}]}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(item: dict[str, Any]) -> str:
    content = item["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


@pytest.mark.parametrize("path", ["/invocations", "/responses"])
def test_the_curl_commands_of_the_template(server: str, path: str) -> None:
    """As they stand, but for the port."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(body: str) -> str:
        command = (
            f"curl -s -X POST {server}{path} -H \"Content-Type: application/json\" -d '{body}'"
        )
        return subprocess.run(
            command, shell=True, check=True, capture_output=True, text=True
        ).stdout

    first = json.loads(curl('{"input": [{"role": "user", "content": "Hello, I live in SF!"}]}'))
    session_id = first["custom_outputs"]["session_id"]
    second = json.loads(
        curl(
            '{"input": [{"role": "user", "content": "What city did I say I live in?"}], '
            f'"custom_inputs": {{"session_id": "{session_id}"}}}}'
        )
    )
    assert text_of(second["output"][0]) == "You said that you live in SF."
    assert second["custom_outputs"]["session_id"] == session_id
    streamed = curl('{"input": [{"role": "user", "content": "Hello!"}], "stream": true}')
    assert streamed.startswith("data: ")
    assert streamed.endswith("data: [DONE]\n\n")


def test_turns_with_tools_item_by_item(
    server: str, local: LocalLakebase, database_for_module: str
) -> None:
    """What is stored is what was said: calls, outputs, answers, in order."""
    questions = ["My name is Mia.", "What is the weather in Rome?", "What is my name?"]
    expected: list[dict[str, Any]] = []
    session_id = None
    for question in questions:
        answer = httpx.post(f"{server}/invocations", json=said(question, session_id)).json()
        session_id = answer["custom_outputs"]["session_id"]
        expected += [{"role": "user", "content": question}, *answer["output"]]
    rows = stored(local, database_for_module, str(session_id))
    kinds = [row.get("type") or row["role"] for row in rows]
    assert kinds == [
        *("message", "message"),
        *("message", "function_call", "function_call_output", "message"),
        *("message", "message"),
    ]
    for row, sent in zip(rows, expected, strict=True):
        if "content" in sent:
            assert (row["role"], text_of(row)) == (sent["role"], text_of(sent))
        else:
            same = ("type", "call_id", "name", "arguments", "output")
            assert {k: row.get(k) for k in same} == {k: sent.get(k) for k in same}
    assert text_of(rows[-1]) == "You said that your name is Mia."


def test_a_stream_is_one_response(
    server: str, local: LocalLakebase, database_for_module: str
) -> None:
    """Ids and numbers are consistent over several model calls, and the session id is there."""
    with httpx.stream(
        "POST", f"{server}/invocations", json=said("What is the weather in Rome?", stream=True)
    ) as response:
        events = events_of(response)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.created") == kinds.count("response.completed") == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))

    session_id = events[0]["custom_outputs"]["session_id"]
    bearers = [event for event in events if "custom_outputs" in event]
    assert {event["custom_outputs"]["session_id"] for event in bearers} == {session_id}
    assert [event["type"] for event in bearers] == [
        "response.created",
        *["response.output_item.done"] * 3,
        "response.completed",
    ]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"]["type"] for event in done] == [
        "function_call",
        "function_call_output",
        "message",
    ]
    for index, finished in enumerate(done):
        item_id = finished["item"]["id"]
        of_it = [
            event
            for event in events
            if event.get("item_id") == item_id or event.get("item", {}).get("id") == item_id
        ]
        assert {event["output_index"] for event in of_it} == {index}
        assert of_it[0]["type"] == "response.output_item.added"
        assert of_it[-1] is finished
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == text_of(done[2]["item"]) == "It is sunny in Rome."
    assert events[-1]["response"]["output"] == [event["item"] for event in done]
    rows = stored(local, database_for_module, session_id)
    assert [row.get("call_id") for row in rows[1:3]] == [done[0]["item"]["call_id"]] * 2


def test_with_the_openai_client(server: str) -> None:
    """Multi-turn, streaming and not, by the official client."""
    client = openai.OpenAI(base_url=server, api_key="unused", max_retries=0)
    first = client.responses.create(model="agent", **say("Hello, I live in SF!"))
    assert first.model_extra is not None
    custom_inputs = {"session_id": first.model_extra["custom_outputs"]["session_id"]}
    question: Any = say("What city did I say I live in?")
    question["extra_body"] = {"custom_inputs": custom_inputs}
    second = client.responses.create(model="agent", **question)
    assert second.output_text == "You said that you live in SF."
    events = [*client.responses.create(model="agent", stream=True, **question)]
    completed = events[-1]
    assert completed.type == "response.completed"
    assert completed.response.output_text == "You said that you live in SF."
    with client.responses.stream(model="agent", **question) as stream:
        assert [event.type for event in stream][-1] == "response.completed"
        assert stream.get_final_response().output_text == "You said that you live in SF."


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_session_id_is_400(server: str, stream: bool) -> None:
    body = {"input": [], "custom_inputs": {"session_id": ["x"]}, "stream": stream}
    response = httpx.post(f"{server}/invocations", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_session_id"
    client = openai.OpenAI(base_url=server, api_key="unused", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="is not a session id"):
        client.responses.create(
            model="agent",
            **say("x"),
            stream=stream,
            extra_body={"custom_inputs": {"session_id": ["x"]}},
        )


def test_other_errors_stay_as_they_are(server: str) -> None:
    response = httpx.post(f"{server}/invocations", content=b"{no json")
    assert response.status_code == 400
    assert "Invalid JSON" in response.json()["detail"]
    assert httpx.get(f"{server}/nowhere").status_code == 404


def test_an_empty_input_goes_on_from_the_history(server: str) -> None:
    first = httpx.post(f"{server}/invocations", json=said("Hello, I live in SF!")).json()
    again = httpx.post(
        f"{server}/invocations", json={"input": [], "custom_inputs": first["custom_outputs"]}
    )
    assert again.status_code == 200


def test_real_conversations_resent_whole(
    server: str,
    local: LocalLakebase,
    database_for_module: str,
    conversations: list[dict[str, Any]],
) -> None:
    """Each turn resends all that is visible, as strings or in parts: stored exactly once."""
    ways = itertools.cycle(["strings", "parts"])
    with httpx.Client(base_url=server, timeout=30) as client:
        for conversation in conversations:
            session_id = f"replay-{conversation['id']}"
            seen: list[dict[str, Any]] = []
            for item in conversation["items"]:
                if item.get("role") != "user":
                    continue
                way = next(ways)
                resent = [
                    {"role": message["role"], "content": text_of(message)}
                    if way == "strings" or message["role"] == "user"
                    else message
                    for message in seen
                ]
                body = {
                    "input": [*resent, item],
                    "custom_inputs": {"session_id": session_id},
                }
                answer = client.post("/responses", json=body).json()
                seen += [item, *(o for o in answer["output"] if o["type"] == "message")]
            rows = stored(local, database_for_module, session_id)
            messages = [(row["role"], text_of(row)) for row in rows if "content" in row]
            assert messages == [(message["role"], text_of(message)) for message in seen]


def test_four_workers(environment: dict[str, str], tmp_path: Path) -> None:
    """A conversation is remembered whichever worker gets the next request."""
    with running(["--workers", "4"], environment, tmp_path) as (address, _process):
        for number in range(6):
            session_id = f"workers-{number}"
            httpx.post(
                f"{address}/invocations",
                json=said(f"My number is {number}.", session_id),
                timeout=60,
            )
            answer = httpx.post(
                f"{address}/invocations", json=said("What is my number?", session_id), timeout=60
            ).json()
            assert text_of(answer["output"][0]) == f"You said that your number is {number}."


def test_on_a_bare_machine(environment: dict[str, str], tmp_path: Path) -> None:
    """Nothing configured: it starts a Lakebase, says so, and leaves nothing behind."""
    bare = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("DATABRICKS_", "LAKEBASE_", "PG"))
    }
    with running([], bare, tmp_path) as (address, process):
        answer = httpx.post(f"{address}/invocations", json=said("Hello, I live in SF!")).json()
        assert answer["custom_outputs"]["session_id"]
    assert process.returncode is not None
    log = (tmp_path / "server.log").read_text()
    assert "starting one on this machine" in log
    assert "offline" in log
    assert "Traceback" not in log
