"""Names from configuration: each is the name it says, or refused; none is SQL, a path or a host."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import admin
from databricks.sdk import WorkspaceClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from security.strategies import hostile_text, texts

from lakebase_sessions import ConfigurationError, Lakebase, LakebaseSession, TargetNotFound
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.local.control_plane import ControlPlane
from lakebase_sessions.postgres.tables import OWN, UPSTREAMS
from lakebase_sessions.workspace.api import Workspace
from lakebase_sessions.workspace.target import Address, Kind, resolve

fuzzing = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- schemas ------------------------------------------------------------------------------------

names = st.one_of(
    st.text("aB \"'\\;,.$%{}()-=\t\u00e9\U0001f30d", min_size=1, max_size=20),
    st.sampled_from(
        [
            "public, pg_catalog",
            '"',
            '""."x',
            "a b\\ c",
            "\\",
            "x; DROP SCHEMA public CASCADE",
            "-csearch_path=public",
            "{lock}",
            "%(session_id)s",
            "SELECT",
            "x" * 63,
        ]
    ),
    texts,
)


@settings(fuzzing, max_examples=40)
@given(names)
@example("$user")
@example("pg_temp")
@example("pg_catalog")
@example("x" * 64)
@example("a\x00b")
async def test_a_schema_is_the_one_that_was_named_or_refused(
    local: LocalLakebase, database: str, name: str
) -> None:
    """No other schema gets a table or a row; `public` is a neighbour with tables of its own."""
    try:
        made = Lakebase(
            "local", workspace_client=local.workspace_client(), database=database, schema=name
        )
    except ConfigurationError:
        return
    before = tables(local, database)
    async with made as lakebase:
        await lakebase.session("s").add_items([{"role": "user", "content": name}])
        said: list[Any] = [*await lakebase.session("s").get_items()]
        assert said[-1] == {"role": "user", "content": name}
    after = tables(local, database)
    own = {(name, table) for table in UPSTREAMS + OWN}
    assert after - before <= own <= after
    with admin(local, database) as connection:
        assert connection.execute("SELECT count(*) FROM public.agent_messages").fetchone() == (0,)


def tables(local: LocalLakebase, database: str) -> set[tuple[str, str]]:
    """Schema and name of every table, temporary ones too."""
    with admin(local, database) as connection:
        return set(
            connection.execute(
                "SELECT nspname, relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
        )


# --- databases ----------------------------------------------------------------------------------


@settings(fuzzing, max_examples=30)
@given(names)
@example("postgres host=127.0.0.1")
@example("postgresql://127.0.0.1/postgres")
@example("dbname=postgres")
@example("a\x00b")
async def test_a_database_is_the_one_that_was_named_or_not_found(
    local: LocalLakebase, name: str
) -> None:
    """It is no connection string: nothing in it leads to another database or host."""
    client = local.workspace_client()
    with pytest.raises((ConfigurationError, TargetNotFound)):
        await Lakebase("local", workspace_client=client, database=name).open()


# --- the workspace's API ------------------------------------------------------------------------

CALLS = re.compile(
    r"/\.well-known/databricks-config"
    r"|/api/2\.0/database/instances(/[^/]+)?"
    r"|/api/2\.0/postgres/projects(/[^/]+/branches(/[^/]+/endpoints(/[^/]+)?)?)?"
)
"""Every path that finding a Lakebase may ask for, as the API documents them."""

words = st.sampled_from(
    ["projects/", "/branches/", "/endpoints/", "https://", "ep-a.databricks.com", "lake", "b-1"]
) | st.sampled_from(["?x=", "%2F", "..", "//", "\\", *"a/#%;@:.\n\x00 ä"])
ids = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
targets = st.one_of(
    st.lists(words, max_size=8).map("".join),
    st.builds("projects/{}/branches/{}".format, ids, ids | texts),
    st.builds("projects/{}/branches/{}/endpoints/{}".format, ids, ids, ids | texts),
    ids,
    texts,
)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A workspace without a Lakebase in it."""
    plane = ControlPlane(port=0, page_size=100, mint=lambda _user: pytest.fail("nothing to mint"))
    plane.identities.add("mia", "USER", "mia", can_manage=False)
    plane.http.start()
    yield plane
    plane.http.stop()


@pytest.fixture(scope="module")
def workspace(plane: ControlPlane) -> Workspace:
    token = plane.identities["mia"].secret
    client = WorkspaceClient(host=plane.http.url, token=token, auth_type="pat")
    return Workspace(client, call_timeout_seconds=10)


@settings(fuzzing, max_examples=150)
@given(targets)
@example("a/../b?x")
@example("projects/a/branches/b/endpoints/../../../../../2.0/token/create")
@example("lake%2F..%2F..")
def test_a_target_is_a_name_in_every_call(
    plane: ControlPlane, workspace: Workspace, target: str
) -> None:
    """It is one segment of a documented path, whole and unchanged, or nothing is called at all."""
    plane.http.requests.clear()
    try:
        address = Address.parse(target)
    except ConfigurationError:
        return
    with contextlib.suppress(TargetNotFound):
        resolve(address, workspace)
    paths = [request.path for request in plane.http.requests]
    assert all(CALLS.fullmatch(path) for path in paths), paths
    asked = {
        Kind.INSTANCE: f"/api/2.0/database/instances/{address.value}",
        Kind.ENDPOINT: f"/api/2.0/postgres/{address.value}",
        Kind.BRANCH: f"/api/2.0/postgres/{address.value}/endpoints",
        Kind.HOSTNAME: "/api/2.0/database/instances",  # only compared with what is listed
    }
    assert paths[0] == asked[address.kind]


@pytest.mark.parametrize("password", ["12/x", "12?x", "12#x", "12/x:y"])
def test_a_password_that_is_not_encoded_is_no_host(password: str) -> None:
    """What stands before its first slash would be taken for an instance's name."""
    with pytest.raises(ConfigurationError, match="This connection string names no Lakebase"):
        Address.parse(f"postgresql://mia:{password}@ep-a.database.x.cloud.databricks.com/db")


# --- SQL ----------------------------------------------------------------------------------------


@settings(fuzzing, max_examples=12)
@given(hostile_text | texts)
@example("'; DROP TABLE agent_messages; --")
async def test_statements_do_not_depend_on_what_is_in_them(
    local: LocalLakebase, database: str, text: str
) -> None:
    """What the server was asked to run is the same for any id, user and item."""
    with contextlib.suppress(ValueError):  # the id or the user is refused
        assert await statements(local, database, text) == await statements(local, database, "s")


async def statements(local: LocalLakebase, database: str, text: str) -> list[str]:
    """Of each operation, the statement that the server has seen."""
    item: Any = {"role": text, "content": text}
    lakebase = Lakebase(
        "local", workspace_client=local.workspace_client(), database=database, pool_size=1
    )
    async with lakebase:
        session = lakebase.session(text, user=text)
        seen = []
        for operation in (
            session.add_items([item, item]),
            session.get_items(),
            session.get_items(limit=1),
            session.pop_item(),
            turn_of(session, item),
            session.clear_session(),
        ):
            await operation
            with admin(local, "postgres") as connection:
                [(statement,)] = connection.execute(
                    "SELECT query FROM pg_stat_activity "
                    "WHERE datname = %s AND application_name = 'lakebase-sessions'",
                    [database],
                ).fetchall()
            seen.append(statement)
        return seen


async def turn_of(session: LakebaseSession, item: Any) -> None:
    async with session.turn() as turn:
        await turn.pop_item()
        await turn.add_items([item])
