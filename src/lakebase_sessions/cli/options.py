"""Options that commands about a Lakebase share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted

Command = Callable[..., Any]

_PLACE = (
    click.option(
        "--lakebase",
        metavar="NAME|HOST|PATH",
        help="Which Lakebase. Without it, the first that is set counts: "
        "LAKEBASE_AUTOSCALING_ENDPOINT, LAKEBASE_AUTOSCALING_PROJECT with "
        "LAKEBASE_AUTOSCALING_BRANCH, LAKEBASE_INSTANCE_NAME, PGHOST.",
    ),
    click.option(
        "--database",
        metavar="NAME",
        help="The database. Without it PGDATABASE, if PGHOST is this Lakebase's; else "
        "databricks_postgres.",
    ),
    click.option(
        "--schema",
        metavar="NAME",
        help="The schema of the tables. Without it LAKEBASE_AGENT_MEMORY_SCHEMA; else the role's "
        "default.",
    ),
    click.option(
        "-p",
        "--profile",
        metavar="NAME",
        help="A profile of the Databricks CLI to log in with. Without it the SDK's own ways: "
        "DATABRICKS_CONFIG_PROFILE, DATABRICKS_HOST and a token, ...",
    ),
)


def place_options(command: Command) -> Command:
    """Add `--lakebase`, `--database`, `--schema` and `--profile`; the command gets a `Wanted`."""

    @functools.wraps(command)
    def with_wanted(
        *,
        lakebase: str | None,
        database: str | None,
        schema: str | None,
        profile: str | None,
        **rest: Any,
    ) -> Any:
        return command(
            wanted=_wanted(lakebase, database, schema, profile),
            **rest,
        )

    decorated: Command = with_wanted
    for option in reversed(_PLACE):
        decorated = option(decorated)
    return decorated


def _wanted(
    lakebase: str | None, database: str | None, schema: str | None, profile: str | None
) -> Wanted:
    from lakebase_sessions.access.site import Wanted  # noqa: PLC0415

    return Wanted(target=lakebase, database=database, schema=schema, profile=profile)


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people or for programs.",
)


user_option = click.option(
    "--user",
    metavar="USER",
    help="Only this user's conversations: the `user=` that they were stored with.",
)

yes_option = click.option(
    "-y",
    "--yes",
    is_flag=True,
    help="Do not ask. Needed where something would be destroyed and there is no terminal.",
)


def scoped(session_id: str, user: str | None) -> str:
    """A session id as it is stored. It is taken as it stands where no user is named."""
    from lakebase_sessions.conversation.session_id import scope_to_user  # noqa: PLC0415

    return scope_to_user(session_id, user)
