"""Decode given latent states, and sample new cells from the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celldial.data.basis import Fourier
from celldial.data.cell_checks import check_has_counts, warn_empty_cells
from celldial.data.cells import decode_blocks
from celldial.data.covariates import to_covariate_table
from celldial.data.schema import Schema
from celldial.inference import posterior
from celldial.inference.fitted_model import (
    FittedModel,
    check_fitted,
    feature_table,
    get_modality,
    library_size_to_decode,
    read_cells,
    read_from,
)
from celldial.inference.posterior import Covariates
from celldial.model import latents
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed
from celldial.utils.warnings import warn


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
    z_cz = _read_states(model, z)
    encoded = Covariates(*model.schema_.encode_covariates({} if covariates is None else covariates, n_cells=len(z_cz)))
    name = get_modality(model, modality)
    depth = library_size_to_decode(model, name, library_size)
    return np.concatenate(list(posterior.decode_mean(model.module_, name, z_cz, encoded, depth)))


@validate_types
def sample(
    model: FittedModel,
    n: int | None = None,
    covariates: Mapping[str, Any] | pd.DataFrame | None = None,
    *,
    z: np.ndarray | None = None,
    adata: Any = None,
    layer: str | None = None,
    seed: int | None = None,
) -> AnnData:
    """Sample new cells under chosen conditions: latent states, library sizes, and counts.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.sample(n)``.
    n
        Number of cells. It may be left out with `z`, or with `adata`; then there is one for each state or cell.
    covariates
        As in `decode`. Values of continuous covariates may lie between those of the training cells, and also beyond
        them, with a warning. With `adata`, they replace the values of the cells, and other covariates are kept.
    z
        Latent states of the new cells, as in `decode`; by default they are sampled.
    adata
        Cells in memory to sample around. The latent state of each new cell is a draw from the posterior of one of these
        cells, and it has the library sizes of that cell, so that it also lacks the modalities that the cell lacks. The
        training cells give samples from the aggregate posterior, which are closer to the data than samples from the
        prior if the prior does not describe how the cells are distributed in latent space.
    layer
        As in `transform`; only used with `adata`.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    anndata.AnnData
        Counts in ``X`` (CSR, float32), latent states in ``obsm["z"]``, covariates in ``obs``; if the model has several
        modalities, the modality of each feature in ``var["modality"]``. With `adata`, ``obs["sampled_from"]`` has the
        name of the cell.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        `n` is missing, less than 1, or not the number of states; both `z` and `adata` are given; latent states are
        invalid; no cell of `adata` has counts; or a covariate has a category that was not in the training data.
    TypeError
        Covariates have the wrong type.
    KeyError
        The model has no such covariate, or a covariate is missing.

    Warns
    -----
    UserWarning
        A continuous covariate is outside the range of the training cells, or cells of `adata` without counts are left
        out.

    Notes
    -----
    By default, latent states come from the prior, and library sizes are like those of the training cells,
    independently for each modality. ``VAE(prior="mixture")`` and ``VAE(prior="flow")`` learn the prior, which can
    then describe the cells better than the standard normal distribution.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(categorical_covariate_keys=["phase"]).fit(adata, max_epochs=1, progress=False)
    >>> model.sample(100, {"phase": "S"}).shape
    (100, 765)

    Cells like those of one phase, as they would be in another:

    >>> cells = model.sample(50, {"phase": "S"}, adata=adata[adata.obs["phase"] == "G1"].copy())
    >>> set(cells.obs["phase"]) == {"S"}
    True
    """
    model = read_from(model, layer)
    if z is not None and adata is not None:
        raise ValueError("both z and adata are given, and each determines the latent states: leave out one of them")
    covariates = {} if covariates is None else covariates
    if n is not None:
        check_integer("n", n)
    elif z is None and adata is None:
        raise ValueError("n is missing: pass the number of cells to sample, latent states z, or cells adata")
    with isolate_rng(resolve_seed(seed, model.seed)):
        if adata is not None:
            start = _start_from_cells(model, adata, covariates, n)
        elif z is not None:
            start = _start_from_states(model, z, covariates, n)
        else:
            assert n is not None
            encoded = _encode(model.schema_, covariates, n)
            library_size = posterior.sample_library_sizes(model.library_size_quantiles_, n)
            start = _Start(posterior.sample_prior(model.module_, encoded), encoded, library_size, covariates)
        counts = posterior.sample_counts(model.module_, start.state_cz, start.encoded, start.library_size)
    return _to_anndata(model, start, counts)


class _Start(NamedTuple):
    """What counts are sampled from: latent states, covariates (encoded and as given), library sizes, names of cells."""

    state_cz: np.ndarray
    encoded: Covariates
    library_size: dict[str, np.ndarray]
    covariates: Mapping[str, Any] | pd.DataFrame
    names: np.ndarray | None = None


def _start_from_states(
    model: FittedModel, z: np.ndarray, covariates: Mapping[str, Any] | pd.DataFrame, n: int | None
) -> _Start:
    """Return given latent states, with library sizes like those of the training cells."""
    state_cz = _read_states(model, z)
    if n is not None and n != len(state_cz):
        raise ValueError(f"n is {n}, but z has {len(state_cz)} latent states: leave n out, or pass {n} states")
    encoded = _encode(model.schema_, covariates, len(state_cz))
    library_size = posterior.sample_library_sizes(model.library_size_quantiles_, len(state_cz))
    return _Start(state_cz, encoded, library_size, covariates)


def _start_from_cells(
    model: FittedModel, adata: Any, covariates: Mapping[str, Any] | pd.DataFrame, n: int | None
) -> _Start:
    """Return draws from the posteriors of cells: of each cell once, or of `n` random ones."""
    table, cells = read_cells(model, adata)
    check_has_counts(cells)
    warn_empty_cells(table.obs_names.__getitem__, cells, "they are left out")
    index_c = (~cells.empty_c).nonzero()[:, 0]
    if n is not None:
        index_c = index_c[torch.randint(len(index_c), (n,))]
    state_cz = np.concatenate(
        [posterior.sample_latent(model.module_, block, 1)[:, 0] for block in decode_blocks(cells.select(index_c))]
    )
    obs = table.obs.iloc[index_c.numpy()]
    keys = [*model.schema_.categories, *model.schema_.continuous]
    given = dict(covariates) if isinstance(covariates, Mapping) else covariates.filter(keys).to_dict("series")
    chosen: dict[str, Any] = {key: obs[key].to_numpy() for key in keys if key not in given}
    chosen.update({str(key): value for key, value in given.items()})
    encoded = _encode(model.schema_, chosen, len(obs))
    library_size = {name: size_c[index_c].numpy() for name, size_c in cells.library_size.items()}
    return _Start(state_cz, encoded, library_size, chosen, obs.index.to_numpy())


def _encode(schema: Schema, covariates: Mapping[str, Any] | pd.DataFrame, n: int) -> Covariates:
    """Encode covariates, and warn of numbers outside the range of the training cells."""
    encoded = Covariates(*schema.encode_covariates(covariates, n_cells=n))
    for key, (lowest, highest) in schema.ranges.items():
        value_c = np.asarray(covariates[key], dtype=float)
        outside = value_c[(value_c < lowest) | (value_c > highest)]
        if outside.size > 0 and not isinstance(schema.bases.get(key), Fourier):
            warn(
                f"covariate {key!r} is {outside.flat[0]:g} in new cells, and the training cells have {lowest:g} to "
                f"{highest:g}: the effect is extrapolated, so check it with cells that were measured there"
            )
    return encoded


def _read_states(model: FittedModel, z: Any) -> np.ndarray:
    """Return latent states as the decoder reads them; raise if they are invalid."""
    z_cz = latents.check_latent_states(z, model.module_.n_states)
    model.module_.latent.check_range(z_cz[:, : model.module_.latent.n_latent])
    state_cz: np.ndarray = model.module_.unconstrained(torch.from_numpy(z_cz)).numpy()
    return state_cz


def _to_anndata(model: FittedModel, start: _Start, counts: Mapping[str, sparse.csr_matrix]) -> AnnData:
    """Return sampled cells as an AnnData."""
    n_cells = len(start.state_cz)
    obs = to_covariate_table(start.covariates, n_cells)[[*model.schema_.categories, *model.schema_.continuous]]
    obs = obs.set_axis(pd.RangeIndex(n_cells).map("sample_{}".format))
    if start.names is not None:
        obs["sampled_from"] = start.names
    joint = sparse.hstack([counts[modality] for modality in model.schema_.modalities], format="csr")
    var = feature_table(model.schema_)
    if model.schema_.modalities != ("rna",):  # so that a model can be fitted to the sampled cells, too
        var[model.parameters_["modality_key"]] = [
            modality for modality, names in model.schema_.feature_names.items() for _ in names
        ]
    z_cz = model.module_.constrained(torch.from_numpy(start.state_cz)).numpy()
    return AnnData(joint, obs, var, obsm={"z": z_cz})
