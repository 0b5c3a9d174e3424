"""Report on an integration: mixing of batches, separation of types, and signs of over-correction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel, get_modality, read_cells, read_from
from celldial.io import results
from celldial.metrics.integration import (
    MIN_CELLS,
    Groups,
    compare_integration,
    describe_over_correction,
    load_scib_metrics,
)
from celldial.model.likelihoods import LIKELIHOODS
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import get_column
from celldial.utils.validation import check_integer

__all__ = ["integration_report"]

# Components of the embedding without integration.
N_COMPONENTS = 30


@validate_types
def integration_report(
    model: FittedModel,
    adata: AnnData,
    label_key: str | None = None,
    *,
    modality: str | None = None,
    n_cells: int = 10_000,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure whether batches mix and types stay separate, by scib-metrics, and look for over-correction.

    All metrics are those of scIB [1]_ and range from 0 to 1; higher values are better. Each one is compared with the
    same metric without integration, and those of mixing with shuffled batches, the most that mixing can reach.

    - ``iLISI``: effective number of batches around a cell, from 1 to their number, rescaled to 0 … 1 [2]_; median over
      cells
    - ``kBET``: share of the cells whose neighbors have the batches in the proportions of the data, by a χ² test [3]_
    - ``graph connectivity``: share of a type's cells in the largest connected part of their neighbor graph, mean over
      types
    - ``cLISI``: as ``iLISI``, for types: 1 if the neighbors of a cell have its type
    - ``NMI``, ``ARI``: agreement of Leiden clusters with the types, at the best of ten resolutions

    Parameters
    ----------
    model
        A `VAE` fitted with ``batch_key``; omitted in the method call ``model.integration_report(adata)``.
    adata
        Cells of at least two batches.
    label_key
        Column of ``adata.obs`` with known types. Cells without a value are left out.
    modality
        Modality of the embedding without integration, by default the first. Cells without counts of it are left out.
    n_cells
        Largest number of cells to measure on, drawn at random.
    layer
        As in `transform`.
    seed
        Seed of the draw, of the shuffled batches and of the clusters.

    Returns
    -------
    pandas.DataFrame
        One row per metric, with the columns

        - ``embedding``: the value of the model's embedding;
        - ``unintegrated``: that of 30 principal components of log-normalized counts (peaks: of TF-IDF);
        - ``shuffled``: that of the model's embedding with batches shuffled over all cells, or within each type if
          `label_key` is given. It is missing for metrics of types.

        ``table.attrs["over_correction"]`` is a sentence. It names these signs: cLISI or NMI is lower by more than 0.05
        than without integration; iLISI is higher by more than 0.05 than with shuffled batches; a type, in particular
        one of a single batch, has fewer neighbors of its own type than without integration.

        Table and sentence are written to ``adata.uns["celldial"]["integration"]`` for `celldial.pl.integration_report`,
        with `label_key` also a table with the share of neighbors of the same type, for each type.

    Raises
    ------
    ImportError
        scib-metrics is not installed.
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model has no batch key, the cells are of a single batch or have a single type, or there are fewer than 50.
    KeyError
        There is no such column or modality.
    ValueError, TypeError, KeyError, FloatingPointError
        As `transform`.

    References
    ----------
    .. [1] Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell genomics, Nature Methods 19,
       41-50. doi:10.1038/s41592-021-01336-8
    .. [2] Korsunsky et al. (2019), Fast, sensitive and accurate integration of single-cell data with Harmony, Nature
       Methods 16, 1289-1296. doi:10.1038/s41592-019-0619-0
    .. [3] Büttner et al. (2019), A test metric for assessing single-cell RNA-seq batch correction, Nature Methods 16,
       43-49. doi:10.1038/s41592-018-0254-1

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.simulate_multiome(n_cells=300, n_batches=2)
    >>> model = celldial.VAE(batch_key="batch").fit(adata, max_epochs=1, progress=False)
    >>> table = model.integration_report(adata, label_key="cell_type")
    >>> list(table.index)
    ['iLISI', 'kBET', 'graph connectivity', 'cLISI', 'NMI', 'ARI']
    """
    model = read_from(model, layer)
    load_scib_metrics()
    check_integer("n_cells", n_cells, MIN_CELLS)
    check_integer("seed", seed, 0)
    batch_key = model.schema_.batch_key
    if batch_key is None:
        raise ValueError("the model was fitted without batch_key, so there are no batches to compare: fit it with one")
    modality = get_modality(model, modality)
    table, cells = read_cells(model, adata)
    index_c, groups = choose_cells(model, table, cells, modality, label_key, np.random.default_rng(seed), n_cells)
    cells = cells.select(torch.from_numpy(index_c))
    embedding_cz = posterior.infer(model.module_, cells).embedding
    is_binary = LIKELIHOODS[model.schema_.likelihood[modality]].binary
    unintegrated_cz = unintegrated_embedding(to_csr_matrix(cells.counts[modality]), is_binary, seed)
    report, types = compare_integration(embedding_cz, unintegrated_cz, groups, seed)
    sentence = describe_over_correction(report, types)
    stored = {
        "table": report.copy(),
        "over_correction": sentence,
        "batch_key": batch_key,
        "n_cells": len(index_c),
        "n_batches": len(np.unique(groups.batch_c)),
        **({} if types is None else {"label_key": str(label_key), "types": types}),
    }
    results.write_integration(adata, model.fingerprint_, stored)
    report.attrs["over_correction"] = sentence
    return report


