"""`lakebase-sessions show`: one conversation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options, scoped, user_option
from lakebase_sessions.cli.shown import about, as_json, described
from lakebase_sessions.cli.terminal import print_json

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.conversation.listing import Conversation


@click.command()
@click.argument("session_id")
@place_options
@user_option
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0),
    metavar="ITEMS",
    help="At most the latest so many items. Without it all.",
)
@output_option
def show(
    *, wanted: Wanted, session_id: str, user: str | None, limit: int | None, output: str
) -> None:
    """Show a conversation: what it is, and what was said in it.

    For people, what tools were given and gave back is shortened. With -o json it is one object, its
    items under `history`.

    \b
      lakebase-sessions show trip-7
      lakebase-sessions show trip-7 --user mia@example.com -n 20
      lakebase-sessions show trip-7 -o json | jq '.history[-1]'
    """
    conversation, rows = asyncio.run(_read(wanted, session_id, user, limit))
    from lakebase_sessions.conversation.items import decode  # noqa: PLC0415

    if output == "json":
        print_json({**as_json(conversation), "history": decode(rows)})
        return
    click.echo(about(conversation))
    click.echo()
    for row in rows:
        items = decode([row])
        click.echo(described(items[0] if items else {"type": "unreadable", "text": row}))


async def _read(
    wanted: Wanted, session_id: str, user: str | None, limit: int | None
) -> tuple[Conversation, list[str]]:
    from lakebase_sessions.access.opened import Opened  # noqa: PLC0415
    from lakebase_sessions.conversation.store import SessionStore  # noqa: PLC0415
    from lakebase_sessions.postgres import queries  # noqa: PLC0415

    async with Opened(wanted) as opened:
        conversation = await SessionStore(opened).get(session_id, user=user)
        engine = await opened.engine_here()
        stored = {"session_id": scoped(session_id, user)}
        if limit is None:
            rows = await engine.rows(queries.ALL_ITEMS, stored, writing=False)
        else:
            latest = {**stored, "limit": str(limit)}
            rows = await engine.rows(queries.LATEST_ITEMS, latest, writing=False)
            rows.reverse()
    return conversation, [row for (row,) in rows]
