"""What this package leans on in other packages; a failure says what changed and who has to follow.

That tables, rows and signatures are upstream's is in `test_upstream.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents.memory import Session, SessionSettings
from agents.memory.session_settings import resolve_session_limit
from agents.models.fake_id import FAKE_RESPONSES_ID
from databricks.sdk.config import Config
from databricks.sdk.core import ApiClient
from databricks.sdk.service import database, postgres
from databricks_openai.agents import AsyncDatabricksSession
from mlflow.genai.agent_server import server as agent_server
from mlflow.types.responses_helpers import Annotation, OutputItem
from sqlalchemy.pool import NullPool

import lakebase_sessions
from lakebase_sessions import LakebaseSession
from lakebase_sessions.local import LocalLakebase

SOURCE = Path(inspect.getfile(lakebase_sessions)).parent
OTHERS = (
    *("agents", "databricks", "databricks_openai", "mlflow", "openai", "psycopg", "pydantic"),
    *("pydantic_core", "sqlalchemy", "starlette", "requests", "rich", "click", "uuid_utils"),
)


def installed(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


def borrowed() -> Iterator[tuple[str, str, str]]:
    """Module, name and place of all that is imported from others."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            if node.module.partition(".")[0] in OTHERS:
                place = f"{path.relative_to(SOURCE)}:{node.lineno}"
                yield from ((node.module, alias.name, place) for alias in node.names)


OPTIONAL = {"databricks.sdk.service.agentkit"}
"""What only newer versions have than the lowest; whoever uses it without is told so
(tests/integration/test_managed_stores.py)."""


def test_every_import_from_others_is_there() -> None:
    found = set(borrowed())
    assert len(found) > 50
    gone = []
    for module, name, place in sorted(found):
        if module in OPTIONAL and importlib.util.find_spec(module) is None:
            continue
        try:
            home = importlib.import_module(module)
            if not hasattr(home, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError as error:
            gone.append(f"{place} imports {name} from {module}, which is gone: {error}")
    assert not gone, "\n".join(gone)


class Recorder:
    """A workspace's client that writes down what it is asked."""

    def __init__(self, asked: list[str], path: str = "") -> None:
        self._asked = asked
        self._path = path

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self._asked, f"{self._path}.{name}".lstrip("."))

    def __call__(self, *arguments: Any, **keywords: Any) -> SimpleNamespace:
        said = [*map(repr, arguments), *(f"{key}={value!r}" for key, value in keywords.items())]
        self._asked.append(f"{self._path}({', '.join(said)})")
        return SimpleNamespace(read_write_dns="host.example")


class TestAsyncDatabricksSession:
    def test_its_constructor_takes_what_the_prototype_gives(self) -> None:
        parameters = inspect.signature(AsyncDatabricksSession.__init__).parameters
        needed = {"session_id", "instance_name", "workspace_client", "create_tables"}
        needed |= {"use_cached_engine", "schema"}
        assert needed <= set(parameters), (
            f"{installed('databricks-openai')}: AsyncDatabricksSession(...) has no "
            f"{sorted(needed - set(parameters))} any more; postgres/prototype.py gives it, or "
            "tests do"
        )
        assert any(each.kind is each.VAR_KEYWORD for each in parameters.values()), (
            f"{installed('databricks-openai')}: AsyncDatabricksSession(...) passes nothing on to "
            "create_async_engine any more; postgres/prototype.py relies on it for its pool"
        )

    def test_its_constructor_asks_the_workspace_for_a_host_alone(self) -> None:
        """postgres/prototype.py has a stand-in that answers only this."""
        asked: list[str] = []

        async def connect() -> None:
            raise AssertionError("the constructor opens a connection now")

        session = AsyncDatabricksSession(
            session_id="s",
            instance_name="my-instance",
            workspace_client=cast("Any", Recorder(asked)),
            username="mia@example.com",
            database="app",
            create_tables=False,
            use_cached_engine=False,
            async_creator=connect,
            poolclass=NullPool,
        )
        assert asked == ["database.get_database_instance('my-instance')"], (
            f"{installed('databricks-openai')}, {installed('databricks-ai-bridge')}: "
            f"AsyncDatabricksSession(...) asks the workspace {asked}; the stand-in in "
            "postgres/prototype.py has to answer the same"
        )
        assert isinstance(session.engine.pool, NullPool), (
            "AsyncDatabricksSession makes its engine with another pool than `poolclass=`; "
            "postgres/prototype.py relies on NullPool and `async_creator`"
        )

    def test_it_is_a_session_of_the_sdk_still(self) -> None:
        for name in ("get_items", "add_items", "pop_item", "clear_session"):
            for kind in (Session, AsyncDatabricksSession, LakebaseSession):
                assert inspect.iscoroutinefunction(getattr(kind, name)), (
                    f"{kind.__name__}.{name} is no coroutine function in "
                    f"{installed('openai-agents')}; conversation/session.py overrides it as one"
                )

    def test_it_brings_no_method_that_writes_past_ours(self) -> None:
        """What the Agents SDK adds to the base class would work on tables without our rules."""
        known = {"add_items", "clear_session", "engine", "from_url", "get_engine", "get_items"}
        known |= {"pop_item", "session_settings"}
        public = {name for name in dir(AsyncDatabricksSession) if not name.startswith("_")}
        assert public <= known, (
            f"{installed('openai-agents')}, {installed('databricks-openai')}: "
            f"AsyncDatabricksSession has new public attributes, {sorted(public - known)}; decide "
            "in conversation/session.py whether they work on ours, then list them here"
        )


