"""The databases of a local Lakebase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakebase_sessions.local import databricks_auth
from lakebase_sessions.local.admin import Admin, run
from lakebase_sessions.local.identities import check_name

if TYPE_CHECKING:
    from lakebase_sessions.local.roles import Roles


class Databases:
    """The databases that are used here, with every user let in.

    Args:
        admin: A superuser of the server.
        roles: The roles of the server.
    """

    def __init__(self, admin: Admin, roles: Roles) -> None:
        self._admin = admin
        self._roles = roles

    def adopt(self, name: str, *, owner: str) -> None:
        """Use the database `name`, and create it for `owner` if it is missing."""
        check_name(name)
        with self._admin.connect() as conn:
            found = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
        if found is None:
            self.create(name, owner=owner)
        else:
            self._use(name)

    def adopt_all(self) -> None:
        """Use all databases of the server, for a server that is ours alone."""
        with self._admin.connect() as conn:
            rows = conn.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
            ).fetchall()
        for (name,) in rows:
            self._use(name)

    def create(self, name: str, *, owner: str, template: str | None = None) -> None:
        """Create a database that `owner` owns and every user may use."""
        check_name(name)
        with self._admin.connect() as conn:
            if template is None:
                run(conn, "CREATE DATABASE {} OWNER {}", name, owner)
            else:
                run(conn, "CREATE DATABASE {} OWNER {} TEMPLATE {}", name, owner, template)
            # As on the platform, a permission is needed even to connect.
            run(conn, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
        self._use(name, is_new=True)

    def drop(self, name: str) -> None:
        """Drop a database, ending its sessions. One that is not there is fine."""
        self._roles.forget(name)
        with self._admin.connect() as conn:
            run(conn, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _use(self, name: str, *, is_new: bool = False) -> None:
        with self._admin.connect(name) as conn:
            if is_new:
                run(conn, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            databricks_auth.offer(conn)
            self._roles.let_in(conn, name)

    def leave(self) -> None:
        """Leave nothing of ours in the databases of a server that is somebody else's."""
        for name in self._roles.databases:
            with self._admin.connect(name) as conn:
                databricks_auth.remove(conn)
