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
@click.option(
    "--search",
    is_flag=True,
    help="Also make the index that searches need where there are many conversations. It takes "
    "minutes for a million items, and blocks nobody.",
)
def init(wanted: Wanted, output: str, owner: str | None, search: bool) -> None:
    """Make the schema, the tables and their indexes where they are missing.

    With --owner they belong to a role that is not one's own, so that neither the first laptop nor
    a renamed app owns them. Safe to repeat.
    """
    from lakebase_sessions.access.indexing import make_indexes  # noqa: PLC0415
    from lakebase_sessions.access.making import make_tables  # noqa: PLC0415
    from lakebase_sessions.access.site import Site  # noqa: PLC0415

    site = Site.find(wanted)
    found = asyncio.run(make_tables(site, owner=owner))
    tables = {each.name: each.owner for each in found if each.kind == "TABLE"}
    made = asyncio.run(make_indexes(site, search=search, owner=owner))
    if output == "json":
        states = {each.index.name: each.state for each in made}
        click.echo(json.dumps({"tables": tables, "indexes": states}, indent=2))
        return
    for name, whose in tables.items():
        click.echo(f"{name} belongs to '{whose}'")
    for each in made:
        if each.state == "not owned":
            command = "lakebase-sessions init" + (" --search" if search else "")
            click.echo(
                f"{each.index.name} is missing, which makes lists quicker: '{each.owner}', who "
                f"owns the table, makes it with `{command}`",
                err=True,
            )
        else:
            click.echo(f"{each.index.name} is there")
