"""Options that commands about a Lakebase share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
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

limit_option = click.option(
    "-n",
    "--limit",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="At most so many; 0 is all.",
)


def _pairs(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    wrong = next((value for value in values if "=" not in value), None)
    if wrong is not None:
        raise click.BadParameter(f"{wrong!r} is not NAME=VALUE.")
    return dict(value.split("=", 1) for value in values) or None


metadata_option = click.option(
    "--metadata",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="Only those whose metadata has this. May be given several times.",
)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class _Age(click.ParamType):  # type: ignore[type-arg]
    """`90d`, `12h`, ...: a `timedelta`."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([0-9]{1,6})([mhdw])", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no age, such as 90d, 12h, 30m or 4w.", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


class _Moment(click.ParamType):  # type: ignore[type-arg]
    """An age, or a date with or without a time: a `datetime`, local where it names no zone."""

    name = "moment"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except (ValueError, OverflowError):
            pass
        try:
            return datetime.now(UTC) - AGE.convert(value, None, None)
        except (click.BadParameter, OverflowError):
            self.fail(f"{value!r} is no age (90d, 12h) and no date (2026-11-25).", param, ctx)


AGE = _Age()
MOMENT = _Moment()

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
