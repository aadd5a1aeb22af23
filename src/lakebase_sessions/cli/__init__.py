"""The command line: `lakebase-sessions`, a command a file.

Commands import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from lakebase_sessions.cli.delete import delete
from lakebase_sessions.cli.doctor import doctor
from lakebase_sessions.cli.export import export
from lakebase_sessions.cli.grant import grant
from lakebase_sessions.cli.init import init
from lakebase_sessions.cli.list import list_
from lakebase_sessions.cli.load import load
from lakebase_sessions.cli.local import local
from lakebase_sessions.cli.prune import prune
from lakebase_sessions.cli.search import search
from lakebase_sessions.cli.show import show
from lakebase_sessions.cli.terminal import harmless
from lakebase_sessions.cli.title import title

INTERRUPTED = 130
"""The exit code of what Ctrl-C has ended: 128 and the number of the signal."""


class _Group(click.Group):
    """Turns the package's own errors into one message on stderr and exit code 1, and Ctrl-C to 130.

    Wrong usage is click's own, with exit code 2.
    """

    def invoke(self, ctx: click.Context) -> Any:
        from lakebase_sessions.errors import LakebaseSessionsError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except LakebaseSessionsError as exc:
            raise click.ClickException(harmless(str(exc), keep="\n")) from exc
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lakebase-sessions")
def main() -> None:
    """OpenAI Agents SDK sessions on Databricks Lakebase."""


for _command in (
    delete,
    doctor,
    export,
    grant,
    init,
    list_,
    load,
    local,
    prune,
    search,
    show,
    title,
):
    main.add_command(_command)
