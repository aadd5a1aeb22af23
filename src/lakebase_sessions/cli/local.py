"""`lakebase-sessions local`: a Lakebase on this machine, in a terminal."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import FrameType


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".lakebase"),
    show_default=True,
    envvar="LAKEBASE_LOCAL_DATA",
    show_envvar=True,
    help="Folder that keeps the data from one start to the next.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="any free one",
    help="Port of the control plane on 127.0.0.1.",
)
@click.option(
    "--postgres-version",
    type=click.Choice(["16", "18"]),
    default="18",
    show_default=True,
    help="Major version of PostgreSQL.",
)
def local(data: Path, port: int, postgres_version: str) -> None:
    """Run a Lakebase on this machine until Ctrl-C.

    Prints three lines to stdout, which lead any process to it:

    \b
      export DATABRICKS_HOST=...
      export DATABRICKS_TOKEN=...
      export LAKEBASE_INSTANCE_NAME=...

    Copy them into another terminal, or keep them in a file to source:

    \b
      lakebase-sessions local > local.env &
      . ./local.env    # once it says that it is running

    The token is another one at each start. Ctrl-C, SIGTERM and a closed terminal end it with
    exit code 0; the data stays in the folder. Needs `pip install 'lakebase-sessions[local]'`.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    from lakebase_sessions.errors import LocalLakebaseError  # noqa: PLC0415
    from lakebase_sessions.local import LocalLakebase  # noqa: PLC0415

    stopping = _Stopping()
    console = Console(stderr=True, highlight=False)
    lakebase = LocalLakebase(data, port=port, postgres_version=int(postgres_version))
    with console.status("Starting PostgreSQL..."):
        lakebase.start()
    try:
        for name, value in lakebase.environ.items():
            click.echo(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()  # it may be a pipe or a file, which somebody is waiting for
        console.print(
            f"[bold green]A local Lakebase is running[/] (PostgreSQL {postgres_version}, "
            f"control plane at {lakebase.url}).\n"
            f"Its data is in {escape(str(data.absolute()))}. Ctrl-C stops it."
        )
        while not stopping.asked:
            time.sleep(0.1)
            if not lakebase.running:
                raise LocalLakebaseError(
                    f"The local PostgreSQL has ended. See {data.absolute() / 'postgres.log'}."
                )
    finally:
        lakebase.stop()
    console.print("Stopped.")


class _Stopping:
    """Whether the process was asked to end; a second signal does not cut the ending short."""

    def __init__(self) -> None:
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                signal.signal(getattr(signal, name), self._ask)

    def _ask(self, _signum: int, _frame: FrameType | None) -> None:
        self.asked = True
