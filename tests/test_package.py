"""What holds for the package as a whole: its version, its files, and which module may import which."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "celldial"


def module_name(path: Path) -> str:
    """Name a file as in an import, less the package: ``pl.axes``; the package itself is ``__init__``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def file_of(module: str) -> Path:
    """Find the file of a module, or where it should be."""
    inside = SOURCE.joinpath(*module.split("."))
    return inside / "__init__.py" if inside.is_dir() else inside.with_suffix(".py")


MODULES = sorted(module_name(path) for path in SOURCE.rglob("*.py"))

# From the foot up: a module imports from its own row or from rows below, never from a row above.
ROWS = [
    {"lookup", "kernels", "rows", "whole"},
    {"compiled", "triton_kernels", "storage"},
    {"ops"},
    {"counts", "covariates", "fusion", "labels", "laplace", "latents", "likelihoods", "nn", "selection", "targets"},
    {"clusters", "markers", "periodic", "priors", "unmarked"},
    {"modalities"},
    {"schema", "joined"},
    {"atlas"},
    {"data", "module", "axes"},
    {"checkpoint", "hardware", "memory"},
    {"source", "stream"},
    {"circle", "clustering", "phase", "train"},
    {"averages", "checks", "coordinates", "dials", "gradients", "inference", "loadings", "phases"},
    {"tofit"},
    {"model"},
]
LEAVES = {
    "ahead",
    "axes",
    "circular",
    "compilation",
    "estimators",
    "fusion",
    "kernels",
    "laplace",
    "latents",
    "lookup",
    "optimizer",
    "rows",
    "settings",
    "simulation",
    "stored",
    "traversal",
}
# What reads an AnnData, on the way to numbers: no tensor yet.
READERS = {
    *("lookup", "counts", "covariates", "modalities", "schema", "joined", "targets", "stored", "atlas"),
}
NETWORKS = {
    *("rows", "ops", "fusion", "laplace", "latents", "priors", "clusters", "likelihoods", "nn", "estimators", "module"),
    *("compiled", "kernels", "triton_kernels", "compilation", "optimizer"),
    *("hardware", "checkpoint", "source", "train", "phase", "circle", "clustering"),
}
# The plots: one file a figure, over what they share, and of the rest of the package only `lookup` and `whole`.
SHARED_BY_PLOTS = {"pl._canvas", "pl._cells", "pl._counts", "pl._path", "pl._stored"}
FIGURES = {
    f"pl.{name}"
    for name in (
        "axes",
        "axis_features",
        "cell_cycle",
        "dial",
        "gradient_variance",
        "history",
        "latent_traverse",
        "traverse_path",
    )
}
PLOTS = {"pl", *SHARED_BY_PLOTS, *FIGURES}
# Beside the others: what they may import is said below.
BESIDE = {"datasets", "export", "metrics", *PLOTS}
COMMAND_LINE = {"cli", *(f"cli.{name}" for name in ("arguments", "commands", "files", "info", "messages"))}
# Only these may import the estimator, or all of the package.
TOP = {"__init__", "__main__", "demo", *COMMAND_LINE}


