"""Sphinx configuration; built with warnings as errors."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

import lakebase_sessions
from lakebase_sessions import errors

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "lakebase-sessions"
author = "the lakebase-sessions maintainers"
release = version = version_of("lakebase-sessions")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "performance_turns.md"]
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_css_files = ["page.css"]
html_js_files = ["page.js"]
html_show_copyright = False

default_role = "code"  # docstrings use single backticks for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes_action = "qe"  # quotes and ellipses; `--yes` keeps its dashes
suppress_warnings = ["ref.python"]  # a type's short name may be found in several places


def setup(app: Sphinx) -> None:
    """Have three pages say what the source says: of errors, modules and commands."""
    app.connect("source-read", _fill_in_errors)
    app.connect("source-read", _fill_in_modules)
    app.connect("sphinx-click-process-description", _show_examples)


def _fill_in_errors(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "errors":
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, errors.LakebaseSessionsError)
            and kind is not errors.LakebaseSessionsError
        ]
        source[0] += "\n".join(map(_section, kinds))


def _section(kind: type[errors.LakebaseSessionsError]) -> str:
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    name = f"{{py:class}}`{kind.__name__} <lakebase_sessions.{kind.__name__}>`"
    [cure] = [each for each in paragraphs if each.startswith("To fix this:")]
    return f"""
## `{kind.code}`

{name}, HTTP {kind.http_status}. {paragraphs[0]}

{cure}
"""


def _fill_in_modules(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "architecture":
        mark = "<!-- made by docs/conf.py of the first lines of the modules -->"
        [before, after] = source[0].split(mark)
        root = Path(inspect.getfile(lakebase_sessions)).parent
        lines: list[str] = []
        for folder in sorted({path.parent for path in root.glob("*/*.py")}):
            lines += ["", f"`{folder.name}/`", ""]
            lines += [
                f"- `{path.stem}`: {_first_sentence(path)}"
                for path in sorted(folder.glob("*.py"))
                if path.stem != "__init__"
            ]
        source[0] = before + "\n".join(lines) + after


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ").removesuffix(".")


def _show_examples(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Have the examples of a command's help be code; sphinx-click makes them lines of a verse."""
    shown: list[str] = []
    for line in lines:
        if line.startswith("| "):
            if not shown or not shown[-1].startswith("   "):
                shown += ["", ".. code-block:: console", ""]
            shown.append(f"   {line[2:].strip()}")
        else:
            shown.append(line)
    lines[:] = shown
