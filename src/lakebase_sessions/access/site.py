"""Site: the Lakebase that a command is about, found step by step.

`Lakebase.open` takes these steps at once. Commands take them one at a time, to say at which one it
ends, and do not load what only sessions need.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakebase_sessions.errors import LakebaseTimeout
from lakebase_sessions.postgres.connection import connect
from lakebase_sessions.workspace.api import Workspace
from lakebase_sessions.workspace.credentials import Credentials
from lakebase_sessions.workspace.place import Host, Place
from lakebase_sessions.workspace.settings import (
    Settings,
    check_database,
    database_at,
    ssl_mode_in,
)
from lakebase_sessions.workspace.target import CALL_TIMEOUT_SECONDS, Address, Target, resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lakebase_sessions.errors import LakebaseSessionsError
    from lakebase_sessions.postgres.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a command was told; None is what the environment says.

    Attributes:
        profile: Of the Databricks CLI, to log in to the workspace with.
        timeout_seconds: Bound of one call to the workspace, and of connecting.
    """

    target: str | None = None
    database: str | None = None
    schema: str | None = None
    profile: str | None = None
    timeout_seconds: float = CALL_TIMEOUT_SECONDS

    def settings(self) -> Settings:
        """What was configured, checked as far as it can be without asking anybody."""
        check_database(self.database)
        settings = Settings.from_environ(
            target=self.target,
            schema=self.schema,
            ssl_mode=None if self.target is None else ssl_mode_in(self.target),
        )
        Address.parse(settings.target)
        return settings

    def workspace(self) -> Workspace:
        """The workspace, logged in. Blocks."""
        return Workspace(None, call_timeout_seconds=self.timeout_seconds, profile=self.profile)

    def place(self, settings: Settings, workspace: Workspace, target: Target, user: str) -> Place:
        """Where to connect, as a role that a token of this identity opens. No token yet."""
        return Place(
            name=target.name,
            host=Host(target.host, lambda: resolve(Address.parse(target.name), workspace).host),
            user=user,
            database=database_at(target.host, settings, self.database),
            schema=settings.schema,
            credentials=Credentials(
                lambda: target.token(workspace), timeout_seconds=self.timeout_seconds
            ),
            ssl_mode=settings.ssl_mode,
            pool_size=1,
            max_overflow=0,
            timeout_seconds=self.timeout_seconds,
        )


@dataclass(frozen=True, slots=True)
class Site:
    """A Lakebase that was found, and whose identity found it."""

    wanted: Wanted
    settings: Settings
    workspace: Workspace
    target: Target
    user: str

    @classmethod
    def find(cls, wanted: Wanted) -> Site:
        """Find it. Blocks.

        Raises:
            LakebaseSessionsError: The class says why not.
        """
        settings = wanted.settings()
        workspace = wanted.workspace()
        target = resolve(Address.parse(settings.target), workspace)
        return cls(wanted, settings, workspace, target, workspace.user_name())

    @asynccontextmanager
    async def connection(self, role: str | None = None) -> AsyncIterator[Connection]:
        """A connection as this identity, or as the role of a group that it is a member of."""
        place = self.wanted.place(self.settings, self.workspace, self.target, role or self.user)
        try:
            connection = await connected(place)
            try:
                yield connection
            finally:
                await connection.close()
        finally:
            place.credentials.close()


async def connected(place: Place) -> Connection:
    """A connection as sessions have one: tried again until the bound is over."""
    give_up_at = time.monotonic() + place.timeout_seconds

    cause: LakebaseSessionsError | None = None

    def wanted(error: LakebaseSessionsError) -> bool:
        nonlocal cause
        if not isinstance(error, LakebaseTimeout):
            cause = error
        if time.monotonic() >= give_up_at:
            raise cause or error  # why it did not work says more than that it took too long
        return True

    connection = await connect(place, wanted)
    assert connection is not None, "somebody has waited for it to the end"  # noqa: S101
    return connection
