"""Environment -> Settings: which variables count, in which order, and who was overruled."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from lakebase_sessions.errors import ConfigurationError, MissingConfiguration
from lakebase_sessions.workspace.target import same_host

ENDPOINT = "LAKEBASE_AUTOSCALING_ENDPOINT"
PROJECT = "LAKEBASE_AUTOSCALING_PROJECT"
BRANCH = "LAKEBASE_AUTOSCALING_BRANCH"
INSTANCE = "LAKEBASE_INSTANCE_NAME"
SCHEMA = "LAKEBASE_AGENT_MEMORY_SCHEMA"
PG_HOST = "PGHOST"
PG_DATABASE = "PGDATABASE"
SSL_MODE = "PGSSLMODE"

DEFAULT_DATABASE = "databricks_postgres"

SSL_MODES = ("require", "verify-ca", "verify-full")
"""libpq's modes that never fall back to plain text. The first is the default."""

_MISSING = (
    f"{INSTANCE} environment variable is required, and it is not set. Set it in .env or in the "
    "app's configuration to an instance name, a hostname or a resource path. Other ways that "
    f"count: {ENDPOINT}; {PROJECT} with {BRANCH}; {PG_HOST}, which Databricks Apps set for a "
    "database resource; or Lakebase('<name>') in code. Without a workspace, "
    "`lakebase-sessions local` runs a Lakebase on this machine."
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What was configured, before anything is looked up.

    Attributes:
        target: Which Lakebase, in any form the platform hands out; not yet checked.
        source: Where `target` comes from: `"argument"` or the name of a variable.
        schema: The Postgres schema of the tables; None is the role's default (public).
        pg_host: `PGHOST`; if this turns out to be the target's host, `pg_database` counts.
        pg_database: `PGDATABASE`, as Databricks Apps set it beside `PGHOST`.
        ignored: Variables that name a Lakebase too, but come later in the order.
        ssl_mode: libpq's `sslmode`: `"require"`, `"verify-ca"` or `"verify-full"`.
    """

    target: str = field(repr=False)  # a connection string may hold a password
    source: str = "argument"
    schema: str | None = None
    pg_host: str | None = None
    pg_database: str | None = None
    ignored: tuple[str, ...] = ()
    ssl_mode: str = SSL_MODES[0]

    @classmethod
    def from_environ(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
        schema: str | None = None,
        ssl_mode: str | None = None,
    ) -> Settings:
        """Read the environment; arguments come first.

        The order for the target: `target`, `LAKEBASE_AUTOSCALING_ENDPOINT`,
        `LAKEBASE_AUTOSCALING_PROJECT` with `LAKEBASE_AUTOSCALING_BRANCH`,
        `LAKEBASE_INSTANCE_NAME`, `PGHOST`. A blank is unset.

        Args:
            environ: The variables; `os.environ` if None.
            target: An instance name, a hostname or a resource path.
            schema: A Postgres schema, instead of `LAKEBASE_AGENT_MEMORY_SCHEMA`.
            ssl_mode: What `ssl_mode_in` found in a target that is no longer whole.

        Raises:
            MissingConfiguration: Nothing says which Lakebase is meant.
            ConfigurationError: Half a pair is set, the schema or the database cannot be a name,
                or the `sslmode` would allow plain text.
        """
        environ = os.environ if environ is None else environ

        def read(name: str) -> str | None:
            return environ.get(name, "").strip() or None

        candidates = {
            "argument": target.strip() if target is not None else None,
            ENDPOINT: read(ENDPOINT),
            BRANCH: read(BRANCH),
            PROJECT: read(PROJECT),
            INSTANCE: read(INSTANCE),
            PG_HOST: read(PG_HOST),
        }
        named = {source: value for source, value in candidates.items() if value}
        if not named:
            raise MissingConfiguration(_MISSING)
        source, chosen = next(iter(named.items()))
        used = {source}
        if source in (BRANCH, PROJECT):
            chosen = _branch_path(named.get(PROJECT), named.get(BRANCH))
            used = {BRANCH, PROJECT}
        return cls(
            target=chosen,
            source=source,
            schema=check_schema(schema if schema is not None else read(SCHEMA)),
            pg_host=read(PG_HOST),
            pg_database=check_database(read(PG_DATABASE)),
            ignored=tuple(name for name in named if name not in used),
            ssl_mode=ssl_mode
            or ssl_mode_in(chosen)
            or check_ssl_mode(read(SSL_MODE), SSL_MODE)
            or SSL_MODES[0],
        )


def database_at(host: str, settings: Settings, named: str | None) -> str:
    """The database on `host`: the one that was named, or the one that belongs to `PGHOST`."""
    if named:
        return named
    injected = settings.pg_host is not None and same_host(settings.pg_host, host)
    return (settings.pg_database if injected else None) or DEFAULT_DATABASE


def _branch_path(project: str | None, branch: str | None) -> str:
    """One resource path from the two variables, each of them a bare id or a path."""
    if branch is None:
        raise ConfigurationError(
            f"{PROJECT} is set, {BRANCH} is not: set both, or {ENDPOINT} or {INSTANCE} instead."
        )
    if branch.startswith("projects/"):
        if project is not None and branch.split("/")[1] != project.removeprefix("projects/"):
            raise ConfigurationError(
                f"{BRANCH} is a path into another project than {PROJECT} names: remove {PROJECT}."
            )
        return branch
    if project is None:
        raise ConfigurationError(
            f"{BRANCH} is set, {PROJECT} is not: set both, or give {BRANCH} as "
            "projects/<project>/branches/<branch>."
        )
    project_id, branch_id = project.removeprefix("projects/"), branch.removeprefix("branches/")
    return f"projects/{project_id}/branches/{branch_id}"


def check_schema(schema: str | None) -> str | None:
    """`schema` if Postgres can have a schema of that name.

    Raises:
        ConfigurationError: It cannot be a name, or Postgres keeps it for itself.
    """
    if schema is None:
        return None
    # Even in quotes, a search path takes $user for the schema that is named like the role.
    if not _is_name(schema) or schema == "$user" or schema.startswith("pg_"):
        raise ConfigurationError(
            f"The schema {schema[:40]!a} is not a name that Postgres can keep: 1 to 63 bytes, "
            f"printable, not $user, not pg_*. It comes from {SCHEMA} or `schema=`."
        )
    return schema


def check_database(database: str | None) -> str | None:
    """`database` if Postgres can have a database of that name.

    Raises:
        ConfigurationError: It cannot be a name.
    """
    if database is not None and not _is_name(database):
        raise ConfigurationError(
            f"The database {database[:40]!a} is not a name that Postgres can keep: 1 to 63 bytes, "
            f"printable. It comes from {PG_DATABASE} or `database=`."
        )
    return database


def _is_name(text: str) -> bool:
    # Postgres cuts longer names off silently, and two of them become one. libpq ends at a NUL,
    # and whatever it was told behind the name, such as sslmode, is lost.
    return bool(text.strip()) and len(text.encode(errors="replace")) <= 63 and text.isprintable()


def ssl_mode_in(target: str) -> str | None:
    """The `sslmode` that a URL or a connection string asks for, if any.

    Raises:
        ConfigurationError: It would allow plain text, or is none of libpq's.
    """
    found = re.findall(r"\bsslmode\s*=\s*'?([^&#'\s]*)", unquote(target))
    modes = [check_ssl_mode(mode, "the connection string's sslmode") for mode in found]
    return modes[-1] if modes else None  # of several, libpq takes the last


def check_ssl_mode(mode: str | None, source: str) -> str | None:
    """`mode` if it is one that never falls back to plain text.

    Raises:
        ConfigurationError: It would allow plain text, or is none of libpq's.
    """
    if mode is None or mode in SSL_MODES:
        return mode
    if mode in ("disable", "allow", "prefer"):
        fault = f"'{mode}', which lets tokens and conversations travel as plain text"
    else:
        fault = "none that libpq knows"  # and not shown: it may be part of a password
    raise ConfigurationError(
        f"{source} is {fault}. Every Lakebase speaks TLS: leave it out, or use require, verify-ca "
        "or verify-full."
    )
