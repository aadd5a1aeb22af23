"""`lakebase-sessions init`: schema and tables, before anybody needs them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted


@click.command()
@place_options
@output_option
@click.option(
    "--owner",
    metavar="ROLE",
    help="Who is to own them: a group that you are a member of. Its role is made if there is none. "
    "Without it, you.",
)
def init(wanted: Wanted, output: str, owner: str | None) -> None:
    """Make the schema and the tables where they are missing.

    With --owner they belong to a role that is not one's own, so that neither the first laptop nor
    a renamed app owns them. Safe to repeat.
    """
    from lakebase_sessions.access.making import make_tables  # noqa: PLC0415
    from lakebase_sessions.access.site import Site  # noqa: PLC0415

    found = asyncio.run(make_tables(Site.find(wanted), owner=owner))
    tables = {each.name: each.owner for each in found if each.kind == "TABLE"}
    if output == "json":
        click.echo(json.dumps({"tables": tables}, indent=2))
        return
    for name, whose in tables.items():
        click.echo(f"{name} belongs to '{whose}'")
