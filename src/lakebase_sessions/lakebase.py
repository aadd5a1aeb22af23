"""Lakebase: one identity's access to one Lakebase, opened once for a process and loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from lakebase_sessions.conversation.run_user import RunUserSession
from lakebase_sessions.conversation.session import LakebaseSession
from lakebase_sessions.conversation.session_id import check_session_id, scope_to_user
from lakebase_sessions.conversation.store import SessionStore
from lakebase_sessions.errors import (
    CLOSED,
    InvalidSessionId,
    LakebaseNotOpen,
    LakebaseTimeout,
)
from lakebase_sessions.postgres.engine import LoopEngine
from lakebase_sessions.postgres.prototype import made_by_upstream
from lakebase_sessions.workspace.api import Workspace
from lakebase_sessions.workspace.background import in_thread, wait_for
from lakebase_sessions.workspace.credentials import Credentials
from lakebase_sessions.workspace.place import Host, Place
from lakebase_sessions.workspace.settings import (
    Settings,
    check_database,
    check_schema,
    database_at,
    ssl_mode_in,
)
from lakebase_sessions.workspace.target import CALL_TIMEOUT_SECONDS, Address, resolve

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from databricks.sdk import WorkspaceClient

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_SECONDS = 30.0
"""Bound of opening as a whole: finding the Lakebase, a token, a connection, the tables."""


class Lakebase:
    """A Lakebase and the identity that uses it; where sessions come from.

    Construction does nothing. The first awaited operation of any of its sessions opens it: off
    the event loop, once for a process and loop, and all who wait share it. A failed opening is
    tried again by the next operation. One `Lakebase` serves any number of loops and threads, and
    works on in a forked child.

    Args:
        target: An instance name, a hostname or a resource path, in any form the platform hands
            out. None: what the environment says at the time of opening (see `from_env`).
        database: The Postgres database. None: `PGDATABASE` if `PGHOST` is this Lakebase's host,
            as in Databricks Apps, else `databricks_postgres`.
        schema: The schema of the two tables. None: `LAKEBASE_AGENT_MEMORY_SCHEMA`, else the
            role's default.
        workspace_client: Whose identity to use. None: the SDK's default login. Connections are
            never shared with another `Lakebase`, so never with another identity.
        pool_size: Connections that are kept open, per loop.
        max_overflow: Connections beyond those, opened under load and closed a minute later.
        create_tables: Create the schema and the tables where they are missing.
        call_timeout_seconds: Bound of one call to the workspace, and of connecting to Postgres.
        open_timeout_seconds: Bound of opening as a whole.

    Raises:
        ConfigurationError: `target` or `schema` cannot be what it should be.

    Example:
        >>> lakebase = Lakebase("my-instance")
        >>> lakebase.session("trip-7").session_id
        'trip-7'
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        database: str | None = None,
        schema: str | None = None,
        workspace_client: WorkspaceClient | None = None,
        pool_size: int = 5,
        max_overflow: int = 10,
        create_tables: bool = True,
        call_timeout_seconds: float = CALL_TIMEOUT_SECONDS,
        open_timeout_seconds: float = OPEN_TIMEOUT_SECONDS,
    ) -> None:
        self._ssl_mode = None if target is None else ssl_mode_in(target)
        # What was parsed, and not what was given: that may hold a password.
        self._target = None if target is None else Address.parse(target).value
        self._database = check_database(database)
        self._schema = check_schema(schema)
        self._workspace_client = workspace_client
        self._pool_size = pool_size
        self._max_overflow = max_overflow
        self._create_tables = create_tables
        self._call_timeout_seconds = call_timeout_seconds
        self._open_timeout_seconds = open_timeout_seconds
        self._settings: Settings | None = None
        self._closed = False
        self._begin_life()

    def _begin_life(self) -> None:
        """The state that belongs to one process; a forked child begins with its own."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._place: Place | None = None
        self._looking: Future[Place] | None = None
        self._openings: dict[asyncio.AbstractEventLoop, asyncio.Task[LoopEngine]] = {}
        # Weak: a loop that somebody drops takes its connections with it.
        self._engines: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopEngine] = (
            WeakKeyDictionary()
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """The Lakebase that the environment names, read now.

        In this order: `LAKEBASE_AUTOSCALING_ENDPOINT`; `LAKEBASE_AUTOSCALING_PROJECT` with
        `LAKEBASE_AUTOSCALING_BRANCH`; `LAKEBASE_INSTANCE_NAME`; `PGHOST`. A blank is unset.

        Args:
            environ: The variables; `os.environ` if None.
            **overrides: Arguments of `Lakebase`; they come first.

        Raises:
            MissingConfiguration: Nothing says which Lakebase is meant.
            ConfigurationError: A variable cannot be used as it is.
        """
        settings = Settings.from_environ(
            environ, target=overrides.get("target"), schema=overrides.get("schema")
        )
        Address.parse(settings.target)
        lakebase = cls(**overrides)
        lakebase._settings = settings
        return lakebase

    def session(
        self,
        session_id: object,
        *,
        user: str | Callable[[RunContextWrapper[Any]], str | None] | None = None,
        history_limit: int | None = None,
    ) -> LakebaseSession:
        """One conversation. No I/O; cheap enough for every request.

        Args:
            session_id: 1 to 255 characters (an int or a UUID will do), no control characters.
            user: Keeps users apart: the stored id gets this prefix (`scope_to_user`). Or what says,
                given a run's context, whose conversation it is about.
            history_limit: `get_items()` returns at most the latest so many items.

        Raises:
            InvalidSessionId: It cannot be stored.
            InvalidUser: `user` is blank or not a string.
            InvalidLimit: `history_limit` is not a whole number from 0.
        """
        checked = check_session_id(session_id)
        if checked is None:
            raise InvalidSessionId(
                "A session needs an id; get_session_id(request) finds or makes one."
            )
        if callable(user):
            return RunUserSession(checked, user, lakebase=self, history_limit=history_limit)
        return LakebaseSession(
            scope_to_user(checked, user), lakebase=self, user=user, history_limit=history_limit
        )

    @property
    def store(self) -> SessionStore:
        """All conversations here: to list, describe, search, delete."""
        return SessionStore(self)

    @property
    def name(self) -> str:
        """The instance's name or the endpoint's path; known once it is open."""
        return self._located().name

    @property
    def database(self) -> str:
        """The Postgres database; known once it is open."""
        return self._located().database

    @property
    def schema(self) -> str | None:
        """The schema of the tables, None for the role's default; known once it is open."""
        return self._located().schema

    @property
    def user(self) -> str:
        """The identity, which is the Postgres role; known once it is open."""
        return self._located().user

    def _located(self) -> Place:
        if self._place is None:
            raise LakebaseNotOpen("This Lakebase is not open yet: `await lakebase.open()` first.")
        return self._place

    async def open(self) -> Self:
        """Find the Lakebase, connect, and see to the tables, instead of at the first request.

        Raises:
            LakebaseSessionsError: The class says why. The next call tries again.
        """
        await self.engine_here()
        return self

    async def close(self) -> None:
        """Close all connections, of all loops, when what is under way has come to its end.

        Sessions raise `LakebaseNotOpen` from then on. What takes longer than
        `call_timeout_seconds` is cut off.
        """
        self._see_to_fork()
        self._closed = True  # an opening that is under way sees it when it ends
        with self._lock:
            engines, self._engines = dict(self._engines), WeakKeyDictionary()
            place, self._place = self._place, None
        if place is not None:
            place.credentials.close()
        here = engines.pop(asyncio.get_running_loop(), None)
        elsewhere = [
            asyncio.wrap_future(asyncio.run_coroutine_threadsafe(engine.pool.close(), loop))
            for loop, engine in engines.items()
            if loop.is_running()
        ]
        try:
            if here is not None:
                await here.pool.close()
            if elsewhere:  # not gathered: a loop that ends meanwhile cancels what it was given
                await asyncio.wait(elsewhere, timeout=2 * self._call_timeout_seconds)
        finally:
            for loop, engine in engines.items():
                if loop.is_running():
                    engine.pool.cut_off()  # it is blocked by something, or we were cancelled
                else:
                    engine.pool.abandon()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._engines else "not open"
        return f"<Lakebase {self._target or 'from the environment'!r}, {state}>"

    async def engine_here(self) -> LoopEngine:
        """The engine of the running loop; opens it if need be."""
        self._see_to_fork()
        loop = asyncio.get_running_loop()
        engine = self._engines.get(loop)
        if engine is not None:
            return engine
        if self._closed:
            raise LakebaseNotOpen(CLOSED)
        opening = self._openings.get(loop)
        if opening is None:
            self._abandon_closed_loops()
            opening = loop.create_task(self._open(loop))
            opening.add_done_callback(lambda done: self._opened(loop, done))
            with self._lock:
                self._openings[loop] = opening
        # Shielded: whoever is cancelled while waiting must not take it from the others.
        return await asyncio.shield(opening)

    def _see_to_fork(self) -> None:
        """In a forked child, leave to the parent what is the parent's."""
        if os.getpid() != self._pid:
            # Sockets, threads and a lock that may be held.
            self._begin_life()

    def _opened(self, loop: asyncio.AbstractEventLoop, opening: asyncio.Task[LoopEngine]) -> None:
        with self._lock:
            if self._openings.get(loop) is opening:
                del self._openings[loop]
        if not opening.cancelled():
            opening.exception()  # it has been seen, also if everybody who waited has gone

    def _abandon_closed_loops(self) -> None:
        """What `asyncio.run` leaves behind: its loop is gone, its connections are not."""
        with self._lock:
            gone = [loop for loop in self._engines if loop.is_closed()]
            abandoned = [self._engines.pop(loop) for loop in gone]
            for loop in [loop for loop in self._openings if loop.is_closed()]:
                del self._openings[loop]
        for engine in abandoned:
            engine.pool.abandon()

    async def _open(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        try:
            async with asyncio.timeout(self._open_timeout_seconds):
                return await self._open_unbounded(loop)
        except TimeoutError as error:
            if isinstance(error, LakebaseTimeout):
                raise
            raise LakebaseTimeout(
                f"Lakebase {self._target or 'of the environment'} was not open within "
                f"{self._open_timeout_seconds:g} s: the workspace or Postgres does not answer. "
                "The next request tries again. A hostname takes a search; a name or an "
                "endpoint's path takes one call."
            ) from error

    async def _open_unbounded(self, loop: asyncio.AbstractEventLoop) -> LoopEngine:
        place = await self._place_here()
        engine = await wait_for(
            in_thread(lambda: LoopEngine(place, loop, made_by_upstream), "engine"),
            self._open_timeout_seconds,
        )
        try:
            await engine.ensure_tables(create=self._create_tables)
        except BaseException:
            await engine.pool.close()
            raise
        with self._lock:
            if not self._closed:
                self._engines[loop] = engine
                return engine
        await engine.pool.close()
        raise LakebaseNotOpen("This Lakebase was closed while it was opening.")

    async def _place_here(self) -> Place:
        """Where it is; all who ask share one look."""
        while not self._closed:
            with self._lock:
                if self._place is not None:
                    return self._place
                begins = self._looking is None
                looking = self._looking = self._looking or in_thread(self._locate, "open")
            if begins:
                looking.add_done_callback(self._looked)
            try:
                await wait_for(looking, self._open_timeout_seconds)
            except (TimeoutError, asyncio.CancelledError):
                with self._lock:
                    if self._looking is looking:
                        self._looking = None  # it may hang for ever; the next opening looks anew
                raise
        raise LakebaseNotOpen("This Lakebase was closed while it was opening.")

    def _looked(self, looking: Future[Place]) -> None:
        """A look has ended, perhaps long after everybody gave it up."""
        with self._lock:
            if self._looking is looking:
                self._looking = None  # of a failure too: the next operation tries again
            if looking.exception() is not None:
                return
            place = looking.result()
            if self._place is None and not self._closed:
                self._place = place
                return
        place.credentials.close()  # another look was quicker

    def _locate(self) -> Place:
        """From configuration to a host, a user and a token. Blocks; runs in a thread."""
        settings = self._settings or Settings.from_environ(
            target=self._target, schema=self._schema, ssl_mode=self._ssl_mode
        )
        workspace = Workspace(
            self._workspace_client, call_timeout_seconds=self._call_timeout_seconds
        )
        target = resolve(Address.parse(settings.target), workspace)
        named = Address.parse(target.name)
        user = workspace.user_name()
        credentials = Credentials(
            lambda: target.token(workspace), timeout_seconds=self._open_timeout_seconds
        )
        credentials.renew_now()
        logger.info(
            "Lakebase '%s' (from %s%s) at %s as %s",
            target.name,
            settings.source,
            f"; ignored: {', '.join(settings.ignored)}" if settings.ignored else "",
            target.host,
            user,
        )
        return Place(
            name=target.name,
            # By its name: where it was known by its host, that is what has changed.
            host=Host(target.host, lambda: resolve(named, workspace).host),
            user=user,
            database=database_at(target.host, settings, self._database),
            schema=settings.schema,
            credentials=credentials,
            ssl_mode=settings.ssl_mode,
            pool_size=self._pool_size,
            max_overflow=self._max_overflow,
            timeout_seconds=self._call_timeout_seconds,
        )
