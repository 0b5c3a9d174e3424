"""Log-normalized expression: normalization of counts, and moments of genes.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["MAX_VARIABLE_GENES", "MIN_STD", "log_normalize", "mean_and_variance"]

Array = NDArray[np.floating]

MAX_VARIABLE_GENES = 2_000
"""Number of the most variable genes, among which genes that follow an angle are selected."""

MIN_STD = 0.05
"""Smallest standard deviation by which expression is divided."""


def log_normalize(counts_cf: sparse.csr_matrix, library_size_c: Array) -> sparse.csr_matrix:
    """Return the log of one plus the counts, scaled to the median library size."""
    scale_c = np.median(library_size_c[library_size_c > 0]) / np.maximum(library_size_c, 1)
    scaled_cf: sparse.csr_matrix = sparse.diags(scale_c) @ counts_cf
    return scaled_cf.log1p().tocsr()


def mean_and_variance(logged_cf: sparse.csr_matrix) -> tuple[Array, Array]:
    """Return mean and variance of each gene."""
    mean_f = np.asarray(logged_cf.mean(0)).ravel()
    return mean_f, np.asarray(logged_cf.power(2).mean(0)).ravel() - mean_f**2
