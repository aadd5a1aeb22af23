"""Every public name, command, variable and error is documented, and what is documented exists."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import lakebase_sessions
from lakebase_sessions import errors
from lakebase_sessions.cli import main
from lakebase_sessions.testing import plugin

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = Path(inspect.getfile(lakebase_sessions)).parent

OUR_OWN_USE = {
    "AtomicTurn.destination",
    "AtomicTurn.meet",
    "AtomicTurn.release",
    "AtomicTurn.resume",
    "AtomicTurn.wait",
    "AtomicTurn.replace",
    "AtomicTurn.stored",
    "Lakebase.engine_here",
    "LakebaseSession.engine_here",
    "LakebaseSession.stepped_turn",
}
"""Public in name alone: methods that other modules of this package call."""

NO_VARIABLES = {
    "DATABRICKS_SUPERUSER": "a role",
    "PGRES": "the protocol's",
    "PGSQL": "part of a socket's name",
}


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def pages() -> list[Path]:
    return [*sorted(DOCS.glob("*.md")), *([ROOT / "README.md"] * (ROOT / "README.md").exists())]


# --- names -------------------------------------------------------------------------------------


def directives() -> dict[str, str]:
    """What autodoc is asked for in any page, such as `Lakebase`, and the lines of its options."""
    found: dict[str, str] = {}
    for path in sorted(DOCS.glob("*.md")):
        for name, options in re.findall(
            r"^\.\. auto(?:function|class|exception|data):: lakebase_sessions\.([\w.]+)(?:\(\))?\n"
            r"((?:   .*\n)*)",
            path.read_text(),
            re.MULTILINE,
        ):
            assert name not in found, f"{name} is documented twice; the second time in {path.name}"
            found[name] = options
    return found


def public_names() -> set[str]:
    names = set(lakebase_sessions.__all__)
    for module in ("local", "testing"):
        names |= {
            f"{module}.{name}"
            for name in importlib.import_module(f"lakebase_sessions.{module}").__all__
        }
    return names


def value_of(name: str) -> object:
    module, _, attribute = f"lakebase_sessions.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_name_is_in_the_reference() -> None:
    missing = sorted(public_names() - set(directives()))
    assert not missing, f"add `.. auto...:: lakebase_sessions.<name>` to docs/api.md for {missing}"


def test_every_name_in_the_reference_is_public() -> None:
    unknown = sorted(set(directives()) - public_names())
    assert not unknown, f"docs name what is in no __all__: {unknown}"


@pytest.mark.parametrize("name", sorted(n for n in public_names() if isinstance(value_of(n), type)))
def test_every_method_is_in_the_reference(name: str) -> None:
    kind = value_of(name)
    assert isinstance(kind, type)
    options = directives().get(name, "")
    if issubclass(kind, BaseException) or name == "testing.SessionContract":
        return  # attributes are in the class's docstring; a contract's tests are its own listing
    listed = re.search(r":members:([\w ,\n]*)", options)
    members = set(re.findall(r"\w+", listed[1])) if listed else None
    for member, value in own_members(kind):
        if f"{kind.__name__}.{member}" in OUR_OWN_USE:
            continue
        assert inspect.getdoc(value), f"{name}.{member} has no docstring"
        assert members == set() or member in (members or ()), (
            f"{name}.{member} is not among the :members: of {name} in the docs; add it, or to "
            "OUR_OWN_USE here if users do not need it"
        )
    for member in members or ():
        assert member in dir(kind) or member in getattr(kind, "__annotations__", {}), (
            f"docs list {name}.{member}, which does not exist"
        )


def own_members(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a class of this package brings in.

    What implements somebody else's class is documented there.
    """
    theirs = {
        name
        for base in kind.__mro__
        if not base.__module__.startswith("lakebase_sessions")
        for name in vars(base)
    }
    for base in kind.__mro__:
        if base.__module__.startswith("lakebase_sessions"):
            for name, value in vars(base).items():
                if (
                    name not in theirs
                    and not name.startswith("_")
                    and isinstance(value, property | classmethod | staticmethod | type(page))
                ):
                    yield name, value


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_every_name_that_a_page_imports_exists(path: Path) -> None:
    for module, several, one in re.findall(
        r"^\s*from (lakebase_sessions[\w.]*) import (?:\(([^)]*)\)|([^\n#]*))",
        path.read_text(),
        re.MULTILINE,
    ):
        for name in re.findall(r"\w+", several or one):
            assert hasattr(importlib.import_module(module), name), (
                f"{path.name} imports {name} from {module}, which has no such name"
            )


