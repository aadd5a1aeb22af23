"""`lakebase-sessions doctor`: every step, made to fail for real, names the cause and the cure.

The first part is the troubleshooting table of the document this project comes from, row by row;
the second the steps in their order.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import admin

from lakebase_sessions.access.site import Wanted
from lakebase_sessions.cli import main
from lakebase_sessions.doctor import server
from lakebase_sessions.doctor.step import Status, Step
from lakebase_sessions.doctor.walk import walk
from lakebase_sessions.local import DEFAULT_USER, LocalLakebase
from lakebase_sessions.postgres.tables import OWN, UPSTREAMS

pytestmark = pytest.mark.long

GUEST = "guest@example.com"
ENDPOINT = "projects/app/branches/main/endpoints/primary"
STEPS = [
    "environment",
    "workspace login",
    "identity",
    "target",
    "compute",
    "token",
    "DNS",
    "TCP",
    "TLS",
    "login",
    "database",
    "server version",
    "schema",
    "tables",
    "privileges",
    "default privileges",
    "conversations",
    "clock",
    "round trip",
    "connections",
]


def doctor(*arguments: str) -> dict[str, dict[str, str]]:
    """What the command says, by step; the exit code has to go with it."""
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    told = json.loads(result.stdout)
    steps = {step["name"]: step for step in told["steps"]}
    bad = [step for step in told["steps"] if step["status"] == "failed"]
    assert told["ok"] is (not bad)
    assert result.exit_code == (1 if bad else 0)
    if bad:
        assert bad == [told["steps"][-1]], "it stops where it breaks"
    for step in told["steps"]:
        if step["status"] == "failed":
            assert step["next"], f"{step} does not say what to do next"
    return steps


def fails(at: str, *arguments: str) -> dict[str, str]:
    """The last step, which has to be the one that failed."""
    steps = doctor(*arguments)
    step = list(steps.values())[-1]
    assert (step["name"], step["status"]) == (at, "failed"), steps
    return step


def impatiently(**wanted: Any) -> Step:
    """The last step, for what would be tried again for ten seconds."""

    async def last() -> Step:
        return [step async for step in walk(Wanted(timeout_seconds=1, **wanted))][-1]

    return asyncio.run(last())


@pytest.fixture
def guest(
    local: LocalLakebase, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """From the call on, the environment is that of somebody else."""

    def enter(**options: Any) -> None:
        monkeypatch.setenv("DATABRICKS_TOKEN", local.add_user(GUEST, **options))

    yield enter
    local.add_user(GUEST)


# --- the seed's table --------------------------------------------------------------------------


def test_row_1_the_variable_is_required(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAKEBASE_INSTANCE_NAME")
    monkeypatch.delenv("PGHOST")
    step = fails("environment")
    assert "LAKEBASE_INSTANCE_NAME environment variable is required" in step["seen"]
    assert "Set it in .env" in step["seen"]
    assert step["next"].startswith("export LAKEBASE_INSTANCE_NAME=")


def test_row_2_the_connection_is_closed_unexpectedly(
    environ: dict[str, str], hangs_up: str
) -> None:
    step = impatiently(target=hangs_up)
    assert (step.name, step.status) == ("login", Status.FAILED)
    assert "closed" in step.seen
    assert step.next == f"databricks database get-database-instance {hangs_up}"


def test_row_3_the_agent_does_not_remember(
    environ: dict[str, str], local: LocalLakebase, database: str
) -> None:
    """Nobody ever comes back to a conversation."""
    with admin(local, database) as connection:
        for number in range(6):
            connection.execute("INSERT INTO agent_sessions VALUES (%s)", [f"s{number}"])
            connection.execute(
                "INSERT INTO agent_messages (session_id, message_data) VALUES (%s, %s)",
                [f"s{number}", '{"role": "user", "content": "hello"}'],
            )
        step = doctor()["conversations"]
        assert step["status"] == "warning"
        assert "another session id" in step["seen"]
        assert "custom_inputs" in step["next"]
        connection.execute(
            "INSERT INTO agent_messages (session_id, message_data) "
            "SELECT session_id, message_data FROM agent_messages LIMIT 1"
        )
    step = doctor()["conversations"]
    assert (step["status"], step["seen"]) == ("ok", "1 of the latest 6 have more than one turn")


def test_row_4_unable_to_resolve_the_hostname(environ: dict[str, str]) -> None:
    wrong = "instance-00000000-0000-0000-0000-000000000000.database.azuredatabricks.net"
    step = fails("target", "--lakebase", wrong)
    assert f"Unable to resolve hostname '{wrong}'" in step["seen"]
    assert "Verify the hostname, or use the instance name" in step["seen"]
    assert "list-database-instances" in step["next"]


def test_row_5_permission_denied(environ: dict[str, str], local: LocalLakebase) -> None:
    with local.fault("/credentials", status=403):
        step = fails("token")
    assert "CAN_CONNECT_AND_CREATE" in step["seen"]
    assert "databricks.yml" in step["seen"]
    assert step["next"] == f"lakebase-sessions grant {DEFAULT_USER}"


# --- the steps, in their order -----------------------------------------------------------------


def test_all_is_well(environ: dict[str, str], local: LocalLakebase, database: str) -> None:
    steps = doctor("--write")
    assert list(steps) == [*STEPS, "turn"]
    assert {step["status"] for name, step in steps.items() if name != "tables"} == {"ok"}
    assert steps["environment"]["seen"] == "LAKEBASE_INSTANCE_NAME names 'local'; ignored: PGHOST"
    assert DEFAULT_USER in steps["identity"]["seen"]
    assert database in steps["database"]["seen"]
    with admin(local, database) as connection:
        left = connection.execute("SELECT count(*) FROM agent_sessions").fetchone()
    assert left == (0,), "the turn is removed"


def test_it_changes_nothing(
    environ: dict[str, str], local: LocalLakebase, empty_database: str
) -> None:
    """Where a session would make the tables, this says so and does not."""
    step = doctor("--database", empty_database)["tables"]
    assert step["status"] == "warning"
    assert step["next"] == f"lakebase-sessions init --database {empty_database}"
    with admin(local, empty_database) as connection:
        assert connection.execute("SELECT to_regclass('agent_sessions')").fetchone() == (None,)


def test_as_text(environ: dict[str, str]) -> None:
    result = CliRunner().invoke(main, ["doctor", "--lakebase", "nothing"])
    assert result.exit_code == 1
    first, *_, cause, cure = result.stdout.splitlines()
    assert first == (
        "ok       environment: --lakebase names 'nothing'; ignored: LAKEBASE_INSTANCE_NAME, PGHOST"
    )
    assert cause.startswith("failed   target: There is no Lakebase instance 'nothing'")
    assert cure.startswith("         next: databricks database list-database-instances")


def test_no_secret_is_shown(
    environ: dict[str, str], local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEBASE_INSTANCE_NAME", "postgresql://me:hunter2@local:5432/x")
    result = CliRunner().invoke(main, ["doctor"])
    assert "hunter2" not in result.output
    assert "names 'local'" in result.output
    assert environ["DATABRICKS_TOKEN"] not in result.output


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LAKEBASE_AUTOSCALING_PROJECT": "app"}, "LAKEBASE_AUTOSCALING_BRANCH is not"),
        ({"LAKEBASE_AGENT_MEMORY_SCHEMA": "pg_mine"}, "LAKEBASE_AGENT_MEMORY_SCHEMA"),
        ({"PGSSLMODE": "prefer"}, "plain text"),
        ({"LAKEBASE_INSTANCE_NAME": "not a name"}, "names no Lakebase"),
    ],
)
def test_environment(
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    says: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert says in fails("environment")["seen"]


class TestWorkspace:
    def test_nobody_is_logged_in(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("HOME", str(tmp_path))
        step = fails("workspace login")
        assert "DATABRICKS_HOST" in step["seen"]
        assert step["next"] == "databricks auth describe"

    def test_a_profile_that_is_not_there(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        (tmp_path / "cfg").write_text("[other]\nhost = https://example.com\n")
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "cfg"))
        assert "mine" in fails("workspace login", "-p", "mine")["seen"]

    def test_a_secret_that_is_wrong(
        self, environ: dict[str, str], local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DATABRICKS_TOKEN")
        app = local.add_service_principal("doctored")
        monkeypatch.setenv("DATABRICKS_CLIENT_ID", app.client_id)
        monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "wrong")
        assert "Could not log in to the workspace" in fails("workspace login")["seen"]

    def test_a_token_that_is_wrong(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-wrong")
        step = fails("identity")
        assert "did not accept the credentials" in step["seen"]

    def test_it_does_not_answer(self, environ: dict[str, str], local: LocalLakebase) -> None:
        """The class for what is too late, at whichever step."""
        with local.fault("/instances/local", status=503, headers={"Retry-After": "3600"}):
            assert "slow, throttling or down" in fails("target")["seen"]

    @pytest.mark.parametrize(("state", "says"), [("STOPPED", "stopped"), ("DELETING", "list-")])
    def test_an_instance_that_does_not_run(
        self, environ: dict[str, str], local: LocalLakebase, state: str, says: str
    ) -> None:
        local.add_instance("resting", state=state)
        step = fails("compute", "--lakebase", "resting")
        local.remove_instance("resting")
        assert says in step["next"]

    def test_an_endpoint_that_is_disabled(
        self, environ: dict[str, str], local: LocalLakebase
    ) -> None:
        local.add_compute(ENDPOINT).disable()
        step = fails("compute", "--lakebase", ENDPOINT)
        local.remove_endpoint(ENDPOINT)
        assert "no connection can wake it" in step["seen"]
        assert "update-endpoint" in step["next"]

    def test_an_endpoint_that_sleeps_is_woken(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        compute = local.add_compute(ENDPOINT, wake_seconds=0.2)
        compute.suspend()
        steps = doctor("--lakebase", ENDPOINT, "--database", database)
        local.remove_endpoint(ENDPOINT)
        assert steps["compute"]["status"] == "warning"
        assert "wakes it" in steps["compute"]["seen"]
        assert steps["login"]["status"] == "ok"


@pytest.fixture
def hangs_up(local: LocalLakebase) -> Iterator[str]:
    """An instance at whose address everybody is cut off, as soon as there is a connection."""
    yield from _served(local, lambda stream: stream.recv(8))


@pytest.fixture
def without_tls(local: LocalLakebase) -> Iterator[str]:
    """An instance at whose address somebody knows no TLS."""
    yield from _served(local, lambda stream: (stream.recv(8), stream.sendall(b"N")))  # type: ignore[func-returns-value]


def _served(local: LocalLakebase, serve: Callable[[socket.socket], object]) -> Iterator[str]:
    with socket.create_server(("127.0.0.253", 5432)) as listener:

        def accept() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    serve(stream)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        local.add_instance("odd", read_write_dns="127.0.0.253")
        yield "odd"
        local.remove_instance("odd")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


class TestNetwork:
    def test_a_name_that_nobody_knows(self, environ: dict[str, str], local: LocalLakebase) -> None:
        local.add_instance("lost", read_write_dns="no-such-host.invalid")
        step = fails("DNS", "--lakebase", "lost")
        local.remove_instance("lost")
        assert step["next"] == "nslookup no-such-host.invalid"

    def test_nobody_listens(self, environ: dict[str, str], local: LocalLakebase) -> None:
        local.add_instance("deaf", read_write_dns="127.0.0.254")
        step = fails("TCP", "--lakebase", "deaf")
        local.remove_instance("deaf")
        assert "firewall" in step["seen"]
        assert step["next"] == "databricks database get-database-instance deaf"

    def test_a_server_without_tls(self, environ: dict[str, str], without_tls: str) -> None:
        step = fails("TLS", "--lakebase", without_tls)
        assert "is this the address of a Lakebase" in step["seen"]

    def test_a_round_trip_that_is_long(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By moving the bound; how long it takes is for the benchmarks."""
        monkeypatch.setattr(server, "FAR_MILLISECONDS", 0.0)
        step = doctor()["round trip"]
        assert step["status"] == "warning"
        assert "region" in step["seen"]


