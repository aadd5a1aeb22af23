"""`lakebase-sessions load`: conversations from a file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options, user_option, yes_option
from lakebase_sessions.cli.terminal import confirm, print_json, progress, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.transfer.load import Loaded

PIECE_BYTES = 1 << 18


@click.command()
@click.argument("source", metavar="FILE")
@place_options
@user_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace conversations that are there already. Without it, the first one ends the load.",
)
@yes_option
@output_option
def load(
    *, wanted: Wanted, source: str, user: str | None, replace: bool, yes: bool, output: str
) -> None:
    """Load conversations from FILE, or from a pipe (-), that `export` has written.

    FILE may also be a database of the Agents SDK's SQLiteSession or AdvancedSQLiteSession, or a
    managed session store of the workspace, session-stores/NAME. Each conversation is stored whole
    or not at all. With --user all of them become that user's. Makes the tables where they are
    missing.

    \b
      lakebase-sessions load backup.jsonl
      lakebase-sessions load backup.jsonl --replace --yes
      lakebase-sessions load conversations.db
      lakebase-sessions load session-stores/support
      gunzip -c backup.jsonl.gz | lakebase-sessions load -
      lakebase-sessions export - -p prod | lakebase-sessions load - -p dev
    """
    if replace:
        confirm("Replace the conversations that are there already?", yes=yes)
    loading = _take if source.startswith("session-stores/") else _load
    loaded = asyncio.run(loading(wanted, source, user=user, replace=replace))
    if output == "json":
        print_json({"conversations": loaded.conversations, "items": loaded.items})
    else:
        say(f"Loaded {loaded.conversations} conversations with {loaded.items} items.")


async def _take(wanted: Wanted, source: str, *, user: str | None, replace: bool) -> Loaded:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.transfer import managed  # noqa: PLC0415
    from lakebase_sessions.transfer.load import Loaded  # noqa: PLC0415
    from lakebase_sessions.transfer.load import load as store  # noqa: PLC0415

    loaded = Loaded(0, 0)
    async with Opened(wanted, create_tables=True) as opened:
        kit = opened.workspace.agent_kit
        found = managed.managed_records(kit, managed.store_name(source))
        with progress() as bar:
            task = bar.add_task("Loading", total=None)
            async for loaded in store(opened, found, user=user, replace=replace):
                bar.update(task, description=f"Loading, {loaded.conversations} conversations")
    return loaded


async def _load(wanted: Wanted, source: str, *, user: str | None, replace: bool) -> Loaded:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.transfer.load import Loaded, load_conversations  # noqa: PLC0415
    from lakebase_sessions.transfer.sqlite import is_sqlite  # noqa: PLC0415

    loaded = Loaded(0, 0)
    with _file(source) as file:
        async with Opened(wanted, create_tables=True) as opened:
            with progress() as bar:
                task = bar.add_task("Loading", total=_size(source))
                read = 0

                async def pieces() -> AsyncIterator[bytes]:
                    nonlocal read
                    async for piece in _pieces(file):
                        read += len(piece)
                        yield piece
                        bar.update(task, completed=read)

                sqlite = source != "-" and is_sqlite(Path(source))
                async for loaded in load_conversations(
                    opened, Path(source) if sqlite else pieces(), user=user, replace=replace
                ):
                    bar.update(task, description=f"Loading, {loaded.conversations} conversations")
    return loaded


def _size(source: str) -> int | None:
    return None if source == "-" else Path(source).stat().st_size


def _file(source: str) -> IO[bytes]:
    if source == "-":
        # Not the one that stands: a thread may still be reading from it when Python ends.
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise click.FileError(source, error.strerror) from error


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    from lakebase_sessions.workspace.background import in_thread  # noqa: PLC0415

    # A pipe may have nothing to read for long, and Ctrl-C does not end a read.
    while piece := await asyncio.wrap_future(in_thread(lambda: file.read(PIECE_BYTES), "read")):
        yield piece
