"""Shared by the tests of the command line: running commands and checking errors."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from anndata import AnnData

from celldial import VAE, cli
from celldial.training import loop

# Options for a small model and a short training.
SMALL = ["--max-epochs", "3", "--n-latent", "3"]


def run(*arguments: object) -> int:
    """Run a command in this process and return its exit code."""
    return cli.main([str(argument) for argument in arguments])


def fit_in_python(cells: AnnData, **parameters: object) -> tuple[VAE, AnnData]:
    """Fit the model of `SMALL` in Python; return model and cells."""
    adata = cells.copy()
    return VAE(3, **parameters).fit(adata, max_epochs=3, progress=False), adata


def assert_usage_error(*arguments: object) -> None:
    """Check for exit code 2."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2


def assert_error(capsys: pytest.CaptureFixture[str], facts: Sequence[object], *arguments: object) -> None:
    """Check for exit code 1, and for one sentence with all facts as the last line of stderr."""
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("celldial: error: ")
    assert all(str(fact) in last for fact in facts), last
    assert "Traceback" not in captured.err
    assert "\\n" not in last


def count_epochs(monkeypatch: pytest.MonkeyPatch, fail_in: int = 0) -> list[int]:
    """Return a list to which each trained epoch is added; the epoch `fail_in` fails."""
    epochs: list[int] = []
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        epochs.append(self.state.epoch)
        if len(epochs) == fail_in:
            raise RuntimeError("cut short")
        original(self)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    return epochs


def documentation(root: Path) -> str:
    """Return the page about the command line."""
    return (root / "docs" / "howto" / "command_line.md").read_text(encoding="utf-8")
