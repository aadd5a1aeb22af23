"""Logins to a local Lakebase: a token from its control plane, then Postgres."""

from __future__ import annotations

from typing import Any

import psycopg

from lakebase_sessions.local import DEFAULT_USER, LocalLakebase

DATABASE = "databricks_postgres"


def mint(local: LocalLakebase, user: str | None = None) -> str:
    """A database token of somebody's, by the real SDK."""
    credential = local.workspace_client(user).database.generate_database_credential(
        instance_names=["local"]
    )
    assert credential.token
    return credential.token


def login(
    local: LocalLakebase, token: str, user: str = DEFAULT_USER, database: str = DATABASE
) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection as upstream makes it: port and sslmode are fixed there."""
    return psycopg.connect(
        host=local.host, port=5432, sslmode="require", user=user, dbname=database, password=token
    )


def session(
    local: LocalLakebase, user: str, *, role: str | None = None, database: str = DATABASE
) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection of somebody's, in autocommit; as a group's role if one is named."""
    conn = login(local, mint(local, user), role or user, database)
    conn.autocommit = True
    return conn
