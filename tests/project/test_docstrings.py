"""What everything public says of itself: numpydoc's rules, an example for each name, and the errors it raises."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import celldial
from celldial.inference.posterior import Posterior
from celldial.tl.find_axis import Axis
from celldial.utils.settings import Settings

numpydoc = pytest.importorskip("numpydoc.validate")

# What numpydoc checks and this project does otherwise.
LEFT_OUT = {
    "ES01": "one line is enough where it says all",
    "PR04": "types of parameters live in signatures",
    "SA01": "the text names what is related where it matters",
}
CHECKS = set(numpydoc.ERROR_MSGS) - set(LEFT_OUT)
MODULES = ("datasets", "gradients", "metrics", "pl")
# The estimator, and the classes of what it and the package give back.
CLASSES = {"VAE": celldial.VAE, "axes.Axis": Axis, "inference.Posterior": Posterior, "settings.Settings": Settings}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, and not what it inherits."""
    for name, member in vars(cls).items():
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def public() -> dict[str, Any]:
    """Find everything public, by the name that a user has for it."""
    found = {"demo.main": importlib.import_module("celldial.cli.demo").main}
    for module_name in MODULES:
        module = getattr(celldial, module_name)
        found |= {f"{module_name}.{name}": getattr(module, name) for name in module.__all__}
    for class_name, cls in CLASSES.items():
        found |= {class_name: cls, **{f"{class_name}.{name}": member for name, member in members(cls)}}
    return found


PUBLIC = public()
FUNCTIONS = {name: each for name, each in PUBLIC.items() if inspect.isfunction(each)}


def section(of: Any, title: str) -> str:
    """Give the text of a section of a docstring; empty where it has none."""
    return "\n".join(map(str, numpydoc.get_doc_object(of)[title]))


def raised(function: Any) -> set[str]:
    """Name the exceptions that the body of a function raises itself, those of functions inside it left out."""
    names, waiting = set(), list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func))
        waiting.extend(ast.iter_child_nodes(node))
    return names


def test_what_is_public_is_found():
    """Or nothing would be checked."""
    assert {"VAE.fit", "VAE.load", "VAE.feature_names_", "pl.axes", "metrics.ilisi", "axes.Axis.score"} <= set(PUBLIC)
    assert set(celldial.__all__) == {*MODULES, "VAE", "settings"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_docstrings_follow_numpydoc(name):
    of = PUBLIC[name]
    # The example of a property is that of its class.
    checks = CHECKS - {"EX01"} if isinstance(of, property) else CHECKS
    errors = numpydoc.validate(numpydoc.get_doc_object(of))["errors"]
    wrong = [f"{code}: {message}" for code, message in errors if code in checks]
    assert not wrong, f"{name}: " + "; ".join(wrong)


@pytest.mark.parametrize("name", ["celldial", *(f"celldial.{name}" for name in (*MODULES, "demo"))])
def test_modules_say_in_one_line_what_they_are_for(name):
    """Not by numpydoc, which fails at a module that has no function of its own."""
    first, *rest = (importlib.import_module(name).__doc__ or "").splitlines()
    assert first.endswith(".")
    assert not any(line.strip() for line in rest[:1]), "the first line is to be a sentence of its own"


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *CLASSES}))
def test_examples_are_there_to_be_run(name):
    """That they run, and print what they say, is for test_package.py."""
    assert ">>> " in section(PUBLIC[name], "Examples"), f"{name} has no example"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_errors_that_a_function_raises_are_told(name):
    told = section(FUNCTIONS[name], "Raises")
    missing = {error for error in raised(FUNCTIONS[name]) if error not in told}
    assert not missing, f"{name} raises {sorted(missing)}, which its docstring does not say"


def test_errors_in_a_function_are_found():
    """What finds them must not be blind, nor see those of a function inside."""

    def fails(value: int) -> None:
        def inside() -> None:
            raise KeyError("inside")

        if value < 0:
            raise ValueError("below 0")
        inside()

    assert raised(fails) == {"ValueError"}


def test_what_is_left_out_is_known():
    """So that a check that numpydoc renames is noticed."""
    assert set(LEFT_OUT) <= set(numpydoc.ERROR_MSGS)
