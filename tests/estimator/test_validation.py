"""Invalid input to `fit`: the error names the fault, and neither the cells nor the model change."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from celldial import VAE
from helpers.assertions import assert_untouched
from helpers.fit import fit
from helpers.raises import raises


def set_count(adata: AnnData, value: float) -> None:
    x = adata.X.toarray().astype(np.float64)
    x[3, 2], x[40, 11] = value, value
    adata.X = sparse.csr_matrix(x)


def set_obs(adata: AnnData, key: str, cell: int, value: Any) -> None:
    adata.obs[key] = adata.obs[key].astype(object if isinstance(value, str | None) else float)
    adata.obs.loc[adata.obs_names[cell], key] = value


def rename(adata: AnnData, axis: str) -> None:
    names = list(getattr(adata, f"{axis}_names"))
    setattr(adata, f"{axis}_names", [*names[:-1], names[1]])


def empty(adata: AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


def only_one_cell_with_counts(adata: AnnData) -> None:
    adata.X = sparse.vstack([adata.X[:1], sparse.csr_matrix((59, 20))]).tocsr()


# Name: a change of the cells (in place, or a function that returns others), parameters, options of fit, error, facts.
BAD_INPUT: dict[
    str, tuple[Callable[[AnnData], Any] | None, dict[str, Any], dict[str, Any], type[Exception], list[Any]]
] = {
    "negative count": (lambda a: set_count(a, -2), {}, {}, ValueError, [-2, "'c3'", "gene 'g2'"]),
    "NaN count": (lambda a: set_count(a, np.nan), {}, {}, ValueError, ["nan", "'c3'", "gene 'g2'"]),
    "infinite count": (lambda a: set_count(a, np.inf), {}, {}, ValueError, ["inf", "'c3'", "gene 'g2'"]),
    "fractional count": (lambda a: set_count(a, 0.5), {}, {}, ValueError, [0.5, "'c3'", "gene 'g2'"]),
    "no count in any cell": (empty, {}, {}, ValueError, [60]),
    "duplicate gene name": (lambda a: rename(a, "var"), {}, {}, ValueError, ["'g1'"]),
    "duplicate cell name": (lambda a: rename(a, "obs"), {}, {}, ValueError, ["'c1'"]),
    "one cell": (lambda a: a[:1].copy(), {"n_latent": 1}, {}, ValueError, [1, 20]),
    "one gene": (lambda a: a[:, :1].copy(), {"n_latent": 1}, {}, ValueError, [32, 1]),
    "one cell with counts": (only_one_cell_with_counts, {}, {}, ValueError, [1, 20]),
    "missing layer": (None, {"layer": "counts"}, {}, KeyError, ["'counts'"]),
    "missing column of the batch": (None, {"batch_key": "btch"}, {}, KeyError, ["'btch'", "'batch'"]),
    "missing column of a covariate": (None, {"continuous_covariate_keys": ["time"]}, {}, KeyError, ["'time'"]),
    "text instead of a list of keys": (None, {"categorical_covariate_keys": "donor"}, {}, TypeError, ["['donor']"]),
    "one column in two roles": (
        None,
        {"batch_key": "age", "continuous_covariate_keys": ["age"]},
        {},
        ValueError,
        ["'age'"],
    ),
    "missing value of the batch": (
        lambda a: set_obs(a, "batch", 7, None),
        {"batch_key": "batch"},
        {},
        ValueError,
        ["'batch'", "'c7'"],
    ),
    "missing value of a covariate": (
        lambda a: set_obs(a, "age", 7, np.nan),
        {"continuous_covariate_keys": ["age"]},
        {},
        ValueError,
        ["'age'", "'c7'"],
    ),
    "text as a number": (None, {"continuous_covariate_keys": ["batch"]}, {}, TypeError, ["'batch'"]),
    "more latent coordinates than genes": (None, {"n_latent": 21}, {}, ValueError, ["n_latent", 21, 20]),
    "no latent coordinate": (None, {"n_latent": 0}, {}, ValueError, ["n_latent", 0]),
    "fractional number of coordinates": (None, {"n_latent": 2.5}, {}, ValueError, ["n_latent", 2.5]),
    "True as a number of layers": (None, {"n_layers": True}, {}, ValueError, ["n_layers", "True"]),
    "no hidden units": (None, {"n_hidden": 0}, {}, ValueError, ["n_hidden", 0]),
    "unknown likelihood": (None, {"likelihood": "gaussian"}, {}, ValueError, ["'gaussian'", "'negative_binomial'"]),
    "dropout rate of 1": (None, {"dropout_rate": 1}, {}, ValueError, ["dropout_rate", 1]),
    "text as a dropout rate": (None, {"dropout_rate": "high"}, {}, TypeError, ["dropout_rate", "'high'"]),
    "learning rate of 0": (None, {"learning_rate": 0}, {}, ValueError, ["learning_rate", 0]),
    "learning rate of NaN": (None, {"learning_rate": np.nan}, {}, ValueError, ["learning_rate", "nan"]),
    "text as a learning rate": (None, {"learning_rate": "auto"}, {}, TypeError, ["learning_rate", "'auto'"]),
    "None as a seed": (None, {"seed": None}, {}, TypeError, ["seed", "None"]),
    "negative seed": (None, {"seed": -1}, {}, ValueError, ["seed", -1]),
    "no epoch": (None, {}, {"max_epochs": 0}, ValueError, ["max_epochs", 0]),
    "fractional number of epochs": (None, {}, {"max_epochs": 2.5}, ValueError, ["max_epochs", 2.5]),
    "minibatches of 0 cells": (None, {}, {"batch_size": 0}, ValueError, ["batch_size", 0]),
    "fractional size of minibatches": (None, {}, {"batch_size": 0.5}, ValueError, ["batch_size", 0.5]),
    "None as a key": (None, {}, {"key_added": None}, TypeError, ["key_added", "None"]),
    "all cells in the validation set": (None, {}, {"validation_size": 1.0}, ValueError, ["validation_size", 1.0]),
    "mask that holds out all cells": (None, {}, {"validation_cells": [True] * 60}, ValueError, ["validation_cells"]),
    "mask of another length": (None, {}, {"validation_cells": [True] * 59}, ValueError, ["validation_cells", 59, 60]),
    "validation cell that does not exist": (None, {}, {"validation_cells": ["c3", "x3"]}, KeyError, ["'x3'"]),
    "positions instead of names of cells": (None, {}, {"validation_cells": [0, 1]}, KeyError, ["validation_cells"]),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_invalid_input_is_named_and_changes_nothing(case: str, adata: AnnData) -> None:
    spoil, parameters, options, error, facts = BAD_INPUT[case]
    if spoil is not None:
        adata = spoil(adata) or adata
    adata.obsm["X_celldial"] = np.ones((adata.n_obs, 2))
    adata.uns["celldial"] = {"mine": 1}
    before = adata.copy()
    model = VAE(**{"n_latent": 2, "n_hidden": 8, **parameters})
    with raises(error, naming=facts):
        fit(adata, model, **options)
    assert_untouched(adata, before)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], 1)
    assert adata.uns["celldial"] == {"mine": 1}
    assert not hasattr(model, "module_")


def test_anything_but_an_anndata_is_an_error(model: VAE, adata: AnnData) -> None:
    for use in (fit, model.transform):
        with raises(TypeError, naming=["AnnData", "numpy.ndarray"]):
            use(adata.X.toarray())


def test_an_unseen_category_is_named(conditional: VAE, adata: AnnData) -> None:
    adata.obs["batch"] = "b7"
    before = adata.copy()
    with raises(ValueError, naming=["'batch'", "'b7'", "'c0'"]):
        conditional.transform(adata)
    assert_untouched(adata, before)
