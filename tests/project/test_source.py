"""Rules that every file of the package keeps: its size, its docstrings, and what only one file may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import celldial

SOURCE = Path(__file__).resolve().parents[2] / "src" / "celldial"
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
MAX_LINES = 500
# The estimator documents all parameters of the model.
MAX_LINES_OF = {"estimator/vae.py": 850}
MAX_BODY_LINES = 60
MAX_PARAMETERS = 7
# Kernels: the compilers take no objects, only arrays and numbers.
COMPILED = ("ops/numba_kernels.py", "ops/triton_backend.py")
# The only file that writes to an AnnData of the user, and the demo, which adds a column to cells of its own.
WRITERS = ("io/results.py", "io/removal.py", "cli/demo.py")
SLOTS = ("X", "obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers")


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield all functions and methods, with the file that each is in."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield file, node


def is_public(file: str, name: str) -> bool:
    """Return whether users call a function: an analysis, a plot, a metric, a data set, or a method of `VAE`."""
    return (
        file == "estimator/vae.py"
        or (file, name) == ("estimator/mapping.py", "map_query")
        or any(
            file.startswith(f"{namespace}/") and name in getattr(celldial, namespace).__all__
            for namespace in ("datasets", "metrics", "pl", "surrogate", "tl")
        )
    )


def test_first_lines_say_what_is_in_a_file():
    summaries = {file: (ast.get_docstring(tree) or "").partition("\n")[0] for file, tree in TREES.items() if tree.body}
    assert [file for file, summary in summaries.items() if not summary.endswith(".")] == []


def test_files_are_short():
    n_lines = {file: len((SOURCE / file).read_text(encoding="utf-8").splitlines()) for file in TREES}
    assert {file: n for file, n in n_lines.items() if n > MAX_LINES_OF.get(file, MAX_LINES)} == {}


def test_functions_are_short():
    long = []
    for file, function in functions():
        body = function.body[ast.get_docstring(function) is not None :]
        if body and body[-1].end_lineno - body[0].lineno >= MAX_BODY_LINES:
            long.append(f"{file}: {function.name}")
    assert long == []


def test_only_the_results_file_writes_to_an_anndata():
    found = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
                found += [f"{file}: {ast.unparse(target)}" for target in targets if writes_to_anndata(target)]
    assert any(each.startswith(WRITERS[0]) for each in found)
    assert [each for each in found if not each.startswith(WRITERS)] == []


def writes_to_anndata(target: ast.expr) -> bool:
    """Return whether a target of an assignment is ``adata.obsm[...]`` or ``adata.X``, for example."""
    places = [node for node in ast.walk(target) if isinstance(node, ast.Attribute) and node.attr in SLOTS]
    return any(isinstance(place.value, ast.Name) and place.value.id == "adata" for place in places)


def test_stack_levels_are_found_and_not_counted():
    """`celldial.utils.warnings` finds the line of the user; a number would be wrong after the next change."""
    literal = [
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "stacklevel" and isinstance(node.value, ast.Constant)
    ]
    assert [file for file in literal if not file.startswith("utils/")] == []


def test_docstrings_begin_in_the_words_of_a_manual():
    first_words = {
        f"{file}: {node.name}": (ast.get_docstring(node) or "").split(" ")[0]
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert [name for name, word in first_words.items() if word in ("Give", "Say", "Take", "Tell")] == []


def test_internal_functions_have_few_parameters():
    many = []
    for file, function in functions():
        arguments = function.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        n = len([name for name in names if name not in ("self", "cls")])
        if n > MAX_PARAMETERS and file not in COMPILED and not is_public(file, function.name):
            many.append(f"{file}: {function.name} has {n}")
    assert many == []


def test_no_file_compares_with_the_name_of_a_likelihood():
    """Facts about a likelihood are attributes of its class; files of formats 1 to 4 record only its name."""
    compared = [
        f"{file}: {ast.unparse(node)}"
        for file, tree in TREES.items()
        if file != "io/model_file.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(each, ast.Constant) and each.value == "bernoulli" for each in ast.walk(node))
    ]
    assert compared == []
