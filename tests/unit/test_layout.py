"""The folders are the way of a request: who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lakebase_sessions

PACKAGE = Path(lakebase_sessions.__file__).parent
ORDER = (
    "server",
    "factory",
    "lakebase",
    "transfer",
    "conversation",
    "postgres",
    "workspace",
    "errors",
)
"""Each may import those behind it, and itself."""
BESIDE = ("local", "cli", "doctor", "access", "testing")
"""May import anything of the way; nobody on the way imports them."""

MODULES = {
    "lakebase_sessions." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
}


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """The package's modules that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                name = whole if whole in MODULES else node.module
                if f"{name}.__init__" in MODULES:
                    name = f"{name}.__init__"
                if name in MODULES:
                    yield name


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_along_the_way(module: str) -> None:
    here = room(module)
    for name in imported(MODULES[module]):
        there = room(name)
        if here in ORDER:
            allowed = ORDER[ORDER.index(here) :]
            assert there in allowed, (
                f"{module} imports {name}, against the order "
                f"{' -> '.join(ORDER)}: move what they share to where both may import it."
            )
        else:
            assert here in BESIDE, f"{module} is in a room that {Path(__file__).name} does not know"


def test_no_modules_name_each_other_in_a_circle() -> None:
    graph = {module: set(imported(path)) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"These import each other in a circle: {' -> '.join(error.args[1])}")
