"""What the README says to do can be done."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest


# scanpy 1.11 sets the color of missing values as matplotlib 3.11 will not have it one day; Python does not show this.
@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_the_lines_of_use_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    plt.close("all")
    assert {path.name for path in tmp_path.iterdir()} == {"dial.html", "pbmc.celldial"}
    assert "NKG7" in capsys.readouterr().out
