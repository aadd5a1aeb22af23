"""Upstream's session, made by its public constructor, on a pool of ours.

What that class sets up (its tables, its engine) is found through it by every session of a loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

# Loaded here, with the application, and not by the first request: importing in a thread keeps
# the event loop from running. The second is named by an option of the Agents SDK's tables.
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401
from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

    from lakebase_sessions.postgres.connection import Connection
    from lakebase_sessions.workspace.place import Place


def made_by_upstream(
    place: Place, connection: Callable[[], Awaitable[Connection]]
) -> AsyncDatabricksSession:
    """A session that never asks the workspace.

    Args:
        place: Whose tables they are.
        connection: Where its engine has connections from; it closes them when it has done.
    """
    # What the constructor would ask the workspace, synchronously, is known already. Its token
    # handler is never called: it belongs to an engine that connects by itself.
    client = SimpleNamespace(
        database=SimpleNamespace(
            get_database_instance=lambda _name: SimpleNamespace(read_write_dns=place.host.name),
        )
    )
    return AsyncDatabricksSession(
        session_id="prototype",
        instance_name=place.name,
        workspace_client=cast("WorkspaceClient", client),
        username=place.user,
        database=place.database,
        create_tables=False,
        use_cached_engine=False,  # the cache's key leaves out whose connections they are
        # SQLAlchemy and the package stand on one pool (psycopg's documentation, "pool-sqlalchemy").
        async_creator=connection,
        poolclass=NullPool,
        pool_reset_on_return=None,  # what is not as it was is not put back
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they are what people said to the agent
        use_native_hstore=False,  # saves looking the type up at the first connection
    )
