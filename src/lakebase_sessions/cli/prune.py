"""`lakebase-sessions prune`: delete what nobody has used for long."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import (
    AGE,
    output_option,
    place_options,
    user_option,
    yes_option,
)
from lakebase_sessions.cli.terminal import confirm, print_json, progress, say

if TYPE_CHECKING:
    from datetime import timedelta

    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.conversation.listing import Pruned


@click.command()
@place_options
@user_option
@click.option(
    "--older-than",
    type=AGE,
    metavar="AGE",
    required=True,
    help="Those last used longer ago than this: 90d, 12h, 30m or 4w.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@yes_option
@output_option
def prune(
    *,
    wanted: Wanted,
    user: str | None,
    older_than: timedelta,
    dry_run: bool,
    yes: bool,
    output: str,
) -> None:
    """Delete conversations that have not been used for long.

    In small batches, beside whoever writes; one that is used meanwhile stays, whole. Ctrl-C ends it
    between two batches. Asks first; without a terminal, as in a job, it takes --yes.

    \b
      lakebase-sessions prune --older-than 90d --dry-run
      lakebase-sessions prune --older-than 90d --yes
      lakebase-sessions prune --older-than 24h --user mia@example.com
    """
    pruned = asyncio.run(_prune(wanted, older_than, user, dry_run=dry_run, yes=yes))
    if output == "json":
        print_json({**asdict(pruned), "dry_run": dry_run})
        return
    would = "Would delete" if dry_run else "Deleted"
    say(f"{would} {pruned.conversations} conversations with {pruned.items} items.")


async def _prune(
    wanted: Wanted, older_than: timedelta, user: str | None, *, dry_run: bool, yes: bool
) -> Pruned:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.conversation.listing import Pruned  # noqa: PLC0415
    from lakebase_sessions.conversation.store import SessionStore  # noqa: PLC0415

    async with Opened(wanted) as opened:
        store = SessionStore(opened)
        old = await anext(store.prune(older_than=older_than, user=user, dry_run=True))
        if dry_run or not old.of:
            return old
        confirm(f"Delete {old.of} conversations with {old.items} items?", yes=yes)
        with progress() as bar:
            task = bar.add_task("Deleting", total=old.of)
            pruned = Pruned(0, 0, old.of)
            async for pruned in store.prune(older_than=older_than, user=user):
                bar.update(task, completed=pruned.conversations, total=pruned.of)
    return pruned
