"""Links in the documentation lead somewhere, and every public name is on a page of ``docs/api``.

Whether the pages build without a warning is checked by ``make docs``, which the continuous integration runs.
"""

import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import celldial

ROOT = Path(__file__).resolve().parents[2]
READMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "data/README.md"]
BUILT = {"_build", "generated", "tutorials"}
SUBMODULES = [name for name in celldial.__all__ if inspect.ismodule(getattr(celldial, name))]
FENCE = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)


def public_names() -> list[str]:
    """Return the names that users may call or read."""
    names = [f"celldial.{name}" for name in celldial.__all__ if name not in SUBMODULES]
    for submodule in SUBMODULES:
        names += [f"celldial.{submodule}.{name}" for name in getattr(celldial, submodule).__all__]
    methods = {name: value for name, value in vars(celldial.VAE).items() if not name.startswith("_")}
    kinds = (classmethod, property)
    names += [
        f"celldial.VAE.{name}" for name, value in methods.items() if inspect.isfunction(value) or type(value) in kinds
    ]
    return names + [f"celldial.VAE.{name}" for name in celldial.VAE.__annotations__]  # fitted attributes


def documented_names() -> Iterator[str]:
    """Yield the names that have an entry on a page of ``docs/api``: of autosummaries and of directives."""
    directive = re.compile(r"^\.\. (?:auto(?:class|function|property)|py:(?:attribute|data)):: (\S+)$", re.MULTILINE)
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        for block in re.findall(r"```{eval-rst}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            listed = re.findall(r"^   ([A-Za-z_][\w.]*)$", block, re.MULTILINE)
            for name in [*listed, *directive.findall(block)]:
                yield name if name.startswith("celldial.") else f"celldial.{name}"


def test_every_public_name_has_an_entry():
    names = public_names()
    assert {"celldial.VAE.fit", "celldial.VAE.history_", "celldial.pl.axes", "celldial.metrics.foscttm"} <= set(names)
    missing = sorted(set(names) - set(documented_names()))
    assert missing == [], "put these into the autosummary of a page of docs/api/"


def test_entries_are_of_things_that_exist():
    fitted = {f"celldial.VAE.{name}" for name in celldial.VAE.__annotations__}
    for name in sorted(set(documented_names()) - fitted):
        assert exists(name), f"{name} has an entry but is not in the package"


def exists(name: str) -> bool:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def written_links(path: Path) -> list[str]:
    """Return the relative links in a Markdown file or in the text of a notebook, except those in code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    links = re.findall(r"\]\(<?([^)\s>]+)", prose) + re.findall(r"""(?:src|href)=["']([^"']+)""", prose)
    return [link for link in links if not re.match(r"[a-z]+:|#", link)]


WRITTEN = [
    *(ROOT / name for name in READMES),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not BUILT & set(path.relative_to(ROOT).parts[:-1])),
    *sorted((ROOT / "tutorials").glob("*.ipynb")),
]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_repository(path):
    """Links work where the repository is read: on GitHub, or in an editor."""
    for link in written_links(path):
        target = Path(os.path.normpath(path.parent / unquote(link.partition("#")[0])))
        assert target.exists(), f"{path.relative_to(ROOT)} links to {link}, which does not exist"
        assert target.is_relative_to(ROOT), f"{path.relative_to(ROOT)} links to {link}, outside of the repository"


def test_links_are_found():
    assert "docs/architecture.md" in written_links(ROOT / "CONTRIBUTING.md")
    assert "limitations.md" in written_links(ROOT / "docs/index.md")


def test_the_page_of_bad_input_has_all_cases():
    from helpers import bad_input_page

    text = bad_input_page.PAGE.read_text(encoding="utf-8")
    tables = (bad_input_page.test_validation.BAD_INPUT, bad_input_page.test_validation_modalities.BAD_INPUT)
    missing = [case for cases in tables for case in cases if f"| {case} |" not in text]
    assert missing == [], "run python tests/helpers/bad_input_page.py"
