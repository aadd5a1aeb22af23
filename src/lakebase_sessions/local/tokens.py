"""Database tokens: minted here, checked by Postgres."""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from psycopg import errors, sql

from lakebase_sessions.local.admin import Admin, Connection, run
from lakebase_sessions.local.databricks_auth import CONTROL_PLANE, MARK
from lakebase_sessions.local.identities import EVERYBODY

if TYPE_CHECKING:
    from lakebase_sessions.local.identities import Identities

CheckElsewhere = Callable[[Collection[str]], None]


class Tokens:
    """The tokens of the identities, on a server.

    Args:
        admin: A superuser of the server.
        identities: Who is in the workspace.
        lifetime_seconds: How long Postgres takes a token.
    """

    def __init__(self, admin: Admin, identities: Identities, *, lifetime_seconds: float) -> None:
        self._admin = admin
        self._identities = identities
        self._lifetime = dt.timedelta(seconds=lifetime_seconds)
        self._lock = threading.RLock()
        self._tokens: dict[str, tuple[str, dt.datetime]] = {}
        self._passwords: dict[str, str] = {}  # role -> the token that is its password
        self._without_role: set[str] = set()
        self.check_elsewhere: CheckElsewhere | None = None
        """Has the server ask `accepts` about these users, who have no role with a password; takes
        effect when it reloads its configuration. None where that cannot be done."""

    def mint(self, name: str) -> tuple[str, dt.datetime]:
        """Return a token that logs an identity in, and when it expires.

        A Postgres role has one password, so one token is valid at a time. Callers share it
        while more than half of its life is left; after that a new one ends the old one. The role
        of a group takes the token of the member who asked last.
        """
        with self._lock:
            now = dt.datetime.now(dt.UTC)
            known = self._tokens.get(name)
            if known is None or known[1] - now <= self._lifetime / 2:
                # Three url-safe parts, as a JWT has them; nothing is encoded in it.
                parts = (secrets.token_urlsafe(length) for length in (24, 24, 16))
                known = self._tokens[name] = f"eyJ{'.'.join(parts)}", now + self._lifetime
            groups = self._identities.groups_of(name)
            roles = [name, *(g for g in groups if g != EVERYBODY or g in self._passwords)]
            if any(self._passwords.get(role) != known[0] for role in roles):
                self._make_password([name, *groups], *known)
            return known

    def _make_password(self, roles: list[str], token: str, expires: dt.datetime) -> None:
        """Make a token the password of those of the roles that are there and are an identity's."""
        with self._admin.connect() as conn:
            rows = conn.execute(
                "SELECT rolname FROM pg_roles r JOIN pg_shseclabel l ON l.objoid = r.oid "
                "WHERE provider = 'databricks_auth' AND rolcanlogin AND rolname = ANY(%s)",
                [roles],
            ).fetchall()
            for (role,) in rows:
                # Only the SCRAM verifier goes to the server, so that no log can hold the token.
                verifier = conn.pgconn.encrypt_password(
                    token.encode(), role.encode(), b"scram-sha-256"
                )
                conn.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {} VALID UNTIL {}").format(
                        sql.Identifier(role),
                        sql.Literal(verifier.decode()),
                        sql.Literal(expires.isoformat()),
                    )
                )
                self._passwords[role] = token
        self._check_elsewhere(self._without_role - set(self._passwords))

    def accepts(self, user: str, token: str) -> bool:
        """Return whether a token logs in a user who has no role with a password.

        Without a role Postgres refuses the login after that, in its own words; a role that was
        made after the token gets it as its password with the next one.
        """
        known, expires = self._tokens.get(user, ("", dt.datetime.now(dt.UTC)))
        if not hmac.compare_digest(known.encode(), token.encode()):
            return False
        with self._admin.connect() as conn:
            row = conn.execute(
                "SELECT EXISTS (SELECT FROM pg_shseclabel WHERE objoid = r.oid "
                "AND provider = 'databricks_auth') FROM pg_roles r WHERE rolname = %s",
                [user],
            ).fetchone()
        return expires > dt.datetime.now(dt.UTC) and row in (None, (True,))

    def revoke(self, name: str) -> None:
        """End the token of an identity and its right to log in. Open sessions go on."""
        with self._lock, self._admin.connect() as conn:
            token, _ = self._tokens.pop(name, ("", None))
            with contextlib.suppress(errors.UndefinedObject):
                run(conn, "ALTER ROLE {} NOLOGIN PASSWORD NULL", name)
            for role in [role for role, known in self._passwords.items() if known == token]:
                self._take_password(conn, role)

    def check_members(self, group: str) -> None:
        """End a login as a group with the token of somebody who is no longer in it."""
        with self._lock:
            token = self._passwords.get(group)
            owners = [name for name, (known, _) in self._tokens.items() if known == token]
            if token and not any(group in self._identities.groups_of(name) for name in owners):
                with self._admin.connect() as conn:
                    self._take_password(conn, group)

    def _take_password(self, conn: Connection, role: str) -> None:
        with contextlib.suppress(errors.UndefinedObject):
            run(conn, "ALTER ROLE {} PASSWORD NULL", role)
        self._passwords.pop(role, None)

    def publish(self) -> None:
        """Let Postgres know who is in the workspace, after that or the roles have changed."""
        everybody = self._identities.everybody()
        people = [name for name, (kind, _) in everybody.items() if kind != "GROUP"]
        with self._lock:
            with self._admin.connect() as conn:
                # A comment on a role is seen from every database.
                statement = sql.SQL("COMMENT ON ROLE {} IS {}").format(
                    sql.Identifier(CONTROL_PLANE), sql.Literal(MARK + json.dumps(everybody))
                )
                conn.execute(statement)
                rows = conn.execute("SELECT rolname FROM pg_roles").fetchall()
            roles = {name for (name,) in rows}
            for gone in set(self._passwords) - roles:
                del self._passwords[gone]
            for new in self._without_role & roles & set(self._tokens):
                self._make_password([new], *self._tokens[new])
            self._check_elsewhere(set(people) - roles)

    def _check_elsewhere(self, names: set[str]) -> None:
        if self.check_elsewhere is None or names == self._without_role:
            return
        self.check_elsewhere(names)
        with self._admin.connect() as conn:
            before = conn.execute("SELECT pg_conf_load_time(), pg_reload_conf()").fetchone()
        while True:
            with self._admin.connect() as conn:  # a new one knows what the server knows by now
                now = conn.execute("SELECT pg_conf_load_time()").fetchone()
            if before and now and now[0] > before[0]:
                break
            time.sleep(0.005)
        self._without_role = names
