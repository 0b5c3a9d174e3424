"""Sphinx configuration for ``make docs``: the build downloads nothing; the pages load nothing from other sites."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

project = "celldial"
author = "The celldial developers"
# Without a year or a build date, so that the same sources give the same pages.
project_copyright = author
release = importlib.metadata.version("celldial")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# --- Docstrings -------------------------------------------------------------------------------------------------------

default_role = "py:obj"  # `fit` in a docstring is a link if there is such a name, and code otherwise
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints_format = "short"
numpydoc_show_class_members = False
add_module_names = False
maximum_signature_line_length = 80

# --- Pages and notebooks ----------------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True

# --- HTML -------------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = f"celldial {release}"
html_static_path = ["_static"]
html_css_files = ["celldial.css"]
html_math_renderer = "mathml"
html_theme_options = {
    "home_page_in_toc": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "toc_title": "On this page",
    "use_fullscreen_button": False,
}


# Files of the repository that have a page on the site, and the address of that page.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md#how-to-rerun",
}
# Pages that consist of such a file.
INCLUDED = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)")


def copy_tutorials() -> None:
    """Copy the notebooks to where Sphinx finds them, and delete copies of notebooks that no longer exist.

    A symbolic link would not work: Sphinx resolves links between pages to the real files, which would then be outside
    of its folder.
    """
    folder = HERE / "tutorials"
    folder.mkdir(exist_ok=True)
    notebooks = {path.name: path for path in ROOT.glob("tutorials/[0-9]*.ipynb")}
    for path in folder.glob("*.ipynb"):
        if path.name not in notebooks:
            path.unlink()
    for name, path in notebooks.items():
        shutil.copy2(path, folder / name)


def read_source(app: Any, docname: str, source: list[str]) -> None:
    """Rewrite links, which are written to work in the repository, to the addresses of the files on the site."""
    if docname in INCLUDED:
        origin = ROOT / INCLUDED[docname]
        source[0] = origin.read_text(encoding="utf-8")
        app.env.note_dependency(str(origin))
    elif docname.startswith("tutorials/"):
        origin = ROOT / docname
    else:
        origin = HERE / docname
    page = (HERE / docname).parent
    text = LINK.sub(lambda found: on_site(found[1], origin.parent, page), source[0])
    source[0] = re.sub("([≤≥]) (?=[0-9])", "\\1\N{NO-BREAK SPACE}", text)  # keep them on one line of a table


def on_site(target: str, folder: Path, page: Path) -> str:
    """Return the link from `page`, a folder of the site, to the file that `folder` of the repository calls `target`."""
    path = Path(os.path.normpath(folder / target))
    if not path.is_file() or not path.is_relative_to(ROOT):
        return target
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        path = HERE / PAGES[name]
    elif path.parent == ROOT / "tutorials":
        path = HERE / name
    return Path(os.path.relpath(path, page)).as_posix()


# What authors write → what docutils knows.
SPELLINGS = {
    r"\\([bB]igg?)(?=\(|\[|\\\{|\\lbrace)": r"\\\1l",
    r"\\([bB]igg?)(?=\)|\]|\\\}|\\rbrace)": r"\\\1r",
    r"\\dots(?![a-zA-Z])": r"\\ldots",
    r"\\textstyle(?![a-zA-Z])": "",  # within a formula, so that all sums have the same size
}
# Space that browsers leave out: on both sides of a function such as log, and after a relation that begins a column.
THIN = '<mspace width="0.17em"/>'
SPACES = {
    r"(</m(?:i|n|sub|sup|subsup)>\s*)(?=<mi>[a-z]+</mi>\s*<mo>&ApplyFunction;)": rf"\1{THIN}",
    r"<mo>&ApplyFunction;</mo>(?!\s*(?:<mrow>\s*)?<mo[^>]*>[(\[])": THIN,
    r"(<mtd>\s*<mo)>": r'\1 form="infix">',
}


def mathml(node: nodes.Element, as_block: bool) -> str:
    """Return a formula as MathML, which browsers draw themselves; the usual script would come from another site."""
    formula = node.astext()
    for written, known in SPELLINGS.items():
        formula = re.sub(written, known, formula)
    try:
        text = str(tex2mathml(formula, as_block=as_block))
    except MathError as error:
        logging.getLogger(__name__).warning("a formula cannot be converted to MathML: %s", error, location=node)
        return ""
    for found, spaced in SPACES.items():
        text = re.sub(found, spaced, text)
    return text


def visit_math(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    writer.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_displayed_math(writer: Any, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number if it has one."""
    writer.body.append(writer.starttag(node, "div", CLASS="formula"))
    if node.get("number"):
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})</span>')
    writer.body.append(mathml(node, as_block=True) + "</div>\n")
    raise nodes.SkipNode


# Tags that make a browser load a file by itself.
LOADED = re.compile(r"""<(?:img|script|link|iframe|source)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']+""")


def check_self_contained(app: Any, exception: Exception | None) -> None:
    """Warn of pages that load a file from another site: pages must work offline and reveal nothing about readers."""
    if exception is None and app.builder.format == "html":
        for docname in app.env.found_docs:
            page = Path(app.builder.get_outfilename(docname)).read_text(encoding="utf-8")
            for found in LOADED.findall(page):
                logging.getLogger(__name__).warning("%s loads a file from another site: %s", docname, found)


def setup(app: Any) -> dict[str, bool]:
    """Register the functions above."""
    copy_tutorials()
    shutil.rmtree(HERE / "api" / "generated", ignore_errors=True)  # else pages of removed names would stay
    app.connect("source-read", read_source)
    app.connect("build-finished", check_self_contained)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displayed_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
