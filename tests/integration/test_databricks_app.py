"""The app of examples/databricks_app: its files, and its module as the platform runs it."""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from conftest import admin
from processes import free_port, started, wait_until_it_serves

from lakebase_sessions.local import DEFAULT_ENDPOINT, LocalLakebase

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"
APP = EXAMPLES / "databricks_app"
SCHEMA = Path(__file__).parents[3] / "shared" / "data" / "databricks-bundle.schema.json"

SERVICE_PRINCIPAL = "7c1d0f3e-5a2b-4c8d-9e6f-0a1b2c3d4e5f"

# The app as it is, with another model. `python app.py` ends in the same call.
RUN = """
import app
from lakebase_sessions.testing import OfflineModel

app.agent.model = OfflineModel()
app.main()
"""


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((APP / "databricks.yml").read_text())
    return loaded


def test_the_bundle_is_valid(bundle: dict[str, Any]) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA.name} is not part of the repository, and not beside it")
    # Its patterns are for another engine; Python's has no \p{L} for a letter, \p{N} for a digit.
    text = SCHEMA.read_text().replace(r"\\p{L}", r"\\w").replace(r"\\p{N}", r"\\d")
    schema = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(bundle)


@pytest.mark.parametrize(
    ("target", "variable", "kind", "fields"),
    [
        (
            "provisioned",
            "LAKEBASE_INSTANCE_NAME",
            "database",
            {"instance_name", "database_name", "permission"},
        ),
        (
            "autoscaling",
            "LAKEBASE_AUTOSCALING_ENDPOINT",
            "postgres",
            {"branch", "database", "permission"},
        ),
    ],
)
def test_each_target_gives_the_app_its_lakebase(
    bundle: dict[str, Any], target: str, variable: str, kind: str, fields: set[str]
) -> None:
    app = bundle["targets"][target]["resources"]["apps"]["agent"]
    assert app["config"]["env"] == [{"name": variable, "value_from": kind}]
    [resource] = app["resources"]
    assert resource["name"] == kind, "what value_from refers to"
    assert set(resource[kind]) == fields
    assert resource[kind]["permission"] == "CAN_CONNECT_AND_CREATE"


def test_both_ways_of_deploying_agree(bundle: dict[str, Any]) -> None:
    """app.yaml is the autoscaling target of the bundle, in its own spelling."""
    app_yaml = yaml.safe_load((APP / "app.yaml").read_text())
    top = bundle["resources"]["apps"]["agent"]
    target = bundle["targets"]["autoscaling"]["resources"]["apps"]["agent"]
    variables = [*top["config"]["env"], *target["config"]["env"]]
    assert app_yaml["command"] == top["config"]["command"] == ["uv", "run", "app.py"]
    assert [variable["name"] for variable in app_yaml["env"]] == [v["name"] for v in variables]
    resources = {resource["name"] for resource in [*top["resources"], *target["resources"]]}
    assert {v["valueFrom"] for v in app_yaml["env"] if "valueFrom" in v} <= resources
    assert {v["value_from"] for v in variables if "value_from" in v} <= resources


