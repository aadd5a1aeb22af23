"""Making the indexes on tables that are in use: nobody who writes waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg

from lakebase_sessions.errors import from_statement_error
from lakebase_sessions.postgres import indexes
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Site
    from lakebase_sessions.postgres.connection import Connection

_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
_OWNER = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(%s)"


@dataclass(frozen=True, slots=True)
class Made:
    """An index, and what became of it: of somebody else's tables none can be made."""

    index: indexes.Index
    state: Literal["made", "there", "not owned"]
    owner: str


async def make_indexes(site: Site, *, search: bool = False, owner: str | None = None) -> list[Made]:
    """Make the indexes that are missing, CONCURRENTLY; on a large table that takes minutes.

    Args:
        site: The Lakebase, and who asks.
        search: Also the one that leads to what was said.
        owner: The role that owns the tables, as for `make_tables`, which has been there before.

    Raises:
        LakebaseSessionsError: It was broken off; begun again, it does what is left.
    """
    if owner in (None, site.user):
        async with site.connection() as connection:
            return await _make_all(connection, site, search=search)
    async with site.connection() as connection:
        cursor = await connection.execute("SELECT pg_has_role(%s::name, 'SET')", [owner])
        row = await cursor.fetchone()
        if row and row[0]:
            await connection.execute(f"SET ROLE {quoted(str(owner))}".encode())
            return await _make_all(connection, site, search=search)
    async with site.connection(owner) as connection:  # as a member of a group in the workspace
        return await _make_all(connection, site, search=search)


async def _make_all(connection: Connection, site: Site, *, search: bool) -> list[Made]:
    # It waits for whoever has a transaction open, and reads every row.
    await connection.execute("SET statement_timeout = 0")
    await connection.execute("SET lock_timeout = 0")
    wanted = (*indexes.LISTING, *((indexes.SEARCH,) if search else ()))
    try:
        return [await _make(connection, index) for index in wanted]
    except psycopg.Error as error:
        raise from_statement_error(
            error, site.target.name, broken=connection.closed, writing=False
        ) from error


async def _make(connection: Connection, index: indexes.Index) -> Made:
    table = index.on.split()[0]
    row = await (await connection.execute(_OWNER, [table])).fetchone()
    owner = str(row[0]) if row else ""
    row = await (await connection.execute(_VALID, [index.name])).fetchone()
    if row and row[0]:
        return Made(index, "there", owner)
    try:
        if row:  # a making that was broken off has left it
            await connection.execute(f"DROP INDEX CONCURRENTLY {index.name}".encode())
        if index is indexes.SEARCH:
            await _make_function(connection)
        await connection.execute(index.create().encode())
    except psycopg.errors.InsufficientPrivilege:
        return Made(index, "not owned", owner)
    return Made(index, "made", owner)


async def _make_function(connection: Connection) -> None:
    cursor = await connection.execute(f"SELECT {indexes.STATE}".encode(), indexes.STATE_PARAMETERS)
    row = await cursor.fetchone()
    collation = row[0] if row else "default"
    await connection.execute(indexes.create_function(collation).encode())
