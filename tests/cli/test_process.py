"""The command line as a process: stdout and stderr, exit codes, Ctrl-C, and what it imports."""

import io
import os
import runpy
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import anndata
import pytest
from anndata import AnnData

import celldial
from celldial import VAE, cli
from celldial.training import loop
from helpers.cli import SMALL, run


def test_quiet_hides_progress_only(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("fit", file, *SMALL, "--out", tmp_path / "out.h5ad", "--quiet") == 0
    assert capfd.readouterr() == (f"{tmp_path / 'out.h5ad'}\n", "")
    assert run("fit", file, "--layer", "raw", "--out", tmp_path / "out.h5ad", "--quiet") == 1
    assert capfd.readouterr().err.startswith("celldial: error: ")


def test_exit_code_and_message_of_an_error(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends with the exit code of the command line."""
    options = ["--batch-key", "doner", "--out", str(tmp_path / "out.h5ad"), "--quiet"]
    monkeypatch.setattr(sys, "argv", ["celldial", "fit", str(file), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("celldial", run_name="__main__")
    assert end.value.code == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("celldial: error: ")
    assert "'doner'" in captured.err
    assert captured.err.count("\n") == 1


def test_stdout_can_be_closed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `celldial info ... | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        assert run("info", folder / "m.celldial", "--json") == 1
        print("more", file=stdout)  # is discarded, also when stdout is closed at the end of the process
    assert capsys.readouterr().err == ""


@pytest.fixture
def foreground() -> Iterator[None]:
    """Let Ctrl-C interrupt this process and those that it starts, also if they run as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
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


@pytest.mark.usefixtures("foreground")
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


@pytest.mark.usefixtures("foreground")
def test_stdout_and_stderr_of_an_interrupted_process(tmp_path: Path, cells: AnnData) -> None:
    """stdout has the names of the files, and stderr the messages, without the lines of code that raised them."""
    x = cells.X.toarray()
    x[3] = 0
    AnnData(x, cells.obs.copy(), cells.var.copy()).write_h5ad(tmp_path / "cells.h5ad")
    # Training would take hours, so that it does not end before it is interrupted.
    options = ["--max-epochs", "10000000", "--n-latent", "3", "--out", "out.h5ad", "--model", "m.celldial"]
    command = [sys.executable, "-m", "celldial", "fit", "cells.h5ad", *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stderr is not None
            seen = b""
            while b"nats/cell" not in seen:
                part = child.stderr.read1(1000)
                assert part, seen
                seen += part
            child.send_signal(signal.SIGINT)
            out, rest = child.communicate()
        finally:
            child.kill()
    messages = (seen + rest).decode()
    assert child.returncode == 130, messages
    assert out.decode() == "m.celldial\nout.h5ad\n"
    assert "celldial: reading cells.h5ad" in messages
    assert "ELBO" in messages
    (warning,) = (line for line in messages.splitlines() if line.startswith("celldial: warning: "))
    assert "1 of 60 cells" in warning
    assert "'c3'" in warning
    assert ".py" not in messages
    assert "Traceback" not in messages
    assert "X_celldial" in anndata.read_h5ad(tmp_path / "out.h5ad").obsm


IMPORTS_OF_HELP = """
import sys
from celldial.cli import main

for arguments in ["--version"], ["--help"], ["traverse", "--help"], ["info", "--help"], ["fit", "--help"]:
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
    heavy = {"sklearn", "pyro", "matplotlib", "scanpy", "numba", "anndata", "pandas", "mudata"} & set(sys.modules)
    print("heavy:", *arguments, *heavy)

import celldial.pl

print("drawing:", *{"matplotlib"} & set(sys.modules))
"""


def test_version_and_help_import_little() -> None:
    """The package, which the command line imports, imports little, too. Plots import matplotlib when called."""
    done = subprocess.run([sys.executable, "-c", IMPORTS_OF_HELP], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"celldial {celldial.__version__}")
    assert sum(line.startswith("usage: celldial") for line in lines) == 4
    assert [line for line in lines if line.startswith("heavy:")] == [
        "heavy: --version",
        "heavy: --help",
        "heavy: traverse --help",
        "heavy: info --help",
        "heavy: fit --help pyro",  # the names of likelihoods and decoders come from the model
    ]
    assert lines[-1] == "drawing:"


def test_the_command_is_installed_under_its_name(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"celldial": f"{cli.main.__module__}:{cli.main.__name__}"}


def test_names_that_the_locale_cannot_show(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("fit", file, *SMALL, "--out", tmp_path / "é.h5ad", "--quiet") == 0
    assert (tmp_path / "é.h5ad").exists()
    stream.flush()
    assert b"\\xe9.h5ad" in stream.buffer.getvalue()  # type: ignore[attr-defined]
