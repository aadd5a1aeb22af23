"""`lakebase-sessions title`: what a conversation is called."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options, user_option
from lakebase_sessions.cli.shown import as_json
from lakebase_sessions.cli.terminal import harmless, print_json

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.conversation.listing import Conversation


@click.command()
@click.argument("session_id")
@click.argument("title", required=False)
@place_options
@user_option
@click.option("--clear", is_flag=True, help="Take the title away: the first words are shown again.")
@output_option
def title(
    *,
    wanted: Wanted,
    session_id: str,
    title: str | None,
    user: str | None,
    clear: bool,
    output: str,
) -> None:
    """Set the title of a conversation, or print it.

    \b
      lakebase-sessions title trip-7 "Seattle in May"
      lakebase-sessions title trip-7
      lakebase-sessions title trip-7 --clear --user mia@example.com
    """
    if clear and title is not None:
        raise click.UsageError("Either a TITLE or --clear.")
    changes = title is not None or clear
    conversation = asyncio.run(_titled(wanted, session_id, user, title, changes=changes))
    if output == "json":
        print_json(as_json(conversation))
    else:
        click.echo(harmless(conversation.title))


async def _titled(
    wanted: Wanted, session_id: str, user: str | None, title: str | None, *, changes: bool
) -> Conversation:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.conversation.store import SessionStore  # noqa: PLC0415

    async with Opened(wanted) as opened:
        store = SessionStore(opened)
        if changes:
            return await store.update(session_id, user=user, title=title)
        return await store.get(session_id, user=user)
