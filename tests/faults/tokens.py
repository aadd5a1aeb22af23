"""What may happen to the tokens and logins of a local Lakebase."""

from __future__ import annotations

from conftest import admin

from lakebase_sessions.local import DEFAULT_USER, LocalLakebase


def drop_connections(local: LocalLakebase, database: str) -> None:
    """As when a Lakebase scales to zero: whoever goes on has to log in anew."""
    with admin(local, "postgres") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [database],
        )


def end_token(local: LocalLakebase, user: str = DEFAULT_USER) -> None:
    """The token that a user was given dies before its time, and the next one is another."""
    local._started_server().tokens._tokens.pop(user, None)
    local._started_server().tokens.mint(user)


def mints(local: LocalLakebase) -> int:
    """How often a token was asked for."""
    return sum(call.path.endswith("/credentials") for call in local.requests)
