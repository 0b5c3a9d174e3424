"""Files that are written: complete or not at all, at the place that the path means, with the rights that they had."""

import os
import stat
from pathlib import Path

import pytest

from celldial.io.atomic import atomic_write
from helpers.raises import raises


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_text("old")
    path.chmod(0o600)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pipe_and_a_folder_are_refused_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with raises(OSError, naming=[str(pipe)]):
        write(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with raises(IsADirectoryError, naming=[str(tmp_path)]):
        write(tmp_path)
    with raises(FileNotFoundError, naming=[str(tmp_path / "absent")]):
        write(tmp_path / "absent" / "file")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(Path("~/file"))
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with raises(OSError, naming=[str(path)]), atomic_write(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
