"""The command line as a process: stdout and stderr, exit codes, Ctrl-C, and what it imports."""

import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata
import pytest
from anndata import AnnData

import celldial
from celldial import VAE, cli
from celldial.training import loop
from helpers.cli import SMALL, run, run_process


def test_stdout_has_results_and_stderr_messages(file: Path, tmp_path: Path, cells: AnnData) -> None:
    x = cells.X.toarray()
    x[3] = 0
    AnnData(x, cells.obs.copy(), cells.var.copy()).write_h5ad(tmp_path / "cells.h5ad")
    done = run_process("fit", "cells.h5ad", *SMALL, "--out", "out.h5ad", "--model", "m.celldial", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "out.h5ad\nm.celldial\n"
    assert "celldial: reading cells.h5ad" in done.stderr
    assert "ELBO" in done.stderr
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("celldial: warning: "))
    assert "1 of 60 cells" in warning
    assert "'c3'" in warning
    assert ".py:" not in done.stderr


def test_quiet_hides_progress_only(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("fit", file, *SMALL, "--out", tmp_path / "out.h5ad", "--quiet") == 0
    assert capfd.readouterr() == (f"{tmp_path / 'out.h5ad'}\n", "")
    assert run("fit", file, "--layer", "raw", "--out", tmp_path / "out.h5ad", "--quiet") == 1
    assert capfd.readouterr().err.startswith("celldial: error: ")


def test_errors_of_a_process(file: Path, tmp_path: Path) -> None:
    done = run_process("fit", file, "--batch-key", "doner", "--out", tmp_path / "out.h5ad", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("celldial: error: ")
    assert "'doner'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_stdout_can_be_closed(folder: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m celldial info {shlex.quote(str(folder / 'm.celldial'))} --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(("in_epoch", "written"), [(0, False), (2, True)])
def test_ctrl_c_exits_with_130(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_epoch: int,
    written: bool,
) -> None:
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        if self.state.epoch == in_epoch:
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    assert run("fit", file, "--max-epochs", 5, "--out", tmp_path / "out.h5ad") == 130
    captured = capsys.readouterr()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {path.name for path in tmp_path.iterdir()} == {"cells.h5ad", *(["out.h5ad"] if written else [])}
    if written:
        assert captured.out == f"{tmp_path / 'out.h5ad'}\n"
        assert "best epoch" in captured.err
        out = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert len(out.uns["celldial"]["history"]["seconds"]) == in_epoch
    else:
        assert captured.err.endswith("celldial: interrupted; nothing was written\n")


def test_ctrl_c_twice_writes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VAE, "save", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    original = loop.Trainer._epoch

    def epoch(self: loop.Trainer) -> None:
        original(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    assert run("fit", file, *SMALL, "--model", tmp_path / "m.celldial", "--out", tmp_path / "out.h5ad") == 130
    assert capsys.readouterr().err.endswith("celldial: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_ctrl_c_in_a_process(file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "celldial",
        "fit",
        str(file),
        "--max-epochs",
        "100000",
        "--out",
        str(tmp_path / "o.h5ad"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stderr is not None
    seen = b""
    while b"nats/cell" not in seen:
        part = child.stderr.read1(1000)
        assert part, seen
        seen += part
    child.send_signal(signal.SIGINT)
    out, rest = child.communicate(timeout=60)
    assert child.returncode == 130, rest
    assert out.decode() == f"{tmp_path / 'o.h5ad'}\n"
    assert b"Traceback" not in rest
    assert "X_celldial" in anndata.read_h5ad(tmp_path / "o.h5ad").obsm


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["traverse", "--help"], set()),
        (["info", "--help"], set()),
        (["fit", "--help"], {"pyro"}),  # the names of likelihoods and decoders come from the model
    ],
)
def test_version_and_help_import_little(arguments: list[str], heavy: set[str]) -> None:
    script = f"""
import sys
from celldial.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
print(*{{"sklearn", "pyro", "matplotlib", "scanpy", "numba", "anndata", "pandas"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        f"celldial {celldial.__version__}" if arguments == ["--version"] else "usage: celldial"
    )
    assert set(done.stdout.splitlines()[-1].split()) <= heavy


def test_the_command_is_installed_under_its_name(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"celldial": f"{cli.main.__module__}:{cli.main.__name__}"}
