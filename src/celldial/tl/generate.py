"""Decode given latent states, and sample new cells from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celldial.data.covariates import to_covariate_table
from celldial.inference import posterior
from celldial.inference.fitted_model import (
    FittedModel,
    check_fitted,
    feature_table,
    get_modality,
    library_size_to_decode,
)
from celldial.inference.posterior import Covariates
from celldial.model import latents
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed


@validate_types
def decode(
    model: FittedModel,
    z: np.ndarray,
    covariates: Mapping[str, Any] | pd.DataFrame | None = None,
    *,
    modality: str | None = None,
    library_size: float | None = None,
) -> np.ndarray:
    """Decode latent states to expected counts; with a zero-inflated likelihood, to the means before dropout.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.decode(z)``.
    z
        Latent states, shape ``(cells, n_latent)``. With a periodic coordinate, there are two more columns, the point on
        the circle, as `transform` returns them with `include_periodic`.
    covariates
        Dict that maps each covariate to one value for all cells, or to one value per cell; or a table such as
        ``adata.obs``.
    modality
        Modality to decode; by default the first of the model, which is ``"rna"`` if it has RNA.
    library_size
        Total count of a cell in this modality. By default 10,000; under a Bernoulli likelihood the median of the
        training cells.

    Returns
    -------
    numpy.ndarray
        Expected counts, or probabilities under a Bernoulli likelihood, float32, shape ``(cells, features)``.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        Latent states have the wrong shape, are not finite, or are outside the range of their family; a covariate has a
        value that was not in the training data; or the library size is not above 0.
    TypeError
        Covariates have the wrong type.
    KeyError
        The model has no such modality or covariate, or a covariate is missing.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> expected_cf = model.decode(adata.obsm["X_celldial"][:5])
    >>> expected_cf.shape, expected_cf.sum(1).round()
    ((5, 765), array([10000., 10000., 10000., 10000., 10000.], dtype=float32))
    """
    check_fitted(model)
    z_cz = latents.check_latent_states(z, model.module_.n_states)
    model.module_.latent.check_range(z_cz[:, : model.module_.latent.n_latent])
    z_cz = model.module_.unconstrained(torch.from_numpy(z_cz)).numpy()
    encoded = Covariates(*model.schema_.encode_covariates({} if covariates is None else covariates, n_cells=len(z_cz)))
    name = get_modality(model, modality)
    depth = library_size_to_decode(model, name, library_size)
    return np.concatenate(list(posterior.decode_mean(model.module_, name, z_cz, encoded, depth)))


@validate_types
def sample(
    model: FittedModel,
    n: int,
    covariates: Mapping[str, Any] | pd.DataFrame | None = None,
    *,
    seed: int | None = None,
) -> AnnData:
    """Sample new cells: latent states from the prior, library sizes like those of the training cells, and counts.

    Library sizes of several modalities are drawn independently of each other.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.sample(n)``.
    n
        Number of cells.
    covariates
        As in `decode`.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    anndata.AnnData
        Counts in ``X`` (CSR, float32), latent states in ``obsm["z"]``, covariates in ``obs``; if the model has several
        modalities, the modality of each feature in ``var["modality"]``.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        `n` is less than 1, or a covariate has a value that was not in the training data.
    TypeError
        Covariates have the wrong type.
    KeyError
        The model has no such covariate, or a covariate is missing.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(categorical_covariate_keys=["phase"]).fit(adata, max_epochs=1, progress=False)
    >>> model.sample(100, {"phase": "S"}).shape
    (100, 765)
    """
    check_fitted(model)
    check_integer("n", n)
    covariates = {} if covariates is None else covariates
    encoded = Covariates(*model.schema_.encode_covariates(covariates, n_cells=n))
    with isolate_rng(resolve_seed(seed, model.seed)):
        z_cz, counts = posterior.sample_cells(model.module_, encoded, model.library_size_quantiles_)
    obs = to_covariate_table(covariates, n)[[*model.schema_.categories, *model.schema_.continuous]]
    obs = obs.set_axis(pd.RangeIndex(n).map("sample_{}".format))
    joint = sparse.hstack([counts[modality] for modality in model.schema_.modalities], format="csr")
    var = feature_table(model.schema_)
    if model.schema_.modalities != ("rna",):  # so that a model can be fitted to the sampled cells, too
        var[model.parameters_["modality_key"]] = [
            modality for modality, names in model.schema_.feature_names.items() for _ in names
        ]
    return AnnData(joint, obs, var, obsm={"z": model.module_.constrained(torch.from_numpy(z_cz)).numpy()})
