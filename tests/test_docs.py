"""The documentation builds without a warning, its links lead somewhere, and every public name is in it."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import celldial

ROOT = Path(__file__).resolve().parents[1]
READMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "data/README.md"]
SUBMODULES = [name for name in celldial.__all__ if inspect.ismodule(getattr(celldial, name))]
FENCE = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)
# What tags ask a browser to fetch by itself, beside what a reader may click on.
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The anchors of a page, where its links go, and what is fetched to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links, self.fetched = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key) and (key == "id" or tag == "a")}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(FETCHED.get(tag, "")):
            self.fetched.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation from scratch, beside the checkout: what an earlier build left there changes nothing."""
    for name in ("sphinx", "myst_nb", "numpydoc", "sphinx_book_theme"):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name != "docs" and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    built = shutil.ignore_patterns("_build", "generated", "tutorials")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=built)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(root / "docs"), str(root / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return root / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    static = site / "_static"  # where the theme has templates, too
    found = {path: Page(path) for path in sorted(site.rglob("*.html")) if not path.is_relative_to(static)}
    assert len(found) > 50
    return found


@pytest.fixture(scope="module")
def inventory(site: Path) -> set[str]:
    """Names that have an entry, from the file by which other projects link to them."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines if " py:" in line}


def public_names() -> list[str]:
    """List what users may call or look at."""
    names = [f"celldial.{name}" for name in celldial.__all__ if name not in SUBMODULES]
    for submodule in SUBMODULES:
        names += [f"celldial.{submodule}.{name}" for name in getattr(celldial, submodule).__all__]
    own = {name: value for name, value in vars(celldial.VAE).items() if not name.startswith("_")}
    kinds = (classmethod, property)
    names += [
        f"celldial.VAE.{name}" for name, value in own.items() if inspect.isfunction(value) or type(value) in kinds
    ]
    names += [f"celldial.VAE.{name}" for name in celldial.VAE.__annotations__]  # what fit finds
    settings = type(celldial.settings)
    names += [
        f"celldial.settings.Settings.{name}" for name in vars(settings) if isinstance(vars(settings)[name], property)
    ]
    returned = ["axes.Axis", "axes.Axis.score", "inference.Posterior", "schema.Schema", "settings.Settings"]
    return names + [f"celldial.{name}" for name in returned]


def test_every_public_name_has_an_entry(inventory):
    names = public_names()
    assert {"celldial.VAE.fit", "celldial.VAE.history_", "celldial.pl.axes", "celldial.metrics.foscttm"} <= set(names)
    missing = sorted(set(names) - inventory)
    assert missing == [], "put these into the autosummary of a page of docs/api/"


def test_entries_are_of_things_that_exist(inventory):
    """A name that was taken out of the package goes from the pages, too."""
    fitted = {f"celldial.VAE.{name}" for name in celldial.VAE.__annotations__}
    for name in sorted(inventory - fitted):
        assert found(name), f"{name} has an entry, and is not in the package"


def found(name: str) -> bool:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            fields = getattr(value, "__dataclass_fields__", {})
            if not hasattr(value, part) and part not in fields:
                return False
            value = getattr(value, part, None)
        return True
    return False


def test_functions_have_their_sections(site):
    """The sections of a docstring are on its page as sections."""
    text = (site / "api/generated/celldial.VAE.latent_traverse.html").read_text(encoding="utf-8")
    for section in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples"):
        assert re.search(rf">{section}<", text), section


def test_links_within_the_site_lead_somewhere(pages):
    broken, n_links = [], 0
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme in {"http", "https", "mailto", "data"}:
                continue
            n_links += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and target in pages and fragment not in pages[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert n_links > 1000
    assert sorted(set(broken)) == []


def test_pages_ask_nothing_of_elsewhere(pages, site):
    """All that a page needs is on the site: it reads the same without a network, and nobody is told who reads it."""
    for path, page in pages.items():
        outside = [link for link in page.fetched if urlsplit(link).netloc]
        assert outside == [], path.name
    for style in (site / "_static").rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_formulas_are_drawn(pages, site):
    page = (site / "mathematics.html").read_text(encoding="utf-8")
    assert page.count("<math") > 50
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<p>[^<]*\\(frac|mathrm|sum)", text), path.name


def test_tutorials_are_in_the_site(site):
    notebooks = sorted((ROOT / "tutorials").glob("[0-9]*.ipynb"))
    assert notebooks
    index = (site / "index.html").read_text(encoding="utf-8")
    for path in notebooks:
        page = (site / "tutorials" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert "cell_output" in page
        assert f"tutorials/{path.stem}.html" in index
        hidden = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if is_hidden(cell)]
        for cell in hidden:
            first = "".join(cell["source"]).splitlines()[0]
            assert first not in HTMLText(page).text


def is_hidden(cell: dict) -> bool:
    return "remove-cell" in cell["metadata"].get("tags", [])


class HTMLText(HTMLParser):
    """The text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data


def written_links(path: Path) -> list[str]:
    """List relative links in a file of Markdown or in the text of a notebook, but for those in code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    links = re.findall(r"\]\(<?([^)\s>]+)", prose) + re.findall(r"""(?:src|href)=["']([^"']+)""", prose)
    return [link for link in links if not re.match(r"[a-z]+:|#", link)]


WRITTEN = [
    *(ROOT / name for name in READMES),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/api").glob("*.md")),
    *sorted((ROOT / "tutorials").glob("*.ipynb")),
]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_repository(path):
    """As they are read where the repository is: on GitHub, or in an editor."""
    for link in written_links(path):
        target = Path(os.path.normpath(path.parent / unquote(link.partition("#")[0])))
        assert target.exists(), f"{path.relative_to(ROOT)} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{path.relative_to(ROOT)} links to {link}, outside of the repository"


def test_links_are_found_where_they_are():
    assert "docs/architecture.md" in written_links(ROOT / "CONTRIBUTING.md")
    assert "architecture.md" in written_links(ROOT / "docs/index.md")
