"""Rules of development: pinned versions agree with the declared ones, and the subject of a commit is short."""

import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def declared(root: Path) -> list[Requirement]:
    """Return the dependencies in pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


def pinned(path: Path) -> dict[str, str]:
    """Return the version of each package in a file of constraints."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}


def test_lowest_versions_are_the_declared_minimums(root: Path) -> None:
    lowest = pinned(root / "constraints-lowest.txt")
    for dependency in declared(root):
        minimums = [one.version for one in dependency.specifier if one.operator == ">="]
        if minimums:
            found = lowest[canonicalize_name(dependency.name)]
            parts = minimums[0].split(".")
            assert found.split(".")[: len(parts)] == parts, dependency.name
            assert not any(part != "0" for part in found.split(".")[len(parts) :]), dependency.name


@pytest.mark.parametrize(
    ("message", "accepted"),
    [
        ("Check labels for missing values\n\nThey were read as a label.\n", True),
        ("x" * 72, True),
        ("x" * 73, False),
        ("Check labels for missing values.", False),
        ("Check labels\nfor missing values", False),
        ("\n", False),
        ("# a comment of git\n", False),
        (f"Merge {'x' * 80}", True),
    ],
)
def test_the_subject_of_a_commit(root: Path, message: str, accepted: bool) -> None:
    problem = runpy.run_path(str(root / ".ci" / "commit_subject.py"))["problem"]
    assert (problem(message) is None) == accepted
