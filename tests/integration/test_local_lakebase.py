"""The local Lakebase against the real SDK, the unmodified upstream classes and real Postgres."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk import errors as sdk
from databricks.sdk.config import Config
from databricks.sdk.service.database import DatabaseInstanceState
from databricks.sdk.service.postgres import EndpointStatusState, EndpointType
from logins import DATABASE, login, mint
from psycopg.conninfo import make_conninfo

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local import LocalLakebase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDPOINT = "projects/local/branches/production/endpoints/primary"
DEVELOPER = "developer@example.com"

pytestmark = [pytest.mark.upstream_logs, pytest.mark.long]


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalLakebase]:
    with LocalLakebase() as local:
        yield local


@pytest.fixture
def local(shared: LocalLakebase) -> Iterator[LocalLakebase]:
    yield shared
    shared.clear_faults()


def impatient(local: LocalLakebase, *, retry_seconds: int = 1) -> WorkspaceClient:
    """A client that gives up after about a second, as the SDK's own does after five minutes."""
    return WorkspaceClient(
        config=Config(
            host=local.url,
            token=local.environ["DATABRICKS_TOKEN"],
            auth_type="pat",
            retry_timeout_seconds=retry_seconds,
            http_timeout_seconds=1,
        )
    )


def folder_of(local: LocalLakebase) -> Path:
    postgres = local._started_server().postgres
    assert postgres is not None
    return postgres.data


def call(
    local: LocalLakebase, method: str, path: str, content: bytes = b"", token: str | None = None
) -> tuple[int, dict[str, Any]]:
    answer = requests.request(
        method,
        local.url + path,
        data=content,
        headers={"Authorization": f"Bearer {token or local.environ['DATABRICKS_TOKEN']}"},
        timeout=10,
    )
    return answer.status_code, answer.json()


