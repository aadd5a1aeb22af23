"""Grants: what one identity needs for sessions, given, taken back, and read again.

A GRANT by somebody who may not give it can succeed and do nothing. So what was done is never
believed: Postgres is asked again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from lakebase_sessions.access.objects import (
    NEEDED,
    REQUIRED,
    Object,
    Privileges,
    defaults,
    given,
    may_act_as,
    missing,
    needed,
    objects_in,
    role_exists,
    schema_of,
)
from lakebase_sessions.access.roles import Kind, kind_of, make_role
from lakebase_sessions.errors import PermissionDenied, TablesMissing
from lakebase_sessions.workspace.place import quoted

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Site
    from lakebase_sessions.postgres.connection import Connection

_DEFAULT_KINDS = {"TABLE": "r", "SEQUENCE": "S"}


def statement_of(on: Object, privileges: Iterable[str], role: str, *, revoke: bool = False) -> str:
    """The statement that gives privileges on an object to `role`, or takes them."""
    verb, to = ("REVOKE", "FROM") if revoke else ("GRANT", "TO")
    return f"{verb} {', '.join(privileges)} ON {on} {to} {quoted(role)};"


@dataclass(frozen=True, slots=True)
class _Statement:
    sql: str
    owner: str


@dataclass(slots=True)
class Change:
    """What a grant or its revocation has run, or would run.

    Attributes:
        identity: The role.
        role: How the role is made, if there is none.
        statements: In their order.
    """

    identity: str
    role: str = ""
    statements: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """All of it as SQL."""
        return ([self.role] if self.role else []) + self.statements


async def change_access(
    site: Site, identity: str, *, create: bool = False, revoke: bool = False, dry_run: bool = False
) -> Change:
    """Give `identity` what a session needs, or take it back.

    What is there already is left alone. The role itself stays on revocation.

    Args:
        site: The Lakebase, and who gives.
        identity: A user name, a service principal's client id, or a group's name.
        create: It may make the schema and the tables, too.
        revoke: Take back, instead.
        dry_run: Change nothing.

    Raises:
        TablesMissing: There is nothing yet to give a privilege on.
        PermissionDenied: It did not come to pass; names the owner and their statements.
        ConfigurationError: The workspace does not know the identity.
    """
    async with site.connection() as connection:
        schema = await schema_of(connection, site.settings.schema)
        objects = await objects_in(connection, schema)
        _check_tables(objects, schema, create=create or revoke)
        change = Change(identity)
        known = await role_exists(connection, identity)
        if not known and not revoke:
            kind: Kind = kind_of(identity)
            change.role = await make_role(connection, site, identity, kind, dry_run=dry_run)
            known = not dry_run
        statements = await _statements(
            connection, identity, objects, create=create, revoke=revoke, known=known
        )
        change.statements = [each.sql for each in statements]
        if not dry_run:
            refusals = [await _run(connection, each.sql) for each in statements]
            left = await _statements(
                connection, identity, objects, create=create, revoke=revoke, known=known
            )
            if left:
                raise _nothing_came_of_it(site.user, identity, left, refusals)
        return change


def _check_tables(objects: Sequence[Object], schema: str, *, create: bool) -> None:
    tables = {each.bare_name for each in objects if each.kind == "TABLE"}
    if not create and not tables.issuperset(REQUIRED):
        raise TablesMissing(
            f"Schema '{schema}' has no session tables to give a privilege on. Make them first: "
            f"`lakebase-sessions init --schema {schema}`; or, for an identity that is to make "
            "them, add --create."
        )


async def _statements(
    connection: Connection,
    role: str,
    objects: Sequence[Object],
    *,
    create: bool,
    revoke: bool,
    known: bool,
) -> list[_Statement]:
    """What is still to be run."""
    if revoke:
        if not known:
            return []
        todo: Privileges = await given(connection, role, needed(objects, create=True))
    else:
        wanted = needed(objects, create=create)
        todo = await missing(connection, role, wanted) if known else wanted
    statements = [
        _Statement(statement_of(each, privileges, role, revoke=revoke), each.owner)
        for each, privileges in todo.items()
    ]
    return statements + await _default_statements(
        connection, role, objects, revoke=revoke, known=known
    )


async def _default_statements(
    connection: Connection, role: str, objects: Sequence[Object], *, revoke: bool, known: bool
) -> list[_Statement]:
    """The same for tables that will be made by those who own the present ones."""
    schema = next((each for each in objects if each.kind == "SCHEMA"), None)
    if schema is None:
        return []
    held = await defaults(connection, role, schema) if known else set()
    statements = []
    for owner in sorted({each.owner for each in objects if each.kind == "TABLE"} - {role}):
        if not await may_act_as(connection, owner):
            continue  # theirs to give: the tables of today do not wait for it
        for kind, letter in _DEFAULT_KINDS.items():
            privileges = NEEDED[kind]  # type: ignore[index]
            has = {each for each in privileges if (owner, letter, each) in held}
            if has if revoke else set(privileges) - has:
                verb, to = ("REVOKE", "FROM") if revoke else ("GRANT", "TO")
                sql = (
                    f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(owner)} IN SCHEMA {schema.name} "
                    f"{verb} {', '.join(privileges)} ON {kind}S {to} {quoted(role)};"
                )
                statements.append(_Statement(sql, owner))
    return statements


async def _run(connection: Connection, sql: str) -> str:
    """Run a statement of ours; what Postgres has against it is said when it is asked again."""
    try:
        await connection.execute(sql.encode())
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error.diag.message_primary)
    return ""


def _nothing_came_of_it(
    user: str, role: str, left: Sequence[_Statement], refusals: Sequence[str]
) -> PermissionDenied:
    owners: dict[str, list[str]] = {}
    for each in left:
        owners.setdefault(each.owner, []).append(each.sql)
    theirs = " ".join(
        f"As '{owner}', who owns it: {' '.join(statements)}" for owner, statements in owners.items()
    )
    said = next((refusal for refusal in refusals if refusal), "")
    because = f" Postgres says: {said}." if said else ""
    return PermissionDenied(
        f"'{user}' may not do all of this for '{role}', and {len(left)} statements came to nothing."
        f"{because} They have to be run by the owner. {theirs}"
    )