# --- errors ------------------------------------------------------------------------------------

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.LakebaseSessionsError)
    and kind is not errors.LakebaseSessionsError
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_its_cause_and_its_cure(kind: type[Exception]) -> None:
    """docs/conf.py makes docs/errors.md of it."""
    paragraphs = inspect.cleandoc(vars(kind).get("__doc__") or "").split("\n\n")
    cures = [text for text in paragraphs if text.startswith("To fix this: ")]
    assert len(cures) == 1, (
        f"the docstring of errors.{kind.__name__} needs a paragraph `To fix this: ...`, one"
    )
    assert paragraphs.index(cures[0]) > 0, f"errors.{kind.__name__}: the cause comes first"


def test_every_code_that_troubleshooting_names_exists() -> None:
    named = set(re.findall(r"\(`([a-z_]+)`\)", page("troubleshooting")))
    assert named
    assert named <= {getattr(kind, "code", None) for kind in KINDS}


# --- variables ---------------------------------------------------------------------------------

VARIABLE = re.compile(r"\b(?:(?:LAKEBASE|DATABRICKS)_[A-Z_]+[A-Z]|PG[A-Z]{3,})\b")


def test_every_variable_is_documented() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        for name in sorted(set(VARIABLE.findall(path.read_text())) - set(NO_VARIABLES)):
            assert f"`{name}`" in page("environment"), (
                f"{path.relative_to(SOURCE)} names {name}: add it to docs/environment.md, or to "
                "NO_VARIABLES here if it is none"
            )


def test_every_documented_variable_exists() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", page("environment"), re.MULTILINE))
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    unknown = sorted(documented - set(VARIABLE.findall(source)))
    assert not unknown, f"docs/environment.md has variables that nothing in src/ names: {unknown}"


# --- the command line --------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each command."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield (*path, name)
            yield from commands(child, (*path, name))


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def test_the_page_of_the_command_line_is_made_of_all_commands() -> None:
    assert re.search(
        r"\.\. click:: lakebase_sessions\.cli:main\n(   .*\n)*   :nested: full\n", page("cli")
    ), "docs/cli.md is to show `lakebase_sessions.cli:main` with `:nested: full`"


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_and_option_has_a_help_text(path: tuple[str, ...]) -> None:
    command = command_at(path)
    assert command.help, f"`lakebase-sessions {' '.join(path)}` has no docstring"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (
                f"`lakebase-sessions {' '.join(path)} {parameter.opts[0]}` has no help="
            )


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_every_command_that_a_page_shows_exists(path: Path) -> None:
    for line in re.findall(r"\blakebase-sessions ((?:[a-z-]+ ?)[^`\n#|]*)", path.read_text()):
        command: click.Command = main
        words = line.split()
        while words and isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if command is main:
            assert not re.match(r"--", words[0]), f"{path.name}: lakebase-sessions {line}"
            continue  # prose, such as "lakebase-sessions is"
        known = {"--help", *(opt for each in command.params for opt in each.opts)}
        for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", " ".join(words)):
            assert option in known, f"{path.name} shows {option}, which `{command.name}` has not"


# --- the pytest plugin -------------------------------------------------------------------------


def test_every_fixture_and_setting_is_documented() -> None:
    fixtures = [
        name
        for name, value in vars(plugin).items()
        if name.startswith("lakebase") and not isinstance(value, str)
    ]
    assert "lakebase" in fixtures
    for name in [*fixtures, *plugin.SETTINGS]:
        assert f"| `{name}` |" in page("testing"), f"docs/testing.md has no row for {name}"
    rows = re.findall(r"^\| `(lakebase\w*)` \|", page("testing"), re.MULTILINE)
    assert set(rows) == {*fixtures, *plugin.SETTINGS}