class TestControlPlane:
    def test_client_from_three_environment_variables(
        self, local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`environ` is all that a process needs."""
        for name, value in local.environ.items():
            monkeypatch.setenv(name, value)
        assert set(local.environ) == {
            "DATABRICKS_HOST",
            "DATABRICKS_TOKEN",
            "LAKEBASE_INSTANCE_NAME",
        }
        assert WorkspaceClient().current_user.me().user_name == DEVELOPER

    def test_client_logs_no_warning(
        self, local: LocalLakebase, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The SDK finds the host's metadata, so it has nothing to warn of."""
        local.workspace_client()
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    def test_me(self, local: LocalLakebase) -> None:
        local.add_user("me@example.com")
        me = local.workspace_client("me@example.com").current_user.me()
        assert me.user_name == "me@example.com"
        assert me.active
        assert me.id
        assert me.emails
        assert me.emails[0].value == "me@example.com"
        assert me.groups
        assert me.groups[0].display == "users"

    def test_instance(self, local: LocalLakebase) -> None:
        database = local.workspace_client().database
        instance = database.get_database_instance("local")
        assert instance.name == "local"
        assert instance.state is DatabaseInstanceState.AVAILABLE
        assert instance.read_write_dns == instance.read_only_dns == local.host
        assert instance.pg_version == "PG_VERSION_18"
        assert instance.creator == DEVELOPER
        assert instance.uid
        assert database.find_database_instance_by_uid(uid=instance.uid).name == "local"

    def test_instances_come_and_go(self, local: LocalLakebase) -> None:
        database = local.workspace_client().database
        local.add_instance("remote", read_write_dns="a.example", read_only_dns="", state="STARTING")
        instance = database.get_database_instance("remote")
        assert (instance.read_write_dns, instance.read_only_dns) == ("a.example", None)
        assert instance.state is DatabaseInstanceState.STARTING
        local.remove_instance("remote")
        with pytest.raises(sdk.NotFound, match="remote"):
            database.get_database_instance("remote")

    def test_instances_come_in_pages(self, local: LocalLakebase) -> None:
        """No item is lost or doubled between pages."""
        names = [f"page-{number}" for number in range(5)]
        for name in names:
            local.add_instance(name)
        before = len(local.requests)
        found = list(local.workspace_client().database.list_database_instances(page_size=2))
        paths = [request.path for request in local.requests[before:]]
        for name in names:
            local.remove_instance(name)
        assert [instance.name for instance in found] == ["local", *names]
        assert paths.count("/api/2.0/database/instances") == 3

    def test_the_platform_limits_a_page(self) -> None:
        """`page_size` of the local Lakebase is the most that a client gets."""
        with LocalLakebase(page_size=1) as local:
            local.add_instance("second")
            status, body = call(local, "GET", "/api/2.0/database/instances?page_size=50")
            assert status == 200
            assert [instance["name"] for instance in body["database_instances"]] == ["local"]
            assert body["next_page_token"]
            found = local.workspace_client().database.list_database_instances()
            assert [instance.name for instance in found] == ["local", "second"]

    def test_endpoint(self, local: LocalLakebase) -> None:
        endpoint = local.workspace_client().postgres.get_endpoint(ENDPOINT)
        assert endpoint.name == ENDPOINT
        assert endpoint.parent == "projects/local/branches/production"
        assert endpoint.status
        assert endpoint.status.current_state is EndpointStatusState.ACTIVE
        assert endpoint.status.endpoint_type is EndpointType.ENDPOINT_TYPE_READ_WRITE
        assert endpoint.status.hosts
        assert endpoint.status.hosts.host == local.host

    def test_projects_branches_and_endpoints_in_pages(self, local: LocalLakebase) -> None:
        """An endpoint brings its project and branch, and takes them with it."""
        paths = [
            f"projects/p{project}/branches/b{branch}/endpoints/e{endpoint}"
            for project in range(2)
            for branch in range(2)
            for endpoint in range(3)
        ]
        for path in paths:
            local.add_endpoint(path, host="", read_only_pooled_host="pooled.example", state="IDLE")
        postgres = local.workspace_client().postgres
        found = [
            endpoint
            for project in postgres.list_projects(page_size=1)
            for branch in postgres.list_branches(project.name or "", page_size=1)
            for endpoint in postgres.list_endpoints(branch.name or "", page_size=2)
        ]
        assert [endpoint.name for endpoint in found] == [ENDPOINT, *paths]
        assert found[1].status
        assert found[1].status.hosts
        assert found[1].status.hosts.host is None
        assert found[1].status.hosts.read_only_pooled_host == "pooled.example"
        assert postgres.get_branch("projects/p1/branches/b0").name == "projects/p1/branches/b0"
        for path in paths:
            local.remove_endpoint(path)
        assert [project.name for project in postgres.list_projects()] == ["projects/local"]
        with pytest.raises(sdk.NotFound, match="p0"):
            list(postgres.list_branches("projects/p0"))

    def test_requests_are_counted(self, local: LocalLakebase) -> None:
        """Tests can tell who called what, and how often."""
        client = local.workspace_client()
        before = len(local.requests)
        client.current_user.me()
        assert local.requests[before:] == [("GET", "/api/2.0/preview/scim/v2/Me", DEVELOPER)]


class TestErrors:
    def test_unauthenticated(self, local: LocalLakebase) -> None:
        client = WorkspaceClient(host=local.url, token="dapi-unknown", auth_type="pat")
        with pytest.raises(sdk.Unauthenticated):
            client.current_user.me()
        with pytest.raises(sdk.Unauthenticated):
            client.database.get_database_instance("local")

    def test_no_token_at_all(self, local: LocalLakebase) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(local.url + "/api/2.0/database/instances", timeout=10)
        with caught.value as answer:
            assert answer.code == 401
            assert json.load(answer)["error_code"] == "UNAUTHENTICATED"

    def test_permission_denied(self, local: LocalLakebase) -> None:
        local.add_user("denied@example.com")
        client = local.workspace_client("denied@example.com")
        local.revoke_user("denied@example.com")
        assert client.current_user.me().user_name == "denied@example.com"
        with pytest.raises(sdk.PermissionDenied, match="denied@example"):
            client.database.generate_database_credential(instance_names=["local"])
        with pytest.raises(sdk.PermissionDenied):
            client.postgres.generate_database_credential(endpoint=ENDPOINT)

    def test_not_found(self, local: LocalLakebase) -> None:
        client = local.workspace_client()
        with pytest.raises(sdk.ResourceDoesNotExist, match="nowhere"):
            client.database.get_database_instance("nowhere")
        with pytest.raises(sdk.NotFound):
            client.database.find_database_instance_by_uid(uid="nothing")
        with pytest.raises(sdk.NotFound, match="nowhere"):
            client.database.generate_database_credential(instance_names=["local", "nowhere"])
        missing = ENDPOINT.replace("primary", "nowhere")
        with pytest.raises(sdk.NotFound, match="nowhere"):
            client.postgres.get_endpoint(missing)
        with pytest.raises(sdk.NotFound, match="nowhere"):
            client.postgres.generate_database_credential(endpoint=missing)
        with pytest.raises(sdk.NotFound, match="nowhere"):
            list(client.postgres.list_endpoints("projects/local/branches/nowhere"))
        with pytest.raises(sdk.NotFound):
            client.clusters.get("no-such-api")

    def test_bad_request(self, local: LocalLakebase) -> None:
        client = local.workspace_client()
        with pytest.raises(sdk.BadRequest):
            client.database.generate_database_credential()
        with pytest.raises(sdk.BadRequest):
            client.postgres.generate_database_credential("not/an/endpoint")
        with pytest.raises(sdk.BadRequest):
            list(client.database.list_database_instances(page_token="x"))

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"instance_names": "local"}', b"\xff"])
    def test_malformed_bodies(self, local: LocalLakebase, content: bytes) -> None:
        for path in ("/api/2.0/database/credentials", "/api/2.0/postgres/credentials"):
            status, body = call(local, "POST", path, content)
            assert status == 400
            assert body["error_code"] in ("MALFORMED_REQUEST", "INVALID_PARAMETER_VALUE")
            assert body["message"]