def test_the_project_needs_this_package_alone() -> None:
    project = tomllib.loads((APP / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((APP.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["lakebase-sessions"]
    assert project["requires-python"] == ours["requires-python"]


def test_its_page_is_that_of_the_chat_example() -> None:
    """The folder is copied out and deployed alone, so it has a copy."""
    chat = EXAMPLES / "chat"
    names = sorted(path.relative_to(chat) for path in chat.glob("static/*"))
    assert sorted(path.relative_to(APP) for path in APP.glob("static/*")) == names
    for name in (Path("page.py"), *names):
        assert (APP / name).read_bytes() == (chat / name).read_bytes(), name


def test_the_app_with_the_variables_of_the_platform(
    local: LocalLakebase, database: str, empty_database: str, tmp_path: Path
) -> None:
    """Both kinds of Lakebase, beside each other: each keeps its conversations in its own."""
    token = local.add_user(SERVICE_PRINCIPAL)
    kinds = {
        # A database resource gives the host under this name, not the instance's name.
        database: {"LAKEBASE_INSTANCE_NAME": local.host},
        empty_database: {"LAKEBASE_AUTOSCALING_ENDPOINT": DEFAULT_ENDPOINT},
    }
    with contextlib.ExitStack() as stack:
        apps = []
        for name, variables in kinds.items():
            port, log = str(free_port()), tmp_path / f"{name}.log"
            given = platform_variables(local, name, token) | {"DATABRICKS_APP_PORT": port}
            process = stack.enter_context(started(["-c", RUN], given | variables, log))
            apps.append((name, f"http://127.0.0.1:{port}", process, log))
        for name, url, process, log in apps:
            wait_until_it_serves(process, f"{url}/health", log)
            with httpx.Client(base_url=url, timeout=60) as client:
                session_id = two_turns_that_remember(client)
                nobody_is_refused(client)
                a_page_and_a_list(client)
            assert stored_in(local, name) == {session_id}


def two_turns_that_remember(client: httpx.Client) -> str:
    mia, ben = {"X-Forwarded-User": "mia@example.com"}, {"X-Forwarded-User": "ben@example.com"}
    first = client.post("/invocations", headers=mia, json=asking("Hello, I live in SF!"))
    assert first.status_code == 200, first.text
    session_id: str = first.json()["custom_outputs"]["session_id"]
    assert session_id.startswith("mia%40example.com:")

    question = asking("What city did I say I live in?", session_id)
    second = client.post("/responses", headers=mia, json=question)
    assert said(second) == "You said that you live in SF."
    assert second.json()["custom_outputs"]["session_id"] == session_id

    other = client.post("/invocations", headers=ben, json=question | {"stream": True})
    assert "I do not know" in other.text, "another user's id opens an empty conversation"
    lines = [line.removeprefix("data: ") for line in other.text.splitlines() if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    own_id = events[-1]["custom_outputs"]["session_id"]
    assert own_id == f"ben%40example.com:{session_id}"
    return session_id


def nobody_is_refused(client: httpx.Client) -> None:
    """What does not come through the platform's proxy has no user, and gets no conversation."""
    for stream in (False, True):
        refused = client.post("/invocations", json=asking("Hello") | {"stream": stream})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_user"
        assert "no X-Forwarded-User header" in refused.text


def a_page_and_a_list(client: httpx.Client) -> None:
    """The page is for everybody whom the platform lets through, the list each user's own."""
    assert "<title>Chat</title>" in client.get("/").text
    listed = client.get("/conversations", headers={"X-Forwarded-User": "mia@example.com"})
    assert [each["preview"] for each in listed.json()["data"]] == ["Hello, I live in SF!"]
    assert client.get("/conversations").json()["error"]["code"] == "invalid_user"


def asking(text: str, session_id: str | None = None) -> dict[str, Any]:
    return {
        "input": [{"role": "user", "content": text}],
        "custom_inputs": {"session_id": session_id},
    }


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["output"][-1]["content"][0]["text"]
    return text


def stored_in(local: LocalLakebase, database: str) -> set[str]:
    """The sessions of mia, in the schema that the app made for itself."""
    with admin(local, database) as connection:
        rows = connection.execute(
            "SELECT session_id FROM agent_memory.agent_sessions WHERE session_id LIKE 'mia%'"
        )
        return {row[0] for row in rows}


def platform_variables(local: LocalLakebase, database: str, token: str) -> dict[str, str]:
    """What an app finds in its environment, and the bundle's own settings."""
    return {
        "DATABRICKS_HOST": local.url,
        "DATABRICKS_TOKEN": token,  # there: DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET
        "DATABRICKS_APP_NAME": "agent-with-memory",
        "PGHOST": local.host,
        "PGPORT": "5432",
        "PGDATABASE": database,
        "PGUSER": SERVICE_PRINCIPAL,
        "PGSSLMODE": "require",
        "PGAPPNAME": "agent-with-memory",
        "LAKEBASE_AGENT_MEMORY_SCHEMA": "agent_memory",
        "PYTHONPATH": os.pathsep.join([str(APP), str(EXAMPLES)]),
    }
