"""Configuration of the documentation, which `make docs` builds."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import mirrorode

project = "mirrorode"
author = "The mirrorode developers"
project_copyright = author
release = mirrorode.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]
myst_heading_anchors = 3

# Docstrings have names and formulas in single backticks; those that are names become links.
default_role = "py:obj"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 120
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "mirrorode"
html_show_sphinx = False
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]


def to_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> Any:
    """Link ``mirrorode.problem.networks.MLP`` of a signature to ``mirrorode.MLP``.

    The package imports its public names when they are first used, so that each has the module it
    is written in for its home.
    """
    target = node.get("reftarget", "")
    name = target.rsplit(".", 1)[-1]
    if not target.startswith("mirrorode.") or name not in mirrorode.__all__:
        return None
    python = env.get_domain("py")
    target = f"mirrorode.{name}"
    return python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    )


MARKS = re.compile(r"(``.*?``|\*\w+\*)|([|]|(?<!\*)\*(?=\w))", re.DOTALL)


def keep_formulas(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Let | and * stand for what they do in |θ|^p and (…, *shape): they are marks of reST."""
    if what == "property":
        lines.insert(0, "")  # or what comes before a colon is taken for the type
    escaped = MARKS.sub(lambda it: it[1] or "\\" + it[2], "\n".join(lines))
    lines[:] = escaped.split("\n")


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("missing-reference", to_public_name)
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)  # before napoleon
