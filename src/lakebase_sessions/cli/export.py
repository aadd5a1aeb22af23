"""`lakebase-sessions export`: conversations as JSON lines."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from lakebase_sessions.cli.options import place_options, scoped, user_option, yes_option
from lakebase_sessions.cli.terminal import confirm, progress, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lakebase_sessions.access.site import Wanted


@click.command()
@click.argument("target", metavar="FILE")
@click.argument("session_ids", metavar="[SESSION_ID]...", nargs=-1)
@place_options
@user_option
@yes_option
def export(
    *, wanted: Wanted, target: str, session_ids: tuple[str, ...], user: str | None, yes: bool
) -> None:
    """Write conversations to FILE, or to a pipe (-), as JSON lines.

    All of them, or those named, as each stands at one moment: items as they are stored, dates,
    title, metadata, branches, records of turns. `load` brings them back. FILE is there when it is
    complete, and not before.

    FILE may also be a managed session store of the workspace, session-stores/NAME: it gets items,
    title and metadata. With --yes sessions that are there already are replaced.

    \b
      lakebase-sessions export backup.jsonl
      lakebase-sessions export mia.jsonl --user mia@example.com
      lakebase-sessions export - trip-7 | jq -c 'select(.item).item'
      lakebase-sessions export session-stores/support
      lakebase-sessions export - | gzip > backup.jsonl.gz
    """
    if target == "-":
        asyncio.run(_export(wanted, sys.stdout.buffer, session_ids, user))
        return
    if target.startswith("session-stores/"):
        count = asyncio.run(_send(wanted, target, session_ids, user, yes=yes))
        say(f"Stored {count} sessions in {target}.")
        return
    path = Path(target)
    if path.exists():
        confirm(f"Write over {path}?", yes=yes)
    with _whole(path) as file:
        count = asyncio.run(_export(wanted, file, session_ids, user))
    say(f"Exported {count} conversation{'' if count == 1 else 's'} to {path}.")


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name at the end, or not at all."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from error
    begun = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        begun.replace(path)
    except BaseException:
        begun.unlink(missing_ok=True)
        raise


async def _send(
    wanted: Wanted, store: str, session_ids: tuple[str, ...], user: str | None, *, yes: bool
) -> int:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.transfer import managed  # noqa: PLC0415
    from lakebase_sessions.transfer.export import count_conversations, records  # noqa: PLC0415

    ids = [scoped(each, user) for each in session_ids] or None
    count = 0
    async with Opened(wanted) as opened:
        found = records(opened, session_ids=ids, user=user)
        kit = opened.workspace.agent_kit
        with progress() as bar:
            total = await count_conversations(opened, session_ids=ids, user=user)
            task = bar.add_task("Storing", total=total)
            async with aclosing(found):
                async for count in managed.send(kit, managed.store_name(store), found, replace=yes):
                    bar.update(task, completed=count)
    return count


async def _export(
    wanted: Wanted, file: IO[bytes], session_ids: tuple[str, ...], user: str | None
) -> int:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.transfer.export import (  # noqa: PLC0415
        count_conversations,
        export_conversations,
    )

    ids = [scoped(each, user) for each in session_ids] or None
    async with Opened(wanted) as opened:
        with progress() as bar:
            total = await count_conversations(opened, session_ids=ids, user=user)
            task = bar.add_task("Exporting", total=total)
            count = 0
            lines = export_conversations(opened, session_ids=ids, user=user)
            async with aclosing(lines):
                async for line in lines:
                    file.write(line)
                    if line.startswith(b'{"conversation":'):
                        count += 1
                        bar.update(task, completed=count - 1)
            file.flush()
    return count