def imported(path: Path, at_run_time: bool = True) -> Iterator[str]:
    """Yield the full names a file of the package imports, also inside functions.

    ``from a import b`` counts as ``a.b``. What stands under ``if TYPE_CHECKING:`` never runs and is left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
                skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ("celldial", *path.relative_to(SOURCE).parent.parts)
            assert node.level <= len(above), f"{path.name} imports from above the package"
            start = above[: len(above) - node.level + 1] if node.level else ()
            base = ".".join(filter(None, [*start, node.module or ""]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def siblings(path: Path) -> set[str]:
    """Return the modules of the package that a file imports; ``import celldial`` itself is ``__init__``."""
    inside = [name.split(".")[1:] for name in imported(path) if name.split(".")[0] == "celldial"]
    return {module_of(parts) for parts in inside} - {module_name(path)}


def module_of(parts: list[str]) -> str:
    """Find the module in a dotted name, whose end may be something that is in it."""
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in MODULES), "__init__")


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


GRAPH = {module: siblings(file_of(module)) for module in MODULES}


def require(module: str) -> Path:
    path = file_of(module)
    if not path.exists():
        pytest.skip(f"no {path.name} yet")
    return path


def test_every_module_has_its_place():
    """One that is added must be placed above."""
    assert set(MODULES) == set.union(*ROWS) | LEAVES | BESIDE | TOP & set(MODULES)


def test_imports_are_free_of_cycles():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("module", sorted(set.union(*ROWS)))
def test_imports_run_one_way(module):
    require(module)
    row = next(i for i, names in enumerate(ROWS) if module in names)
    above = set.union(set(), *ROWS[row + 1 :]) | TOP
    wrong = sorted(GRAPH[module] & above)
    assert not wrong, f"{module} imports {wrong} (`__init__`: a name that is no module); allowed: its row or one below"


@pytest.mark.parametrize("module", sorted(LEAVES))
def test_leaves_import_no_sibling(module):
    require(module)
    assert not GRAPH[module]


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOP - {"model"}))
def test_only_the_top_imports_the_estimator(module):
    assert not GRAPH[module] & (TOP | {"model"})


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        *((module, {"torch", "pyro", "lightning_fabric", "data", *NETWORKS}) for module in sorted(READERS)),
        ("joined", {"schema"}),  # knows its type alone
        ("covariates", {"counts"}),
        ("counts", {"covariates"}),
        ("data", NETWORKS - {"ops", "rows"}),  # knows no network
        *((module, {"anndata", "mudata", "scanpy", *READERS}) for module in sorted(NETWORKS)),
        ("module", {"data", "train"}),
        ("train", NETWORKS - {"train", "optimizer", "hardware", "compilation"}),
        ("phase", {"train", "circle", "periodic", "inference"}),
        ("circle", {"inference", "clustering"}),
        ("clustering", {"inference", "circle", "phase"}),
        *(
            (module, {"anndata", "mudata", "scanpy", "torch", *NETWORKS})
            for module in ("markers", "periodic", "unmarked")
        ),
        ("ops", {"pyro"}),
        ("fusion", {"pyro"}),
        ("inference", {"anndata", "mudata", "scanpy", "pandas", "train", *READERS}),
        ("averages", {"anndata", "mudata", "scanpy", "pandas", "train", *READERS}),
        ("coordinates", {"anndata", "mudata", "scanpy", "train", *READERS}),
        ("gradients", {"anndata", "mudata", "scanpy", "train", *READERS}),
        ("loadings", {"anndata", "mudata", "scanpy", "train", *READERS}),
        ("selection", {"anndata", "mudata", "scanpy", "torch", *NETWORKS}),
        ("traversal", {"anndata", "mudata", "scanpy", "pandas", "torch", "pyro"}),
        ("memory", {"anndata", "mudata", "scanpy", "module", "train", *READERS}),
        ("storage", {"anndata", "mudata", "scanpy", "pickle"}),
        ("export", {"torch", "pyro", *(set(MODULES) - {"whole"})}),
        ("metrics", {"torch", "pyro", *(set(MODULES) - {"circular"})}),
        ("datasets", {"torch", "pyro", *(set(MODULES) - {"simulation"})}),
        ("simulation", {"torch", "pyro", "scanpy"}),
        # They read an AnnData.
        *(
            (module, {"torch", "pyro", "lightning_fabric", *(set(MODULES) - PLOTS - {"lookup", "whole"})})
            for module in sorted(PLOTS)
        ),
        *((module, {"pl", *FIGURES}) for module in sorted(SHARED_BY_PLOTS | FIGURES)),
    ],
)
def test_what_a_module_does_not_know(module, forbidden):
    path = require(module)
    assert not (GRAPH[module] | packages(path)) & forbidden


def test_the_table_of_the_architecture_page_is_true(root):
    """It has every file, and what each imports; what is a folder, or stands above all, it says in words."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+?)(?:\.py|/)` \| .* \| (.*) \|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == {module.split(".")[0] for module in MODULES} - {"__init__", "__main__"}
    for module, said in rows:
        # In words: where something serves (`ops`), or all of the package.
        if module not in {"pl", "ops", *TOP}:
            assert set(re.findall(r"`(\w+)`", said)) == GRAPH[module], f"docs/architecture.md, the row of {module}.py"


def test_plots_reach_no_torch_through_others():
    require("pl")
    reached, waiting = set(), ["pl"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting.extend(GRAPH[module] - {"settings"})
    for module in reached:
        assert "torch" not in packages(file_of(module)), f"pl reaches torch through {module}"


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
    for line in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        needed = Requirement(line)
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), f"constraints.txt breaks {line}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", "__main__", "demo"}))
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    if module == "triton_kernels":
        pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"celldial.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; see the captured output"
    assert not list(tmp_path.iterdir()), "examples leave files where they are run"


def test_importing_the_package_is_light():
    """What takes a second to import comes when it is first needed."""
    script = "import sys, celldial; print(*{'sklearn', 'pyro', 'matplotlib', 'scanpy', 'numba'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_package_has_what_it_names():
    import celldial

    assert set(celldial.__all__) <= set(dir(celldial))
    for name in celldial.__all__:
        assert getattr(celldial, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = celldial.nothing
