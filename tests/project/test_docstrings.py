"""Docstrings of public names are complete, and no docstring documents a parameter that does not exist.

The form of all docstrings is checked by numpydoc in ``make lint``; that examples run, by `test_examples.py`.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import celldial
from celldial.inference.posterior import Posterior
from celldial.tl.find_axis import Axis
from celldial.utils.settings import Settings

numpydoc = pytest.importorskip("numpydoc.validate")
docscrape = pytest.importorskip("numpydoc.docscrape")

SOURCE = Path(__file__).resolve().parents[2] / "src" / "celldial"
NAMESPACES = ("datasets", "metrics", "pl", "surrogate", "tl")
# The estimator, and the classes of returned objects.
CLASSES = {"VAE": celldial.VAE, "tl.Axis": Axis, "Posterior": Posterior, "Settings": Settings}
# All parameters are documented, and no others; what is returned is documented; there is an example.
COMPLETE = {"PR01", "PR02", "RT01", "EX01"}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class itself defines."""
    for name, member in vars(cls).items():
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def public() -> dict[str, Any]:
    """Return everything public, by the name that a user has for it."""
    found = {"demo.main": importlib.import_module("celldial.cli.demo").main}
    for namespace in NAMESPACES:
        module = getattr(celldial, namespace)
        found |= {f"{namespace}.{name}": getattr(module, name) for name in module.__all__}
    for class_name, cls in CLASSES.items():
        found |= {class_name: cls, **{f"{class_name}.{name}": member for name, member in members(cls)}}
    return found


PUBLIC = public()
FUNCTIONS = {name: each for name, each in PUBLIC.items() if inspect.isfunction(each)}


def raised(function: Any) -> set[str]:
    """Return the names of the exceptions that the body of a function raises, without those of functions inside it."""
    names, waiting = set(), list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func))
        waiting.extend(ast.iter_child_nodes(node))
    return names


def test_all_namespaces_are_covered():
    assert set(celldial.__all__) == {*NAMESPACES, "VAE", "settings"}
    assert {"VAE.fit", "VAE.load", "pl.axes", "metrics.ilisi", "tl.find_axis", "tl.Axis.score"} <= set(PUBLIC)


def test_public_docstrings_are_complete():
    wrong = []
    for name, each in PUBLIC.items():
        # A property has its example in the class.
        checks = COMPLETE - {"EX01"} if isinstance(each, property) else COMPLETE
        errors = numpydoc.validate(numpydoc.get_doc_object(each))["errors"]
        wrong += [f"{name}: {code} {message}" for code, message in errors if code in checks]
    assert not wrong


def test_errors_that_public_functions_raise_are_documented():
    missing = {}
    for name, function in FUNCTIONS.items():
        section = "\n".join(map(str, numpydoc.get_doc_object(function)["Raises"]))
        missing[name] = [error for error in raised(function) if error not in section]
    assert not any(missing.values()), missing


def test_errors_in_a_function_are_found():
    def fails(value: int) -> None:
        def inside() -> None:
            raise KeyError("inside")

        if value < 0:
            raise ValueError("below 0")
        inside()

    assert raised(fails) == {"ValueError"}


def test_documented_parameters_exist():
    """Also those of internal functions and classes, where a renamed parameter is easily overlooked."""
    unknown = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and "Parameters\n" in (ast.get_docstring(node) or ""):
                documented = docscrape.NumpyDocString(ast.get_docstring(node))["Parameters"]
                names = {name.strip("* ") for parameter in documented for name in parameter.name.split(",")}
                unknown += [f"{path.name}: {node.name}({name})" for name in sorted(names - set(parameters(node)))]
    assert not unknown


def parameters(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Return the parameters of a function, of a constructor, or of a class whose fields are its parameters."""
    if isinstance(node, ast.ClassDef):
        constructor = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not constructor:
            return [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
        (node,) = constructor
    every = node.args
    last = [each for each in (every.vararg, every.kwarg) if each is not None]
    return [each.arg for each in (*every.posonlyargs, *every.args, *every.kwonlyargs, *last)]
