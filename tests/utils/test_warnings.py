"""Warnings point to the user's line, and repeated ones are shown once."""

import inspect
import warnings
from typing import Any

import pytest
import torch

from celldial.utils import warnings as module
from celldial.utils.warnings import warn, warn_once


def function_of_the_package(code: str, **names: Any) -> Any:
    """Return the function `function` of `code`, which seems to be in the package."""
    exec(compile(code, module.__file__, "exec"), names)
    return names["function"]


def test_a_warning_points_to_the_caller() -> None:
    with pytest.warns(RuntimeWarning, match="text") as record:
        warn("text", RuntimeWarning)
    line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert [(warning.filename, warning.lineno) for warning in record] == [(__file__, line)]


def test_a_warning_points_past_decorators_of_other_packages() -> None:
    inner = function_of_the_package("def function(): warn('text')", warn=warn)
    outer = function_of_the_package("def function(): inner()", inner=torch.no_grad()(inner))
    with pytest.warns(UserWarning, match="text") as record:
        outer()
    assert record[0].filename == __file__


def issue_three() -> None:
    """Issue three warnings, of which two differ only in a number and a name."""
    with warn_once():
        for n_cells, cell in ((2, "c1"), (3, "c2")):
            warn(f"{n_cells} cells have no count (the first is {cell!r})")
        warn("another")


def test_warnings_that_differ_in_numbers_and_names_are_shown_once() -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        issue_three()
    assert [str(warning.message) for warning in record] == [
        "2 cells have no count (the first is 'c1')",
        "another",
    ]


def test_a_warning_that_is_an_error_stays_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="text"), warn_once():
            warn("text")
