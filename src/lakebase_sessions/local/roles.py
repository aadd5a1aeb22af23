"""Roles, databases and database tokens: every SQL statement of a local Lakebase.

Each call makes a short superuser connection of its own: tests end sessions, drop databases and
kill servers, and a connection that is kept would have to survive all of that.
"""

from __future__ import annotations

import datetime as dt
import secrets
import threading
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from lakebase_sessions.errors import LocalLakebaseError

_MARK = "made by lakebase_sessions.local"
"""The comment on a role that may be altered here. Others belong to somebody else."""


class Roles:
    """The Postgres side of the users, on a server that `admin_dsn` reaches as superuser.

    Args:
        admin_dsn: Conninfo of a superuser.
        token_lifetime_seconds: How long Postgres takes a database token.
    """

    def __init__(self, admin_dsn: str, *, token_lifetime_seconds: float) -> None:
        self._admin_dsn = admin_dsn
        self._lifetime = dt.timedelta(seconds=token_lifetime_seconds)
        self._lock = threading.RLock()
        self._users: dict[str, bool] = {}  # name -> may create
        self._tokens: dict[str, tuple[str, dt.datetime]] = {}
        self._databases: list[str] = []

    def inspect(self) -> tuple[str, int, int]:
        """Return host, port and major version of the server.

        Raises:
            LocalLakebaseError: It cannot be reached, or not as a superuser.
        """
        try:
            with self._connect() as conn:
                row = conn.execute("SELECT current_setting('is_superuser')").fetchone()
                info = conn.info
                found = info.host, info.port, info.server_version // 10000
        except psycopg.OperationalError as exc:
            # Not the driver's text: it may quote the DSN.
            raise LocalLakebaseError(
                "The PostgreSQL of the given DSN cannot be reached or refuses the login. "
                "Try the same DSN with psql."
            ) from exc
        if row != ("on",):
            raise LocalLakebaseError("The user of the given DSN has to be a superuser.")
        return found

    # Databases

    def adopt_database(self, name: str, *, owner: str) -> None:
        """Use the database `name`, and create it for `owner` if it is missing."""
        _check_name(name)
        with self._connect() as conn:
            found = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
        if found is None:
            self.create_database(name, owner=owner)
        else:
            self._grant_all(name)

    def adopt_all_databases(self) -> None:
        """Use all databases of the server, for a server that is ours alone."""
        with self._connect() as conn:
            rows = conn.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
            ).fetchall()
        for (name,) in rows:
            self._grant_all(name)

    def create_database(self, name: str, *, owner: str, template: str | None = None) -> None:
        """Create a database that `owner` owns and every user may use."""
        _check_name(name)
        with self._connect() as conn:
            if template is None:
                _run(conn, "CREATE DATABASE {} OWNER {}", name, owner)
            else:
                _run(conn, "CREATE DATABASE {} OWNER {} TEMPLATE {}", name, owner, template)
            # As on the platform, a permission is needed even to connect.
            _run(conn, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
        with self._connect(name) as conn:
            _run(conn, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        self._grant_all(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its sessions. One that is not there is fine."""
        with self._lock:
            if name in self._databases:
                self._databases.remove(name)
        with self._connect() as conn:
            _run(conn, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _grant_all(self, database: str) -> None:
        with self._lock, self._connect(database) as conn:
            for name, can_create in self._users.items():
                _grant(conn, database, name, can_create=can_create)
            if database not in self._databases:
                self._databases.append(database)

    # Roles

    def add(self, name: str, *, can_create: bool) -> None:
        """Create the role of a user, or open it again, with its permissions everywhere."""
        _check_name(name)
        with self._lock:
            with self._connect() as conn:
                row = conn.execute(
                    "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s",
                    [name],
                ).fetchone()
                if row is None:
                    _run(conn, "CREATE ROLE {} LOGIN", name)
                    _run(conn, f"COMMENT ON ROLE {{}} IS '{_MARK}'", name)
                elif row == (_MARK,):
                    _run(conn, "ALTER ROLE {} LOGIN", name)
                else:
                    raise LocalLakebaseError(
                        f"The role {name!r} was not made by a local Lakebase. Its password would "
                        "have to be replaced; choose another user name."
                    )
            self._users[name] = can_create
            for database in self._databases:
                with self._connect(database) as conn:
                    _grant(conn, database, name, can_create=can_create)

    def revoke(self, name: str) -> None:
        """End the token of a role and its right to log in. Open sessions go on."""
        with self._lock, self._connect() as conn:
            self._tokens.pop(name, None)
            _run(conn, "ALTER ROLE {} NOLOGIN PASSWORD NULL", name)

    def drop_all(self) -> None:
        """Drop the roles that were added.

        One that owns something (its tables, its database) stays, so that nobody's rows change
        hands, but without login or password; the next start takes it up again.
        """
        with self._lock:
            for name in self._users:
                self.revoke(name)
                for database in self._databases:
                    with self._connect(database) as conn:
                        _run(conn, "REVOKE ALL ON DATABASE {} FROM {}", database, name)
                        _run(conn, "REVOKE ALL ON SCHEMA public FROM {}", name)
                try:
                    with self._connect() as conn:
                        _run(conn, "DROP ROLE {}", name)
                except psycopg.errors.DependentObjectsStillExist:
                    continue
            self._users.clear()

    # Tokens

    def mint(self, name: str) -> tuple[str, dt.datetime]:
        """Return a token that logs the role in, and when it expires.

        A Postgres role has one password, so one token is valid at a time. Callers share it
        while more than half of its life is left; after that a new one ends the old one.
        """
        with self._lock:
            now = dt.datetime.now(dt.UTC)
            known = self._tokens.get(name)
            if known is not None and known[1] - now > self._lifetime / 2:
                return known
            # Three url-safe parts, as a JWT has them; nothing is encoded in it.
            token = ".".join(["eyJ" + secrets.token_urlsafe(24), *_random_parts()])
            expires = now + self._lifetime
            with self._connect() as conn:
                # Only the SCRAM verifier goes to the server, so that no log can hold the token.
                verifier = conn.pgconn.encrypt_password(
                    token.encode(), name.encode(), b"scram-sha-256"
                )
                conn.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {} VALID UNTIL {}").format(
                        sql.Identifier(name),
                        sql.Literal(verifier.decode()),
                        sql.Literal(expires.isoformat()),
                    )
                )
            self._tokens[name] = token, expires
            return token, expires

    def _connect(self, database: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        if database is None:
            return psycopg.connect(self._admin_dsn, autocommit=True)
        return psycopg.connect(self._admin_dsn, autocommit=True, dbname=database)


def _check_name(name: str) -> None:
    # Postgres would cut a longer name short, and two of them could become one.
    if not name or "\0" in name or len(name.encode(errors="replace")) > 63:
        raise LocalLakebaseError(
            f"{name!r} cannot be a user or a database: a name in Postgres has 1 to 63 bytes."
        )


def _random_parts() -> tuple[str, str]:
    return secrets.token_urlsafe(24), secrets.token_urlsafe(16)


def _run(conn: psycopg.Connection[tuple[Any, ...]], text: LiteralString, *names: str) -> None:
    """Execute a statement with `names` quoted in the places of its braces."""
    conn.execute(sql.SQL(text).format(*map(sql.Identifier, names)))


def _grant(
    conn: psycopg.Connection[tuple[Any, ...]], database: str, name: str, *, can_create: bool
) -> None:
    """Give CAN_CONNECT_AND_CREATE, or leave a role with the right to connect and look."""
    if can_create:
        _run(conn, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", database, name)
        _run(conn, "GRANT USAGE, CREATE ON SCHEMA public TO {}", name)
    else:
        _run(conn, "REVOKE CREATE, TEMPORARY ON DATABASE {} FROM {}", database, name)
        _run(conn, "REVOKE CREATE ON SCHEMA public FROM {}", name)
        _run(conn, "GRANT CONNECT ON DATABASE {} TO {}", database, name)
        _run(conn, "GRANT USAGE ON SCHEMA public TO {}", name)
