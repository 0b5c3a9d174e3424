"""Output files of the command line: checks before training, permissions, links, and failures that leave old files."""

import os
from pathlib import Path

import pytest

from celldial import VAE
from celldial.training import loop
from helpers.cli import SMALL, assert_error, count_epochs, run


def test_outputs_are_checked_before_training(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = count_epochs(monkeypatch)
    before = file.read_bytes()

    def check(option: str, path: object, *facts: object) -> None:
        assert_error(capsys, [option, path, *facts], "fit", file, *SMALL, option, path)

    check("--out", file, "input")
    (tmp_path / "link.h5ad").symlink_to(file)
    check("--out", tmp_path / "link.h5ad", "input")
    os.link(file, tmp_path / "hard.h5ad")
    check("--out", tmp_path / "hard.h5ad", "input")
    check("--out", tmp_path / "new" / "out.h5ad", "folder", tmp_path / "new")
    check("--model", file / "m.celldial", "folder")
    (tmp_path / "folder.h5ad").mkdir()
    check("--out", tmp_path / "folder.h5ad", "folder")
    check("--out", tmp_path / "out.zarr", ".h5ad")
    check("--model", tmp_path / "model.h5ad", ".celldial")
    check("--model", "/proc/m.celldial", "writable")
    assert epochs == []
    assert file.read_bytes() == before


def test_read_only_files_are_not_replaced(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5ad"
    out.write_bytes(b"kept")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root has all permissions
    assert_error(capsys, [out, "read-only"], "fit", file, *SMALL, "--out", out)
    assert out.read_bytes() == b"kept"


def test_outputs_have_different_paths(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "t.png")
    command = ["traverse", folder / "out.h5ad", "--model", folder / "m.celldial", "--axis", "0"]
    outputs = ["--table", tmp_path / "link.csv", "--figure", tmp_path / "t.png"]
    assert_error(capsys, ["--table", "--figure"], *command, *outputs)


def test_links_are_kept(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "m.celldial"
    target.write_bytes(b"old")
    link = tmp_path / "m.celldial"
    link.symlink_to(target)
    assert run("fit", file, *SMALL, "--model", link) == 0
    assert capsys.readouterr().out == f"{link}\n"
    assert link.is_symlink()
    assert VAE.load(target).n_latent == 3
    assert [path.name for path in target.parent.iterdir()] == ["m.celldial"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("at", ["train", "save", "replace"])
def test_a_failure_leaves_existing_files(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"train": (loop, "fit"), "save": (VAE, "save"), "replace": (os, "replace")}[at]
    monkeypatch.setattr(*place, full)
    results = [tmp_path / "out.h5ad", tmp_path / "m.celldial"]
    for path in results:
        path.write_bytes(b"old")
    options = [*SMALL, "--out", results[0], "--model", results[1]]
    assert_error(capsys, ["No space left on device"], "fit", file, *options)
    assert [path.read_bytes() for path in results] == [b"old", b"old"]
    assert len(list(tmp_path.iterdir())) == 3
