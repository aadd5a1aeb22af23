"""The agent server, started as a user starts it and driven over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import admin
from processes import free_port, started, wait_until_it_serves

from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing.plugin import TEMPLATE

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def running(
    arguments: list[str], variables: dict[str, str], folder: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The example server as a subprocess; its address."""
    port, log = free_port(), folder / "server.log"
    address = f"http://127.0.0.1:{port}"
    script: list[str | Path] = [EXAMPLES / "agent_server.py", "--port", str(port), *arguments]
    with started(script, variables, log) as process:
        wait_until_it_serves(process, f"{address}/health", log)
        yield address, process


@pytest.fixture(scope="module")
def database_for_module(local_for_run: LocalLakebase) -> Iterator[str]:
    name = f"lakebase_sessions_server_{os.getpid()}"
    local_for_run.create_database(name, template=TEMPLATE)
    yield name
    local_for_run.drop_database(name)


@pytest.fixture(scope="module")
def variables(local_for_run: LocalLakebase, database_for_module: str) -> dict[str, str]:
    """As Databricks Apps would set them."""
    return local_for_run.environ | {
        "PGHOST": local_for_run.host,
        "PGDATABASE": database_for_module,
    }


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: Any) -> Iterator[str]:
    with running([], variables, tmp_path_factory.mktemp("server")) as (address, _process):
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


def test_four_workers(variables: dict[str, str], tmp_path: Path) -> None:
    """A conversation is remembered whichever worker gets the next request."""
    with running(["--workers", "4"], variables, tmp_path) as (address, _process):
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


def test_on_a_bare_machine(tmp_path: Path) -> None:
    """Nothing configured: it starts a Lakebase, says so, and leaves nothing behind."""
    with running([], {}, tmp_path) as (address, process):
        answer = httpx.post(f"{address}/invocations", json=said("Hello, I live in SF!")).json()
        assert answer["custom_outputs"]["session_id"]
    assert process.returncode is not None
    log = (tmp_path / "server.log").read_text()
    assert "starting one on this machine" in log
    assert "offline" in log
    assert "Traceback" not in log


# --- load ----------------------------------------------------------------------------------------

CONVERSATIONS = 200
TURNS = 5


async def converse(client: httpx.AsyncClient, number: int) -> list[str]:
    """One conversation of streamed turns; what the agent said."""
    answers = []
    for turn in range(TURNS):
        text = f"My number is {number}." if turn == 0 else "What is my number?"
        body = {
            "input": [{"role": "user", "content": text}],
            "custom_inputs": {"session_id": f"load-{number}"},
            "stream": True,
        }
        response = await client.post("/invocations", json=body)
        events = [
            json.loads(line.removeprefix("data: "))
            for line in response.text.splitlines()
            if line.startswith("data: {")
        ]
        assert events[-1]["type"] == "response.completed", events[-1]
        answers.append(events[-1]["response"]["output"][-1]["content"][0]["text"])
    return answers


async def test_every_turn_is_answered_and_every_history_complete(
    local: LocalLakebase,
    server: str,
    database_for_module: str,
) -> None:
    """In order, without an error, and without a connection more than the pool may have."""
    # no reuse: the server may close an idle connection just when the next request goes out
    limits = httpx.Limits(max_connections=CONVERSATIONS, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server, limits=limits, timeout=110) as client:
        answers = await asyncio.gather(*(converse(client, n) for n in range(CONVERSATIONS)))
    for number, said in enumerate(answers):
        assert said == [
            f"Hello! I will remember: your number is {number}.",
            *[f"You said that your number is {number}."] * (TURNS - 1),
        ]
    with admin(local, database_for_module) as connection:
        rows = connection.execute(
            "SELECT session_id, message_data FROM agent_messages "
            "WHERE session_id LIKE 'load-%' ORDER BY created_at, id"
        ).fetchall()
        open_now = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s "
            "AND application_name = 'lakebase-sessions'",
            [database_for_module],
        ).fetchone()
    stored: dict[str, list[Any]] = {}
    for session_id, data in rows:
        stored.setdefault(session_id, []).append(json.loads(data))
    assert len(stored) == CONVERSATIONS
    for number, said in enumerate(answers):
        items = stored[f"load-{number}"]
        assert [item["role"] for item in items] == ["user", "assistant"] * TURNS
        assert [item["content"][0]["text"] for item in items[1::2]] == said
    assert open_now is not None
    assert 1 <= open_now[0] <= 15
