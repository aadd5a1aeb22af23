"""Schema, tables, and each privilege that a session uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakebase_sessions.access.grants import statement_of
from lakebase_sessions.access.objects import (
    NEEDED,
    REQUIRED,
    Object,
    defaults,
    missing,
    needed,
)
from lakebase_sessions.doctor.step import Step, failed, ok, warning
from lakebase_sessions.postgres.tables import OWN

if TYPE_CHECKING:
    from lakebase_sessions.postgres.connection import Connection

_COLUMNS = {
    "agent_sessions": {
        "session_id": ("character varying", "text"),
        "created_at": ("timestamp without time zone",),
        "updated_at": ("timestamp without time zone",),
    },
    "agent_messages": {
        "id": ("integer", "bigint"),
        "session_id": ("character varying", "text"),
        "message_data": ("text",),
        "created_at": ("timestamp without time zone",),
    },
}
"""As `SQLAlchemySession` makes them."""

_SHAPE = """
SELECT attrelid, attname, regexp_replace(format_type(atttypid, NULL), '\\(.*\\)', '')
FROM pg_attribute WHERE attrelid = ANY (%(ids)s::oid[]) AND attnum > 0 AND NOT attisdropped
"""

_INDEXES = """
SELECT indrelid, attname, indisunique AND indnatts = 1
FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
WHERE indrelid = ANY (%(ids)s::oid[]) AND indisvalid
"""

_PEOPLE = """
SELECT rolname FROM pg_roles r
LEFT JOIN pg_shseclabel l ON l.objoid = r.oid AND l.provider = 'databricks_auth'
WHERE rolname = ANY (%(owners)s) AND (label ~* 'type=user' OR label IS NULL AND rolname ~ '@')
"""
"""A label says of what type the identity of a role is; where there is none, its name does."""


@dataclass(frozen=True, slots=True)
class Inside:
    """A database seen from inside.

    Attributes:
        user: The role.
        schema: The schema of the tables, which need not exist.
        init: The command that makes the tables.
        grant: The command that gives `user` what a session needs.
    """

    connection: Connection
    user: str
    schema: str
    objects: Sequence[Object]
    init: str
    grant: str


async def schema(inside: Inside) -> Step:
    """Whether it is there and may be used."""
    connection, user, objects = inside.connection, inside.user, inside.objects
    found = next((each for each in objects if each.kind == "SCHEMA"), None)
    if found is None:
        database = objects[0]
        if await missing(connection, user, {database: ("CREATE",)}):
            return failed(
                "schema",
                f"there is no schema '{inside.schema}', and '{user}' may not make it: {database} "
                f"belongs to '{database.owner}'",
                f"{inside.init}  # by somebody who may, or `{inside.grant} --create`",
            )
        return warning(
            "schema",
            f"there is no schema '{inside.schema}'; the first session makes it",
            inside.init,
        )
    if await missing(connection, user, {found: ("USAGE",)}):
        return failed(
            "schema",
            f"'{user}' has no USAGE on schema '{inside.schema}', which belongs to '{found.owner}'",
            f"{inside.grant}  # as '{found.owner}'",
        )
    return ok("schema", f"'{inside.schema}', of '{found.owner}'")


async def tables(inside: Inside) -> Step:
    """Whether they are there, of which shape, and whose."""
    connection, user, objects = inside.connection, inside.user, inside.objects
    found = {each.bare_name: each for each in objects if each.kind == "TABLE"}
    absent = [table for table in REQUIRED if table not in found]
    if absent:
        seen = f"schema '{inside.schema}' has no {' and no '.join(absent)}"
        holder = next((each for each in objects if each.kind == "SCHEMA"), objects[0])
        if await missing(connection, user, {holder: ("CREATE",)}):
            return failed(
                "tables",
                f"{seen}, and '{user}' may not make them: {holder} belongs to '{holder.owner}'",
                f"{inside.init}  # by somebody who may, or `{inside.grant} --create`",
            )
        return warning("tables", f"{seen}; the first session makes them, as its own", inside.init)
    if (unlike := await _unlike(connection, found, inside.schema)) is not None:
        return unlike
    if absent := [table for table in OWN if table not in found]:
        return warning(
            "tables",
            f"schema '{inside.schema}' has no {' and no '.join(absent)}: sessions work, but turns, "
            "branches, titles and approvals are not kept",
            f"{inside.init}  # by '{found[REQUIRED[0]].owner}', who owns {REQUIRED[0]}",
        )
    owners = sorted({each.owner for each in objects if each.kind in ("TABLE", "SEQUENCE")})
    seen = f"{', '.join(found)}, of {', '.join(repr(owner) for owner in owners)}"
    cursor = await connection.execute(_PEOPLE, {"owners": owners})
    if people := [row[0] for row in await cursor.fetchall()]:
        return warning(
            "tables",
            f"{seen}: {', '.join(people)} is a person. Whoever comes without a grant of theirs "
            "fails, and they have to be there for every change; a group should own the tables",
            f"{inside.init} --owner <group>",
        )
    return ok("tables", seen)


async def _unlike(connection: Connection, found: dict[str, Object], schema: str) -> Step | None:
    """What is not shaped as our tables are."""
    ids = {"ids": [found[table].id for table in REQUIRED]}
    cursor = await connection.execute(_SHAPE, ids)
    types = {(row[0], row[1]): row[2] for row in await cursor.fetchall()}
    wrong = []
    for table, columns in _COLUMNS.items():
        for column, accepted in columns.items():
            has = types.get((found[table].id, column))
            if has is None:
                wrong.append(f"{table} has no column {column}")
            elif has not in accepted:
                wrong.append(f"{table}.{column} is {has} and not {accepted[0]}")
    cursor = await connection.execute(_INDEXES, ids)
    indexes = await cursor.fetchall()
    sessions, messages = (found[table] for table in REQUIRED)
    if not any(row[0] == sessions.id and row[1] == "session_id" and row[2] for row in indexes):
        wrong.append("agent_sessions.session_id is not unique")
    if wrong:
        return failed(
            "tables",
            f"those in schema '{schema}' are not ours: {'; '.join(wrong)}",
            "lakebase-sessions init --schema <another>  # and for the app "
            "LAKEBASE_AGENT_MEMORY_SCHEMA=<another>",
        )
    if not any(row[0] == messages.id and row[1] == "session_id" for row in indexes):
        return warning(
            "tables",
            "agent_messages has no index on its sessions, so reading takes longer with every item",
            f"CREATE INDEX ON {messages.name} (session_id, created_at);  -- as '{messages.owner}'",
        )
    return None


async def privileges(inside: Inside) -> Step:
    """Each one that a session uses."""
    connection, user, objects = inside.connection, inside.user, inside.objects
    lacking = await missing(connection, user, needed(objects))
    if not lacking:
        count = sum(len(NEEDED[each.kind]) for each in objects)
        return ok("privileges", f"all {count} that a session uses, sequences too")
    said = "; ".join(f"no {', '.join(names)} on {each}" for each, names in lacking.items())
    statements = [statement_of(each, names, user) for each, names in lacking.items()]
    owners = sorted({each.owner for each in lacking})
    # Without this package's own tables a session still works.
    step = warning if {each.bare_name for each in lacking} <= set(OWN) else failed
    return step(
        "privileges",
        f"'{user}' has {said}. Owner: {', '.join(owners)}",
        f"{inside.grant}  # as '{owners[0]}', or in SQL: {' '.join(statements)}",
    )


async def default_privileges(inside: Inside) -> Step:
    """Whether tables that a later release adds can be used, too."""
    connection, user, objects = inside.connection, inside.user, inside.objects
    name = "default privileges"
    schema = next(each for each in objects if each.kind == "SCHEMA")
    held = await defaults(connection, user, schema)
    strangers = []
    for owner in sorted({each.owner for each in objects if each.kind == "TABLE"}):
        if owner == user:
            continue
        cursor = await connection.execute(
            "SELECT pg_has_role(%s::name, %s::name, 'USAGE')", [user, owner]
        )
        row = await cursor.fetchone()
        wanted = {(owner, "r", each) for each in NEEDED["TABLE"]}
        wanted |= {(owner, "S", each) for each in NEEDED["SEQUENCE"]}
        if not (row and row[0]) and not wanted <= held:
            strangers.append(owner)
    if strangers:
        return warning(
            name,
            f"tables that {', '.join(repr(owner) for owner in strangers)} makes later, as a new "
            f"release may need, are closed to '{user}'",
            f"{inside.grant}  # as '{strangers[0]}'",
        )
    return ok(name, "tables to come can be used, too")
