"""Comparisons of cells, models and AnnData."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from celldial import VAE
from celldial.data.cells import Cells
from celldial.inference.population_means import PopulationMeans


def dense(x: Any) -> np.ndarray:
    """Return a matrix as a numpy array."""
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def assert_untouched(adata: AnnData, before: AnnData, *, but: tuple[str, ...] = ()) -> None:
    """Assert that `adata` equals the copy `before`, except in the slots `but`."""
    for slot in {"obs", "var"} - set(but):
        pd.testing.assert_frame_equal(getattr(adata, slot), getattr(before, slot))
    for slot in {"obsm", "varm", "obsp", "varp", "uns"} - set(but):
        assert list(getattr(adata, slot)) == list(getattr(before, slot)), slot
    assert adata.is_view or type(adata.X) is type(before.X)
    np.testing.assert_array_equal(dense(adata.X), dense(before.X))
    if "layers" not in but:
        assert list(adata.layers) == list(before.layers)
        for name in before.layers:
            np.testing.assert_array_equal(dense(adata.layers[name]), dense(before.layers[name]))


def assert_same_nested(found: Any, expected: Any, path: str = "uns") -> None:
    """Assert that nested dictionaries, as they are in ``adata.uns``, are equal."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for key, value in expected.items():
            assert_same_nested(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list | np.ndarray):
        assert list(found) == list(expected), path
    else:
        assert found == expected, path


def assert_same_cells(cells: Cells, expected: Cells) -> None:
    """Assert that two sets of cells have the same counts, library sizes, covariates and modalities."""
    for modality, rows in expected.counts.items():
        assert torch.equal(cells.counts[modality].to_dense(), rows.to_dense())
        assert torch.equal(cells.library_size[modality], expected.library_size[modality])
    assert torch.equal(cells.category_ck, expected.category_ck)
    assert torch.equal(cells.continuous_ck, expected.continuous_ck)
    assert list(cells.present) == list(expected.present)


def assert_same_model(one: VAE, other: VAE) -> None:
    """Assert that two models have the same weights and training histories, except for the time that it took."""
    expected = other.module_.state_dict()
    for name, tensor in one.module_.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert {**one.history_, "seconds": 0} == {**other.history_, "seconds": 0}


def untouched(adata: AnnData) -> Callable[[], None]:
    """Record cells, and return a function that asserts that they have not changed, values in ``obsm`` included."""
    before = adata.copy()

    def check() -> None:
        assert_untouched(adata, before)
        for key, value in before.obsm.items():
            assert type(adata.obsm[key]) is type(value)
            np.testing.assert_array_equal(dense(adata.obsm[key]), dense(value))

    return check


def without_seconds(history: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return a training history without the time that each epoch took."""
    return {name: values for name, values in history.items() if name != "seconds"}


def assert_gradients(function: Callable[[], Tensor], tensors: Sequence[Tensor], step: float = 1e-6) -> None:
    """Assert that the gradient of a scalar by each tensor is that of finite differences, and that none is 0.

    The tensors are in double precision. Each is moved in a random direction.
    """
    for tensor in tensors:
        tensor.requires_grad_()
    gradients = torch.autograd.grad(function(), list(tensors))
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.any()
        direction = torch.randn_like(tensor)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                values.append(function())
                tensor -= sign * step * direction
        expected = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


def assert_population_means(found: PopulationMeans, value_sjf: np.ndarray, n_samples: int) -> None:
    """Assert that means and variances are those of the values of all samples, `n_samples` of each cell side by side."""
    n_cells = value_sjf.shape[1] // n_samples
    np.testing.assert_allclose(found.mean_sf, value_sjf.mean(1), rtol=1e-4)

    def variance_of_mean(draws_jf: np.ndarray) -> np.ndarray:
        within_f = draws_jf.reshape(n_cells, n_samples, -1).var(1, ddof=1).mean(0)
        return within_f * (1 / n_cells + 1 / (n_cells * n_samples))

    relative_sjf = value_sjf / value_sjf.mean(1, keepdims=True)
    expected_sf = np.stack([variance_of_mean(relative_jf) for relative_jf in relative_sjf])
    np.testing.assert_allclose(found.variance_sf, expected_sf, rtol=1e-3, atol=1e-9)
    low_f, high_f = value_sjf.mean(1).argmin(0), value_sjf.mean(1).argmax(0)
    column_f = np.arange(value_sjf.shape[2])
    change_jf = relative_sjf[high_f, :, column_f].T - relative_sjf[low_f, :, column_f].T
    np.testing.assert_allclose(found.change_variance_f, variance_of_mean(change_jf), rtol=1e-3, atol=1e-9)
