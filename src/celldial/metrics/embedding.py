"""Metrics of embeddings: clusters, label prediction, batch mixing, agreement of modalities. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["foscttm", "ilisi", "knn_f1", "leiden_nmi"]

# Distance matrices are computed in blocks of rows with at most this many entries: 32 MB of float64.
_BLOCK_ENTRIES = 4_000_000


def leiden_nmi(
    embedding_cz: ArrayLike,
    labels: ArrayLike | pd.Series | pd.Categorical,
    resolutions: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0),
    n_neighbors: int = 15,
    seed: int = 0,
) -> float:
    """Return the agreement of Leiden clusters with known labels (NMI), the best over several resolutions.

    The neighbor graph of the embedding is clustered with the Leiden algorithm [1]_ at each resolution, as in scanpy.
    Each clustering is compared with the labels by normalized mutual information (arithmetic mean of the entropies). The
    best value is returned, so the choice of a resolution does not affect the comparison.

    Parameters
    ----------
    embedding_cz
        Coordinates of the cells, shape ``(n_cells, n_latent)``.
    labels
        The known label of each cell, length ``n_cells``.
    resolutions
        Leiden resolutions to try. Additional resolutions never lower the result.
    n_neighbors
        Number of neighbors in the graph, including the cell itself, as in :func:`scanpy.pp.neighbors`.
    seed
        Random seed of the neighbor graph and of the clustering.

    Returns
    -------
    float
        From 0 (clusters and labels are independent) to 1 (they are the same partition).

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix, if labels are missing or have another length, if there are no
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
    embedding_cz, code_c = _validate_labels(embedding_cz, labels)
    if len(resolutions) == 0:
        raise ValueError("`resolutions` is empty; pass at least 1 Leiden resolution, such as [1.0].")
    _check_n_neighbors(n_neighbors, len(code_c), "cells")

    import scanpy as sc
    from anndata import AnnData

    graph = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(code_c)).astype(str)))
    # Copy a read-only array, such as a memory-mapped file: with more than 8,192 cells, pynndescent would fail on it.
    graph.obsm["embedding"] = np.require(embedding_cz, requirements="W")
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
    """Return how well the labels of neighbors predict a cell's own label: cross-validated macro-F1.

    Each cell is assigned the majority label of its nearest neighbors (Euclidean distance) among the cells of the other
    folds. A tied vote goes to the label that sorts first. The F1 score of each type is computed over all cells and then
    averaged over types, so a rare type counts as much as a common one.

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
        Types with fewer cells are excluded, both from prediction and from the neighbors. At least ``n_splits``.
    seed
        Random seed of the shuffle.

    Returns
    -------
    float
        From 0 to 1 (all cells are predicted correctly).

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix, if labels are missing or have another length, if ``min_cells`` is
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
    embedding_cz, code_c = _validate_labels(embedding_cz, labels)
    if n_splits < 2:
        raise ValueError(f"`n_splits` is {n_splits}; cross-validation needs at least 2 folds.")
    if min_cells < n_splits:
        raise ValueError(
            f"`min_cells` is {min_cells}, less than `n_splits`, {n_splits}. A type needs at least 1 cell in each fold: "
            "raise `min_cells` or lower `n_splits`."
        )
    size_k = np.bincount(code_c)
    if (size_k >= min_cells).sum() < 2:
        raise ValueError(
            f"{(size_k >= min_cells).sum()} of {len(size_k)} types have at least `min_cells` = {min_cells} cells; 2 "
            "types are needed. Lower `min_cells` or check the labels."
        )
    kept_c = size_k[code_c] >= min_cells
    embedding_cz, code_c = embedding_cz[kept_c], code_c[kept_c]
    # A fold holds at most ceil(size / n_splits) cells of each type; the others are left for training.
    smallest_training = int(sum(size - -(-size // n_splits) for size in size_k if size >= min_cells))
    _check_n_neighbors(n_neighbors, smallest_training + 1, "cells in a training fold")

    folds = StratifiedKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    predicted_c = cross_val_predict(KNeighborsClassifier(n_neighbors=n_neighbors), embedding_cz, code_c, cv=folds)
    return float(f1_score(code_c, predicted_c, average="macro"))


def ilisi(
    embedding_cz: ArrayLike,
    batches: ArrayLike | pd.Series | pd.Categorical,
    n_neighbors: int = 90,
) -> float:
    """Return how well batches are mixed: the effective number of batches around a cell, median over cells.

    This is the integration local inverse Simpson's index (iLISI) [1]_. The neighbors of each cell are weighted by
    exp(−β · distance), with β chosen such that the weights have a perplexity of ``n_neighbors / 3``. If p_b is the
    total weight of batch b, the index of the cell is 1 / Σ_b p_b².

    Parameters
    ----------
    embedding_cz
        Coordinates of the cells, shape ``(n_cells, n_latent)``.
    batches
        The batch of each cell, length ``n_cells``.
    n_neighbors
        Size of the neighborhoods. The cell itself counts as a neighbor, but has no weight.

    Returns
    -------
    float
        From 1 (each neighborhood has one batch) to the number of batches (all are evenly mixed). The value is not
        rescaled to 0 … 1, unlike in some packages. If batches differ in size, perfect mixing scores below the number of
        batches.

    Raises
    ------
    ValueError
        If the embedding is not a finite matrix, if batches are missing or have another length, if there are fewer than
        two batches, or if there are not more cells than neighbors.

    References
    ----------
    .. [1] Korsunsky et al. (2019), Fast, sensitive and accurate integration of single-cell data with Harmony,
       Nature Methods 16, 1289-1296. doi:10.1038/s41592-019-0619-0

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> batches = np.tile(["first", "second"], 100)
    >>> embedding_cz = np.random.default_rng(0).normal(size=(200, 2))
    >>> round(cd.metrics.ilisi(embedding_cz, batches), 1)
    2.0
    >>> round(cd.metrics.ilisi(embedding_cz + 20 * (batches == "first")[:, None], batches), 1)
    1.0
    """
    embedding_cz, code_c = _validate_labels(embedding_cz, batches, "batches")
    n_batches = int(code_c.max(initial=-1)) + 1
    if n_batches < 2:
        raise ValueError(f"`batches` has {n_batches} different values; at least 2 batches are needed.")
    if n_neighbors < 6:
        raise ValueError(f"`n_neighbors` is {n_neighbors}; at least 6 are needed for a perplexity of 2.")
    _check_n_neighbors(n_neighbors, len(code_c), "cells")

    # Without an argument, kneighbors() excludes the cell itself.
    distance_cn, neighbor_cn = NearestNeighbors(n_neighbors=n_neighbors - 1).fit(embedding_cz).kneighbors()
    weight_cn = _perplexity_weights(distance_cn, n_neighbors / 3)
    share_cb = np.stack([(weight_cn * (code_c[neighbor_cn] == b)).sum(axis=1) for b in range(n_batches)], axis=1)
    return float(np.median(1 / (share_cb**2).sum(axis=1)))


def foscttm(x_cz: ArrayLike, y_cz: ArrayLike) -> float:
    """Return the fraction of samples closer than the true match (FOSCTTM) of two embeddings of the same cells.

    For each cell of the first embedding, count the share of the other cells that are closer to it in the second
    embedding (Euclidean distance) than the same cell is. Do the same from the second to the first. The result is the
    mean over all cells and both directions [1]_. Ties count half, so an embedding with all cells at one point scores as
    chance.

    Parameters
    ----------
    x_cz, y_cz
        Two embeddings of the same cells, in the same order and in the same space, shape ``(n_cells, n_latent)``. For
        example, from RNA alone and from chromatin alone.

    Returns
    -------
    float
        From 0 (each cell is closest to itself) to 1. Chance is 0.5.

    Raises
    ------
    ValueError
        If the embeddings are not finite matrices of the same shape with at least two cells.

    References
    ----------
    .. [1] Liu, Huang, Singh, Vert and Noble (2019), Jointly embedding multiple single-cell omics measurements,
       Workshop on Algorithms in Bioinformatics, LIPIcs 143, 10. doi:10.4230/LIPIcs.WABI.2019.10

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> rna_cz = np.random.default_rng(0).normal(size=(100, 2))
    >>> cd.metrics.foscttm(rna_cz, rna_cz + 0.001)
    0.0
    >>> cd.metrics.foscttm(rna_cz, 0 * rna_cz)
    0.5
    """
    x_cz, y_cz = _validate_matrix(x_cz, "x_cz"), _validate_matrix(y_cz, "y_cz")
    if x_cz.shape != y_cz.shape:
        raise ValueError(
            f"`x_cz` has shape {x_cz.shape}, but `y_cz` has {y_cz.shape}: both must hold the same cells in the same "
            "space."
        )
    if len(x_cz) < 2:
        raise ValueError(f"`x_cz` has {len(x_cz)} cells; at least 2 are needed.")
    return float((_fraction_closer(x_cz, y_cz).mean() + _fraction_closer(y_cz, x_cz).mean()) / 2)


def _fraction_closer(x_cz: NDArray[np.floating], y_cz: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return, for each row of x, the fraction of rows of y that are closer than its match."""
    n_cells = len(x_cz)
    share_c = np.empty(n_cells)
    rows = max(1, _BLOCK_ENTRIES // n_cells)
    for start in range(0, n_cells, rows):
        block = np.arange(start, min(start + rows, n_cells))
        distance_cc = cdist(x_cz[block], y_cz, "sqeuclidean")
        match_c = distance_cc[np.arange(len(block)), block][:, None]
        # Subtract the match itself.
        ties_c = (distance_cc == match_c).sum(axis=1) - 1
        share_c[block] = ((distance_cc < match_c).sum(axis=1) + ties_c / 2) / (n_cells - 1)
    return share_c


def _perplexity_weights(distance_cn: NDArray[np.floating], perplexity: float) -> NDArray[np.floating]:
    """Return weights exp(−β · distance) that sum to 1 in each row, with β such that exp(entropy) is the perplexity.

    β is found by bisection, for all rows at once. If the perplexity stays too high even for β → ∞, because many
    neighbors share the smallest distance, these neighbors get equal weights.
    """
    # Only differences of distances matter. Dividing by their mean makes β independent of the scale.
    distance_cn = distance_cn - distance_cn[:, :1]
    mean_c = distance_cn.mean(axis=1, keepdims=True)
    distance_cn = distance_cn / np.where(mean_c > 0, mean_c, 1)
    low_c, high_c = np.full(len(distance_cn), -20.0), np.full(len(distance_cn), 20.0)  # log β
    for _ in range(50):
        middle_c = (low_c + high_c) / 2
        scaled_cn = np.exp(middle_c)[:, None] * distance_cn
        weight_cn = np.exp(-scaled_cn)
        total_c = weight_cn.sum(axis=1)
        entropy_c = np.log(total_c) + (scaled_cn * weight_cn).sum(axis=1) / total_c
        flat_c = entropy_c > np.log(perplexity)
        low_c, high_c = np.where(flat_c, middle_c, low_c), np.where(flat_c, high_c, middle_c)
    return weight_cn / total_c[:, None]


def _validate_labels(
    embedding_cz: ArrayLike, labels: Any, name: str = "labels"
) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """Return an embedding as a float matrix and its labels as integer codes, or raise if they do not fit."""
    array_cz = _validate_matrix(embedding_cz, "embedding_cz")
    series = pd.Series(labels).reset_index(drop=True)
    if len(series) != len(array_cz):
        raise ValueError(
            f"`{name}` has {len(series)} entries, but `embedding_cz` has {len(array_cz)} rows: one for each cell."
        )
    missing_c = series.isna().to_numpy()
    if missing_c.any():
        raise ValueError(
            f"`{name}` is missing for {int(missing_c.sum())} of {len(missing_c)} cells, the first in row "
            f"{int(missing_c.argmax())}. Remove these cells from both arrays."
        )
    # Codes follow the sorted names, because a tied vote of `knn_f1` goes to the lowest code.
    _, code_c = np.unique(series.astype(str).to_numpy(dtype=str), return_inverse=True)
    return array_cz, code_c.astype(np.intp)


def _validate_matrix(array: ArrayLike, name: str) -> NDArray[np.floating]:
    """Return an embedding as a matrix of float32 or float64, or raise if it is not a finite matrix."""
    array_cz = np.asarray(array)
    if array_cz.ndim != 2 or array_cz.shape[1] == 0:
        raise ValueError(f"`{name}` has shape {array_cz.shape}; it must be a matrix, cells × latent coordinates.")
    if array_cz.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` has dtype {array_cz.dtype}; it must hold real numbers.")
    if array_cz.dtype not in (np.float32, np.float64):
        array_cz = array_cz.astype(np.float32 if array_cz.dtype == np.float16 else np.float64)
    bad_c = ~np.isfinite(array_cz).all(axis=1)
    if bad_c.any():
        raise ValueError(
            f"`{name}` has NaN or infinite values in {int(bad_c.sum())} of {len(bad_c)} cells, the first in row "
            f"{int(bad_c.argmax())}. Remove these cells, or check why the model did not embed them."
        )
    return array_cz


def _check_n_neighbors(n_neighbors: int, n_cells: int, noun: str) -> None:
    if n_neighbors < 2:
        raise ValueError(f"`n_neighbors` is {n_neighbors}; at least 2 are needed.")
    if n_neighbors >= n_cells:
        raise ValueError(f"`n_neighbors` is {n_neighbors}, too many for {n_cells} {noun}. Lower `n_neighbors`.")
