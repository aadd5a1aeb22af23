"""Sphinx configuration; built with warnings as errors."""

from __future__ import annotations

import inspect
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

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

default_role = "code"  # docstrings use single backticks for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # a type's short name may be found in several places


def setup(app: Sphinx) -> None:
    """Have the page of the errors say what their classes say."""
    app.connect("source-read", _fill_in_errors)


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
