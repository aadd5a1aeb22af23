"""One turn of a conversation, as each way of storing it does it.

A turn is what `Runner.run` does to a session: read the history, add the input, add the output.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import psycopg
from agents import TResponseInputItem
from agents.extensions.memory import SQLAlchemySession
from agents.memory import Session, SessionSettings
from databricks.sdk import WorkspaceClient
from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

from lakebase_sessions import Lakebase

FLOOR = "psycopg alone (the floor)"
OURS = "lakebase-sessions"
ATOMIC = "lakebase-sessions, atomic turn"
TEMPLATE = "AsyncDatabricksSession, as in the template"
NO_TABLES = "AsyncDatabricksSession, create_tables=False"
ASYNCPG = "SQLAlchemySession on asyncpg"


class Turn(NamedTuple):
    """What one turn adds to its conversation."""

    input: list[TResponseInputItem]
    output: list[TResponseInputItem]


PlayTurn = Callable[[str, Turn, int | None], Awaitable[None]]
"""Plays a turn of the conversation with this id, under this history_limit."""


@dataclass(frozen=True)
class Access:
    """One way to the database, for everybody."""

    instance: str
    host: str
    database: str
    workspace_client: WorkspaceClient

    @cached_property
    def user(self) -> str:
        """Who everybody is."""
        return str(self.workspace_client.current_user.me().user_name)

    @cached_property
    def password(self) -> str:
        """A token for those who do not fetch one themselves; valid for an hour."""
        credential = self.workspace_client.database.generate_database_credential(
            instance_names=[self.instance]
        )
        assert credential.token
        return credential.token

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """A bare connection, on which every statement is prepared at its first use."""
        return await psycopg.AsyncConnection.connect(
            host=self.host,
            dbname=self.database,
            user=self.user,
            password=self.password,
            sslmode="require",
            autocommit=True,
            prepare_threshold=0,
        )


@asynccontextmanager
async def competitors(access: Access) -> AsyncIterator[dict[str, PlayTurn]]:
    """Everybody, with pools of their own."""
    async with AsyncExitStack() as stack:
        floor = Floor(access)
        stack.push_async_callback(floor.close)
        lakebase = await stack.enter_async_context(
            Lakebase(access.instance, workspace_client=access.workspace_client)
        )
        engine = create_async_engine(
            URL.create(
                "postgresql+asyncpg",
                username=access.user,
                password=access.password,
                host=access.host,
                database=access.database,
            ),
            connect_args={"ssl": "require"},  # sockets do without
        )
        stack.push_async_callback(engine.dispose)

        def ours(conversation: str, limit: int | None) -> Session:
            return lakebase.session(conversation, history_limit=limit)

        async def atomic(conversation: str, turn: Turn, limit: int | None) -> None:
            session = lakebase.session(conversation, history_limit=limit)
            async with session.turn() as held_back:
                await _converse(held_back, turn)

        def upstream(
            conversation: str, limit: int | None, **options: Any
        ) -> AsyncDatabricksSession:
            # Like the template's: all of them share an engine, which upstream keeps.
            session = AsyncDatabricksSession(
                session_id=conversation,
                instance_name=access.instance,
                workspace_client=access.workspace_client,
                **options,
            )
            session.session_settings = SessionSettings(limit=limit)
            return session

        def without_tables(conversation: str, limit: int | None) -> Session:
            return upstream(conversation, limit, create_tables=False)

        def asyncpg(conversation: str, limit: int | None) -> Session:
            return SQLAlchemySession(
                conversation, engine=engine, session_settings=SessionSettings(limit=limit)
            )

        stack.push_async_callback(upstream("", None).engine.dispose)
        yield {
            FLOOR: floor.play,
            OURS: _player(ours),
            ATOMIC: atomic,
            TEMPLATE: _player(upstream),
            NO_TABLES: _player(without_tables),
            ASYNCPG: _player(asyncpg),
        }


def _player(session_for: Callable[[str, int | None], Session]) -> PlayTurn:
    """A new session object each turn, as each request makes one."""

    async def play(conversation: str, turn: Turn, limit: int | None) -> None:
        await _converse(session_for(conversation, limit), turn)

    return play


async def _converse(session: Session, turn: Turn) -> None:
    await session.get_items()
    await session.add_items(turn.input)
    await session.add_items(turn.output)


class Floor:
    """What a turn costs at least: one prepared statement an operation, and the JSON.

    As many connections as there are turns at once; nothing is checked, nothing is repaired.
    """

    ALL = """
        SELECT message_data FROM agent_messages WHERE session_id = %s ORDER BY created_at, id
    """
    LATEST = """
        SELECT message_data FROM agent_messages WHERE session_id = %s
        ORDER BY created_at DESC, id DESC LIMIT %s
    """
    ADD = """
        WITH session AS (
            INSERT INTO agent_sessions (session_id) VALUES (%s)
            ON CONFLICT (session_id) DO UPDATE SET updated_at = CURRENT_TIMESTAMP
            RETURNING session_id
        )
        INSERT INTO agent_messages (session_id, message_data)
        SELECT session_id, unnest(%s::text[]) FROM session
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._all: list[psycopg.AsyncConnection[Any]] = []
        self._idle: list[psycopg.AsyncConnection[Any]] = []

    async def play(self, conversation: str, turn: Turn, limit: int | None) -> None:
        connection = self._idle.pop() if self._idle else await self._connect()
        if limit is None:
            cursor = await connection.execute(self.ALL, (conversation,))
        else:
            cursor = await connection.execute(self.LATEST, (conversation, limit))
        # Kept until the turn ends, as everybody's items are: what is dropped at once costs less.
        _history = [json.loads(data) for (data,) in await cursor.fetchall()]
        for items in turn:
            encoded = [json.dumps(item, separators=(",", ":")) for item in items]
            await connection.execute(self.ADD, (conversation, encoded))
        self._idle.append(connection)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        connection = await self._access.connect()
        self._all.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self._all:
            await connection.close()
