"""`lakebase-sessions delete`: conversations, or all of a user."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options, user_option, yes_option
from lakebase_sessions.cli.terminal import confirm, harmless, print_json, say, shortened

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.conversation.store import SessionStore


@click.command()
@click.argument("session_ids", metavar="[SESSION_ID]...", nargs=-1)
@place_options
@user_option
@click.option("--all", "whole_user", is_flag=True, help="All that this --user has.")
@yes_option
@output_option
def delete(
    *,
    wanted: Wanted,
    session_ids: tuple[str, ...],
    user: str | None,
    whole_user: bool,
    yes: bool,
    output: str,
) -> None:
    """Delete conversations, with their titles, branches and records of turns.

    Where one of those named is not there, none is deleted. Asks first; without a terminal it takes
    --yes.

    \b
      lakebase-sessions delete trip-7
      lakebase-sessions delete --all --user mia@example.com
      lakebase-sessions delete trip-7 trip-8 --user mia@example.com --yes
    """
    if whole_user == bool(session_ids):
        raise click.UsageError("Either SESSION_IDs, or --all with --user.")
    if whole_user and user is None:
        raise click.UsageError("--all is all that one user has: say --user.")
    deleted = asyncio.run(_delete(wanted, session_ids, user, yes=yes))
    if output == "json":
        print_json({"deleted": deleted})
    else:
        say(f"Deleted {deleted} conversation{'' if deleted == 1 else 's'}.")


async def _delete(
    wanted: Wanted, session_ids: tuple[str, ...], user: str | None, *, yes: bool
) -> int:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.conversation.store import SessionStore  # noqa: PLC0415

    async with Opened(wanted) as opened:
        store = SessionStore(opened)
        confirm(await _question(store, session_ids, user), yes=yes)
        if user is not None and not session_ids:
            return await store.delete_user(user)
        for session_id in session_ids:
            await store.delete(session_id, user=user)
        return len(session_ids)


async def _question(store: SessionStore, session_ids: tuple[str, ...], user: str | None) -> str:
    if not session_ids:
        count = await store.count(user=user)
        return f"Delete all {count} conversations of {harmless(user or '')}?"
    found = [await store.get(session_id, user=user) for session_id in session_ids]
    items = sum(conversation.items for conversation in found)
    if len(found) > 1:
        return f"Delete {len(found)} conversations with {items} items?"
    title = harmless(shortened(found[0].title, 60))
    return f"Delete {harmless(found[0].session_id)} ({title!r}, {items} items)?"