class TestTokens:
    def test_a_minted_token_logs_in(self, local: LocalLakebase) -> None:
        with login(local, mint(local)) as conn:
            row = conn.execute("SELECT current_user, current_database()").fetchone()
        assert row == (DEVELOPER, DATABASE)

    def test_expiry_is_told_in_both_forms(self, local: LocalLakebase) -> None:
        client = local.workspace_client()
        provisioned = client.database.generate_database_credential(instance_names=["local"])
        autoscaling = client.postgres.generate_database_credential(ENDPOINT)
        assert provisioned.expiration_time
        assert autoscaling.expire_time
        expires = dt.datetime.fromisoformat(provisioned.expiration_time)
        left = expires - dt.datetime.now(dt.UTC)
        assert dt.timedelta(minutes=29) < left <= dt.timedelta(hours=1)
        assert autoscaling.expire_time.ToDatetime(tzinfo=dt.UTC) == expires

    def test_young_tokens_are_handed_out_again(self, local: LocalLakebase) -> None:
        """A second mint must not end what the first one gave."""
        assert mint(local) == mint(local)

    @pytest.mark.parametrize("token", ["", "wrong", "eyJ0.eyJ0.eyJ0"])
    def test_a_made_up_token_is_refused(self, local: LocalLakebase, token: str) -> None:
        with pytest.raises(psycopg.OperationalError, match="password"):
            login(local, token)

    def test_a_token_is_of_its_own_role_alone(self, local: LocalLakebase) -> None:
        local.add_user("other@example.com")
        with login(local, mint(local, "other@example.com"), "other@example.com") as conn:
            assert conn.execute("SELECT current_user").fetchone() == ("other@example.com",)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            login(local, mint(local, "other@example.com"), DEVELOPER)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            login(local, mint(local), "other@example.com")

    def test_nobody_becomes_the_superuser(self, local: LocalLakebase) -> None:
        """The superuser has no password that a token could be mistaken for."""
        with pytest.raises(LocalLakebaseError, match="not made by a local Lakebase"):
            local.add_user("postgres")

    def test_a_token_dies_with_its_user(self, local: LocalLakebase) -> None:
        local.add_user("gone@example.com")
        token = mint(local, "gone@example.com")
        login(local, token, "gone@example.com").close()
        local.revoke_user("gone@example.com")
        with pytest.raises(psycopg.OperationalError):
            login(local, token, "gone@example.com")

    def test_a_revoked_user_can_be_let_in_again(self, local: LocalLakebase) -> None:
        first = local.add_user("back@example.com")
        local.revoke_user("back@example.com")
        second = local.add_user("back@example.com")
        assert first != second
        assert call(local, "GET", "/api/2.0/database/instances", token=first)[0] == 401
        login(local, mint(local, "back@example.com"), "back@example.com").close()

    def test_tokens_expire_and_are_replaced(self) -> None:
        """Postgres itself refuses an old token; the next mint brings a new one."""
        with LocalLakebase(token_lifetime_seconds=1.0) as local:
            old = mint(local)
            login(local, old).close()
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    login(local, old).close()
                except psycopg.OperationalError as exc:
                    refusal = str(exc)
                    break
                time.sleep(0.1)
            else:
                pytest.fail("the token never expired")
            assert "password authentication failed" in refusal
            new = mint(local)
            assert new != old
            login(local, new).close()
            log = (folder_of(local) / "postgres.log").read_text()
        assert "expired password" in log
        assert old not in log
        assert new not in log

    def test_many_mint_at_once(self, local: LocalLakebase) -> None:
        """Concurrent callers get the same token, and it works."""
        local.add_user("crowd@example.com")
        tokens: list[str] = []
        threads = [
            threading.Thread(target=lambda: tokens.append(mint(local, "crowd@example.com")))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tokens) == 20
        assert len(set(tokens)) == 1
        login(local, tokens[0], "crowd@example.com").close()

    def test_no_secret_is_shown(self, local: LocalLakebase) -> None:
        secrets = [*local.environ.values()][1], mint(local)
        shown = repr(local) + repr(local.requests) + repr(local.fault()) + repr(local._running)
        assert not [secret for secret in secrets if secret in shown]


