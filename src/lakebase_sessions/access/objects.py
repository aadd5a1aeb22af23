"""Objects: what a session uses in Postgres, who owns it, and who may use it.

Postgres is asked, and nothing is tried: `has_*_privilege` knows of groups, of PUBLIC and of owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lakebase_sessions.postgres.tables import UPSTREAMS

if TYPE_CHECKING:
    from lakebase_sessions.postgres.connection import Connection

Kind = Literal["DATABASE", "SCHEMA", "TABLE", "SEQUENCE"]

REQUIRED = UPSTREAMS
TABLES = r"agent\_%"
"""All tables of this package, those of later releases too: a pattern for LIKE."""

NEEDED: dict[Kind, tuple[str, ...]] = {
    "DATABASE": ("CONNECT",),
    "SCHEMA": ("USAGE",),
    "TABLE": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "SEQUENCE": ("USAGE",),
}
"""What a session needs of each."""

_OBJECTS = """
WITH tables AS (
    SELECT c.oid, c.relname, c.relowner, n.nspname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND c.relname LIKE %(tables)s
)
SELECT 1, 'DATABASE', oid, quote_ident(datname), pg_get_userbyid(datdba)
FROM pg_database WHERE datname = current_database()
UNION ALL
SELECT 2, 'SCHEMA', oid, quote_ident(nspname), pg_get_userbyid(nspowner)
FROM pg_namespace WHERE nspname = %(schema)s
UNION ALL
SELECT 3, 'TABLE', oid, format('%%I.%%I', nspname, relname), pg_get_userbyid(relowner)
FROM tables
UNION ALL
SELECT DISTINCT 4, 'SEQUENCE', s.oid, format('%%I.%%I', n.nspname, s.relname),
    pg_get_userbyid(s.relowner)
FROM tables
JOIN pg_attrdef a ON a.adrelid = tables.oid
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid
    AND d.refclassid = 'pg_class'::regclass
JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace n ON n.oid = s.relnamespace
ORDER BY 1, 4
"""
"""Read from the catalog, which needs no privilege. A sequence is one that a column's default uses,
whether the column owns it or not."""

_ASK = """
SELECT CASE kind
    WHEN 'DATABASE' THEN has_database_privilege(%(role)s::name, id, privilege)
    WHEN 'SCHEMA' THEN has_schema_privilege(%(role)s::name, id, privilege)
    WHEN 'TABLE' THEN has_table_privilege(%(role)s::name, id, privilege)
    WHEN 'SEQUENCE' THEN has_sequence_privilege(%(role)s::name, id, privilege)
END
FROM unnest(%(kinds)s::text[], %(ids)s::oid[], %(privileges)s::text[])
    WITH ORDINALITY AS asked (kind, id, privilege, position)
ORDER BY position
"""

_DIRECT = """
WITH acls AS (
    SELECT oid, datacl AS acl FROM pg_database
    UNION ALL SELECT oid, nspacl FROM pg_namespace
    UNION ALL SELECT oid, relacl FROM pg_class
)
SELECT oid, privilege_type FROM acls, aclexplode(acl)
WHERE oid = ANY (%(ids)s::oid[])
    AND grantee = (SELECT oid FROM pg_roles WHERE rolname = %(role)s)
"""

_DEFAULTS = """
SELECT pg_get_userbyid(defaclrole), defaclobjtype::text, privilege_type
FROM pg_default_acl, aclexplode(defaclacl)
WHERE defaclnamespace IN (0, %(schema)s)
    AND grantee IN (0, (SELECT oid FROM pg_roles WHERE rolname = %(role)s))
"""


@dataclass(frozen=True, slots=True)
class Object:
    """A database, a schema, a table or a sequence.

    Attributes:
        id: Its oid.
        name: As SQL names it, quoted where it has to be.
    """

    kind: Kind
    id: int
    name: str
    owner: str

    @property
    def bare_name(self) -> str:
        """A table's name without its schema."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Privileges = dict[Object, tuple[str, ...]]


async def objects_in(connection: Connection, schema: str) -> list[Object]:
    """The database, the schema, its tables of ours and their sequences, as far as they exist."""
    cursor = await connection.execute(_OBJECTS, {"schema": schema, "tables": TABLES})
    return [Object(*row[1:]) for row in await cursor.fetchall()]


def needed(objects: Sequence[Object], *, create: bool = False) -> Privileges:
    """What a session needs of `objects`.

    Args:
        objects: What there is.
        create: It is to make the schema and the tables, too.
    """
    more = ("CREATE",) if create else ()
    return {
        each: NEEDED[each.kind] + (more if each.kind in ("DATABASE", "SCHEMA") else ())
        for each in objects
    }


async def missing(connection: Connection, role: str, wanted: Privileges) -> Privileges:
    """Those of `wanted` that `role`, which must exist, has in no way."""
    asked = [(each, privilege) for each, privileges in wanted.items() for privilege in privileges]
    cursor = await connection.execute(
        _ASK,
        {
            "role": role,
            "kinds": [each.kind for each, _ in asked],
            "ids": [each.id for each, _ in asked],
            "privileges": [privilege for _, privilege in asked],
        },
    )
    answers = [row[0] for row in await cursor.fetchall()]
    lacking: dict[Object, list[str]] = {}
    for (each, privilege), has in zip(asked, answers, strict=True):
        if not has:
            lacking.setdefault(each, []).append(privilege)
    return {each: tuple(privileges) for each, privileges in lacking.items()}


async def given(connection: Connection, role: str, wanted: Privileges) -> Privileges:
    """Those of `wanted` that were granted to `role` by name; an owner's own are not."""
    cursor = await connection.execute(_DIRECT, {"role": role, "ids": [each.id for each in wanted]})
    held = set(await cursor.fetchall())
    found: Privileges = {}
    for each, privileges in wanted.items():
        mine = tuple(privilege for privilege in privileges if (each.id, privilege) in held)
        if mine and each.owner != role:
            found[each] = mine
    return found


async def defaults(connection: Connection, role: str, schema: Object) -> set[tuple[str, str, str]]:
    """What `role` may do with what is made later: (who makes it, `r` or `S`, privilege)."""
    parameters: dict[str, Any] = {"role": role, "schema": schema.id}
    cursor = await connection.execute(_DEFAULTS, parameters)
    return set(await cursor.fetchall())


async def role_exists(connection: Connection, role: str) -> bool:
    """Whether Postgres knows `role`."""
    cursor = await connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
    return await cursor.fetchone() is not None


async def may_act_as(connection: Connection, role: str) -> bool:
    """Whether who is logged in is `role`, or a member of it."""
    cursor = await connection.execute("SELECT pg_has_role(%s::name, 'MEMBER')", [role])
    row = await cursor.fetchone()
    return row is not None and row[0] is True


async def schema_of(connection: Connection, named: str | None) -> str:
    """The schema of the tables: the one that was named, else the role's default."""
    if named is not None:
        return named
    cursor = await connection.execute("SELECT coalesce(current_schema(), 'public')")
    row = await cursor.fetchone()
    return str(row[0]) if row else "public"
