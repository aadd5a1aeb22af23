"""The roles of a local Lakebase, and what they may do."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import errors, sql

from lakebase_sessions.errors import LocalLakebaseError
from lakebase_sessions.local.admin import Admin, Connection, run
from lakebase_sessions.local.databricks_auth import CONTROL_PLANE, MARK, SUPERUSER
from lakebase_sessions.local.identities import check_name, id_of

if TYPE_CHECKING:
    from lakebase_sessions.local.identities import Kind

ATTRIBUTES = ("bypassrls", "createdb", "createrole")

_ROLES = f"""
SELECT rolname, substring(label FROM 'type=(.*)'), rolcanlogin, rolbypassrls, rolcreatedb,
       rolcreaterole, shobj_description(r.oid, 'pg_authid'),
       EXISTS (SELECT FROM pg_auth_members JOIN pg_roles s ON s.oid = roleid
               WHERE member = r.oid AND s.rolname = '{SUPERUSER}')
FROM pg_roles r LEFT JOIN pg_shseclabel l ON l.objoid = r.oid AND provider = 'databricks_auth'
WHERE NOT rolsuper AND rolname !~ '^pg_' AND rolname NOT IN ('{CONTROL_PLANE}', '{SUPERUSER}')
ORDER BY r.oid
"""  # noqa: S608 constants of ours


@dataclass(frozen=True)
class Role:
    """A role as Postgres has it."""

    name: str
    kind: Kind | None
    """Of the Databricks identity that it is for."""
    can_login: bool
    attributes: dict[str, bool]
    role_id: str
    superuser: bool
    """Whether it is a member of databricks_superuser."""


class Roles:
    """The roles of a server, and the permissions of those that were added.

    Args:
        admin: A superuser of the server.
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._lock = threading.RLock()
        self._users: dict[str, bool] = {}  # name -> may create
        self.databases: list[str] = []
        """Those that users are let in to."""

    def set_up(self) -> None:
        """Make the roles that every Lakebase has."""
        with self._admin.connect() as conn:
            for name in (SUPERUSER, CONTROL_PLANE):
                with contextlib.suppress(errors.DuplicateObject):
                    run(conn, "CREATE ROLE {} NOLOGIN", name)
                    run(conn, f"COMMENT ON ROLE {{}} IS '{MARK}'", name)
            run(conn, "GRANT pg_read_all_data, pg_write_all_data, pg_monitor TO {}", SUPERUSER)

    def let_in(self, conn: Connection, database: str) -> None:
        """Give all users their permissions on the connection's database; later new users, too."""
        with self._lock:
            for name, can_create in self._users.items():
                _grant(conn, database, name, can_create=can_create)
            if database not in self.databases:
                self.databases.append(database)

    def forget(self, database: str) -> None:
        """Give new users no permission on a database any more."""
        with self._lock:
            if database in self.databases:
                self.databases.remove(database)

    def add(self, name: str, kind: Kind, *, can_create: bool, can_manage: bool) -> None:
        """Create the role of an identity, or open it again, with its permissions everywhere."""
        check_name(name)
        with self._lock:
            with self._admin.connect() as conn:
                row = conn.execute(
                    "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s",
                    [name],
                ).fetchone()
                if row is None:
                    _create(conn, name, MARK)
                elif not (row[0] or "").startswith(MARK):
                    raise LocalLakebaseError(
                        f"The role {name!r} was not made by a local Lakebase. Its password would "
                        "have to be replaced; choose another user name."
                    )
                _let_log_in(conn, name, kind, id_of(name))
                _change(conn, name, dict.fromkeys(ATTRIBUTES, can_manage), superuser=can_manage)
            self._users[name] = can_create
            for database in self.databases:
                with self._admin.connect(database) as conn:
                    _grant(conn, database, name, can_create=can_create)

    def create(
        self,
        name: str,
        identity: tuple[Kind, str] | None,
        *,
        role_id: str | None,
        attributes: dict[str, bool],
        superuser: bool,
    ) -> None:
        """Create a role without permissions, as the platform's own calls do.

        Args:
            name: Its name.
            identity: Kind and id of the identity that logs in as it; None: nobody does.
            role_id: How the REST calls name it; None: by its name.
            attributes: What it has of `ATTRIBUTES`.
            superuser: Whether it is a member of databricks_superuser.

        Raises:
            psycopg.errors.DuplicateObject: There is a role of that name.
        """
        check_name(name)
        with self._admin.connect() as conn, conn.transaction():
            _create(conn, name, MARK if role_id is None else f"{MARK} as {role_id}")
            if identity is not None:
                _let_log_in(conn, name, *identity)
            _change(conn, name, attributes, superuser=superuser)

    def change(self, name: str, attributes: dict[str, bool], *, superuser: bool) -> None:
        """Change what a role has of `ATTRIBUTES`, and whether it is in databricks_superuser."""
        with self._admin.connect() as conn, conn.transaction():
            _change(conn, name, attributes, superuser=superuser)

    def all(self) -> list[Role]:
        """Return the roles, without those of the system, in the order in which they were made."""
        with self._admin.connect() as conn:
            rows = conn.execute(_ROLES).fetchall()
        roles: list[Role] = []
        for name, kind, can_login, bypassrls, createdb, createrole, comment, superuser in rows:
            attributes = {"bypassrls": bypassrls, "createdb": createdb, "createrole": createrole}
            _, _, role_id = (comment or "").partition(f"{MARK} as ")
            role_id = role_id or _role_id(name, {role.role_id for role in roles})
            roles.append(Role(name, kind, can_login, attributes, role_id, superuser))
        return roles

    def drop(self, name: str, *, reassign_to: str | None) -> None:
        """Drop a role, and with it the permissions that it has.

        Raises:
            psycopg.errors.DependentObjectsStillExist: It owns something, and `reassign_to` is None.
        """
        with self._lock:
            with self._admin.connect() as conn:
                owns = conn.execute(
                    "SELECT FROM pg_shdepend JOIN pg_roles r ON r.oid = refobjid "
                    "WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o' AND rolname = %s",
                    [name],
                ).fetchone()
                if owns is not None and reassign_to is None:
                    run(conn, "DROP ROLE {}", name)  # fails, and says what it owns
                databases = conn.execute(
                    "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"
                ).fetchall()
            for (database,) in databases:
                with self._admin.connect(database) as conn:
                    if reassign_to is not None:
                        run(conn, "REASSIGN OWNED BY {} TO {}", name, reassign_to)
                    run(conn, "DROP OWNED BY {}", name)  # nothing but permissions by now
            with self._admin.connect() as conn:
                run(conn, "DROP ROLE {}", name)
            self._users.pop(name, None)

    def drop_all(self) -> None:
        """Drop the roles that were made here.

        One that owns something (its tables, its database) stays, so that nobody's rows change
        hands, but without login or password; the next start takes it up again.
        """
        with self._lock:
            with self._admin.connect() as conn:
                rows = conn.execute(
                    "SELECT rolname FROM pg_roles WHERE starts_with("
                    "shobj_description(oid, 'pg_authid'), %s)",
                    [MARK],
                ).fetchall()
            for (name,) in rows:
                with self._admin.connect() as conn:
                    run(conn, "ALTER ROLE {} NOLOGIN PASSWORD NULL", name)
                for database in self.databases:
                    with self._admin.connect(database) as conn:
                        run(conn, "REVOKE ALL ON DATABASE {} FROM {}", database, name)
                        run(conn, "REVOKE ALL ON SCHEMA public FROM {}", name)
                with (
                    contextlib.suppress(errors.DependentObjectsStillExist),
                    self._admin.connect() as conn,
                ):
                    run(conn, "DROP ROLE {}", name)
            self._users.clear()