class TestPermissions:
    def test_with_can_create(self, local: LocalLakebase) -> None:
        local.add_user("maker@example.com")
        with login(local, mint(local, "maker@example.com"), "maker@example.com") as conn:
            conn.execute("CREATE SCHEMA made")
            conn.execute("CREATE TABLE made.t ()")
            conn.execute("CREATE TABLE public.made ()")
            conn.execute("DROP TABLE public.made, made.t")
            conn.execute("DROP SCHEMA made")

    def test_without_can_create(self, local: LocalLakebase) -> None:
        local.add_user("looker@example.com", can_create=False)
        with login(local, mint(local, "looker@example.com"), "looker@example.com") as conn:
            conn.autocommit = True
            for statement in ("CREATE SCHEMA no", "CREATE TABLE no ()", "CREATE TEMP TABLE no ()"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement)

    def test_permissions_can_change(self, local: LocalLakebase) -> None:
        token = local.add_user("changed@example.com")
        assert local.add_user("changed@example.com", can_create=False) == token
        with (
            login(local, mint(local, "changed@example.com"), "changed@example.com") as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            conn.execute("CREATE TABLE no ()")

    def test_the_default_user_owns_the_default_database(self, local: LocalLakebase) -> None:
        with psycopg.connect(local.admin_dsn) as conn:
            rows = conn.execute(
                "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchall()
        assert rows == [(DEVELOPER,)]

    def test_databases_from_a_template(self, local: LocalLakebase) -> None:
        """Every user, older or newer, may use a database that was made for a test."""
        local.create_database("template_1")
        with login(local, mint(local), database="template_1") as conn:
            conn.execute("CREATE TABLE t (x int)")
        local.add_user("early@example.com")
        local.create_database("copy_1", template="template_1")
        local.add_user("late@example.com", can_create=False)
        for user in (DEVELOPER, "early@example.com"):
            with login(local, mint(local, user), user, "copy_1") as conn:
                conn.execute("CREATE TABLE IF NOT EXISTS t2 ()")
        conn = login(local, mint(local, "late@example.com"), "late@example.com", "copy_1")
        local.drop_database("copy_1")
        local.drop_database("copy_1")
        local.drop_database("template_1")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        conn.close()
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            login(local, mint(local), database="copy_1")

    @pytest.mark.parametrize("name", ["", "x" * 64, "a\0b"])
    def test_impossible_names(self, local: LocalLakebase, name: str) -> None:
        with pytest.raises(LocalLakebaseError, match="1 to 63 bytes"):
            local.add_user(name)
        with pytest.raises(LocalLakebaseError, match="1 to 63 bytes"):
            local.create_database(name)

    def test_names_are_quoted(self, local: LocalLakebase) -> None:
        name = """o"brien'; DROP TABLE x; -- %s {}"""
        local.add_user(name)
        login(local, mint(local, name), name).close()
        local.create_database(name)
        login(local, mint(local, name), name, name).close()
        local.drop_database(name)


class TestUpstream:
    async def test_session_by_instance_and_by_endpoint(self, local: LocalLakebase) -> None:
        """The unmodified class stores a conversation and another object reads it back."""
        from databricks_openai.agents import AsyncDatabricksSession

        client = local.workspace_client()
        by_instance = AsyncDatabricksSession(
            "c1", instance_name="local", workspace_client=client, use_cached_engine=False
        )
        by_endpoint = AsyncDatabricksSession(
            "c1", autoscaling_endpoint=ENDPOINT, workspace_client=client, use_cached_engine=False
        )
        by_branch = AsyncDatabricksSession(
            "c1",
            project="local",
            branch="production",
            workspace_client=client,
            use_cached_engine=False,
        )
        items: Any = [{"role": "user", "content": "I live in SF"}]
        await by_instance.add_items(items)
        for session in (by_instance, by_endpoint, by_branch):
            assert await session.get_items() == items
            await session._engine.dispose()

    async def test_async_pool(self, local: LocalLakebase) -> None:
        from databricks_ai_bridge.lakebase import AsyncLakebasePool

        async with (
            AsyncLakebasePool(
                instance_name="local", workspace_client=local.workspace_client()
            ) as pool,
            pool.connection() as conn,
        ):
            cursor = await conn.execute("SELECT current_user AS who")
            row = await cursor.fetchone()
        assert row == {"who": DEVELOPER}

    def test_pool(self, local: LocalLakebase) -> None:
        from databricks_ai_bridge.lakebase import LakebasePool

        pool: Any = LakebasePool(
            autoscaling_endpoint=ENDPOINT, workspace_client=local.workspace_client()
        )
        with closing(pool), pool.connection() as conn:
            row = conn.execute("SELECT current_user AS who").fetchone()
        assert row == {"who": DEVELOPER}

    def test_client(self, local: LocalLakebase) -> None:
        from databricks_ai_bridge.lakebase import LakebaseClient

        with LakebaseClient(
            instance_name="local", workspace_client=local.workspace_client()
        ) as client:
            assert client.execute("SELECT current_database() AS db") == [{"db": DATABASE}]


class TestFaults:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, sdk.BadRequest),
            (401, sdk.Unauthenticated),
            (403, sdk.PermissionDenied),
            (404, sdk.NotFound),
            (409, sdk.ResourceConflict),
            (500, sdk.InternalError),
            (501, sdk.NotImplemented),
            (504, sdk.DeadlineExceeded),
        ],
    )
    def test_status(self, local: LocalLakebase, status: int, kind: type[Exception]) -> None:
        client = local.workspace_client()
        with local.fault("/Me", status=status) as fault, pytest.raises(kind):
            client.current_user.me()
        assert fault.hits == 1
        assert client.current_user.me().user_name

    @pytest.mark.parametrize("status", [429, 503])
    def test_what_the_sdk_retries(self, local: LocalLakebase, status: int) -> None:
        """With `times`, the call succeeds in the end: nobody sees the fault."""
        client = impatient(local, retry_seconds=10)
        fault = local.fault("/Me", status=status, headers={"Retry-After": "0"}, times=2)
        assert client.current_user.me().user_name == DEVELOPER
        assert fault.hits == 2

    def test_body_and_method(self, local: LocalLakebase) -> None:
        with local.fault("/instances", method="POST", status=500) as fault:
            assert call(local, "GET", "/api/2.0/database/instances")[0] == 200
            assert fault.hits == 0
        with local.fault("/Me", body={"userName": "somebody"}):
            assert local.workspace_client().current_user.me().user_name == "somebody"
        with local.fault("/Me", body="no JSON", status=404):
            answer = requests.get(local.url + "/Me", timeout=10)
            assert (answer.status_code, answer.text) == (404, "no JSON")

    def test_delay_then_the_real_answer(self, local: LocalLakebase) -> None:
        client = local.workspace_client()
        with local.fault("/Me", delay_seconds=0.05) as fault:
            assert client.current_user.me().user_name == DEVELOPER
        assert fault.hits == 1

    def test_a_delay_beyond_the_clients_patience(self, local: LocalLakebase) -> None:
        client = impatient(local)
        with local.fault("/Me", delay_seconds=60), pytest.raises(TimeoutError):
            client.current_user.me()

    def test_hang(self, local: LocalLakebase) -> None:
        client = impatient(local)
        with local.fault("/Me", hang=True) as fault, pytest.raises(TimeoutError):
            client.current_user.me()
        assert fault.hits >= 1
        assert client.current_user.me().user_name == DEVELOPER

    def test_drop(self, local: LocalLakebase) -> None:
        with (
            local.fault("/instances", drop=True, times=1) as fault,
            pytest.raises(requests.ConnectionError),
        ):
            call(local, "GET", "/api/2.0/database/instances")
        assert fault.hits == 1
        assert call(local, "GET", "/api/2.0/database/instances")[0] == 200

    def test_delays_go_with_other_faults_and_the_newest_answers(self, local: LocalLakebase) -> None:
        delay = local.fault(delay_seconds=0.01)
        older = local.fault("/Me", status=500)
        newer = local.fault("/Me", status=403)
        with pytest.raises(sdk.PermissionDenied):
            impatient(local).current_user.me()
        assert (delay.hits, older.hits, newer.hits) == (2, 0, 1)  # the client's own look-up, too

    def test_clear_faults(self, local: LocalLakebase) -> None:
        client = local.workspace_client()
        local.fault(status=500)
        local.fault(status=403)
        local.clear_faults()
        assert client.current_user.me().user_name == DEVELOPER