class TestAgentsSDK:
    @pytest.mark.parametrize(
        ("limit", "setting", "effective"), [(2, 5, 2), (None, 5, 5), (None, None, None), (0, 5, 0)]
    )
    def test_an_explicit_limit_comes_first(
        self, limit: int | None, setting: int | None, effective: int | None
    ) -> None:
        found = resolve_session_limit(limit, SessionSettings(limit=setting))
        assert found == effective, (
            f"{installed('openai-agents')}: resolve_session_limit({limit}, "
            f"SessionSettings(limit={setting})) is {found}; get_items and history_limit stand on it"
        )

    def test_the_id_of_items_without_one(self) -> None:
        assert FAKE_RESPONSES_ID == "__fake_id__", (
            f"{installed('openai-agents')} marks items without an id as {FAKE_RESPONSES_ID!r} now; "
            "histories that are stored have the old mark, so server/events.py has to know both"
        )


class TestMLflow:
    def test_the_server_logs_where_it_is_listened_to(self) -> None:
        assert agent_server.logger.name == "mlflow.genai.agent_server.server", (
            f"{installed('mlflow')}: AgentServer logs to {agent_server.logger.name!r}; "
            "server/http.py has a filter on `mlflow.genai.agent_server.server`, which is how a "
            "stream's error gets its status"
        )

    @pytest.mark.parametrize(
        "item",
        [
            {
                "type": "message",
                "id": "m",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "42"}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "f"},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
            {"type": "reasoning", "id": "r", "summary": []},
        ],
        ids=lambda item: str(item["type"]),
    )
    def test_the_items_of_a_response(self, item: dict[str, Any]) -> None:
        stored = OutputItem(**item).model_dump(exclude_none=True)
        assert stored | item == stored, (
            f"{installed('mlflow')}: OutputItem drops or changes fields of a {item['type']}; "
            "server/events.py makes responses of it"
        )

    def test_annotations(self) -> None:
        given = {"type": "url_citation", "url": "https://example.com", "title": "A"}
        kept = Annotation(**given).model_dump()
        assert kept | given == kept, (
            f"{installed('mlflow')}: Annotation drops or changes fields; server/events.py makes "
            "responses of it"
        )


FIELDS: list[tuple[Any, set[str]]] = [
    (database.DatabaseInstance, {"name", "read_write_dns", "read_only_dns", "state"}),
    (database.DatabaseCredential, {"token", "expiration_time"}),
    (postgres.DatabaseCredential, {"token", "expire_time"}),
    (postgres.Endpoint, {"name", "status"}),
    (postgres.EndpointStatus, {"hosts", "current_state", "endpoint_type"}),
    (
        postgres.EndpointHosts,
        {"host", "read_only_host", "read_write_pooled_host", "read_only_pooled_host"},
    ),
    (postgres.RoleRoleSpec, {"identity_type", "postgres_role"}),
]


class TestDatabricksSDK:
    @pytest.mark.parametrize(
        ("kind", "needed"), FIELDS, ids=lambda each: getattr(each, "__qualname__", "")
    )
    def test_the_fields_that_are_read(self, kind: Any, needed: set[str]) -> None:
        missing = needed - {field.name for field in dataclasses.fields(kind)}
        assert not missing, (
            f"{installed('databricks-sdk')}: {kind.__module__}.{kind.__name__} has no "
            f"{sorted(missing)}, which workspace/ reads"
        )

    @pytest.mark.parametrize(
        ("call", "needed"),
        [
            (database.DatabaseAPI.get_database_instance, ["name"]),
            (database.DatabaseAPI.list_database_instances, ["page_size"]),
            (
                database.DatabaseAPI.generate_database_credential,
                ["instance_names", "request_id"],
            ),
            (postgres.PostgresAPI.get_endpoint, ["name"]),
            (postgres.PostgresAPI.list_endpoints, ["parent", "page_size"]),
            (postgres.PostgresAPI.list_branches, ["parent", "page_size"]),
            (postgres.PostgresAPI.list_projects, ["page_size"]),
            (postgres.PostgresAPI.generate_database_credential, ["endpoint"]),
            (postgres.PostgresAPI.create_role, ["parent", "role"]),
            (ApiClient.do, ["response_headers"]),
            (Config.__init__, ["clock", "product", "product_version"]),
        ],
        ids=lambda each: getattr(each, "__qualname__", ""),
    )
    def test_the_parameters_of_its_calls(self, call: Any, needed: list[str]) -> None:
        missing = [name for name in needed if name not in inspect.signature(call).parameters]
        assert not missing, (
            f"{installed('databricks-sdk')}: {call.__qualname__} has no parameter {missing}; "
            "workspace/api.py gives it"
        )

    def test_the_bounds_of_calls_are_settings(self) -> None:
        names = {attribute.name for attribute in Config.attributes()}
        for name in ("http_timeout_seconds", "retry_timeout_seconds"):
            assert name in names, (
                f"{installed('databricks-sdk')}: Config has no {name}; without it a call to the "
                "workspace may hang for five minutes (workspace/api.py)"
            )

    def test_a_copied_config_has_what_is_replaced_in_it(self, local: LocalLakebase) -> None:
        copied = local.workspace_client().config.copy()  # type: ignore[no-untyped-call]
        for name in ("_inner", "_clock"):
            assert hasattr(copied, name), (
                f"{installed('databricks-sdk')}: Config keeps no {name}; workspace/api.py puts "
                "its own bounds and clock there"
            )
