"""Opened: a Lakebase for one command, without what only sessions need.

Loading upstream's class takes seconds. What lists, exports or deletes does not need it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from lakebase_sessions.access.site import Site, Wanted
from lakebase_sessions.postgres.engine import LoopEngine
from lakebase_sessions.workspace.background import in_thread

if TYPE_CHECKING:
    from lakebase_sessions.workspace.place import Place


class Opened:
    """Gives `SessionStore`, export and load their engine; open within `async with`.

    Args:
        wanted: Which Lakebase, and as whom.
        create_tables: Make the tables where they are missing.
    """

    def __init__(self, wanted: Wanted, *, create_tables: bool = False) -> None:
        self._wanted = wanted
        self._create_tables = create_tables
        self._place: Place | None = None
        self._engine: LoopEngine | None = None

    async def __aenter__(self) -> Self:
        # In a thread, which Ctrl-C does not wait for.
        site = await asyncio.wrap_future(in_thread(lambda: Site.find(self._wanted), "open"))
        self.workspace = site.workspace
        place = self._place = site.wanted.place(
            site.settings, site.workspace, site.target, site.user
        )
        self._engine = LoopEngine(place, asyncio.get_running_loop())
        try:
            await self._engine.ensure_tables(create=self._create_tables)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._engine is not None:
            await self._engine.pool.close()
        if self._place is not None:
            self._place.credentials.close()

    async def engine_here(self) -> LoopEngine:
        """The engine."""
        assert self._engine is not None, "it is open"  # noqa: S101
        return self._engine
