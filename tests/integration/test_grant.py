"""`lakebase-sessions grant` and `init`: what an identity needs, given for real and read again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import admin
from logins import session

from lakebase_sessions import Lakebase
from lakebase_sessions.cli import main
from lakebase_sessions.errors import PermissionDenied
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase, ServicePrincipal

pytestmark = pytest.mark.long

HELLO: Any = {"role": "user", "content": "hello"}
ENDPOINT = "projects/local/branches/production/endpoints/primary"


@pytest.fixture
def app(local: LocalLakebase, database: str) -> Iterator[ServicePrincipal]:
    """A principal that the workspace knows and Postgres does not."""
    app = local.add_service_principal("app", role=False)
    yield app
    with admin(local, database) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [app.client_id]).rowcount:
            connection.execute(f'DROP OWNED BY "{app.client_id}" CASCADE'.encode())


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert "DROP" not in result.output
    return result.stderr


def write(local: LocalLakebase, user: str, database: str, schema: str | None = None) -> None:
    """A turn as this identity."""

    async def turn() -> None:
        client = local.workspace_client(user)
        async with Lakebase(
            "local", workspace_client=client, database=database, schema=schema
        ) as lakebase:
            session = lakebase.session(user)
            async with session.turn() as turn:
                await turn.add_items([HELLO])
            assert await session.get_items() == [HELLO]
            await session.clear_session()

    asyncio.run(turn())


def owners(local: LocalLakebase, database: str, schema: str) -> set[str]:
    with admin(local, database) as connection:
        rows = connection.execute(
            "SELECT tableowner FROM pg_tables WHERE schemaname = %s UNION "
            "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s",
            [schema, schema],
        ).fetchall()
    return {row[0] for row in rows}


class TestGrant:
    @pytest.mark.parametrize("lakebase", ["local", ENDPOINT])
    def test_a_principal_without_rights_then_with(
        self,
        environ: dict[str, str],
        local: LocalLakebase,
        database: str,
        app: ServicePrincipal,
        lakebase: str,
    ) -> None:
        """From no role at all; by SQL on an instance, by the SDK's call in a project."""
        with pytest.raises(PermissionDenied):
            write(local, app.client_id, database)
        command = ("grant", app.client_id, "--lakebase", lakebase, "--database", database)
        said = run(*command)
        made_by = "postgres.create_role" if lakebase == ENDPOINT else "databricks_create_role"
        assert made_by in said
        write(local, app.client_id, database)
        assert run(*command) == "-- nothing to do\n", "and again changes nothing"

    def test_a_table_that_comes_later(
        self, environ: dict[str, str], local: LocalLakebase, database: str, app: ServicePrincipal
    ) -> None:
        run("grant", app.client_id, "--database", database)
        role = app.client_id
        with admin(local, database) as connection:
            connection.execute(f'SET ROLE "{DEFAULT_USER}"'.encode())
            connection.execute("CREATE TABLE agent_later (id serial)")
            connection.execute("RESET ROLE")
            row = connection.execute(
                "SELECT has_table_privilege(%s::name, 'agent_later', 'INSERT'), "
                "has_sequence_privilege(%s::name, 'agent_later_id_seq', 'USAGE')",
                [role, role],
            ).fetchone()
        assert row == (True, True)

    @pytest.mark.upstream_logs
    def test_a_dry_run_changes_nothing_and_its_sql_does_it(
        self, environ: dict[str, str], local: LocalLakebase, database: str, app: ServicePrincipal
    ) -> None:
        sql = run("grant", app.client_id, "--database", database, "--dry-run")
        with pytest.raises(PermissionDenied):
            write(local, app.client_id, database)
        with session(local, DEFAULT_USER, database=database) as connection:
            connection.execute(sql.encode())
        write(local, app.client_id, database)

    def test_revoke(
        self, environ: dict[str, str], local: LocalLakebase, database: str, app: ServicePrincipal
    ) -> None:
        command = ("grant", app.client_id, "--database", database)
        run(*command)
        assert "REVOKE SELECT, INSERT" in run(*command, "--revoke", "--dry-run")
        write(local, app.client_id, database)
        told = json.loads(run(*command, "--revoke", "-o", "json"))
        assert "DROP" not in " ".join(told["statements"])
        with pytest.raises(PermissionDenied):
            write(local, app.client_id, database)
        assert run(*command, "--revoke") == "-- nothing to do\n"
        run(*command)
        write(local, app.client_id, database)

    def test_one_who_is_to_make_the_tables(
        self,
        environ: dict[str, str],
        local: LocalLakebase,
        empty_database: str,
    ) -> None:
        app = local.add_service_principal("maker", role=False)
        command = ("grant", app.client_id, "--database", empty_database)
        said = refused(*command, "--schema", "memory")
        assert "lakebase-sessions init" in said
        assert "--create" in said
        run(*command, "--schema", "memory", "--create")
        write(local, app.client_id, empty_database, "memory")
        assert owners(local, empty_database, "memory") == {app.client_id}

    @pytest.mark.parametrize("name", ["nobody@example.com", "no such group"])
    def test_somebody_whom_the_workspace_does_not_know(
        self, environ: dict[str, str], database: str, name: str
    ) -> None:
        assert f"'{name}'" in refused("grant", name, "--database", database)

    def test_names_that_sql_could_mistake(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        name = "o'brien\"; --@example.com"
        local.add_user(name, role=False)
        run("grant", name, "--database", database)
        write(local, name, database)


class TestGrantsThatDoNothing:
    """What Postgres lets pass with a warning, or refuses: the owner's name, and their statement."""

    @pytest.fixture
    def other(
        self, local: LocalLakebase, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[], None]:
        """From the call on, the environment is that of somebody who owns nothing."""

        def enter() -> None:
            monkeypatch.setenv("DATABRICKS_TOKEN", local.add_user("other@example.com"))

        return enter

    def test_a_sequence_of_somebody_elses(
        self, other: Callable[[], None], local: LocalLakebase, database: str
    ) -> None:
        """The one that succeeds and does nothing: they may use it, and may not give it."""
        local.add_user("friend@example.com")
        other()
        with admin(local, database) as connection:
            for grantee in ('"other@example.com" WITH GRANT OPTION', '"friend@example.com"'):
                connection.execute(
                    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public "
                    f"TO {grantee}".encode()
                )
            connection.execute(
                'GRANT USAGE ON SEQUENCE agent_messages_id_seq TO "other@example.com"'
            )
        said = refused("grant", "friend@example.com", "--database", database)
        assert f"As '{DEFAULT_USER}', who owns it: GRANT USAGE ON SEQUENCE" in said
        statement = said.partition("who owns it: ")[2]
        with admin(local, database) as connection:
            connection.execute(statement.encode())
        write(local, "friend@example.com", database)

    def test_tables_of_somebody_elses(
        self, other: Callable[[], None], local: LocalLakebase, database: str
    ) -> None:
        local.add_user("friend@example.com")
        other()
        said = refused("grant", "friend@example.com", "--database", database)
        assert "permission denied for table" in said
        assert f"As '{DEFAULT_USER}', who owns it: GRANT SELECT, INSERT" in said

    def test_one_who_may_not_make_roles(
        self,
        other: Callable[[], None],
        environ: dict[str, str],
        local: LocalLakebase,
        database: str,
        app: ServicePrincipal,
    ) -> None:
        other()
        assert "create role" in refused("grant", app.client_id, "--database", database)
        said = refused("grant", app.client_id, "--database", database, "--lakebase", ENDPOINT)
        assert "CAN MANAGE" in said

    def test_what_somebody_else_has_given_cannot_be_taken(
        self, other: Callable[[], None], local: LocalLakebase, database: str
    ) -> None:
        local.add_user("friend@example.com")
        other()
        with admin(local, database) as connection:
            connection.execute(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public "
                'TO "friend@example.com"'
            )
        said = refused("grant", "friend@example.com", "--database", database, "--revoke")
        assert f"As '{DEFAULT_USER}', who owns it: " in said
        assert "REVOKE SELECT, INSERT, UPDATE, DELETE ON TABLE" in said


class TestInit:
    def test_for_oneself(
        self, environ: dict[str, str], local: LocalLakebase, empty_database: str
    ) -> None:
        command = ("init", "--database", empty_database, "--schema", "memory", "-o", "json")
        told = json.loads(run(*command))
        assert told["tables"]["memory.agent_sessions"] == DEFAULT_USER
        assert json.loads(run(*command)) == told, "and again changes nothing"
        write(local, DEFAULT_USER, empty_database, "memory")

    def test_with_what_searches_need(
        self, environ: dict[str, str], local: LocalLakebase, empty_database: str
    ) -> None:
        """In a schema, and where the tables belong to a group."""
        local.add_group("agents", [DEFAULT_USER])
        for schema, owner in (("mine", []), ("ours", ["--owner", "agents"])):
            command = ("init", "--database", empty_database, "--schema", schema, *owner)
            before = json.loads(run(*command, "-o", "json"))["indexes"]
            assert set(before.values()) == {"there"}
            told = json.loads(run(*command, "--search", "-o", "json"))["indexes"]
            assert told == {**before, "idx_agent_messages_said": "made"}
            assert "idx_agent_messages_said is there" in run(*command, "--search")
            write(local, DEFAULT_USER, empty_database, schema)

    def test_on_tables_of_somebody_else(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        """What is missing is named, and nothing fails for it."""
        with admin(local, database) as connection:
            connection.execute("DROP INDEX idx_agent_sessions_user")
            connection.execute("ALTER TABLE agent_sessions OWNER TO postgres")
        told = json.loads(run("init", "--database", database, "-o", "json"))["indexes"]
        assert told["idx_agent_sessions_user"] == "not owned"
        said = CliRunner().invoke(main, ["init", "--database", database]).stderr
        assert "'postgres', who owns the table, makes it with `lakebase-sessions init`" in said

    @pytest.mark.parametrize("schema", [None, "memory"])
    def test_for_a_group_that_one_is_in(
        self,
        environ: dict[str, str],
        local: LocalLakebase,
        empty_database: str,
        schema: str | None,
    ) -> None:
        """Neither laptop nor app owns them; a member has to be granted, as anybody."""
        local.add_group("agents", [DEFAULT_USER])
        where = ["--database", empty_database, *(["--schema", schema] if schema else [])]
        run("init", "--owner", "agents", *where)
        run("init", "--owner", "agents", *where)
        assert "agents" in owners(local, empty_database, schema or "public")
        steps = json.loads(CliRunner().invoke(main, ["doctor", "--json", *where]).stdout)["steps"]
        tables = next(step for step in steps if step["name"] == "tables")
        assert (tables["status"], "of 'agents'" in tables["seen"]) == ("ok", True)

    def test_for_a_group_that_one_is_not_in(
        self, environ: dict[str, str], local: LocalLakebase, empty_database: str
    ) -> None:
        local.add_group("strangers", [])
        said = refused("init", "--owner", "strangers", "--database", empty_database)
        assert "Become a member of that group" in said

    def test_for_a_role_that_one_is_a_member_of_in_postgres(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        """Tables of one's own that were there before are handed over."""
        with admin(local, database) as connection:
            connection.execute("CREATE ROLE keepers")
            connection.execute(f'GRANT keepers TO "{DEFAULT_USER}"'.encode())
        try:
            told = run("init", "--owner", "keepers", "--database", database)
            assert "public.agent_messages belongs to 'keepers'" in told
            write(local, DEFAULT_USER, database)
        finally:
            with admin(local, database) as connection:
                connection.execute(
                    f'REASSIGN OWNED BY keepers TO "{DEFAULT_USER}"; DROP OWNED BY keepers; '
                    "DROP ROLE keepers".encode()
                )

    def test_tables_that_somebody_else_owns(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        local.add_group("latecomers", [DEFAULT_USER])
        said = refused("init", "--owner", "latecomers", "--database", database)
        assert f"belong to '{DEFAULT_USER}' already" in said
        assert "ALTER TABLE public.agent_messages OWNER TO" in said

    def test_one_who_may_not(
        self,
        environ: dict[str, str],
        local: LocalLakebase,
        empty_database: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        token = local.add_user("looker@example.com", can_create=False)
        monkeypatch.setenv("DATABRICKS_TOKEN", token)
        said = refused("init", "--database", empty_database, "--schema", "memory")
        assert "As 'developer@example.com', who owns it: GRANT CREATE ON DATABASE" in said
