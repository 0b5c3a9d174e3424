"""The committed tutorials are complete and up to date; the slow tests run them."""

import ast
import importlib
import importlib.util
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest

import celldial as cd

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("execute", ROOT / "tutorials" / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)
TUTORIALS = execute.tutorials()
MAX_KILOBYTES = 1500
# Methods that only a VAE has; `fit`, `transform`, `score` and the like are also methods of other libraries.
METHODS = [
    "axes",
    "clusters",
    "denoise",
    "differential",
    "find_axis",
    "impute",
    "impute_to_file",
    "latent_posterior",
    "latent_traverse",
    "map_query",
    "markers",
]

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_tree(cell):
    """Return the syntax tree of a cell. A magic such as ``%%writefile`` is skipped; the code below it is parsed."""
    return ast.parse(re.sub(r"\A%%.*", "", cell.source))


def output_kinds(cell):
    """Return the kinds of output of a cell: the streams with text, and the formats of each table and figure.

    The kernel sends a stream in pieces, whenever a timer of 0.2 s fires or the buffer is flushed. The number of
    pieces, and their order among tables and figures, depend on how busy the machine is. So the pieces of one stream
    count once, and the order of outputs within a cell does not count.
    """
    streams = {output.name for output in cell.outputs if output.output_type == "stream"}
    displays = [tuple(sorted(output.data)) for output in cell.outputs if "data" in output]
    return sorted(streams), sorted(displays)


@pytest.mark.slow
@each_tutorial
def test_tutorial_reproduces_its_outputs(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    executed = execute.execute(path, tmp_path)
    for before, now in zip(code_cells(committed), code_cells(executed), strict=True):
        assert output_kinds(now) == output_kinds(before), f"run `make tutorials`: {path.name} changed at\n{now.source}"


@each_tutorial
def test_committed_tutorial_was_executed_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}  # no "error"
    streams = {output.name for cell in cells for output in cell.outputs if output.output_type == "stream"}
    assert streams <= {"stdout"}
    formats = {name for cell in cells for output in cell.outputs for name in output.get("data", ())}
    assert "image/png" in formats


@each_tutorial
def test_tutorial_has_a_title_and_no_machine_path(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert path.stat().st_size < 1000 * MAX_KILOBYTES
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8"))


@each_tutorial
def test_claims_of_the_text_are_asserted_in_hidden_cells(path):
    notebook = nbformat.read(path, as_version=4)
    hidden = [cell for cell in code_cells(notebook) if "remove-cell" in cell.metadata.get("tags", [])]
    assert hidden
    for cell in hidden:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(source_tree(cell))), cell.source
        assert not cell.outputs


@each_tutorial
def test_names_and_arguments_of_celldial_exist(path):
    """The tutorials run in the slow tests only. This finds a renamed function or argument at once."""
    nodes = [node for cell in code_cells(nbformat.read(path, as_version=4)) for node in ast.walk(source_tree(cell))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "celldial":
            for alias in node.names:
                getattr(importlib.import_module(node.module), alias.name)
        elif isinstance(node, ast.Attribute) and (names := names_below_cd(node)):
            reduce(getattr, names, cd)
        elif isinstance(node, ast.Call) and (function := function_of_celldial(node.func)):
            arguments = {keyword.arg for keyword in node.keywords if keyword.arg}
            assert arguments <= set(inspect.signature(function).parameters), ast.unparse(node)


def function_of_celldial(node):
    """Return what ``cd.pl.axes`` or ``model.find_axis`` refers to, and None for a function of another package."""
    if names := names_below_cd(node):
        return reduce(getattr, names, cd)
    return getattr(cd.VAE, node.attr) if isinstance(node, ast.Attribute) and node.attr in METHODS else None


def names_below_cd(node):
    """Return ``["pl", "axes"]`` for the expression ``cd.pl.axes``, and an empty list for one of another package."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return names if isinstance(node, ast.Name) and node.id == "cd" else []
