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


def test_its_numbers_are_those_of_the_benchmarks(root: Path) -> None:
    """Each figure of the table stands in the tables of all benchmarks, too."""
    row = re.compile(r"^\| .+ \| `\w+\.py` \|$", re.MULTILINE)
    rows = row.findall((root / "README.md").read_text(encoding="utf-8"))
    assert len(rows) >= 10
    tables = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for line in rows:
        _, _, ours, beside, _, _ = (part.strip() for part in line.split("|"))
        for number in re.findall(r"\d[\d,]*\.?\d*", f"{ours} {beside.replace('1,000,000', '')}"):
            assert re.search(rf"(?<![\d.]){re.escape(number)}", tables), f"{number} of {line}"
