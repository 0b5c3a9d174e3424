"""Data to start with, without a download: real counts that come with the installed packages, and simulated ones."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from celldial.datasets.multiome import simulate_multiome

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["pbmc68k_reduced", "simulate_multiome"]

# scanpy ships log1p(counts * 10,000 / n_counts), rounded to three decimals: half a unit in the last place, and float32.
_LOG_TOLERANCE = 5.01e-4
_SCALE_TARGET = 1e4


def pbmc68k_reduced() -> AnnData:
    """Load 700 blood cells as raw counts, with ten annotated cell types.

    The data set that scanpy bundles under the same name, a part of the 68,000 peripheral blood mononuclear cells of
    Zheng et al. [1]_, turned back into counts. scanpy's version holds scaled values in ``X`` and log-normalized ones
    in ``raw``; a model of counts can use neither. The normalization is undone exactly: ``expm1``, times the cell's
    total ``obs["n_counts"]`` over 10,000, rounded. Nothing is downloaded.

    Returns
    -------
    anndata.AnnData
        700 cells × 765 genes. ``X`` is a CSR matrix of raw UMI counts, as float32. ``obs`` is scanpy's: ``bulk_labels``
        (the cell types), ``louvain``, ``phase``, ``S_score``, ``G2M_score``, and the totals ``n_counts``, ``n_genes``
        and ``percent_mito``, which were taken over *all* genes, before the 765 were chosen. What scanpy had computed
        from the scaled values (PCA, UMAP, neighbors, rankings, colors, columns of ``var``, ``raw``) is left out, so
        that nothing stale answers where a result of your own is missing.

    Raises
    ------
    RuntimeError
        If the bundled file does not turn back into whole counts, that is, if scanpy ships another file one day.

    References
    ----------
    .. [1] Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells,
       Nature Communications 8, 14049. doi:10.1038/ncomms14049

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> adata.shape
    (700, 765)
    >>> adata.X[0].toarray().max().item()
    65.0
    >>> adata.obs["bulk_labels"].value_counts().index[0]
    'Dendritic'
    """
    import scanpy as sc
    from anndata import AnnData

    with warnings.catch_warnings():
        # The bundled file is of 2018: reading its layout makes anndata announce changes that are none of the user's.
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(anndata|scanpy|legacy_api_wrap)(\.|$)")
        bundled = sc.datasets.pbmc68k_reduced()
        log_cf = csr_matrix(bundled.raw.X, dtype=np.float64)
        obs, gene_names = bundled.obs.rename_axis(index=None), bundled.raw.var_names.astype(str).rename(None)

    counts_cf = _undo_log_normalization(log_cf, obs["n_counts"].to_numpy(dtype=np.float64))
    return AnnData(counts_cf, obs=obs, var=pd.DataFrame(index=gene_names))


def _undo_log_normalization(log_cf: csr_matrix, total_c: np.ndarray) -> csr_matrix:
    """Turn ``log1p(counts * 10,000 / total)`` back into counts, and refuse if no whole counts explain it.

    The check runs forward: the counts found must give the logarithm back to within the rounding of the file. At the
    largest count (259) half a count more or less would move it four times as far.
    """
    log_cf = log_cf.copy()
    log_cf.sort_indices()
    scale_n = np.repeat(total_c / _SCALE_TARGET, np.diff(log_cf.indptr))
    count_n = np.round(np.expm1(log_cf.data) * scale_n)
    error_n = np.abs(np.log1p(count_n / scale_n) - log_cf.data)
    # Not ">": a NaN must fail, too.
    bad = ~((error_n <= _LOG_TOLERANCE) & (count_n >= 1))
    if bad.any():
        worst = int(np.flatnonzero(bad)[0])
        cell = int(np.searchsorted(log_cf.indptr, worst, side="right")) - 1
        raise RuntimeError(
            f"scanpy's pbmc68k_reduced does not turn back into counts: in row {cell}, column {log_cf.indices[worst]}, "
            f"the value {log_cf.data[worst]:.6g} is no logarithm of a whole count. {int(bad.sum())} of {bad.size} "
            "entries are like that. The installed scanpy ships a file that celldial does not know; please report it."
        )
    return csr_matrix((count_n.astype(np.float32), log_cf.indices, log_cf.indptr), shape=log_cf.shape)
