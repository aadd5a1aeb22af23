"""`lakebase-sessions list`: which conversations there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import (
    MOMENT,
    limit_option,
    metadata_option,
    output_option,
    place_options,
    user_option,
)
from lakebase_sessions.cli.shown import print_conversations
from lakebase_sessions.cli.terminal import say

if TYPE_CHECKING:
    from datetime import datetime

    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.conversation.listing import Conversation


@click.command("list")
@place_options
@user_option
@click.option(
    "--order",
    type=click.Choice(["updated", "created"]),
    default="updated",
    show_default=True,
    help="By when they were last used, or when they were created; newest first.",
)
@click.option(
    "--since",
    type=MOMENT,
    metavar="WHEN",
    help="Only those used since: an age (7d, 12h) or a date (2026-11-25).",
)
@click.option("--before", type=MOMENT, metavar="WHEN", help="Only those last used before.")
@metadata_option
@limit_option
@output_option
def list_(
    *,
    wanted: Wanted,
    user: str | None,
    order: str,
    since: datetime | None,
    before: datetime | None,
    metadata: dict[str, str] | None,
    limit: int,
    output: str,
) -> None:
    """List conversations, newest first.

    With -o json each line is one conversation.

    \b
      lakebase-sessions list
      lakebase-sessions list --user mia@example.com --since 7d
      lakebase-sessions list --metadata project=atlas -n 0 -o json | jq -r .session_id
    """
    found = asyncio.run(
        listed(
            wanted,
            limit,
            user=user,
            order=order,
            updated_since=since,
            updated_before=before,
            metadata=metadata,
        )
    )
    shown = found[:limit] if limit else found
    print_conversations(shown, output)
    if len(found) > len(shown):
        say(f"There are more than these {limit}: -n 0 lists all.")


async def listed(wanted: Wanted, limit: int, **filters: object) -> list[Conversation]:
    """What `SessionStore.list` finds, and one more than `limit` if there is one; 0 is all."""
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.conversation.store import SessionStore  # noqa: PLC0415

    async with Opened(wanted) as opened:
        listing = SessionStore(opened).list(limit=limit + 1 if limit else None, **filters)  # type: ignore[arg-type]
        return [conversation async for conversation in listing]