class TestLife:
    def test_construction_does_nothing(self, tmp_path: Path) -> None:
        local = LocalLakebase(tmp_path / "data")
        assert not (tmp_path / "data").exists()
        assert not local.running
        assert repr(local) == "<LocalLakebase, not started>"
        local.stop()
        with pytest.raises(LocalLakebaseError, match="not started"):
            _ = local.url

    def test_nothing_is_left_behind(self) -> None:
        """Not even with a call that hangs and connections that are kept alive."""
        threads = set(threading.enumerate())
        children = psutil.Process().children()
        local = LocalLakebase().start()
        folder = folder_of(local)
        token = local.environ["DATABRICKS_TOKEN"]
        url = local.url
        local.fault("/hangs", hang=True)
        with requests.Session() as session:
            session.get(url + "/.well-known/databricks-config", timeout=10)
            caught: list[Exception] = []

            def hang() -> None:
                try:
                    requests.get(url + "/hangs", timeout=60)
                except requests.ConnectionError as exc:
                    caught.append(exc)

            hanging = threading.Thread(target=hang)
            hanging.start()
            while not any(request.path == "/hangs" for request in local.requests):
                time.sleep(0.01)
            local.stop()
            local.stop()
            hanging.join()
        assert len(caught) == 1
        assert set(threading.enumerate()) <= threads
        assert not folder.exists()
        assert psutil.Process().children() == children
        assert token not in repr(local)

    def test_a_start_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        threads = set(threading.enumerate())
        children = psutil.Process().children()
        local = LocalLakebase(tmp_path / "data", database="x" * 64)
        with pytest.raises(LocalLakebaseError, match="1 to 63 bytes"):
            local.start()
        assert not local.running
        assert set(threading.enumerate()) <= threads
        assert psutil.Process().children() == children
        with LocalLakebase(tmp_path / "data") as again:
            assert again.running

    def test_started_twice(self, local: LocalLakebase) -> None:
        with pytest.raises(LocalLakebaseError, match="started already"):
            local.start()
        assert local.running

    async def test_a_restart_keeps_conversations(self, tmp_path: Path) -> None:
        from databricks_openai.agents import AsyncDatabricksSession

        items: Any = [{"role": "user", "content": "I live in SF"}]
        local = LocalLakebase(tmp_path / "data")
        stored: list[Any] = []
        for expected in (stored, items):
            with local:
                local.add_user("second@example.com")
                local.create_database(f"also_{len(expected)}")
                session = AsyncDatabricksSession(
                    "kept",
                    instance_name="local",
                    workspace_client=local.workspace_client(),
                    use_cached_engine=False,
                )
                assert await session.get_items() == expected
                if not expected:
                    await session.add_items(items)
                await session._engine.dispose()
                login(
                    local, mint(local, "second@example.com"), "second@example.com", "also_0"
                ).close()
        assert {entry.name for entry in (tmp_path / "data").iterdir()} == {
            ".gitignore",
            "lock",
            "postgres",
            "postgres.log",
        }

    @pytest.mark.parametrize("version", [16, 18])
    def test_both_versions(self, version: int) -> None:
        with LocalLakebase(postgres_version=version) as local:
            with login(local, mint(local)) as conn:
                assert conn.info.server_version // 10000 == version
            instance = local.workspace_client().database.get_database_instance("local")
            assert instance.pg_version == f"PG_VERSION_{version}"

    def test_another_version(self) -> None:
        with pytest.raises(LocalLakebaseError, match=r"PostgreSQL 17 .* Available: 16, 18"):
            LocalLakebase(postgres_version=17).start()

    def test_a_folder_of_another_version(self, tmp_path: Path) -> None:
        with LocalLakebase(tmp_path, postgres_version=16):
            pass
        with pytest.raises(LocalLakebaseError, match=r"PostgreSQL 16.*PostgreSQL 18.*version 16"):
            LocalLakebase(tmp_path, postgres_version=18).start()

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        for name in ("thesis", "postgres"):
            (tmp_path / name / name).mkdir(parents=True)
            with pytest.raises(LocalLakebaseError, match="neither empty nor"):
                LocalLakebase(tmp_path / name).start()
            assert [entry.name for entry in (tmp_path / name).iterdir()] == [name]

    def test_a_file_in_place_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(LocalLakebaseError, match="cannot be used"):
            LocalLakebase(tmp_path / "file").start()

    @pytest.mark.parametrize("name", ["with blanks, commas and 'quotes'", "long" * 40])
    def test_odd_folders(self, tmp_path: Path, name: str) -> None:
        """Upstream's conninfo has no quotes and a socket's path is short: another is used."""
        with LocalLakebase(tmp_path / name) as local:
            host = local.host
            login(local, mint(local)).close()
            # The way upstream writes it.
            conninfo = f"dbname={DATABASE} user={DEVELOPER} host={host} port=5432 sslmode=require"
            psycopg.connect(make_conninfo(conninfo, password=mint(local))).close()
        assert not (tmp_path / host).exists()

    def test_the_folder_is_private(self, tmp_path: Path) -> None:
        with LocalLakebase(tmp_path / "data"):
            for name in ("postgres", "socket"):
                assert (tmp_path / "data" / name).stat().st_mode & 0o077 == 0

    def test_postgres_that_will_not_start(self, tmp_path: Path) -> None:
        with LocalLakebase(tmp_path):
            pass
        (tmp_path / "postgres" / "global" / "pg_control").write_bytes(b"")
        with pytest.raises(LocalLakebaseError, match=r"did not start.*(?s:.)*pg_control"):
            LocalLakebase(tmp_path).start()

    def test_an_interrupted_first_start(self, tmp_path: Path) -> None:
        """Half an initdb is thrown away, not mistaken for data."""
        (tmp_path / "postgres.new").mkdir()
        (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
        with LocalLakebase(tmp_path) as local:
            login(local, mint(local)).close()

    def test_data_and_dsn(self, tmp_path: Path) -> None:
        with pytest.raises(LocalLakebaseError, match="DSN"):
            LocalLakebase(tmp_path, dsn="postgresql://")


class TestDsn:
    """An embedded server stands in for a PostgreSQL that somebody else runs."""

    def test_it_is_used_and_left_alone(self) -> None:
        with LocalLakebase() as server:
            server.revoke_user(DEVELOPER)
            with psycopg.connect(server.admin_dsn, autocommit=True) as conn:
                conn.execute(f"ALTER DATABASE {DATABASE} OWNER TO postgres")
                conn.execute(f'REVOKE ALL ON DATABASE {DATABASE} FROM "{DEVELOPER}"')
                with psycopg.connect(server.admin_dsn, dbname=DATABASE) as other:
                    other.execute(f'REVOKE ALL ON SCHEMA public FROM "{DEVELOPER}"')
                conn.execute(f'DROP ROLE "{DEVELOPER}"')
                conn.execute("CREATE ROLE stranger LOGIN PASSWORD 'x'")
                for _ in range(2):
                    with LocalLakebase(dsn=server.admin_dsn, database="mine") as local:
                        assert local.host == server.host
                        with login(local, mint(local), database="mine") as session:
                            session.execute("CREATE TABLE IF NOT EXISTS kept ()")
                        local.add_user("guest@example.com")
                        guest = mint(local, "guest@example.com")
                        login(local, guest, "guest@example.com", "mine").close()
                        with pytest.raises(LocalLakebaseError, match="not made by"):
                            local.add_user("stranger")
                    roles = conn.execute(
                        "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname !~ '^pg_'"
                    ).fetchall()
                    # Who owns a table stays, so that the rows stay theirs.
                    assert sorted(roles) == [
                        (DEVELOPER, False),
                        ("postgres", True),
                        ("stranger", True),
                    ]
            assert server.running

    def test_unreachable(self) -> None:
        dsn = "postgresql://admin:hunter2@127.0.0.1:1/postgres"
        with pytest.raises(LocalLakebaseError, match="cannot be reached") as caught:
            LocalLakebase(dsn=dsn).start()
        assert "hunter2" not in str(caught.value)

    def test_not_a_superuser(self, local: LocalLakebase) -> None:
        dsn = make_conninfo(host=local.host, user=DEVELOPER, password=mint(local), dbname=DATABASE)
        with pytest.raises(LocalLakebaseError, match="superuser"):
            LocalLakebase(dsn=dsn).start()
