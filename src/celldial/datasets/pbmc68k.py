"""Raw counts of 700 blood cells, recovered from a data set that is installed with scanpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["pbmc68k_reduced"]

# scanpy ships log1p(counts * 10,000 / n_counts), rounded to three decimals and stored as float32.
_LOG_TOLERANCE = 5.01e-4
_TARGET_SUM = 1e4


def pbmc68k_reduced() -> AnnData:
    """Load raw counts of 700 blood cells with ten annotated cell types.

    This is the data set of the same name in scanpy, a subset of the 68,000 peripheral blood mononuclear cells of Zheng
    et al. [1]_. scanpy's version has scaled values in ``X`` and log-normalized values in ``raw``, which a count model
    cannot use. This function inverts the normalization exactly: ``expm1``, times the cell's total ``obs["n_counts"]``
    over 10,000, rounded to integers. It does not download anything.

    Returns
    -------
    anndata.AnnData
        700 cells × 765 genes. ``X`` is a CSR matrix of raw UMI counts, as float32. ``obs`` is that of scanpy:
        ``bulk_labels`` (the cell types), ``louvain``, ``phase``, ``S_score``, ``G2M_score``, and the totals
        ``n_counts``, ``n_genes`` and ``percent_mito``, which were computed on *all* genes before the 765 were selected.
        Results that scanpy computed from the scaled values (PCA, UMAP, neighbors, rankings, colors, columns of ``var``,
        ``raw``) are not included, so that they cannot be mistaken for your own results.

    Raises
    ------
    RuntimeError
        If the bundled file cannot be converted to integer counts, for example because a new version of scanpy ships a
        different file.

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
        # The bundled file was written in 2018. anndata warns about its layout, which users cannot change.
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(anndata|scanpy|legacy_api_wrap)(\.|$)")
        bundled = sc.datasets.pbmc68k_reduced()
        log_cf = csr_matrix(bundled.raw.X, dtype=np.float64)
        obs, gene_names = bundled.obs.rename_axis(index=None), bundled.raw.var_names.astype(str).rename(None)

    counts_cf = _undo_log_normalization(log_cf, obs["n_counts"].to_numpy(dtype=np.float64))
    return AnnData(counts_cf, obs=obs, var=pd.DataFrame(index=gene_names))


def _undo_log_normalization(log_cf: csr_matrix, total_c: np.ndarray) -> csr_matrix:
    """Convert ``log1p(counts * 10,000 / total)`` to counts, and raise if a value does not come from an integer count.

    The check recomputes the logarithm from the counts and compares it within the rounding of the file. Even at the
    largest count (259), half a count changes the logarithm by four times that tolerance.
    """
    log_cf = log_cf.copy()
    log_cf.sort_indices()
    scale_n = np.repeat(total_c / _TARGET_SUM, np.diff(log_cf.indptr))
    count_n = np.round(np.expm1(log_cf.data) * scale_n)
    error_n = np.abs(np.log1p(count_n / scale_n) - log_cf.data)
    # "not <=" instead of ">", so that NaN fails, too.
    bad = ~((error_n <= _LOG_TOLERANCE) & (count_n >= 1))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        cell = int(np.searchsorted(log_cf.indptr, first, side="right")) - 1
        raise RuntimeError(
            f"scanpy's pbmc68k_reduced cannot be converted to counts: {int(bad.sum())} of {bad.size} values are not "
            f"logarithms of integer counts, the first in row {cell}, column {log_cf.indices[first]} "
            f"({log_cf.data[first]:.6g}). The installed scanpy ships a file that celldial does not support; please "
            "report this."
        )
    return csr_matrix((count_n.astype(np.float32), log_cf.indices, log_cf.indptr), shape=log_cf.shape)
