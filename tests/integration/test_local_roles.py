"""Roles of a local Lakebase, made by REST calls and by `databricks_create_role`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from databricks.sdk import errors as sdk
from databricks.sdk.service.database import (
    DatabaseInstanceRole,
    DatabaseInstanceRoleAttributes,
    DatabaseInstanceRoleIdentityType,
    DatabaseInstanceRoleMembershipRole,
)
from databricks.sdk.service.postgres import (
    Role,
    RoleAttributes,
    RoleAuthMethod,
    RoleIdentityType,
    RoleMembershipRole,
    RoleRoleSpec,
)
from logins import session
from psycopg import errors

from lakebase_sessions.local import DEFAULT_USER, LocalLakebase

if TYPE_CHECKING:
    from collections.abc import Iterator

BRANCH = "projects/local/branches/production"
USER = RoleIdentityType.USER
CREATE = "CREATE EXTENSION IF NOT EXISTS databricks_auth"

pytestmark = [pytest.mark.upstream_logs, pytest.mark.long]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalLakebase]:
    with LocalLakebase() as local:
        yield local


def spec(name: str, kind: RoleIdentityType | None = USER, **rest: Any) -> Role:
    return Role(spec=RoleRoleSpec(postgres_role=name, identity_type=kind, **rest))


class TestProjectRoles:
    def test_create_get_list_delete(self, local: LocalLakebase) -> None:
        app = local.add_service_principal("app", role=False)
        postgres = local.workspace_client().postgres
        wanted = spec(
            app.client_id,
            RoleIdentityType.SERVICE_PRINCIPAL,
            attributes=RoleAttributes(createdb=True),
            membership_roles=[RoleMembershipRole.DATABRICKS_SUPERUSER],
        )
        created = postgres.create_role(BRANCH, wanted, role_id="my-app").wait()
        assert created.name == f"{BRANCH}/roles/my-app"
        assert created.parent == BRANCH
        assert created.status
        assert created.status.postgres_role == app.client_id
        assert created.status.identity_type is RoleIdentityType.SERVICE_PRINCIPAL
        assert created.status.auth_method is RoleAuthMethod.LAKEBASE_OAUTH_V1
        assert created.status.membership_roles == [RoleMembershipRole.DATABRICKS_SUPERUSER]
        attributes = created.status.attributes
        assert attributes == RoleAttributes(bypassrls=False, createdb=True, createrole=False)
        assert postgres.get_role(created.name or "") == created
        assert created in list(postgres.list_roles(BRANCH, page_size=1))
        postgres.delete_role(created.name or "").wait()
        with pytest.raises(sdk.NotFound, match="my-app"):
            postgres.get_role(created.name or "")

    def test_the_owner_is_there_from_the_start(self, local: LocalLakebase) -> None:
        role = local.workspace_client().postgres.get_role(f"{BRANCH}/roles/developer-example-com")
        assert role.status
        assert role.status.postgres_role == DEFAULT_USER
        assert role.status.membership_roles == [RoleMembershipRole.DATABRICKS_SUPERUSER]
        assert role.status.attributes == RoleAttributes(True, True, True)

    def test_an_owner_that_nobody_logs_in_as(self, local: LocalLakebase) -> None:
        postgres = local.workspace_client().postgres
        wanted = spec("owners", None, auth_method=RoleAuthMethod.NO_LOGIN)
        created = postgres.create_role(BRANCH, wanted).wait()
        assert created.status
        assert created.status.auth_method is RoleAuthMethod.NO_LOGIN
        assert created.status.identity_type is None
        with pytest.raises(sdk.NotImplemented):
            postgres.create_role(BRANCH, spec("with-password", None))

    def test_names_without_an_id_get_one(self, local: LocalLakebase) -> None:
        postgres = local.workspace_client().postgres
        names = []
        for user in ("a.b@example.com", "a-b@example.com", "Z"):
            local.add_user(user, role=False)
            names.append(postgres.create_role(BRANCH, spec(user)).wait().name)
        assert names == [
            f"{BRANCH}/roles/{id_}" for id_ in ("a-b-example-com", "a-b-example-com-2", "role-z")
        ]

    def test_replace_existing(self, local: LocalLakebase) -> None:
        """What is named is changed, memberships as a whole; the name stays."""
        local.add_user("replaced@example.com", role=False)
        postgres = local.workspace_client().postgres
        first = spec(
            "replaced@example.com",
            attributes=RoleAttributes(createdb=True),
            membership_roles=[RoleMembershipRole.DATABRICKS_SUPERUSER],
        )
        for attributes in (first.spec and first.spec.attributes, RoleAttributes(createrole=True)):
            wanted = spec("replaced@example.com", attributes=attributes)
            wanted = first if attributes and attributes.createdb else wanted
            role = postgres.create_role(
                BRANCH, wanted, role_id="replaced", replace_existing=True
            ).wait()
        assert role.status
        assert role.status.attributes == RoleAttributes(False, True, True)
        assert role.status.membership_roles is None

    @pytest.mark.parametrize(
        ("role", "role_id", "error"),
        [
            (spec("nobody@example.com"), None, sdk.BadRequest),
            (spec(DEFAULT_USER, RoleIdentityType.GROUP), None, sdk.BadRequest),
            (spec(DEFAULT_USER), None, sdk.AlreadyExists),
            (spec(""), None, sdk.BadRequest),
            (Role(), None, sdk.BadRequest),
            (spec(DEFAULT_USER), "No", sdk.BadRequest),
            (spec("x" * 64, None, auth_method=RoleAuthMethod.NO_LOGIN), None, sdk.BadRequest),
        ],
    )
    def test_what_is_refused(
        self, local: LocalLakebase, role: Role, role_id: str | None, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            local.workspace_client().postgres.create_role(BRANCH, role, role_id=role_id)

    def test_an_unknown_branch(self, local: LocalLakebase) -> None:
        postgres = local.workspace_client().postgres
        with pytest.raises(sdk.NotFound, match="nowhere"):
            list(postgres.list_roles("projects/local/branches/nowhere"))
        with pytest.raises(sdk.NotFound):
            postgres.get_operation(f"{BRANCH}/operations/nothing")
        with pytest.raises(sdk.NotFound):
            postgres.reveal_role_password(f"{BRANCH}/roles/developer-example-com")

    def test_without_can_manage_a_plain_role_for_oneself(self, local: LocalLakebase) -> None:
        local.add_user("self@example.com", role=False)
        local.add_user("friend@example.com", role=False)
        postgres = local.workspace_client("self@example.com").postgres
        with pytest.raises(sdk.PermissionDenied, match="CAN MANAGE"):
            postgres.create_role(BRANCH, spec("friend@example.com"))
        superuser = [RoleMembershipRole.DATABRICKS_SUPERUSER]
        with pytest.raises(sdk.PermissionDenied, match="CAN MANAGE"):
            postgres.create_role(BRANCH, spec("self@example.com", membership_roles=superuser))
        created = postgres.create_role(BRANCH, spec("self@example.com")).wait()
        with pytest.raises(sdk.PermissionDenied, match="CAN MANAGE"):
            postgres.delete_role(created.name or "")

    def test_what_a_role_owns_goes_to_somebody_or_it_stays(self, local: LocalLakebase) -> None:
        local.add_user("leaver@example.com")
        local.create_database("second")
        for database in ("databricks_postgres", "second"):
            with session(local, "leaver@example.com", database=database) as conn:
                conn.execute("CREATE TABLE left_behind ()")
        postgres = local.workspace_client().postgres
        role = f"{BRANCH}/roles/leaver-example-com"
        with pytest.raises(sdk.BadRequest, match="objects depend on it"):
            postgres.delete_role(role)
        with pytest.raises(sdk.BadRequest, match="nobody"):
            postgres.delete_role(role, reassign_owned_to="nobody")
        session(local, "leaver@example.com").close()
        postgres.delete_role(role, reassign_owned_to=f"{BRANCH}/roles/developer-example-com").wait()
        for database in ("databricks_postgres", "second"):
            with session(local, DEFAULT_USER, database=database) as conn:
                row = conn.execute(
                    "SELECT tableowner FROM pg_tables WHERE tablename = 'left_behind'"
                ).fetchone()
                assert row == (DEFAULT_USER,)
                conn.execute("DROP TABLE left_behind")
        with pytest.raises(psycopg.OperationalError, match=r"role .* does not exist"):
            session(local, "leaver@example.com")
        local.drop_database("second")


class TestInstanceRoles:
    def test_create_get_list_delete(self, local: LocalLakebase) -> None:
        local.add_group("instance group")
        database = local.workspace_client().database
        created = database.create_database_instance_role(
            "local",
            DatabaseInstanceRole(
                "instance group",
                identity_type=DatabaseInstanceRoleIdentityType.GROUP,
                attributes=DatabaseInstanceRoleAttributes(createrole=True),
                membership_role=DatabaseInstanceRoleMembershipRole.DATABRICKS_SUPERUSER,
            ),
        )
        assert created.name == "instance group"
        assert created.identity_type is DatabaseInstanceRoleIdentityType.GROUP
        superuser = DatabaseInstanceRoleMembershipRole.DATABRICKS_SUPERUSER
        assert created.membership_role is superuser
        assert created.effective_attributes == DatabaseInstanceRoleAttributes(False, False, True)
        assert database.get_database_instance_role("local", "instance group") == created
        assert created in list(database.list_database_instance_roles("local", page_size=1))
        database.delete_database_instance_role("local", "instance group")
        with pytest.raises(sdk.NotFound, match="instance group"):
            database.delete_database_instance_role("local", "instance group")
        database.delete_database_instance_role("local", "instance group", allow_missing=True)

    def test_what_is_refused(self, local: LocalLakebase) -> None:
        database = local.workspace_client().database
        kind = DatabaseInstanceRoleIdentityType
        for instance, role, error in (
            ("nowhere", DatabaseInstanceRole("x"), sdk.NotFound),
            ("local", DatabaseInstanceRole(""), sdk.BadRequest),
            ("local", DatabaseInstanceRole("x"), sdk.BadRequest),
            ("local", DatabaseInstanceRole("x", identity_type=kind.USER), sdk.BadRequest),
            ("local", DatabaseInstanceRole("x", identity_type=kind.PG_ONLY), sdk.NotImplemented),
            (
                "local",
                DatabaseInstanceRole(DEFAULT_USER, identity_type=kind.USER),
                sdk.AlreadyExists,
            ),
        ):
            with pytest.raises(error):
                database.create_database_instance_role(instance, role)


class TestDatabricksAuth:
    @pytest.fixture
    def database(self, local: LocalLakebase, request: pytest.FixtureRequest) -> Iterator[str]:
        """The extension is a database's, so each test has one of its own."""
        local.create_database("auth")
        yield "auth"
        local.drop_database("auth")

    def test_a_role_for_an_identity(self, local: LocalLakebase, database: str) -> None:
        app = local.add_service_principal("app", role=False)
        with session(local, DEFAULT_USER, database=database) as conn:
            with pytest.raises(errors.UndefinedFunction):
                conn.execute("SELECT databricks_create_role('x', 'USER')")
            conn.execute(CREATE)
            conn.execute(CREATE)
            create = "SELECT databricks_create_role(%s, 'SERVICE_PRINCIPAL')"
            conn.execute(create, [app.client_id])
            with pytest.raises(errors.DuplicateObject, match="already exists"):
                conn.execute(create, [app.client_id])
            row = conn.execute(
                "SELECT identity_type FROM databricks_list_roles WHERE role_name = %s",
                [app.client_id],
            ).fetchone()
            assert row == ("service_principal",)
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                session(local, app.client_id, database=database)
            conn.execute(f'GRANT CONNECT ON DATABASE {database} TO "{app.client_id}"')
        session(local, app.client_id, database=database).close()
        roles = local.workspace_client().postgres.list_roles(BRANCH)
        assert app.client_id in {role.status.postgres_role for role in roles if role.status}

    def test_a_token_from_before_the_role_logs_in(
        self, local: LocalLakebase, database: str
    ) -> None:
        """As on the platform, where a token does not know of roles."""
        local.add_user("early@example.com", role=False)
        client = local.workspace_client("early@example.com")
        token = client.database.generate_database_credential(instance_names=["local"]).token
        with session(local, DEFAULT_USER, database=database) as conn:
            conn.execute(CREATE)
            conn.execute("SELECT databricks_create_role('early@example.com', 'USER')")
            conn.execute(f'GRANT CONNECT ON DATABASE {database} TO "early@example.com"')
        psycopg.connect(
            host=local.host, user="early@example.com", password=token, dbname=database
        ).close()

    def test_somebody_who_is_not_in_the_workspace(
        self, local: LocalLakebase, database: str
    ) -> None:
        local.add_user("kind@example.com", role=False)
        with session(local, DEFAULT_USER, database=database) as conn:
            conn.execute(CREATE)
            for name, kind in (("nobody@example.com", "USER"), ("kind@example.com", "GROUP")):
                with pytest.raises(errors.InvalidParameterValue, match=f'"{name}".*not found'):
                    conn.execute("SELECT databricks_create_role(%s, %s)", [name, kind])
            conn.execute("SELECT databricks_create_role('kind@example.com', 'user')")

    def test_it_takes_create_to_create_the_extension(
        self, local: LocalLakebase, database: str
    ) -> None:
        local.add_user("reader@example.com", can_create=False)
        with session(local, "reader@example.com", database=database) as conn:
            with pytest.raises(errors.InsufficientPrivilege, match="create extension"):
                conn.execute(CREATE)
            with session(local, DEFAULT_USER, database=database) as owner:
                owner.execute(CREATE)
            conn.execute(CREATE)  # it is there: nothing to do

    def test_it_takes_createrole_to_create_a_role(
        self, local: LocalLakebase, database: str
    ) -> None:
        local.add_user("maker@example.com")
        with session(local, "maker@example.com", database=database) as conn:
            conn.execute(CREATE)
            with pytest.raises(errors.InsufficientPrivilege, match="create role"):
                conn.execute("SELECT databricks_create_role('x', 'USER')")
        local.add_user("maker@example.com", can_manage=True)
        with (
            session(local, "maker@example.com", database=database) as conn,
            pytest.raises(errors.InvalidParameterValue),
        ):
            conn.execute("SELECT databricks_create_role('x', 'USER')")

    def test_a_role_with_a_password_makes_none(self, local: LocalLakebase, database: str) -> None:
        """It takes a login with a Databricks identity."""
        with session(local, DEFAULT_USER, database=database) as conn:
            conn.execute(CREATE)
            conn.execute("CREATE ROLE native LOGIN CREATEROLE PASSWORD 'of-a-test'")
            conn.execute(f"GRANT CONNECT, CREATE ON DATABASE {database} TO native")
        with (
            psycopg.connect(
                host=local.host, user="native", password="of-a-test", dbname=database
            ) as native,
            pytest.raises(errors.InsufficientPrivilege, match="create role"),
        ):
            native.execute("SELECT databricks_create_role('x', 'USER')")

    def test_dropping_it(self, local: LocalLakebase, database: str) -> None:
        with psycopg.connect(local.admin_dsn, dbname=database, autocommit=True) as conn:
            for _ in range(2):
                conn.execute(CREATE)
                conn.execute("SELECT FROM databricks_list_roles")
                conn.execute("DROP EXTENSION databricks_auth")
                with pytest.raises(errors.UndefinedTable):
                    conn.execute("SELECT FROM databricks_list_roles")
            with pytest.raises(errors.FeatureNotSupported, match="IF NOT EXISTS"):
                conn.execute("CREATE EXTENSION databricks_auth")
            conn.execute(
                "CREATE EXTENSION IF NOT EXISTS vector"
            )  # any other is none of its business


