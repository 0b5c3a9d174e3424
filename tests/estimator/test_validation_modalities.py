"""Invalid input of several modalities to `fit`: the error names the fault, and nothing changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from celldial import VAE
from helpers.assertions import untouched
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import remove_modalities, simulate_modalities


def set_types(adata: AnnData, n_proteins: int, value: Any) -> None:
    """Change the feature types of the last features."""
    types = adata.var["feature_types"].astype(object).to_numpy()
    types[-n_proteins:] = value
    adata.var["feature_types"] = types


def set_count(adata: AnnData, feature: str, value: float) -> None:
    x = adata.X.toarray().astype(np.float64)
    x[7, adata.var_names.get_loc(feature)] = value
    adata.X = sparse.csr_matrix(x)


def set_obs(adata: AnnData, key: str, value: Any) -> None:
    adata.obs[key] = value


BAD_INPUT: dict[str, tuple[Callable[[AnnData], Any] | None, dict[str, Any], type[Exception], list[Any]]] = {
    "unknown feature type": (
        lambda a: set_types(a, 6, "CRISPR"),
        {},
        ValueError,
        ["'feature_types'", "'CRISPR'", 6, "'a0'", "modalities"],
    ),
    "missing feature type": (lambda a: set_types(a, 1, np.nan), {}, ValueError, ["'feature_types'", "'a5'"]),
    "modality with one feature": (lambda a: a[:, :51].copy(), {}, ValueError, ["'protein'", 1, "'a0'"]),
    "feature type that no feature has": (None, {"modalities": {"rna": "RNA"}}, KeyError, ["'rna'", "'RNA'"]),
    "missing key of obsm": (None, {"modalities": {"protein": "obsm/adt"}}, KeyError, ["obsm", "'adt'"]),
    "list of modalities": (None, {"modalities": ["rna"]}, TypeError, ["modalities", "dict"]),
    "missing column of feature types": (
        None,
        {"modality_key": "kind"},
        KeyError,
        ["modality_key", "'kind'", "'feature_types'"],
    ),
    "fractional count of a peak": (lambda a: set_count(a, "p4", 0.5), {}, ValueError, [0.5, "'c7'", "peak 'p4'"]),
    "negative count of a protein": (lambda a: set_count(a, "a4", -3), {}, ValueError, [-3, "'c7'", "protein 'a4'"]),
    "NaN count of a gene": (lambda a: set_count(a, "g4", np.nan), {}, ValueError, ["nan", "'c7'", "gene 'g4'"]),
    "no cell with two modalities": (
        lambda a: remove_modalities(
            a, {"rna": np.arange(60) < 30, "atac": np.arange(60) >= 30, "protein": [True] * 60}
        ),
        {"modalities": {"rna": "Gene Expression", "atac": "Peaks"}},
        ValueError,
        ["rna", "atac"],
    ),
    "modality without any count": (
        lambda a: remove_modalities(a, {"protein": [True] * 60}, columns=False),
        {},
        ValueError,
        ["protein"],
    ),
    "count in a cell marked as without the modality": (
        lambda a: set_obs(a, "has_protein", np.arange(60) != 9),
        {},
        ValueError,
        ["'c9'", "protein", "obs['has_protein']", 1],
    ),
    "missing column of presence": (None, {"presence_keys": {"rna": "rna?"}}, KeyError, ["'rna?'"]),
    "text in a column of presence": (
        lambda a: set_obs(a, "in_rna", "yes"),
        {"presence_keys": {"rna": "in_rna"}},
        ValueError,
        ["'in_rna'", "'yes'", "'c0'"],
    ),
    "presence of an unknown modality": (
        None,
        {"presence_keys": {"adt": "has_rna"}},
        KeyError,
        ["presence_keys", "'adt'"],
    ),
    "likelihood of an unknown modality": (None, {"likelihood": {"adt": "poisson"}}, KeyError, ["likelihood", "'adt'"]),
    "unknown likelihood": (
        None,
        {"likelihood": {"rna": "normal"}},
        ValueError,
        ["likelihood", "'normal'", "'negative_binomial'"],
    ),
    "weight of an unknown modality": (None, {"modality_weights": {"adt": 1}}, KeyError, ["modality_weights", "'adt'"]),
    "weight of 0": (None, {"modality_weights": {"rna": 0}}, ValueError, ["rna", 0]),
    "negative weight": (None, {"modality_weights": {"rna": -1.0}}, ValueError, ["rna", -1.0]),
    "infinite weight": (None, {"modality_weights": {"rna": np.inf}}, ValueError, ["rna", "inf"]),
    "NaN weight": (None, {"modality_weights": {"rna": np.nan}}, ValueError, ["rna", "nan"]),
    "text as a weight": (None, {"modality_weights": {"rna": "high"}}, ValueError, ["rna", "'high'"]),
    "number instead of weights by modality": (None, {"modality_weights": 2}, TypeError, ["modality_weights", 2]),
    "unknown fusion": (None, {"fusion": "poe"}, ValueError, ["fusion", "'poe'", "'product'", "'mixture'"]),
    "unknown decoder": (None, {"decoder": "sum"}, ValueError, ["decoder", "'sum'", "'network'", "'additive'"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_invalid_input_is_named_and_changes_nothing(case: str) -> None:
    spoil, parameters, error, facts = BAD_INPUT[case]
    adata = simulate_modalities()
    if spoil is not None:
        changed = spoil(adata)
        adata = adata if changed is None else changed
    adata.obsm["X_celldial"] = np.ones((adata.n_obs, 2))
    adata.uns["celldial"] = {"mine": 1}
    check = untouched(adata)
    model = VAE(2, 8, **parameters)
    with raises(error, naming=facts):
        fit(adata, model)
    check()
    assert adata.uns["celldial"] == {"mine": 1}
    assert not hasattr(model, "module_")


def test_invalid_input_to_a_fitted_model(trimodal: VAE) -> None:
    adata = simulate_modalities()
    set_count(adata, "p4", 1.5)
    check = untouched(adata)
    for use in (trimodal.transform, trimodal.score, lambda a: trimodal.impute(a, "rna", from_="atac")):
        with raises(ValueError, naming=[1.5, "'c7'", "peak 'p4'"]):
            use(adata)
    check()
    adata = simulate_modalities()
    adata.obs["has_rna"] = np.arange(60) != 9
    with raises(ValueError, naming=["'c9'", "rna", "obs['has_rna']"]):
        trimodal.transform(adata)
    few = simulate_modalities()[:, [*range(22), *range(50, 56)]].copy()
    with raises(ValueError, naming=[2, 30, "atac"]):
        trimodal.transform(few)