def choose_cells(
    model: FittedModel,
    table: AnnData,
    cells: Cells,
    modality: str,
    label_key: str | None,
    random: np.random.Generator,
    n_cells: int,
) -> tuple[np.ndarray, Groups]:
    """Return the indices of the cells to measure on, ascending, and their batches and types.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There are too few cells, or only one batch or type.
    """
    usable_c = cells.mask_with(modality).numpy()
    if label_key is not None:
        usable_c = usable_c & get_column(table.obs, label_key, "label_key").notna().to_numpy()
    index_c = np.flatnonzero(usable_c)
    needed = f"counts of {modality}" + ("" if label_key is None else f" and a value of {label_key!r}")
    if len(index_c) < MIN_CELLS:
        raise ValueError(f"{len(index_c)} of {len(cells)} cells have {needed}: at least {MIN_CELLS} are needed")
    index_c = np.sort(random.permutation(index_c)[:n_cells])
    batch_key = str(model.schema_.batch_key)
    # The batch is the first categorical covariate.
    batch_c = np.array(model.schema_.categories[batch_key])[cells.category_ck[index_c, 0].numpy()]
    label_c = None if label_key is None else table.obs[label_key].iloc[index_c].astype(str).to_numpy(dtype=str)
    for key, value_c, noun in ((batch_key, batch_c, "batch"), (label_key, label_c, "type")):
        if value_c is not None and len(np.unique(value_c)) < 2:
            raise ValueError(
                f"all {len(index_c)} cells with {needed} have the same {noun} in adata.obs[{key!r}], {value_c[0]!r}: "
                "at least two are needed"
            )
    return index_c, Groups(batch_c, label_c)


def unintegrated_embedding(counts_cf: sparse.csr_matrix, is_binary: bool, seed: int) -> np.ndarray:
    """Return principal components of log-normalized counts, or of TF-IDF values of peaks that are open or not.

    Parameters
    ----------
    counts_cf
        Counts of cells, each with at least one count.
    is_binary
        Whether only the presence of counts is used.
    seed
        Seed of the decomposition.
    """
    value_cf = counts_cf.astype(np.float64)
    if is_binary:
        value_cf.data[:] = value_cf.data > 0
    scale_c = 1e4 / np.asarray(value_cf.sum(axis=1)).ravel()
    value_cf = sparse.diags_array(scale_c) @ value_cf
    if is_binary:
        n_open_f = np.asarray((counts_cf > 0).sum(axis=0)).ravel()
        value_cf = value_cf @ sparse.diags_array(np.log1p(len(scale_c) / np.maximum(n_open_f, 1)))
    value_cf.data = np.log1p(value_cf.data)
    n_components = min(N_COMPONENTS, *(size - 1 for size in value_cf.shape))
    pca = PCA(max(1, n_components), svd_solver="arpack", random_state=seed)
    components_cz: np.ndarray = pca.fit_transform(value_cf)
    return components_cz
