"""The initial level of the background of antibody counts.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celldial.ops.csr import CSRTensor

__all__ = ["estimate_background"]

# Number of cells to estimate the level from.
MAX_CELLS = 200
# Number of features that are processed together, to limit memory.
BLOCK_FEATURES = 32
N_STEPS = 50
# Quantiles of the shares of a feature where the background and the foreground start.
START_QUANTILES = (0.25, 0.95)
# Bounds of the standard deviation of the log share in a component, and of its weight.
MIN_DEVIATION = 0.15
MIN_WEIGHT = 0.02


def estimate_background(counts: CSRTensor, library_size_c: Tensor) -> Tensor:
    """Return the share of the counts of a cell that is the background of each feature, shape ``(f,)``.

    The log shares of each feature are a mixture of two normal distributions, which is fitted by expectation
    maximization. The lower mean is the background.

    Parameters
    ----------
    counts
        Counts of the cells.
    library_size_c
        Their library sizes.
    """
    n_cells = min(counts.n_rows, MAX_CELLS)
    sample = counts.select(torch.arange(n_cells, device=counts.value_n.device))
    means = []
    for first in range(0, counts.n_columns, BLOCK_FEATURES):
        # Half a count for zeros, so that each share has a logarithm.
        block_cf = _dense_block(sample, first, min(first + BLOCK_FEATURES, counts.n_columns)).add_(0.5)
        means.append(_lower_mean(block_cf.div_(library_size_c[:n_cells, None]).log_()))
    return torch.cat(means).exp()


def _dense_block(counts: CSRTensor, first: int, stop: int) -> Tensor:
    """Return some columns as a dense matrix; all of them may not fit into memory."""
    inside_n = (counts.column_n >= first) & (counts.column_n < stop)
    block_cf = counts.value_n.new_zeros(counts.n_rows, stop - first)
    index_n = counts.row_n[inside_n], counts.column_n[inside_n].long() - first
    return block_cf.index_put_(index_n, counts.value_n[inside_n], accumulate=True)


def _lower_mean(log_share_cf: Tensor) -> Tensor:
    """Return the lower mean of the mixture of each feature, shape ``(f,)``."""
    n_cells = len(log_share_cf)
    sorted_cf = log_share_cf.sort(0).values
    low_f, high_f = (sorted_cf[int(q * (n_cells - 1))] for q in START_QUANTILES)
    mean_kf = torch.stack([low_f, torch.maximum(high_f, low_f + MIN_DEVIATION)])
    deviation_kf = (log_share_cf.std(0, correction=0) / 2).clamp_min(MIN_DEVIATION).expand(2, -1)
    weight_kf = torch.full_like(mean_kf, 0.5)
    for _ in range(N_STEPS):
        distance_kcf = (log_share_cf - mean_kf[:, None]) / deviation_kf[:, None]
        log_p_kcf = (weight_kf / deviation_kf).log()[:, None] - distance_kcf.square() / 2
        probability_kcf = log_p_kcf.softmax(0)
        total_kf = probability_kcf.sum(1).clamp_min(MIN_WEIGHT)
        mean_kf = (probability_kcf * log_share_cf).sum(1) / total_kf
        square_kf = (probability_kcf * (log_share_cf - mean_kf[:, None]).square()).sum(1) / total_kf
        deviation_kf = square_kf.sqrt().clamp_min(MIN_DEVIATION)
        weight_kf = (total_kf / n_cells).clamp(MIN_WEIGHT, 1 - MIN_WEIGHT)
    return mean_kf.amin(0)
