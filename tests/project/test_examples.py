"""The examples in docstrings and in the README can be run."""

import doctest
import importlib
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "celldial"


def module_name(path: Path) -> str:
    """Return the name of a file in an import: ``celldial.pl.axes``."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(module_name(path) for path in SOURCE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    if module.endswith("triton_backend"):
        pytest.importorskip("triton")
    if module.endswith("integration_report"):
        pytest.importorskip("scib_metrics", reason="an extra")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; see the captured output"
    assert not list(tmp_path.iterdir()), "examples leave files where they are run"


# scanpy 1.11 sets the color of missing values as matplotlib 3.11 will not have it one day; Python does not show this.
@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_the_lines_of_use_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {"dial.html", "pbmc.celldial"}
    assert "NKG7" in capsys.readouterr().out
