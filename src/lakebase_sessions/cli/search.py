"""`lakebase-sessions search`: in which conversations something was said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.list import listed
from lakebase_sessions.cli.options import (
    limit_option,
    metadata_option,
    output_option,
    place_options,
    user_option,
)
from lakebase_sessions.cli.shown import print_conversations
from lakebase_sessions.cli.terminal import say

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted


@click.command()
@click.argument("text")
@place_options
@user_option
@metadata_option
@limit_option
@output_option
def search(
    *,
    wanted: Wanted,
    text: str,
    user: str | None,
    metadata: dict[str, str] | None,
    limit: int,
    output: str,
) -> None:
    """List conversations in which the user or the assistant said TEXT, newest first.

    Upper and lower case are the same; every other character counts, % and _ too. Without the index
    that `init --search` makes, all conversations are read.

    \b
      lakebase-sessions search "window seat"
      lakebase-sessions search refund --user mia@example.com
      lakebase-sessions search refund -n 0 -o json | jq -r .session_id
    """
    if not text.strip():
        raise click.UsageError("TEXT is empty.")
    found = asyncio.run(listed(wanted, limit, search=text, user=user, metadata=metadata))
    shown = found[:limit] if limit else found
    print_conversations(shown, output)
    if len(found) > len(shown):
        say(f"There are more than these {limit}: -n 0 lists all.")
