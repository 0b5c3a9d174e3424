"""How good is an embedding: arrays in, floats out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["knn_f1", "leiden_nmi"]


def leiden_nmi(
    embedding_cz: ArrayLike,
    labels: ArrayLike | pd.Series | pd.Categorical,
    resolutions: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0),
    n_neighbors: int = 15,
    seed: int = 0,
) -> float:
    """Agreement of unsupervised clusters with known labels: the best over several resolutions.

    The neighbor graph of the embedding is clustered by the Leiden algorithm [1]_ at each resolution, as a scanpy user
    would, and each clustering is compared with the labels by normalized mutual information (arithmetic mean of the
    entropies). The best value is returned: how finely to cut is left out of the comparison.

    Parameters
    ----------
    embedding_cz
        Coordinates of the cells, shape ``(n_cells, n_latent)``.
    labels
        The known label of each cell, length ``n_cells``.
    resolutions
        Leiden resolutions to try. More of them never lower the result.
    n_neighbors
        Size of the neighborhoods of the graph (the cell itself counts as one, as in :func:`scanpy.pp.neighbors`).
    seed
        Of the neighbor graph and of the clustering.

    Returns
    -------
    Between 0 (clusters tell nothing about the labels) and 1 (they are the labels).

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix, if labels are missing or of another length, if there are no
        resolutions, or if there are not more cells than neighbors.

    References
    ----------
    .. [1] Traag, Waltman and van Eck (2019), From Louvain to Leiden: guaranteeing well-connected communities,
       Scientific Reports 9, 5233. doi:10.1038/s41598-019-41695-z

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> labels = np.repeat(["B", "T"], 50)
    >>> embedding_cz = np.random.default_rng(0).normal(size=(100, 2)) + 20 * (labels == "T")[:, None]
    >>> cd.metrics.leiden_nmi(embedding_cz, labels, resolutions=[0.1])
    1.0
    """
    embedding_cz, code_c = _checked(embedding_cz, labels)
    if len(resolutions) == 0:
        raise ValueError("`resolutions` is empty: name at least one Leiden resolution, such as [1.0].")
    _check_n_neighbors(n_neighbors, len(code_c), "cells")

    import scanpy as sc
    from anndata import AnnData

    graph = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(code_c)).astype(str)))
    graph.obsm["embedding"] = embedding_cz
    sc.pp.neighbors(graph, n_neighbors=n_neighbors, use_rep="embedding", random_state=seed)
    best = 0.0
    for resolution in resolutions:
        sc.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        cluster_c = graph.obs["leiden"].cat.codes.to_numpy()
        best = max(best, float(normalized_mutual_info_score(code_c, cluster_c)))
    return best


def knn_f1(
    embedding_cz: ArrayLike,
    labels: ArrayLike | pd.Series | pd.Categorical,
    n_neighbors: int = 15,
    n_splits: int = 5,
    min_cells: int = 10,
    seed: int = 0,
) -> float:
    """How well the labels of a cell's neighbors predict its own: cross-validated macro-F1.

    Each cell is labelled by the majority of its nearest neighbors (Euclidean) among the cells of the other folds; a
    tied vote goes to the label that sorts first.
    The F1 score is taken for each type over all cells, then averaged over types, so that a rare type weighs as much as
    a common one.

    Parameters
    ----------
    embedding_cz
        Coordinates of the cells, shape ``(n_cells, n_latent)``.
    labels
        The known label of each cell, length ``n_cells``.
    n_neighbors
        Number of neighbors that vote.
    n_splits
        Number of stratified, shuffled folds.
    min_cells
        Types with fewer cells are left out: neither predicted nor neighbors. At least ``n_splits``.
    seed
        Of the shuffle.

    Returns
    -------
    Between 0 and 1 (every cell predicted right).

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix, if labels are missing or of another length, if ``min_cells`` is
        smaller than ``n_splits``, if fewer than two types have ``min_cells`` cells, or if a training fold has fewer
        cells than ``n_neighbors``.

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> labels = np.repeat(["B", "T"], 50)
    >>> embedding_cz = np.random.default_rng(0).normal(size=(100, 2)) + 20 * (labels == "T")[:, None]
    >>> cd.metrics.knn_f1(embedding_cz, labels)
    1.0
    """
    embedding_cz, code_c = _checked(embedding_cz, labels)
    if n_splits < 2:
        raise ValueError(f"`n_splits` is {n_splits}; cross-validation needs at least 2 folds.")
    if min_cells < n_splits:
        raise ValueError(
            f"`min_cells` is {min_cells}, less than `n_splits`, {n_splits}: a type needs one cell a fold. "
            "Raise `min_cells` or lower `n_splits`."
        )
    size_k = np.bincount(code_c)
    if (size_k >= min_cells).sum() < 2:
        raise ValueError(
            f"Of {len(size_k)} types, {(size_k >= min_cells).sum()} have at least `min_cells` = {min_cells} cells; "
            "two are needed. Lower `min_cells`, or check the labels."
        )
    kept_c = size_k[code_c] >= min_cells
    embedding_cz, code_c = embedding_cz[kept_c], code_c[kept_c]
    # The largest fold has this many cells at most: one more a type than an even share.
    smallest_training = int(sum(size - -(-size // n_splits) for size in size_k if size >= min_cells))
    _check_n_neighbors(n_neighbors, smallest_training + 1, "cells in a training fold")

    folds = StratifiedKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    predicted_c = cross_val_predict(KNeighborsClassifier(n_neighbors=n_neighbors), embedding_cz, code_c, cv=folds)
    return float(f1_score(code_c, predicted_c, average="macro"))


def _checked(embedding_cz: ArrayLike, labels: Any) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """Check an embedding and its labels; return a float matrix and integer codes of the labels."""
    array_cz = np.asarray(embedding_cz)
    if array_cz.ndim != 2 or array_cz.shape[1] == 0:
        raise ValueError(
            f"`embedding_cz` has shape {array_cz.shape}; it must be a matrix, cells in rows and one latent a column."
        )
    if array_cz.dtype.kind not in "fiub":
        raise TypeError(f"`embedding_cz` is of dtype {array_cz.dtype}; it must hold real numbers.")
    if array_cz.dtype not in (np.float32, np.float64):
        array_cz = array_cz.astype(np.float32 if array_cz.dtype == np.float16 else np.float64)
    bad_c = ~np.isfinite(array_cz).all(axis=1)
    if bad_c.any():
        raise ValueError(
            f"`embedding_cz` has NaN or infinite values in {int(bad_c.sum())} of {len(bad_c)} cells, the first in row "
            f"{int(bad_c.argmax())}. Leave these cells out, or find out why the model gave them no position."
        )
    series = pd.Series(labels).reset_index(drop=True)
    if len(series) != len(array_cz):
        raise ValueError(f"`labels` has {len(series)} entries, `embedding_cz` has {len(array_cz)} rows: one a cell.")
    missing_c = series.isna().to_numpy()
    if missing_c.any():
        raise ValueError(
            f"`labels` is missing for {int(missing_c.sum())} of {len(missing_c)} cells, the first in row "
            f"{int(missing_c.argmax())}. Leave these cells out of both arrays."
        )
    # Numbered by name, not by first appearance: a tied vote goes to the lower number.
    _, code_c = np.unique(series.astype(str).to_numpy(dtype=str), return_inverse=True)
    return array_cz, code_c.astype(np.intp)


def _check_n_neighbors(n_neighbors: int, n_cells: int, what: str) -> None:
    if n_neighbors < 2:
        raise ValueError(f"`n_neighbors` is {n_neighbors}; at least 2 are needed.")
    if n_neighbors >= n_cells:
        raise ValueError(f"`n_neighbors` is {n_neighbors}, too many for {n_cells} {what}. Lower `n_neighbors`.")
