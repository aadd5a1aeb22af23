"""`lakebase-sessions grant`: what an identity needs for sessions, given or taken back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted


@click.command()
@click.argument("identity")
@place_options
@output_option
@click.option("--create", is_flag=True, help="It is to make the schema and the tables, too.")
@click.option("--revoke", is_flag=True, help="Take it back. The role stays.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, and change nothing.")
def grant(
    *, wanted: Wanted, identity: str, output: str, create: bool, revoke: bool, dry_run: bool
) -> None:
    """Give IDENTITY what a session needs.

    IDENTITY is a user name (with an @), a service principal's client id, or a group's name. Its
    role is made if there is none; then come database, schema, tables, sequences, and tables that
    will be made later. Safe to repeat. Fails where a grant did nothing, and says who has to run
    which statement.
    """
    from lakebase_sessions.access.grants import change_access  # noqa: PLC0415
    from lakebase_sessions.access.site import Site  # noqa: PLC0415

    change = asyncio.run(
        change_access(Site.find(wanted), identity, create=create, revoke=revoke, dry_run=dry_run)
    )
    if output == "json":
        click.echo(json.dumps({"identity": identity, "statements": change.lines}, indent=2))
        return
    for line in change.lines or ["-- nothing to do"]:
        click.echo(line)
