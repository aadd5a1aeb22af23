"""What a terminal is shown: tables, progress, questions; and no text that does something there."""

from __future__ import annotations

import json
import signal
import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_JOINERS = "\u200c\u200d"
"""Persian and emoji are written with them."""


def harmless(text: str, *, keep: str = "") -> str:
    r"""`text` without what a terminal obeys: escapes, control characters, changes of direction.

    They are shown as Python writes them, such as `\x1b`.

    Args:
        text: What somebody else wrote.
        keep: Control characters that may stay, such as line breaks.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if each in keep or not _acts(each) else each.encode("unicode_escape").decode()
        for each in text
    )


def _acts(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS


def shortened(text: str, length: int) -> str:
    """The beginning of `text`, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def table(columns: dict[str, str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table to stdout, as wide as the terminal; elsewhere as wide as it is.

    Args:
        columns: Heading to where it is aligned; `fold` is a column that is never cut.
        rows: What stands in it.
    """
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, how in columns.items():
        printed.add_column(
            heading,
            justify="right" if how == "right" else "left",
            overflow="fold" if how == "fold" else "ellipsis",
            no_wrap=how != "fold",
        )
    for row in rows:
        printed.add_row(*(Text(harmless(str(value))) for value in row))
    out = console()
    if not out.is_terminal:
        out.width = 100_000  # whoever reads a pipe wants it whole
    with out.capture() as drawn:
        out.print(printed)
    click.echo(drawn.get(), nl=False)  # which knows what to do about a broken pipe


def console(*, stderr: bool = False) -> Console:
    """A console without markup: what it prints comes from strangers."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout, in ASCII."""
    click.echo(json.dumps(value, separators=(",", ":")))


def progress() -> Progress:
    """A progress bar on stderr, shown if that is a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    err = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed; go on only after a yes.

    Raises:
        UsageError: There is nobody to ask: exit code 2.
        ClickException: The answer was no: exit code 1.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} There is no terminal to ask: say --yes (-y).")
    # Under an event loop Ctrl-C would cancel a task, and wait for the answer all the same.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        agreed = click.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    if not agreed:
        raise click.ClickException("Nothing was changed.")
