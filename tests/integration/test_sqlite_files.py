"""Files of the Agents SDK's own SQLite sessions, written by them, loaded here."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import SQLiteSession
from agents.extensions.memory import AdvancedSQLiteSession
from agents.usage import Usage
from click.testing import CliRunner

from lakebase_sessions import InvalidExport, Lakebase, load_conversations
from lakebase_sessions.cli import main


def said(role: str, content: str) -> Any:
    return {"role": role, "content": content}


async def load(lakebase: Lakebase, path: Path, **options: Any) -> int:
    loaded = 0
    async for progress in load_conversations(lakebase, path, **options):
        loaded = progress.conversations
    return loaded


async def test_a_file_of_sqlite_sessions(lakebase: Lakebase, tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    items = [said("user", "é \0 \ud800"), said("assistant", "Hello.")]
    for session_id in ("a", "b"):
        session = SQLiteSession(session_id, path)
        await session.add_items(items)
        session.close()
    assert await load(lakebase, path, user="mia") == 2
    assert await lakebase.session("a", user="mia").get_items() == items
    assert await lakebase.session("a").get_items() == []


async def test_branches_and_usage_of_an_advanced_one(lakebase: Lakebase, tmp_path: Path) -> None:
    path = tmp_path / "advanced.db"
    session = AdvancedSQLiteSession(session_id="s", db_path=path, create_tables=True)
    for number in (1, 2):
        await session.add_items([said("user", f"u{number}"), said("assistant", f"a{number}")])
        usage = Usage(requests=1, input_tokens=10 * number, output_tokens=1, total_tokens=11)
        await session.store_run_usage(
            SimpleNamespace(context_wrapper=SimpleNamespace(usage=usage))  # type: ignore[arg-type]
        )
    await session.create_branch_from_turn(2, "other")
    await session.add_items([said("user", "u2'"), said("assistant", "a2'")])
    session.close()
    assert await load(lakebase, path) == 1
    loaded = lakebase.session("s")
    assert await loaded.get_items() == [
        said("user", "u1"),
        said("assistant", "a1"),
        said("user", "u2"),
        said("assistant", "a2"),
    ]
    [branch] = await loaded.branches()
    assert await loaded.branch_items(branch) == [said("user", "u2'"), said("assistant", "a2'")]
    first, second = await loaded.turns()
    assert (first.usage.input_tokens, second.usage.input_tokens) == (10, 20)
    await loaded.restore(branch)
    assert await loaded.get_items() == [
        said("user", "u1"),
        said("assistant", "a1"),
        said("user", "u2'"),
        said("assistant", "a2'"),
    ]


@pytest.mark.parametrize("content", [None, b"SQLite format 3\0 but broken"])
async def test_another_database(lakebase: Lakebase, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.db"
    if content is None:
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE t (a)")
        other.close()
    else:
        path.write_bytes(content)
    with pytest.raises(InvalidExport, match="Nothing was loaded"):
        await load(lakebase, path)


def test_the_command_takes_one(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    file = sqlite3.connect(path)
    session = SQLiteSession("a", path)
    session.close()
    file.execute("INSERT INTO agent_sessions (session_id) VALUES ('empty')")
    file.commit()
    file.close()
    result = CliRunner().invoke(main, ["load", str(path), "-o", "json"])
    assert result.exit_code == 0, result.output
    assert result.stdout == '{"conversations":1,"items":0}\n'
