"""`lakebase-sessions doctor`: why a session fails."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import click

from lakebase_sessions.cli.options import output_option, place_options

if TYPE_CHECKING:
    from lakebase_sessions.access.site import Wanted
    from lakebase_sessions.doctor.step import Step

_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@place_options
@output_option
@click.option(
    "--json", "as_json", is_flag=True, help="The same as -o json: each step with what was seen."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that will use the Lakebase at once.",
)
@click.option(
    "--pool-size",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Most connections of each: pool_size plus max_overflow.",
)
@click.option(
    "--write", is_flag=True, help="Store a turn, in a conversation of its own, and remove it."
)
def doctor(
    *, wanted: Wanted, output: str, as_json: bool, workers: int, pool_size: int, write: bool
) -> None:
    """Walk the way that a session goes, and stop where it breaks.

    Each step is ok, warning or failed, with what was seen and the next command to run. Changes
    nothing, but for --write. Exit code 1 where a step has failed.
    """
    steps = asyncio.run(
        _walk(
            wanted,
            shown=not as_json and output == "text",
            pool=pool_size,
            workers=workers,
            write=write,
        )
    )
    well = all(step.status.value != "failed" for step in steps)
    if as_json or output == "json":
        described = [
            {"name": step.name, "status": step.status.value, "seen": step.seen, "next": step.next}
            for step in steps
        ]
        click.echo(json.dumps({"ok": well, "steps": described}, indent=2))
    sys.exit(0 if well else 1)


async def _walk(wanted: Wanted, *, shown: bool, pool: int, workers: int, write: bool) -> list[Step]:
    from lakebase_sessions.doctor.walk import walk  # noqa: PLC0415

    steps = []
    async for step in walk(wanted, pool=pool, workers=workers, write=write):
        steps.append(step)
        if shown:
            _show(step)
    return steps


def _show(step: Step) -> None:
    status = step.status.value
    click.echo(f"{click.style(f'{status:8}', fg=_COLORS[status])} {step.name}: {step.seen}")
    if step.next:
        click.echo(f"{'':8} next: {step.next}")
