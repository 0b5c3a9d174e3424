"""The tutorials run from top to bottom, offline, and what is committed is what they show."""

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("execute", ROOT / "tutorials" / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute)
TUTORIALS = execute.tutorials()
MAX_KILOBYTES = 1500


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Which kinds of output a cell has: text, a table, a figure."""
    return [sorted(output.get("data", {output.get("name"): ""})) for output in cell.outputs]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_shows_what_is_committed(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    ran = execute.execute(path, tmp_path)
    for before, now in zip(code(committed), code(ran), strict=True):
        assert kinds(now) == kinds(before), f"make tutorials: {path.name} shows something else at\n{now.source}"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_committed_tutorial_is_whole(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert path.stat().st_size < 1000 * MAX_KILOBYTES
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text), "the path of a machine"
    assert any("image/png" in kind for cell in code(notebook) for kind in kinds(cell))
