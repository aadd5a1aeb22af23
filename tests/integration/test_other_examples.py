"""Sessions in other frameworks and under the SDK's own wrappers, run as a user runs them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import admin
from processes import environment, free_port, started, wait_until_it_serves

from lakebase_sessions.local import LocalLakebase

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str, variables: dict[str, str], folder: Path) -> str:
    """What a script prints; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        cwd=folder,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def stored(local: LocalLakebase, database: str) -> list[Any]:
    """All items of a database that has one conversation."""
    with admin(local, database) as connection:
        rows = connection.execute("SELECT message_data FROM agent_messages ORDER BY id").fetchall()
    return [json.loads(row[0]) for row in rows]


def test_run_sync(
    local: LocalLakebase, database: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """Two processes, one conversation."""
    said = ("Hello, I live in SF!", "What city did I say I live in?")
    for text in said:
        answer = run("run_sync.py", "trip-7", text, variables=environ, folder=tmp_path)
    assert answer == "You said that you live in SF.\n"
    items = stored(local, database)
    assert [item["role"] for item in items] == ["user", "assistant"] * 2
    assert (items[0]["content"], items[2]["content"]) == said


def test_encrypted(
    local: LocalLakebase, database: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """The agent remembers; the table has nothing that can be read."""
    out = run("encrypted.py", variables=environ, folder=tmp_path)
    assert "Agent: You said that you live in SF." in out
    items = stored(local, database)
    assert len(items) == 4
    assert all(item.keys() == {"__enc__", "v", "kid", "payload"} for item in items)
    for word in ("live in", "assistant", "output_text"):
        assert word not in json.dumps(items)


def test_compaction(
    local: LocalLakebase, database: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """What the client answers replaces the history, and the conversation goes on from it."""
    out = run("compaction.py", variables=environ, folder=tmp_path)
    assert "Agent: You said that you live in SF." in out, "asked after the compaction"
    counts = re.findall(r"(\d+) items stored, after compaction (\d+)", out)
    assert counts == [("2", "2"), ("4", "3"), ("5", "5")]
    items = stored(local, database)
    kinds = [item.get("type") or item["role"] for item in items]
    assert kinds == ["message", "message", "compaction", "user", "message"]
    assert [item["content"][0]["text"] for item in items[:2]] == [
        "Hello, I live in SF!",
        "My dog is Rex.",
    ]


def test_fastapi(
    local: LocalLakebase, database: str, environ: dict[str, str], tmp_path: Path
) -> None:
    """At once and as a stream, with the statuses of the errors, without MLflow in the code."""
    assert "mlflow" not in (EXAMPLES / "fastapi_app.py").read_text()
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "server.log"
    arguments: list[str | Path] = [EXAMPLES / "fastapi_app.py", "--port", url.rpartition(":")[2]]
    with started(arguments, environ, log) as process, httpx.Client(base_url=url) as client:
        wait_until_it_serves(process, f"{url}/docs", log)
        first = client.post("/chat", json={"text": "Hello, I live in SF!"}).json()
        again = {"text": "What city did I say I live in?", "session_id": first["session_id"]}
        assert client.post("/chat", json=again).json() == {
            "text": "You said that you live in SF.",
            "session_id": first["session_id"],
        }
        streamed = client.post("/chat/stream", json=again)
        assert streamed.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line]
        assert "".join(event["delta"] for event in events) == "You said that you live in SF."
        assert {event["session_id"] for event in events} == {first["session_id"]}
        for path in ("/chat", "/chat/stream"):
            refused = client.post(path, json=again | {"session_id": "a\nb"})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "invalid_session_id"
        with admin(local, database) as connection:
            connection.execute("DROP TABLE agent_messages")
        for path in ("/chat", "/chat/stream"):
            broken = client.post(path, json=again)
            assert broken.status_code == 500
            assert broken.json()["error"]["code"] == "tables_missing"


def test_approvals(environ: dict[str, str], tmp_path: Path) -> None:
    """The server is killed between the question and the answer; the next one pays, once."""

    @contextlib.contextmanager
    def serving(log: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
        url = f"http://127.0.0.1:{free_port()}"
        arguments: list[str | Path] = [EXAMPLES / "approvals.py", "--port", url.rpartition(":")[2]]
        with (
            started(arguments, environ, log) as process,
            httpx.Client(base_url=url, timeout=60) as client,  # the first request opens all
        ):
            wait_until_it_serves(process, f"{url}/health", log)
            yield client, process

    def last_event(response: httpx.Response) -> Any:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        return json.loads(lines[-1])

    def answers(outputs: Any, approve: bool) -> dict[str, Any]:
        [waits] = outputs["approvals"]
        custom = {"session_id": outputs["session_id"], "approvals": {waits["id"]: approve}}
        return {"input": [], "custom_inputs": custom}

    def asking(name: str) -> dict[str, Any]:
        return {"input": [{"role": "user", "content": f"Make a payment for {name}."}]}

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with serving(first) as (client, process):
        mia, leo = (
            client.post("/invocations", json=asking(name)).json()["custom_outputs"]
            for name in ("Mia", "Leo")
        )
        event = last_event(client.post("/responses", json={**asking("Noah"), "stream": True}))
        assert event["response"]["output"][-1]["type"] == "mcp_approval_request"
        noah = event["custom_outputs"]
        process.kill()
        process.wait()
    with serving(second) as (client, _):
        assert client.post("/invocations", json=answers(mia, True)).status_code == 200
        streamed = last_event(
            client.post("/responses", json={**answers(noah, True), "stream": True})
        )
        assert streamed["response"]["output"][-1]["content"][0]["text"] == "Paid Noah."
        assert client.post("/invocations", json=answers(leo, False)).status_code == 200
        for outputs in (mia, noah, leo):
            for more in ({}, {"stream": True}):
                late = client.post("/invocations", json=answers(outputs, True) | more)
                assert late.status_code == 409
                assert late.json()["error"]["code"] == "approval_not_found"
    assert "Paid" not in first.read_text()
    assert re.findall("Paid (.*)", second.read_text()) == ["Mia.", "Noah."]
