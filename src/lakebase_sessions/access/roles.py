"""Roles: the Postgres role of an identity, made as the platform at hand makes it."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Literal

import psycopg

from lakebase_sessions.access.objects import role_exists
from lakebase_sessions.errors import (
    LakebaseSessionsError,
    TargetNotFound,
    from_statement_error,
)

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Site
    from lakebase_sessions.postgres.connection import Connection

Kind = Literal["USER", "SERVICE_PRINCIPAL", "GROUP"]

_EXTENSION = "CREATE EXTENSION IF NOT EXISTS databricks_auth;"
_CREATE = "SELECT databricks_create_role({name}, '{kind}');"
_PARAMETER = "22"
"""The class of SQLSTATE for a value that cannot be: the workspace has no such identity."""


def kind_of(identity: str) -> Kind:
    """What `identity` is, by its name: an address, a client id, or else a group's name."""
    if "@" in identity:
        return "USER"
    try:
        uuid.UUID(identity)
    except ValueError:
        return "GROUP"
    return "SERVICE_PRINCIPAL"


async def make_role(
    connection: Connection, site: Site, identity: str, kind: Kind, *, dry_run: bool
) -> str:
    """Make the role of an identity, and return what makes it.

    In an autoscaling project that is a call of the SDK, which needs CAN MANAGE; in a provisioned
    instance it is SQL, which needs CREATEROLE and CREATE on the database.

    Raises:
        TargetNotFound: The workspace has no such identity.
        PermissionDenied: Who is logged in may not make roles.
    """
    if site.target.is_endpoint:
        branch = site.target.name.partition("/endpoints/")[0]
        if not dry_run:
            await asyncio.to_thread(site.workspace.create_role, branch, identity, kind)
        return f"-- postgres.create_role of the SDK: {kind} {identity} in {branch}"
    name = "'" + identity.replace("'", "''") + "'"
    create = _CREATE.format(name=name, kind=kind)
    if not dry_run:
        try:
            # Where extensions live, and not where the tables do: that may not exist yet.
            await connection.execute("SET search_path = public")
            await connection.execute(_EXTENSION.encode())
            await connection.execute(create.encode())
            await connection.execute("RESET search_path")
        except psycopg.Error as error:
            if not await _made_meanwhile(connection, identity):
                raise _refused(error, site, identity, kind) from error
    return f"{_EXTENSION} {create}"


async def _made_meanwhile(connection: Connection, identity: str) -> bool:
    return not connection.closed and await role_exists(connection, identity)


def _refused(error: psycopg.Error, site: Site, identity: str, kind: Kind) -> LakebaseSessionsError:
    if (error.sqlstate or "").startswith(_PARAMETER):
        return TargetNotFound(
            f"The workspace has no {kind} '{identity}'. It is a user name (with an @), a service "
            "principal's client id (a UUID), or a group's name."
        )
    return from_statement_error(error, site.target.name, broken=False, writing=False)
