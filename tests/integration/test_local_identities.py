"""Who is in a local workspace, and as whom they log in to Postgres."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk import errors as sdk
from databricks.sdk.service.postgres import Role, RoleIdentityType, RoleRoleSpec
from logins import login, mint, session

from lakebase_sessions import Lakebase, PermissionDenied
from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase, ServicePrincipal, identities

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BRANCH = "projects/local/branches/production"

pytestmark = [pytest.mark.upstream_logs, pytest.mark.long]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalLakebase]:
    with LocalLakebase() as local:
        yield local


def client_of(local: LocalLakebase, principal: ServicePrincipal) -> WorkspaceClient:
    return WorkspaceClient(
        host=local.url, client_id=principal.client_id, client_secret=principal.client_secret
    )


def create_role(local: LocalLakebase, name: str, kind: RoleIdentityType) -> None:
    spec = RoleRoleSpec(postgres_role=name, identity_type=kind)
    local.workspace_client().postgres.create_role(BRANCH, Role(spec=spec)).wait()


class TestServicePrincipals:
    def test_it_logs_in_by_oauth(self, local: LocalLakebase) -> None:
        """To the workspace with its secret, to Postgres with a token from there."""
        app = local.add_service_principal("app")
        client = client_of(local, app)
        assert client.config.auth_type == "oauth-m2m"
        me = client.current_user.me()
        assert (me.user_name, me.display_name) == (app.client_id, "app")
        assert not me.emails
        token = client.database.generate_database_credential(instance_names=["local"]).token
        with login(local, token or "", app.client_id) as conn:
            conn.execute("CREATE TABLE of_the_app ()")
            conn.execute("DROP TABLE of_the_app")

    def test_from_the_environment(
        self, local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Databricks Apps set it."""
        app = local.add_service_principal("app")
        monkeypatch.delenv("DATABRICKS_TOKEN", raising=False)
        monkeypatch.setenv("DATABRICKS_HOST", local.url)
        monkeypatch.setenv("DATABRICKS_CLIENT_ID", app.client_id)
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", app.client_secret)
        assert WorkspaceClient().current_user.me().user_name == app.client_id
        assert local.workspace_client(app.client_id).current_user.me().user_name == app.client_id

    async def test_a_session_of_an_app(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app")
        async with Lakebase("local", workspace_client=client_of(local, app)) as lakebase:
            stored = lakebase.session("s")
            await stored.add_items([{"role": "user", "content": "Hello"}])
            assert len(await stored.get_items()) == 1
        with session(local, DEFAULT_USER) as conn:
            conn.execute("DROP TABLE agent_messages, agent_sessions CASCADE")

    @pytest.mark.parametrize("secret", ["", "wrong"])
    def test_a_wrong_secret(self, local: LocalLakebase, secret: str) -> None:
        app = local.add_service_principal("app")
        for principal in (
            ServicePrincipal(app.client_id, secret or "x"),
            ServicePrincipal(str(uuid.uuid4()), app.client_secret),
            ServicePrincipal(DEFAULT_USER, local.environ["DATABRICKS_TOKEN"]),
        ):
            with pytest.raises(ValueError, match="invalid_client: Client authentication failed"):
                client_of(local, principal).current_user.me()

    def test_only_client_credentials_are_exchanged(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app")
        answer = requests.post(
            local.url + "/oidc/v1/token", {"grant_type": "password"}, auth=app, timeout=10
        )
        assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")

    def test_client_credentials_are_no_token(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app")
        url = local.url + "/api/2.0/preview/scim/v2/Me"
        assert requests.get(url, auth=app, timeout=10).status_code == 401
        secret = {"Authorization": f"Bearer {app.client_secret}"}
        assert requests.get(url, headers=secret, timeout=10).status_code == 401

    def test_an_access_token_expires(
        self, local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = local.add_service_principal("app")
        monkeypatch.setattr(identities, "OAUTH_TOKEN_SECONDS", -1)
        headers = client_of(local, app).config.authenticate()
        url = local.url + "/api/2.0/preview/scim/v2/Me"
        assert requests.get(url, headers=headers, timeout=10).status_code == 401

    def test_its_id_may_be_given(self, tmp_path: Path) -> None:
        """So that after a restart on the same folder it is who it was: the owner of its tables."""
        client_id = str(uuid.uuid4())
        for statement in ("CREATE TABLE of_the_app ()", "DROP TABLE of_the_app"):
            with LocalLakebase(tmp_path) as local:
                app = local.add_service_principal("app", client_id=client_id)
                assert local.add_service_principal("app", client_id=client_id) == app
                assert app.client_id == client_id
                with session(local, client_id) as conn:
                    conn.execute(statement)

    def test_the_secret_is_not_shown(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app")
        assert app.client_secret not in repr(app)
        assert app.client_id in repr(app)

    def test_revoked(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app")
        token = mint(local, app.client_id)
        local.revoke_user(app.client_id)
        with pytest.raises(sdk.PermissionDenied):
            mint(local, app.client_id)
        with pytest.raises(psycopg.OperationalError):
            login(local, token, app.client_id)


class TestWithoutRole:
    def test_the_login_is_refused_in_the_platforms_words(self, local: LocalLakebase) -> None:
        """They are in the workspace and get a token; Postgres does not know them."""
        local.add_user("stranger@example.com", role=False)
        app = local.add_service_principal("app", role=False)
        for name in ("stranger@example.com", app.client_id):
            with pytest.raises(
                psycopg.OperationalError, match=f'FATAL:  role "{name}" does not exist'
            ):
                login(local, mint(local, name), name)

    async def test_our_error(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app", role=False)
        lakebase = Lakebase("local", workspace_client=client_of(local, app))
        with pytest.raises(PermissionDenied, match=f'role "{app.client_id}" does not exist'):
            await lakebase.open()
        await lakebase.close()

    def test_a_token_of_somebody_else(self, local: LocalLakebase) -> None:
        local.add_user("stranger@example.com", role=False)
        for token in ("wrong", mint(local), "x" * 300):
            with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                login(local, token, "stranger@example.com")

    @pytest.mark.parametrize("first", ["token", "role"])
    def test_with_a_role_it_works(self, local: LocalLakebase, first: str) -> None:
        """A token from before the role was made is good, too."""
        name = f"{first}@example.com"
        local.add_user(name, role=False)
        token = mint(local, name) if first == "token" else ""
        create_role(local, name, RoleIdentityType.USER)
        with session(local, DEFAULT_USER) as conn:
            conn.execute(f'GRANT CONNECT ON DATABASE databricks_postgres TO "{name}"')
        login(local, token or mint(local, name), name).close()

    def test_a_role_that_is_no_identitys(self, local: LocalLakebase) -> None:
        """CREATE ROLE by hand makes one of that name that takes no token."""
        local.add_user("by-hand@example.com", role=False)
        with session(local, DEFAULT_USER) as conn:
            conn.execute('CREATE ROLE "by-hand@example.com" LOGIN')
            conn.execute('GRANT CONNECT ON DATABASE databricks_postgres TO "by-hand@example.com"')
            with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                login(local, mint(local, "by-hand@example.com"), "by-hand@example.com")

    @pytest.mark.parametrize("name", ['with "quotes", blanks', "/regex", "+group", "all", "@x\n"])
    def test_odd_names(self, local: LocalLakebase, name: str) -> None:
        """Nobody else's login is touched by how somebody is called."""
        local.add_user(name, role=False)
        with pytest.raises(psycopg.OperationalError):
            login(local, mint(local, name), name)
        login(local, mint(local)).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            login(local, "wrong")


class TestGroups:
    def test_members_log_in_as_the_group(self, local: LocalLakebase) -> None:
        """Each with their own token, as soon as the group has a role."""
        app = local.add_service_principal("app")
        local.add_user("ana@example.com")
        local.add_user("bo@example.com")
        local.add_group("Data Scientists", ["ana@example.com", app.client_id])
        with pytest.raises(psycopg.OperationalError):
            session(local, "ana@example.com", role="Data Scientists")
        create_role(local, "Data Scientists", RoleIdentityType.GROUP)
        with session(local, DEFAULT_USER) as conn:
            conn.execute('GRANT CONNECT ON DATABASE databricks_postgres TO "Data Scientists"')
        for name in ("ana@example.com", app.client_id, "ana@example.com"):
            with session(local, name, role="Data Scientists") as conn:
                row = conn.execute("SELECT current_user").fetchone()
            assert row == ("Data Scientists",)
            session(local, name).close()  # and as themselves
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            session(local, "bo@example.com", role="Data Scientists")

    def test_who_leaves_the_group_is_out(self, local: LocalLakebase) -> None:
        local.add_user("ana@example.com")
        local.add_group("leavers", ["ana@example.com"])
        create_role(local, "leavers", RoleIdentityType.GROUP)
        with session(local, DEFAULT_USER) as conn:
            conn.execute("GRANT CONNECT ON DATABASE databricks_postgres TO leavers")
        session(local, "ana@example.com", role="leavers").close()
        local.add_group("leavers", [])
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            session(local, "ana@example.com", role="leavers")

    def test_a_revoked_member(self, local: LocalLakebase) -> None:
        local.add_user("cy@example.com")
        local.add_group("revoked", ["cy@example.com"])
        create_role(local, "revoked", RoleIdentityType.GROUP)
        with session(local, DEFAULT_USER) as conn:
            conn.execute("GRANT CONNECT ON DATABASE databricks_postgres TO revoked")
        token = mint(local, "cy@example.com")
        login(local, token, "revoked").close()
        local.revoke_user("cy@example.com")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            login(local, token, "revoked")

    def test_members_have_to_be_there(self, local: LocalLakebase) -> None:
        with pytest.raises(LocalLakebaseError, match="nobody"):
            local.add_group("empty", ["nobody@example.com"])

    def test_a_name_is_one_thing(self, local: LocalLakebase) -> None:
        local.add_group("thing")
        with pytest.raises(LocalLakebaseError, match="is a group"):
            local.add_user("thing", role=False)
        for name in (DEFAULT_USER, "users"):
            with pytest.raises(LocalLakebaseError, match="in the workspace already"):
                local.add_group(name)


class TestScim:
    def test_users(self, local: LocalLakebase) -> None:
        local.add_user("scim@example.com", role=False)
        api = local.workspace_client().users
        (found,) = api.list(filter='userName eq "scim@example.com"')
        assert found.user_name == "scim@example.com"
        assert api.get(found.id or "").user_name == "scim@example.com"
        assert DEFAULT_USER in {user.user_name for user in api.list(count=1)}
        assert list(api.list(filter='userName eq "nobody"')) == []
        with pytest.raises(sdk.NotFound):
            api.get("1")

    def test_service_principals(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("scim app", role=False)
        api = local.workspace_client().service_principals
        for filter_ in (f"applicationId eq {app.client_id}", 'displayName eq "scim app"'):
            (found,) = api.list(filter=filter_)
            assert (found.application_id, found.display_name) == (app.client_id, "scim app")
        assert api.get(found.id or "").application_id == app.client_id

    def test_groups(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("in a group", role=False)
        local.add_group("scim group", [app.client_id])
        api = local.workspace_client().groups
        (found,) = api.list(filter='displayName eq "scim group"')
        assert [member.display for member in found.members or []] == ["in a group"]
        assert api.get(found.id or "").display_name == "scim group"
        groups = client_of(local, app).current_user.me().groups or []
        assert {(group.display, group.value) for group in groups} >= {("scim group", found.id)}
        (everybody,) = api.list(filter="displayName eq 'users'")
        assert len(everybody.members or []) >= 2

    @pytest.mark.parametrize("query", ["filter=userName co x", "count=x", "startIndex=-"])
    def test_what_it_does_not_understand_is_an_error(
        self, local: LocalLakebase, query: str
    ) -> None:
        url = f"{local.url}/api/2.0/preview/scim/v2/Users?{query}"
        headers = {"Authorization": f"Bearer {local.environ['DATABRICKS_TOKEN']}"}
        assert requests.get(url, headers=headers, timeout=10).status_code == 400
