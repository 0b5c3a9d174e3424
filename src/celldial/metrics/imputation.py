"""Metrics of imputed expression and accessibility in each cell. Arrays in, numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from scipy.stats import rankdata

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["auroc_per_cell", "pearson_per_cell"]


def auroc_per_cell(observed_cf: ArrayLike | csr_matrix, predicted_cf: ArrayLike) -> NDArray[np.float64]:
    """Return the area under the ROC curve of predicted accessibility for each cell.

    This is the probability that an open peak of the cell is predicted higher than a closed one. A tie counts half. The
    value is computed from the rank-sum statistic [1]_. Only the order of the predictions within a cell matters, not
    their scale, so the sequencing depth of a cell has no influence.

    Parameters
    ----------
    observed_cf
        Measured counts, shape ``(n_cells, n_features)``, dense or any scipy sparse matrix. A peak is open if its count
        is not zero.
    predicted_cf
        Predictions on any scale, dense, of the same shape and order.

    Returns
    -------
    numpy.ndarray
        AUROC of each cell, shape ``(n_cells,)``. 1 if all open peaks rank above the closed ones; chance is 0.5. NaN for
        cells without open peaks or without closed peaks; average with :func:`numpy.nanmean`.

    Raises
    ------
    ValueError
        If the two are not finite matrices of the same shape.
    TypeError
        If the predictions are sparse, or if one of the two does not hold real numbers.

    References
    ----------
    .. [1] Hanley and McNeil (1982), The meaning and use of the area under a receiver operating characteristic (ROC)
       curve, Radiology 143, 29-36. doi:10.1148/radiology.143.1.7063747

    Examples
    --------
    >>> import celldial as cd
    >>> cd.metrics.auroc_per_cell([[0, 1, 0, 1], [0, 0, 0, 0]], [[0.1, 0.8, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4]])
    array([ 1., nan])
    """
    observed_cf, predicted_cf = _validate_pair(observed_cf, predicted_cf)
    n_cells, n_features = predicted_cf.shape
    auroc_c = np.full(n_cells, np.nan)
    for cell in range(n_cells):
        open_n = _dense_row(observed_cf, cell).nonzero()[0]
        if 0 < len(open_n) < n_features:
            rank_f = rankdata(predicted_cf[cell])
            above = rank_f[open_n].sum() - len(open_n) * (len(open_n) + 1) / 2
            auroc_c[cell] = above / (len(open_n) * (n_features - len(open_n)))
    return auroc_c


def pearson_per_cell(observed_cf: ArrayLike | csr_matrix, predicted_cf: ArrayLike) -> NDArray[np.float64]:
    """Return Pearson's correlation between measured and predicted expression for each cell.

    The correlation [1]_ is computed over features. Pass both matrices on the scale of interest, such as log1p of counts
    per 10,000. On raw counts, a few abundant genes dominate.

    Parameters
    ----------
    observed_cf
        Measured expression, shape ``(n_cells, n_features)``, dense or any scipy sparse matrix.
    predicted_cf
        Predicted expression, dense, of the same shape and order.

    Returns
    -------
    numpy.ndarray
        Correlation of each cell, shape ``(n_cells,)``, from −1 to 1. NaN for cells in which either is constant; average
        with :func:`numpy.nanmean`.

    Raises
    ------
    ValueError
        If the two are not finite matrices of the same shape.
    TypeError
        If the predictions are sparse, or if one of the two does not hold real numbers.

    References
    ----------
    .. [1] Pearson (1895), Notes on regression and inheritance in the case of two parents, Proceedings of the Royal
       Society of London 58, 240-242. doi:10.1098/rspl.1895.0041

    Examples
    --------
    >>> import celldial as cd
    >>> cd.metrics.pearson_per_cell([[0, 1, 2], [0, 1, 2], [0, 0, 0]], [[3, 4, 5], [0, -1, -2], [1, 2, 3]])
    array([ 1., -1., nan])
    """
    observed_cf, predicted_cf = _validate_pair(observed_cf, predicted_cf)
    pearson_c = np.full(len(predicted_cf), np.nan)
    for cell in range(len(predicted_cf)):
        x_f, y_f = _dense_row(observed_cf, cell).astype(np.float64), predicted_cf[cell].astype(np.float64)
        # Test for constants before centering: rounding of the mean would make a constant vary.
        if len(x_f) > 0 and np.ptp(x_f) > 0 and np.ptp(y_f) > 0:
            x_f, y_f = x_f - x_f.mean(), y_f - y_f.mean()
            # Scale both first: squares of tiny predictions would underflow.
            x_f, y_f = x_f / np.abs(x_f).max(), y_f / np.abs(y_f).max()
            pearson_c[cell] = np.clip(x_f @ y_f / np.sqrt((x_f @ x_f) * (y_f @ y_f)), -1, 1)
    return pearson_c


def _validate_pair(observed: Any, predicted: Any) -> tuple[Any, NDArray[Any]]:
    """Return both matrices, sparse ones as CSR, or raise if they are not real, finite and of the same shape."""
    observed_cf = csr_matrix(observed) if issparse(observed) else np.asarray(observed)
    if issparse(predicted):
        raise TypeError("`predicted_cf` is sparse; predictions must be dense. Convert them with `.toarray()`.")
    predicted_cf = np.asarray(predicted)
    for name, matrix_cf in (("observed_cf", observed_cf), ("predicted_cf", predicted_cf)):
        if matrix_cf.ndim != 2:
            raise ValueError(f"`{name}` has shape {matrix_cf.shape}; it must be a matrix, cells × features.")
        if matrix_cf.dtype.kind not in "fiub":
            raise TypeError(f"`{name}` has dtype {matrix_cf.dtype}; it must hold real numbers.")
    if observed_cf.shape != predicted_cf.shape:
        raise ValueError(
            f"`observed_cf` has shape {observed_cf.shape}, but `predicted_cf` has {predicted_cf.shape}: both must hold "
            "the same cells and features in the same order."
        )
    for name, matrix_cf in (("observed_cf", observed_cf), ("predicted_cf", predicted_cf)):
        bad = [cell for cell in range(matrix_cf.shape[0]) if not np.isfinite(_dense_row(matrix_cf, cell)).all()]
        if bad:
            raise ValueError(
                f"`{name}` has NaN or infinite values in {len(bad)} of {matrix_cf.shape[0]} cells, the first in row "
                f"{bad[0]}. Remove these cells."
            )
    return observed_cf, predicted_cf


def _dense_row(matrix_cf: Any, cell: int) -> NDArray[Any]:
    """Return one row of a dense or CSR matrix as a dense vector."""
    if not issparse(matrix_cf):
        return matrix_cf[cell]
    stored = slice(matrix_cf.indptr[cell], matrix_cf.indptr[cell + 1])
    row_f = np.zeros(matrix_cf.shape[1], dtype=matrix_cf.dtype)
    row_f[matrix_cf.indices[stored]] = matrix_cf.data[stored]
    return row_f