class TestLogin:
    def test_a_role_that_is_not_there(
        self, environ: dict[str, str], local: LocalLakebase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = local.add_user("unknown@example.com", role=False)
        monkeypatch.setenv("DATABRICKS_TOKEN", token)
        step = fails("login")
        assert "unknown@example.com" in step["seen"]
        assert step["next"] == "lakebase-sessions grant unknown@example.com"

    def test_a_database_that_is_not_there(self, environ: dict[str, str]) -> None:
        step = fails("database", "--database", "no_such_database")
        assert "no_such_database" in step["seen"]
        assert step["next"] == 'CREATE DATABASE "no_such_database";'

    def test_a_database_that_is_closed(
        self, guest: Callable[..., None], local: LocalLakebase, database: str
    ) -> None:
        guest()
        with admin(local, database) as connection:
            connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM "{GUEST}"')
        step = fails("database")
        assert "permission denied for database" in step["seen"]
        assert step["next"] == f"lakebase-sessions grant {GUEST}"


class TestTables:
    def test_a_schema_that_may_not_be_made(self, guest: Callable[..., None]) -> None:
        guest(can_create=False)
        step = fails("schema", "--schema", "memory")
        assert "may not make it" in step["seen"]
        assert DEFAULT_USER in step["seen"], "it names the owner"
        assert step["next"].startswith("lakebase-sessions init --schema memory")

    def test_a_schema_that_is_made_later(self, environ: dict[str, str]) -> None:
        step = doctor("--schema", "memory")["schema"]
        assert step["status"] == "warning"
        assert step["next"] == "lakebase-sessions init --schema memory"

    def test_a_schema_that_is_closed(
        self, guest: Callable[..., None], local: LocalLakebase, database: str
    ) -> None:
        guest()
        with admin(local, database) as connection:
            connection.execute(f'CREATE SCHEMA memory AUTHORIZATION "{DEFAULT_USER}"')
        step = fails("schema", "--schema", "memory")
        assert f"no USAGE on schema 'memory', which belongs to '{DEFAULT_USER}'" in step["seen"]
        assert step["next"].startswith(f"lakebase-sessions grant {GUEST} --schema memory")

    def test_tables_that_may_not_be_made(
        self, guest: Callable[..., None], empty_database: str
    ) -> None:
        guest(can_create=False)
        step = fails("tables", "--database", empty_database)
        assert "may not make them" in step["seen"]
        assert step["next"].startswith("lakebase-sessions init")

    def test_half_of_them(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        with admin(local, database) as connection:
            connection.execute("DROP TABLE agent_messages")
        step = doctor()["tables"]
        assert step["seen"].startswith("schema 'public' has no agent_messages;")

    def test_with_write_nobody_makes_them(
        self, environ: dict[str, str], empty_database: str
    ) -> None:
        step = fails("turn", "--database", empty_database, "--write")
        assert "There are no tables" in step["seen"]
        assert "init" in step["next"]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("RENAME COLUMN message_data TO body", "agent_messages has no column message_data"),
            ("ALTER COLUMN message_data TYPE jsonb USING '{}'", "is jsonb and not text"),
        ],
    )
    def test_somebody_elses_tables(
        self,
        environ: dict[str, str],
        local: LocalLakebase,
        database: str,
        change: str,
        says: str,
    ) -> None:
        with admin(local, database) as connection:
            connection.execute(f"ALTER TABLE agent_messages {change}".encode())
        step = fails("tables")
        assert says in step["seen"]
        assert "LAKEBASE_AGENT_MEMORY_SCHEMA" in step["next"]

    def test_sessions_that_are_not_unique(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        with admin(local, database) as connection:
            connection.execute(
                "ALTER TABLE agent_sessions DROP CONSTRAINT agent_sessions_pkey CASCADE"
            )
        assert "session_id is not unique" in fails("tables")["seen"]

    def test_an_index_that_is_missing(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        with admin(local, database) as connection:
            connection.execute("DROP INDEX idx_agent_messages_session_time")
            step = doctor()["tables"]
            assert step["status"] == "warning"
            connection.execute(step["next"].encode())
        assert "no index" not in doctor()["tables"]["seen"], "the cure is one"

    def test_tables_of_a_person(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        step = doctor()["tables"]
        assert step["status"] == "warning"
        assert f"{DEFAULT_USER} is a person" in step["seen"]
        assert step["next"] == "lakebase-sessions init --owner <group>"
        with admin(local, database) as connection:
            connection.execute("CREATE ROLE shared_by_all")
            for table in UPSTREAMS + OWN:
                connection.execute(f"ALTER TABLE {table} OWNER TO shared_by_all".encode())
                connection.execute(f'GRANT ALL ON {table} TO "{DEFAULT_USER}"'.encode())
            connection.execute(f'GRANT ALL ON agent_messages_id_seq TO "{DEFAULT_USER}"'.encode())
            owned = doctor()["tables"]
            connection.execute("DROP OWNED BY shared_by_all CASCADE; DROP ROLE shared_by_all")
        assert owned["status"] == "ok"

    def test_only_those_of_upstream(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        with admin(local, database) as connection:
            connection.execute(f"DROP TABLE {', '.join(OWN)}".encode())
        step = doctor()["tables"]
        assert step["status"] == "warning"
        assert "turns, branches, titles and approvals are not kept" in step["seen"]
        assert step["next"].startswith("lakebase-sessions init")


class TestPrivileges:
    def test_only_those_on_upstreams_tables(
        self, guest: Callable[..., None], local: LocalLakebase, database: str
    ) -> None:
        """A session works without the others, so it is no failure."""
        guest()
        with admin(local, database) as connection:
            for what in ("agent_sessions, agent_messages", "SEQUENCE agent_messages_id_seq"):
                connection.execute(f'GRANT ALL ON {what} TO "{GUEST}"'.encode())
        step = doctor()["privileges"]
        assert step["status"] == "warning"
        assert "on TABLE public.agent_turns" in step["seen"]

    @pytest.mark.parametrize(
        ("grants", "says"),
        [
            (
                ["SELECT ON ALL TABLES IN SCHEMA public"],
                "no INSERT, UPDATE, DELETE on TABLE public.agent_messages",
            ),
            (
                ["SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"],
                "no USAGE on SEQUENCE public.agent_messages_id_seq",
            ),
        ],
    )
    def test_one_that_is_missing(
        self,
        guest: Callable[..., None],
        local: LocalLakebase,
        database: str,
        grants: list[str],
        says: str,
    ) -> None:
        guest()
        with admin(local, database) as connection:
            for grant in grants:
                connection.execute(f'GRANT {grant} TO "{GUEST}"'.encode())
        step = fails("privileges")
        assert says in step["seen"]
        assert f"Owner: {DEFAULT_USER}" in step["seen"]
        assert step["next"].startswith(f"lakebase-sessions grant {GUEST}")

    def test_the_statements_are_the_cure(
        self, guest: Callable[..., None], local: LocalLakebase, database: str
    ) -> None:
        guest()
        statements = fails("privileges")["next"].partition("or in SQL: ")[2]
        with admin(local, database) as connection:
            connection.execute(statements.encode())
        steps = doctor("--write")
        assert steps["privileges"]["status"] == steps["turn"]["status"] == "ok"
        later = steps["default privileges"]
        assert later["status"] == "warning", "tables to come have not been thought of"
        assert later["next"].startswith(f"lakebase-sessions grant {GUEST}")


class TestServer:
    def test_one_that_is_too_old(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By moving the bound: no server older than 14 can be had here."""
        monkeypatch.setattr(server, "OLDEST_VERSION", 990000)
        assert "the oldest that is supported" in fails("server version")["seen"]

    def test_a_clock_that_is_wrong(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = SimpleNamespace(time=lambda: time.time() - 3600, perf_counter=time.perf_counter)
        monkeypatch.setattr(server, "time", wrong)
        step = doctor()["clock"]
        assert step["status"] == "warning"
        assert "3600 s behind" in step["seen"]

    def test_more_workers_than_there_is_room_for(self, environ: dict[str, str]) -> None:
        step = doctor("--workers", "1000", "--pool-size", "20")["connections"]
        assert step["status"] == "warning"
        assert "up to 20000" in step["seen"]
        assert step["next"].startswith("lakebase-sessions doctor --workers 1000 --pool-size ")

    def test_a_limit_of_the_database(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        with admin(local, database) as connection:
            connection.execute(f'ALTER DATABASE "{database}" CONNECTION LIMIT 4')
        step = doctor()["connections"]
        assert (step["status"], " of 4," in step["seen"]) == ("warning", True)

    def test_a_turn_that_is_refused(
        self, environ: dict[str, str], local: LocalLakebase, database: str
    ) -> None:
        """Privileges are all there, and something of theirs is in the way."""
        with admin(local, database) as connection:
            connection.execute(
                "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN RAISE 'not on my watch'; END$$; "
                "CREATE TRIGGER no BEFORE INSERT ON agent_messages "
                "FOR EACH ROW EXECUTE FUNCTION no()"
            )
        assert "not on my watch" in fails("turn", "--write")["seen"]
