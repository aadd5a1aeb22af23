"""The statements of docs/permissions.md, run exactly as written, in both orders."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from logins import session

from lakebase_sessions import Lakebase
from lakebase_sessions.cli import main
from lakebase_sessions.errors import PermissionDenied, TablesMissing
from lakebase_sessions.local import LocalLakebase

PAGE = (Path(__file__).parents[2] / "docs" / "permissions.md").read_text()
MIA = "mia@example.com"
APP = "5c1d2e3f-0a1b-4c2d-8e3f-0123456789ab"
SECOND = "9f8e7d6c-0a1b-4c2d-8e3f-0123456789ab"
HELLO: Any = {"role": "user", "content": "hello"}

ROLES, SHARED, FIRST = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
INIT = re.findall(r"```sh\nlakebase-sessions (.*?)\n```", PAGE)[0]

pytestmark = [pytest.mark.upstream_logs, pytest.mark.long]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalLakebase]:
    """Of its own: the page names identities and a database."""
    with LocalLakebase() as local:
        token = local.add_user(MIA, can_manage=True)
        with psycopg.connect(local.admin_dsn, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE databricks_postgres OWNER TO "{MIA}"'.encode())
        for name, value in (local.environ | {"DATABRICKS_TOKEN": token}).items():
            monkeypatch.setenv(name, value)
        yield local


def write(local: LocalLakebase, user: str) -> None:
    async def turn() -> None:
        client = local.workspace_client(user)
        async with Lakebase("local", workspace_client=client, schema="agent_memory") as lakebase:
            conversation = lakebase.session(user)
            await conversation.clear_session()
            async with conversation.turn() as turn:
                await turn.add_items([HELLO])
            assert await conversation.get_items() == [HELLO]

    asyncio.run(turn())


def test_before_the_first_deployment(local: LocalLakebase) -> None:
    for client_id in (APP, SECOND):
        local.add_service_principal("app", client_id=client_id, role=False)
    local.add_group("agents", [MIA])
    with session(local, MIA) as connection:
        connection.execute(ROLES.encode())
    result = CliRunner().invoke(main, INIT.split())
    assert result.exit_code == 0, result.output
    with pytest.raises(PermissionDenied):
        write(local, APP)
    with session(local, MIA, role="agents") as connection:
        connection.execute(SHARED.encode())
    for user in (MIA, APP, SECOND):
        write(local, user)


def test_the_app_was_deployed_first(local: LocalLakebase) -> None:
    for client_id in (APP, SECOND):
        local.add_service_principal("app", client_id=client_id)
    write(local, APP)
    with pytest.raises((PermissionDenied, TablesMissing)):
        write(local, SECOND)
    with session(local, APP) as connection:
        connection.execute(FIRST.encode())
    for user in (MIA, APP, SECOND):
        write(local, user)