class TestCanManage:
    def test_it_is_the_owners_permissions(self, local: LocalLakebase) -> None:
        """databricks_superuser reads everything, and can neither be become nor given away."""
        local.add_user("maker@example.com")
        local.add_user("boss@example.com", can_manage=True)
        with session(local, "maker@example.com") as conn:
            conn.execute("CREATE TABLE secret AS SELECT 42 AS x")
        with session(local, "boss@example.com") as conn:
            assert conn.execute("SELECT x FROM secret").fetchone() == (42,)
            for statement in (
                "SET ROLE databricks_superuser",
                'GRANT databricks_superuser TO "maker@example.com"',
                "DROP TABLE secret",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    conn.execute(statement)
        local.add_user("boss@example.com", can_manage=False)
        with (
            session(local, "boss@example.com") as conn,
            pytest.raises(errors.InsufficientPrivilege),
        ):
            conn.execute("SELECT x FROM secret")
        with session(local, "maker@example.com") as conn:
            conn.execute("DROP TABLE secret")


def test_a_server_of_somebody_elses_is_left_as_it_was() -> None:
    """Roles that own nothing, the extension and its offer are gone."""
    with LocalLakebase() as server, psycopg.connect(server.admin_dsn, autocommit=True) as conn:
        server.create_database("theirs")
        with psycopg.connect(server.admin_dsn, dbname="theirs", autocommit=True) as theirs:
            theirs.execute("DROP EVENT TRIGGER create_databricks_auth")
            theirs.execute("DROP SCHEMA __db_system CASCADE")
            with LocalLakebase(dsn=server.admin_dsn, database="theirs") as local:
                app = local.add_service_principal("app", role=False)
                local.add_group("their group", [app.client_id])
                with session(local, DEFAULT_USER, database="theirs") as owner:
                    owner.execute(CREATE)
                    for name, kind in (
                        (app.client_id, "SERVICE_PRINCIPAL"),
                        ("their group", "GROUP"),
                    ):
                        owner.execute("SELECT databricks_create_role(%s, %s)", [name, kind])
                        owner.execute(f'GRANT CONNECT ON DATABASE theirs TO "{name}"')
                for role in (app.client_id, "their group"):
                    session(local, app.client_id, role=role, database="theirs").close()
            roles = "SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg|databricks)_'"
            assert {name for (name,) in conn.execute(roles)} == {DEFAULT_USER, "postgres"}
            assert theirs.execute("SELECT FROM pg_event_trigger").fetchall() == []
            assert (
                theirs.execute("SELECT FROM pg_extension WHERE extname <> 'plpgsql'").fetchall()
                == []
            )
            assert theirs.execute("SELECT FROM pg_namespace WHERE nspname ~ '^__'").fetchall() == []