def _create(conn: Connection, name: str, comment: str) -> None:
    run(conn, "CREATE ROLE {}", name)
    statement = sql.SQL("COMMENT ON ROLE {} IS {}")
    conn.execute(statement.format(sql.Identifier(name), sql.Literal(comment)))


def _let_log_in(conn: Connection, name: str, kind: Kind, id_: str) -> None:
    """Make a role an identity's. A label says so, as on the platform."""
    run(conn, "ALTER ROLE {} LOGIN", name)
    conn.execute(
        "DELETE FROM pg_shseclabel l USING pg_roles r "
        "WHERE l.objoid = r.oid AND provider = 'databricks_auth' AND rolname = %s",
        [name],
    )
    conn.execute(
        "INSERT INTO pg_shseclabel (objoid, classoid, provider, label) "
        "SELECT oid, 'pg_authid'::regclass, 'databricks_auth', %s FROM pg_roles "
        "WHERE rolname = %s",
        [f"id={id_},type={kind}", name],
    )


def _change(conn: Connection, name: str, attributes: dict[str, bool], *, superuser: bool) -> None:
    for attribute, given in attributes.items():
        word = sql.SQL(attribute if given else f"no{attribute}")
        conn.execute(sql.SQL("ALTER ROLE {} {}").format(sql.Identifier(name), word))
    if superuser:
        # As on the platform: they have its permissions, and can neither become it nor give it.
        run(conn, "GRANT {} TO {} WITH INHERIT TRUE, SET FALSE", SUPERUSER, name)
    else:
        run(conn, "REVOKE {} FROM {}", SUPERUSER, name)


def _grant(conn: Connection, database: str, name: str, *, can_create: bool) -> None:
    """Give CAN_CONNECT_AND_CREATE, or leave a role with the right to connect and look."""
    if can_create:
        run(conn, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", database, name)
        run(conn, "GRANT USAGE, CREATE ON SCHEMA public TO {}", name)
    else:
        run(conn, "REVOKE CREATE, TEMPORARY ON DATABASE {} FROM {}", database, name)
        run(conn, "REVOKE CREATE ON SCHEMA public FROM {}", name)
        run(conn, "GRANT CONNECT ON DATABASE {} TO {}", database, name)
        run(conn, "GRANT USAGE ON SCHEMA public TO {}", name)


def _role_id(name: str, taken: set[str]) -> str:
    """Return an id for a role that was given none."""
    slug = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    base = slug if len(slug) >= 4 else f"role-{slug}"
    role_id, number = base, 1
    while role_id in taken:
        number += 1
        role_id = f"{base}-{number}"
    return role_id
