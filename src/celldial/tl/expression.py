"""Expected expression and accessibility of cells: denoising, and imputation of one modality from others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.inference.conditions import Conditions, decode_average, resolve_transform_batch
from celldial.inference.fitted_model import (
    FittedModel,
    get_modality,
    infer_all,
    is_file_path,
    library_size_to_decode,
    read_from,
)
from celldial.io import h5ad, results
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import did_you_mean, feature_noun
from celldial.utils.validation import check_writable

__all__ = ["denoise", "denoise_to_file", "impute", "impute_to_file"]

# Larger tables are made only on request.
MAX_ENTRIES = 25_000_000


@validate_types
def denoise(
    model: FittedModel,
    adata: AnnData,
    features: Sequence[str] | str | None = None,
    *,
    modality: str | None = None,
    key_added: str | None = None,
    transform_batch: Any = None,
    library_size: float | None = None,
    include_background: bool = True,
    layer: str | None = None,
    dense: bool = False,
) -> pd.DataFrame:
    """Return the expected expression of each cell: its posterior mean, decoded.

    With a zero-inflated likelihood, this is the expression before dropout.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.denoise(adata)``.
    adata
        Cells to denoise; or files of cells as in `fit`, to which nothing is written.
    features
        Names of the features to return; by default all features of the modality.
    modality
        Modality to decode; by default the first of the model, which is ``"rna"`` if it has RNA.
    key_added
        Key to write the result under: ``adata.layers[key_added]`` if the features are those of `adata` in the same
        order, otherwise a table in ``adata.obsm[key_added]``. By default nothing is written.
    transform_batch
        What the cells are decoded as. By default, each cell keeps its covariates.

        - a batch: as if all cells came from it;
        - a list of batches: the average of the expected values in these batches, which all have the same weight;
        - ``"all"``: the average over all batches of the model. If a batch has this name, it is ambiguous and an error;
        - a dict that maps covariates, the batch or others, to such values. If it has several lists, the average is over
          all combinations.
    library_size
        As in `decode`.
    include_background
        Whether to return all expected counts of proteins. False returns the counts beyond the background of unbound
        antibodies; see `celldial.model.likelihoods.NegativeBinomialMixture`.
    layer
        As in `transform`.
    dense
        Whether to allow a table of more than 25 million entries (0.1 GB). `denoise_to_file` does not need this memory.

    Returns
    -------
    pandas.DataFrame
        Expression, cells × features, in counts per `library_size`, float32.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    KeyError
        The model has no such feature, modality or covariate.
    ValueError
        The table would be large and `dense` is False; a feature or a batch is listed twice; a batch is unknown;
        `transform_batch` is a batch and the model has no `batch_key`; the library size is not above 0;
        `include_background` is False and the likelihood of the modality has no background; or `key_added`
        is given and there is no AnnData to write to.
    ValueError, TypeError, FloatingPointError, OSError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> model.denoise(adata, features=["CD3D", "CD79A"]).shape
    (700, 2)
    """
    model = read_from(model, layer)
    check_writable(adata, key_added)
    if key_added is not None:
        results.check_expression(adata, key_added)
    request = _check_request(model, modality, features, transform_batch, library_size, include_background)
    table = _infer(model, adata, request, None, None if dense else "denoise_to_file").table(model.module_)
    if key_added is not None:
        results.write_expression(adata, model.fingerprint_, key_added, table)
    return table


@validate_types
def denoise_to_file(
    model: FittedModel,
    adata: AnnData,
    path: str | Path,
    features: Sequence[str] | str | None = None,
    *,
    modality: str | None = None,
    transform_batch: Any = None,
    library_size: float | None = None,
    include_background: bool = True,
    layer: str | None = None,
) -> None:
    """Write the expected expression of each cell, as `denoise` returns it, block by block to an h5ad file.

    The memory it needs does not depend on the size of the table.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.denoise_to_file(adata, path)``.
    adata
        As in `denoise`. Nothing is written to it.
    path
        File to write, as in `impute_to_file`.
    features, modality, transform_batch, library_size, include_background, layer
        As in `denoise`.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError, FloatingPointError
        As `denoise`, except for the size of the table.
    OSError
        A file could not be read or written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import anndata, celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> with TemporaryDirectory() as folder:
    ...     model.denoise_to_file(adata, f"{folder}/denoised.h5ad")
    ...     anndata.read_h5ad(f"{folder}/denoised.h5ad").shape
    (700, 765)
    """
    model = read_from(model, layer)
    request = _check_request(model, modality, features, transform_batch, library_size, include_background)
    _infer(model, adata, request, None, None).write(model.module_, Path(path))


@validate_types
def impute(
    model: FittedModel,
    adata: AnnData,
    modality: str,
    *,
    from_: str | Sequence[str] | None = None,
    features: Sequence[str] | str | None = None,
    transform_batch: Any = None,
    library_size: float | None = None,
    include_background: bool = True,
    key_added: str | None = None,
    layer: str | None = None,
    dense: bool = False,
) -> pd.DataFrame:
    """Predict one modality from others, for example open peaks from the RNA of a cell.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.impute(adata, modality)``.
    adata
        Cells, which may lack `modality`; or files of cells as in `fit`, to which nothing is written.
    modality
        Modality to predict.
    from_
        Modality or modalities to predict from. By default all modalities that a cell has, which may include `modality`
        itself.
    features
        Names of the features to return; by default all features of the modality.
    transform_batch
        Batch to decode the cells as, several batches to average over, or ``"all"``; as in `denoise`.
    library_size
        As in `decode`.
    include_background
        As in `denoise`.
    key_added
        Key of ``adata.obsm`` for the result; ``"imputed_<modality>"`` by default.
    layer
        As in `transform`.
    dense
        Whether to allow a table of more than 25 million entries (0.1 GB). `impute_to_file` does not need this memory.

    Returns
    -------
    pandas.DataFrame
        Expected counts, or probabilities under a Bernoulli likelihood, cells × features, float32. They are also written
        to ``adata.obsm[key_added]``, as a table if `features` are given, otherwise as an array in the order of the
        model's features.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The table would be large and `dense` is False; or no cell has counts of any modality in `from_`.
    KeyError
        The model has no such modality, feature or covariate.
    ValueError, TypeError, FloatingPointError, OSError
        As `denoise`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.simulate_multiome(200, 100, 300)
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> model.impute(adata, "atac", from_="rna").shape
    (200, 300)
    """
    model = read_from(model, layer)
    check_writable(adata, key_added)
    request = _check_request(model, modality, features, transform_batch, library_size, include_background)
    key = f"imputed_{request.modality}" if key_added is None else key_added
    if not is_file_path(adata):
        results.check_key(adata, "obsm", key)
    table = _infer(model, adata, request, from_, None if dense else "impute_to_file").table(model.module_)
    if is_file_path(adata):
        return table
    # A table of very many columns takes minutes to write to a file, an array does not.
    values = table.to_numpy(copy=True) if features is None else table.copy()
    results.write_imputed(adata, model.fingerprint_, key, values)
    return table


@validate_types
def impute_to_file(
    model: FittedModel,
    adata: AnnData,
    modality: str,
    path: str | Path,
    *,
    from_: str | Sequence[str] | None = None,
    features: Sequence[str] | str | None = None,
    transform_batch: Any = None,
    library_size: float | None = None,
    include_background: bool = True,
    layer: str | None = None,
) -> None:
    """Predict one modality from others as `impute` does, block by block into an h5ad file, with constant memory.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.impute_to_file(adata, modality, path)``.
    adata, modality
        As in `impute`. Nothing is written to `adata`.
    path
        File to write: an AnnData of cells × features with the table in ``X``, float32, and the ``obs`` of the cells
        (for files, the columns that the model uses). It appears only once it is complete.
        ``anndata.read_h5ad(path, backed="r")`` reads parts of it.
    from_, features, transform_batch, library_size, include_background, layer
        As in `impute`.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError, FloatingPointError
        As `impute`, except for the size of the table.
    OSError
        A file could not be read or written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import anndata, celldial
    >>> adata = celldial.datasets.simulate_multiome(200, 100, 300)
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> with TemporaryDirectory() as folder:
    ...     model.impute_to_file(adata, "atac", f"{folder}/imputed.h5ad", from_="rna")
    ...     anndata.read_h5ad(f"{folder}/imputed.h5ad").shape
    (200, 300)
    """
    model = read_from(model, layer)
    request = _check_request(model, modality, features, transform_batch, library_size, include_background)
    _infer(model, adata, request, from_, None).write(model.module_, Path(path))


@dataclass(frozen=True)
class Request:
    """What to decode: features of one modality, and the conditions to average over."""

    modality: str
    names: pd.Index
    columns: np.ndarray | None
    conditions: list[dict[str, Any]]
    library_size: float
    include_background: bool

    def check_size(self, n_cells: int, writer: str) -> None:
        """Raise if the table of so many cells is large; `writer` names the function that writes it to a file."""
        n_entries = n_cells * len(self.names)
        if n_entries > MAX_ENTRIES:
            raise ValueError(
                f"the table of {n_cells} cells × {len(self.names)} features takes {4 * n_entries / 1e9:.1f} GB: list "
                f"the features=[...] you need, use {writer}, or pass dense=True"
            )


@dataclass(frozen=True)
class CellsToDecode:
    """Latent states and covariates of cells, and what to decode."""

    request: Request
    z_cz: np.ndarray
    conditions: Conditions
    obs: pd.DataFrame

    def blocks(self, module: Module) -> Iterator[np.ndarray]:
        """Decode block by block of cells."""
        wanted = self.request
        options = wanted.library_size, wanted.columns, wanted.include_background
        return decode_average(module, wanted.modality, self.z_cz, self.conditions, *options)

    def table(self, module: Module) -> pd.DataFrame:
        """Decode to one table."""
        values_cf = np.concatenate(list(self.blocks(module)))
        return pd.DataFrame(values_cf, index=self.obs.index, columns=self.request.names)

    def write(self, module: Module, path: Path) -> None:
        """Decode to a file."""
        h5ad.write_in_blocks(path, self.blocks(module), self.obs, self.request.names)


def _check_request(
    model: FittedModel,
    modality: str | None,
    features: Sequence[str] | str | None,
    transform_batch: Any,
    library_size: float | None,
    include_background: bool,
) -> Request:
    """Check what to decode, before cells are read."""
    modality = get_modality(model, modality)
    likelihood = model.schema_.likelihood[modality]
    if not (include_background or LIKELIHOODS[likelihood].has_background):
        raise ValueError(
            f"include_background is False, but the likelihood of {modality}, {likelihood!r}, has no background: name "
            "another modality, or fit antibody counts with the likelihood 'negative_binomial_mixture'"
        )
    names = pd.Index(model.schema_.feature_names[modality])
    wanted = names if features is None else pd.Index([features] if isinstance(features, str) else features)
    unknown = wanted[~wanted.isin(names)]
    kind = feature_noun(modality)
    if len(unknown):
        raise KeyError(
            f"the model has no {kind} {unknown[0]!r}{did_you_mean(unknown[0], names)} ({len(unknown)} of those "
            "requested are unknown)"
        )
    if wanted.has_duplicates:
        raise ValueError(f"{kind} {wanted[wanted.duplicated()][0]!r} is listed more than once")
    columns = None if features is None else names.get_indexer(wanted)
    conditions = resolve_transform_batch(model, transform_batch)
    size = library_size_to_decode(model, modality, library_size)
    return Request(modality, wanted, columns, conditions, size, include_background)


def _infer(
    model: FittedModel, adata: AnnData, request: Request, from_: str | Sequence[str] | None, writer: str | None
) -> CellsToDecode:
    """Infer the latent states of cells; raise if `writer` is a function that should write the table to a file."""
    sources = None
    if from_ is not None:
        sources = [get_modality(model, name) for name in ([from_] if isinstance(from_, str) else from_)]
        if not sources:
            raise ValueError("from_ is empty: name a modality, or use None for all that a cell has")
    n_cells = getattr(adata, "n_obs", None)  # cells in files are counted when they are read
    if writer is not None and n_cells is not None:
        request.check_size(n_cells, writer)
    latent_state, obs = infer_all(model, adata, None, sources, "the prior mean is decoded for them")
    if writer is not None:
        request.check_size(len(obs), writer)
    conditions = Conditions.encode(model.schema_, obs, request.conditions)
    return CellsToDecode(request, latent_state.state_cz, conditions, obs)
