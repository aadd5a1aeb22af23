"""Sphinx configuration; built with warnings as errors."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

import lakebase_sessions
from lakebase_sessions import conversations_router, errors

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
    """Have pages say what the code says: of errors, modules, routes and commands."""
    app.connect("source-read", _fill_in_errors)
    app.connect("source-read", _fill_in_modules)
    app.connect("source-read", _fill_in_routes)
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


def _fill_in_routes(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == "routes":
        server = FastAPI()
        server.include_router(conversations_router())
        document = server.openapi()
        source[0] += "\n".join(
            _route(method, path, operation, document["components"]["schemas"])
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        )


def _route(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A section of an operation of the OpenAPI document."""
    given = [
        _field(each["name"], each["schema"], each.get("required"), each["in"])
        for each in operation.get("parameters", [])
    ]
    if "requestBody" in operation:
        body = _schema(operation["requestBody"]["content"]["application/json"]["schema"], schemas)
        required = body.get("required", [])
        given += [
            _field(name, schema, name in required, "body")
            for name, schema in body["properties"].items()
        ]
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {})
    fields = _schema(answer.get("schema", {}), schemas).get("properties", {})
    lines = [f"## {operation['summary']}", f"`{method.upper()} {path}`"]
    if given:
        lines.append("\n".join(["| | in | type | |", "|---|---|---|---|", *given]))
    if fields:
        lines.append(f"Answers with {', '.join(f'`{name}`' for name in fields)}.")
    return "\n\n".join(["", *lines, ""])


def _schema(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """What it refers to; of several, the one that is not null."""
    for choice in schema.get("anyOf", [schema]):
        if "$ref" in choice:
            found: dict[str, Any] = schemas[choice["$ref"].rpartition("/")[2]]
            return found
    return schema


def _field(name: str, schema: dict[str, Any], required: object, place: str) -> str:
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    default = schema.get("default")
    if required:
        bounds.append("required")
    elif default is not None:
        bounds.append(f"default `{default}`")
    return f"| `{name}` | {place} | {_type(schema)} | {', '.join(bounds)} |"


_BOUNDS = {"minimum": "from", "maximum": "to"}


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        named = [_type(choice) for choice in schema["anyOf"] if choice.get("type") != "null"]
        return " or ".join(named)
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "any"))
