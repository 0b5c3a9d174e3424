"""Checks of single arguments name the argument and its value."""

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from celldial.utils.validation import check_integer, check_library_size, check_writable
from helpers.raises import raises


@pytest.mark.parametrize("value", [2, 7, np.int64(2)])
def test_valid_integers(value: Any) -> None:
    check_integer("n", value, minimum=2)


@pytest.mark.parametrize("value", [1, -3, 2.0, True, "2", None, np.nan])
def test_invalid_integers(value: Any) -> None:
    with raises(ValueError, naming=["n", repr(value), 2]):
        check_integer("n", value, minimum=2)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_valid_library_sizes(value: Any) -> None:
    assert check_library_size(value) == value


@pytest.mark.parametrize("value", [0, -1.0, np.inf, np.nan, "1e4", None, [1e4]])
def test_invalid_library_sizes(value: Any) -> None:
    with raises(ValueError, naming=["library_size"]):
        check_library_size(value)


def test_results_can_be_written_only_to_an_anndata() -> None:
    check_writable("cells.h5ad", None)
    check_writable(AnnData(np.ones((1, 1), dtype=np.float32)), "X_z")
    with raises(ValueError, naming=["'X_z'"]):
        check_writable("cells.h5ad", "X_z")
