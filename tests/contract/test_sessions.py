"""One contract, four classes: ours keeps it, and where the others do not is marked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from databricks_openai.agents import AsyncDatabricksSession
from sqlalchemy.ext.asyncio import create_async_engine

from lakebase_sessions import Lakebase
from lakebase_sessions.local import LocalLakebase
from lakebase_sessions.testing import SessionContract
from lakebase_sessions.testing.contract import MakeSession


class TestLakebaseSession(SessionContract):
    @pytest.fixture
    def make_session(self, lakebase: Lakebase) -> MakeSession:
        return lakebase.session


@pytest.mark.upstream_logs
class TestAsyncDatabricksSession(SessionContract):
    @pytest.fixture
    async def make_session(self, local: LocalLakebase, database: str) -> AsyncIterator[MakeSession]:
        client = local.workspace_client()
        made: list[AsyncDatabricksSession] = []

        def make(session_id: str) -> AsyncDatabricksSession:
            session = AsyncDatabricksSession(
                session_id, instance_name="local", workspace_client=client, database=database
            )
            made.append(session)
            return session

        yield make
        for session in made[:1]:  # they share an engine
            await session.engine.dispose()


class TestSQLAlchemySession(SessionContract):
    @pytest.fixture
    async def make_session(
        self, local: LocalLakebase, empty_database: str
    ) -> AsyncIterator[MakeSession]:
        engine = create_async_engine(
            "postgresql+psycopg://", connect_args=conninfo(local, empty_database)
        )
        yield lambda session_id: SQLAlchemySession(session_id, engine=engine, create_tables=True)
        await engine.dispose()


class TestSQLiteSession(SessionContract):
    @pytest.fixture
    def make_session(self, tmp_path: Path) -> Iterator[MakeSession]:
        made: list[SQLiteSession] = []

        def make(session_id: str) -> SQLiteSession:
            made.append(SQLiteSession(session_id, tmp_path / "sessions.db"))
            return made[-1]

        yield make
        for session in made:
            session.close()


def conninfo(local: LocalLakebase, database: str) -> dict[str, str]:
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(local.admin_dsn, dbname=database)
    return {name: str(value) for name, value in given.items()}
