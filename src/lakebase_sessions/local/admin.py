"""A superuser's connections to the server under a local Lakebase.

Each is short: tests end sessions, drop databases and kill servers, and a connection that is kept
would have to survive all of that.
"""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

from lakebase_sessions.errors import LocalLakebaseError

OLDEST_VERSION = 16
"""Of PostgreSQL, as a Lakebase has it."""

Connection = psycopg.Connection[tuple[Any, ...]]


class Admin:
    """Where a superuser connects.

    Args:
        dsn: Conninfo of a superuser.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def connect(self, database: str | None = None) -> Connection:
        """Return a connection in autocommit, to the DSN's own database if none is named."""
        if database is None:
            return psycopg.connect(self.dsn, autocommit=True)
        return psycopg.connect(self.dsn, autocommit=True, dbname=database)

    def inspect(self) -> tuple[str, int, int]:
        """Return host, port and major version of the server.

        Raises:
            LocalLakebaseError: It cannot be reached, or not as a superuser, or is too old.
        """
        try:
            with self.connect() as conn:
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
        if found[2] < OLDEST_VERSION:
            raise LocalLakebaseError(
                f"The PostgreSQL of the given DSN has version {found[2]}; a Lakebase has "
                f"{OLDEST_VERSION} or a later one."
            )
        return found


def run(conn: Connection, text: LiteralString, *names: str) -> None:
    """Execute a statement with `names` quoted in the places of its braces."""
    conn.execute(sql.SQL(text).format(*map(sql.Identifier, names)))
