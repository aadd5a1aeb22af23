"""Making the schema and the tables, for oneself or for a role that others share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from lakebase_sessions.access.objects import (
    REQUIRED,
    Object,
    Privileges,
    missing,
    objects_in,
    role_exists,
    schema_of,
)
from lakebase_sessions.access.roles import kind_of, make_role
from lakebase_sessions.errors import PermissionDenied, from_statement_error
from lakebase_sessions.postgres import tables
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakebase_sessions.access.site import Site
    from lakebase_sessions.postgres.connection import Connection


async def make_tables(site: Site, *, owner: str | None = None) -> list[Object]:
    """Make what is missing, and return what there is.

    Args:
        site: The Lakebase, and who asks.
        owner: The role that is to own schema and tables; None is who asks. Where there is no such
            role, it is made. Who asks has to be a member of it: in Postgres, or in the workspace,
            where the members of a group log in as the group.

    Raises:
        PermissionDenied: Somebody else has to do it; the message says who and what.
    """
    async with site.connection() as connection:
        if owner is None or owner == site.user:
            return await _make(connection, site)
        if not await role_exists(connection, owner):
            await make_role(connection, site, owner, kind_of(owner), dry_run=False)
        await _let_make(connection, site, owner)
        cursor = await connection.execute("SELECT pg_has_role(%s::name, 'SET')", [owner])
        row = await cursor.fetchone()
        if row and row[0]:
            await connection.execute(f"SET ROLE {quoted(owner)}".encode())
            found = await _make(connection, site)
            await connection.execute("RESET ROLE")
            return await _hand_over(connection, site, owner, found)
    try:
        async with site.connection(owner) as connection:
            return _all_of(owner, await _make(connection, site))
    except PermissionDenied as error:
        raise PermissionDenied(
            f"'{site.user}' cannot act as '{owner}': {error} Become a member of that group in the "
            f"workspace, or have one of its members run this."
        ) from error


async def _let_make(connection: Connection, site: Site, owner: str) -> None:
    """Let `owner` make the schema, or the tables in the one that there is."""
    schema = await schema_of(connection, site.settings.schema)
    objects = await objects_in(connection, schema)
    holders = [each for each in objects if each.kind == "SCHEMA"]
    wanted: Privileges = {objects[0]: ("CONNECT",) if holders else ("CONNECT", "CREATE")}
    wanted.update(dict.fromkeys(holders, ("USAGE", "CREATE")))
    for each, privileges in (await missing(connection, owner, wanted)).items():
        try:
            statement = f"GRANT {', '.join(privileges)} ON {each} TO {quoted(owner)}"
            await connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
    if left := await missing(connection, owner, wanted):
        each, privileges = next(iter(left.items()))
        raise PermissionDenied(
            f"'{owner}' may not make the tables, and '{site.user}' cannot let it. As "
            f"'{each.owner}', who owns it: GRANT {', '.join(privileges)} ON {each} TO "
            f"{quoted(owner)};"
        )


async def _make(connection: Connection, site: Site) -> list[Object]:
    """Make what is missing as whoever the connection is."""
    schema = await schema_of(connection, site.settings.schema)
    found = await objects_in(connection, schema)
    names = {each.bare_name for each in found}
    if not names.issuperset(REQUIRED + tables.OWN):
        has_schema = any(each.kind == "SCHEMA" for each in found)
        statement = tables.create(None if has_schema else quoted(schema))
        try:
            await connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            holder = next((each for each in found if each.kind == "SCHEMA"), found[0])
            raise PermissionDenied(
                f"'{connection.info.user}' may not make the tables: "
                f"{error.diag.message_primary}. As '{holder.owner}', who owns it: GRANT CREATE ON "
                f"{holder} TO {quoted(connection.info.user)};"
            ) from error
        except psycopg.Error as error:
            raise from_statement_error(
                error, site.target.name, broken=connection.closed, writing=False
            ) from error
        found = await objects_in(connection, schema)
    return found


async def _hand_over(
    connection: Connection, site: Site, owner: str, found: Sequence[Object]
) -> list[Object]:
    """Give tables to `owner` that were there before, as far as they are ours to give."""
    for each in found:
        if each.kind in ("SCHEMA", "TABLE") and each.owner == site.user:
            # A sequence goes with the table whose column owns it.
            await connection.execute(f"ALTER {each} OWNER TO {quoted(owner)}".encode())
    schema = await schema_of(connection, site.settings.schema)
    return _all_of(owner, await objects_in(connection, schema))


def _all_of(owner: str, found: list[Object]) -> list[Object]:
    others = [each for each in found if each.kind == "TABLE" and each.owner != owner]
    if others:
        statements = " ".join(f"ALTER {each} OWNER TO {quoted(owner)};" for each in others)
        whose = ", ".join(sorted({each.owner for each in others}))
        raise PermissionDenied(
            f"The tables belong to '{whose}' already, and who owns them has to hand them over. As "
            f"'{whose}', and a member of '{owner}': {statements}"
        )
    return found
