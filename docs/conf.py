"""Sphinx configuration; built with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "lakebase-sessions"
author = "the lakebase-sessions maintainers"
release = version = version_of("lakebase-sessions")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
