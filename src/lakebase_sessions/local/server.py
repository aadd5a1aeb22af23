"""The PostgreSQL under a local Lakebase: embedded, or one that somebody else runs."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakebase_sessions.errors import LocalLakebaseError

if TYPE_CHECKING:
    from lakebase_sessions.local.admin import Admin
    from lakebase_sessions.local.databases import Databases
    from lakebase_sessions.local.identities import Identities
    from lakebase_sessions.local.postgres import EmbeddedPostgres
    from lakebase_sessions.local.radius import RadiusServer
    from lakebase_sessions.local.roles import Roles
    from lakebase_sessions.local.tokens import Tokens


@dataclass
class Server:
    """A server that runs, from `embedded()` or `given()` to `stop()`."""

    host: str
    """What a client passes to libpq as host; the port is 5432."""
    version: int
    admin: Admin
    roles: Roles
    tokens: Tokens
    databases: Databases
    postgres: EmbeddedPostgres | None = None
    """The process, if it is ours."""
    radius: RadiusServer | None = None

    @property
    def running(self) -> bool:
        """Whether it lives, as far as can be told: of somebody else's server that is assumed."""
        return self.postgres is None or self.postgres.running

    def stop(self) -> None:
        """Stop it, or leave it without what was made here."""
        if self.postgres is not None:
            self.postgres.stop()
            if self.radius is not None:
                self.radius.stop()
            return
        import psycopg  # noqa: PLC0415

        # The server may have gone first, and then so have its roles or the way to them.
        with contextlib.suppress(psycopg.Error):
            self.databases.leave()
            self.roles.drop_all()


def embedded(
    data: Path | None, identities: Identities, *, version: int, token_lifetime_seconds: float
) -> Server:
    """Start an embedded server; as for `LocalLakebase`."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    from lakebase_sessions.local.radius import RadiusServer  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            # pgserver warns where XDG_RUNTIME_DIR is not set; that folder is not used here.
            warnings.simplefilter("ignore")
            from lakebase_sessions.local.postgres import ADMIN_ROLE, EmbeddedPostgres  # noqa: PLC0415
    except ImportError as exc:
        raise LocalLakebaseError(
            f"A local Lakebase needs PostgreSQL ({exc}): pip install 'lakebase-sessions[local]'"
        ) from exc
    postgres = EmbeddedPostgres(data, version=version)
    try:
        postgres.start()
        host = str(postgres.socket_dir)
        dsn = make_conninfo(host=host, port=5432, user=ADMIN_ROLE, dbname="postgres")
        server = _server(
            dsn, host, version, identities, token_lifetime_seconds=token_lifetime_seconds
        )
    except BaseException:
        postgres.stop()
        raise
    radius = RadiusServer(server.tokens.accepts)
    server.postgres, server.radius = postgres, radius
    server.tokens.check_elsewhere = lambda users: postgres.check_by_radius(
        users, port=radius.port, secret=radius.secret
    )
    return server


def given(dsn: str, identities: Identities, *, token_lifetime_seconds: float) -> Server:
    """Use a server that already runs; as for `LocalLakebase`."""
    from lakebase_sessions.local.admin import Admin  # noqa: PLC0415

    host, port, version = Admin(dsn).inspect()
    if port != 5432:
        raise LocalLakebaseError(
            f"The PostgreSQL of the given DSN listens on port {port}, but databricks-ai-bridge "
            "always connects to port 5432. Give it that port, on another address if 5432 is "
            "taken on this one (for a container: -p 127.0.0.2:5432:5432)."
        )
    return _server(dsn, host, version, identities, token_lifetime_seconds=token_lifetime_seconds)


def _server(
    dsn: str, host: str, version: int, identities: Identities, *, token_lifetime_seconds: float
) -> Server:
    from lakebase_sessions.local.admin import Admin  # noqa: PLC0415
    from lakebase_sessions.local.databases import Databases  # noqa: PLC0415
    from lakebase_sessions.local.roles import Roles  # noqa: PLC0415
    from lakebase_sessions.local.tokens import Tokens  # noqa: PLC0415

    admin = Admin(dsn)
    roles = Roles(admin)
    roles.set_up()
    tokens = Tokens(admin, identities, lifetime_seconds=token_lifetime_seconds)
    return Server(host, version, admin, roles, tokens, Databases(admin, roles))
