"""Properties of the package: its version, its dependencies and its contents."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from helpers.raises import raises

SOURCE = Path(__file__).resolve().parents[2] / "src" / "celldial"


def test_typing_marker_is_shipped():
    import celldial

    assert (SOURCE / "py.typed").is_file()
    assert (Path(celldial.__path__[0]) / "py.typed").is_file()


def test_version_is_the_same_everywhere(root):
    import celldial

    stated = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version("celldial") == stated
    if (SOURCE / "__init__.py").read_text(encoding="utf-8").strip():
        assert celldial.__version__ == stated
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1].strip("\"'") == stated
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\d.*?)\]", changes, re.MULTILINE)[1] == stated


def test_constraints_satisfy_the_project(root):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["metrics"]]:
        needed = Requirement(line)
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), f"constraints.txt breaks {line}"


def test_the_package_has_what_it_names():
    import celldial

    assert set(celldial.__all__) <= set(dir(celldial))
    for name in celldial.__all__:
        assert getattr(celldial, name) is not None
    with raises(AttributeError, naming=["'nothing'"]):
        _ = celldial.nothing
