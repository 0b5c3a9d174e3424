"""Selection of genes that are informative about kinetics: enough counts in both layers, and a periodic signal.

Axis suffixes: ``b`` bins of group and batch, ``c`` cells, ``f`` genes, ``h`` Fourier features, ``j`` angles,
``l`` layers.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from celldial.inference.kinetics.counts import LAYERS, CellCounts
from celldial.utils.fourier import fourier_features

__all__ = ["MIN_COUNTS", "periodic_p_values", "select_genes"]

MIN_COUNTS = 100
"""Fewest counts of a gene in each layer."""

MAX_GENES = 200
"""Largest number of genes, those with the strongest periodic signal."""

# Largest p-value, after the correction for the number of genes.
LEVEL = 0.01
N_HARMONICS = 2


def select_genes(cells: CellCounts, weight_cj: Tensor) -> np.ndarray:
    """Return the columns of the genes to use, in ascending order.

    The signal is that of both layers together. Selection by the unspliced counts alone would prefer genes of which the
    amplitude is overestimated.
    """
    enough_f = (cells.counts_lcf.sum(1) >= MIN_COUNTS).all(0).numpy()
    column_f = np.flatnonzero(enough_f)
    if len(column_f) == 0:
        return column_f
    p_value_f = periodic_p_values(cells.select_genes(torch.from_numpy(column_f)), weight_cj)
    order_f = np.argsort(p_value_f, kind="stable")[:MAX_GENES]
    chosen: np.ndarray = np.sort(column_f[order_f[p_value_f[order_f] < LEVEL / len(p_value_f)]])
    return chosen


def periodic_p_values(cells: CellCounts, weight_cj: Tensor) -> np.ndarray:
    """Return the p-value of each gene for changes with the angle, by a score test of both layers together.

    Within each group and batch, residuals from the mean are regressed on the expected Fourier features of the angle.
    """
    angle_j = np.arange(weight_cj.shape[1]) * (2 * np.pi / weight_cj.shape[1])
    feature_ch = weight_cj @ torch.from_numpy(fourier_features(angle_j, N_HARMONICS))
    statistic_f = np.zeros(cells.counts_lcf.shape[2])
    for layer in LAYERS:
        residual_cf, centered_ch = torch.zeros_like(cells.counts_lcf[layer]), torch.zeros_like(feature_ch)
        size_c = cells.size_lc[layer]
        for b in cells.bin_c.unique():
            own_c = (cells.bin_c == b).nonzero()[:, 0]
            rate_f = cells.counts_lcf[layer, own_c].sum(0) / size_c[own_c].sum()
            residual_cf[own_c] = cells.counts_lcf[layer, own_c] - size_c[own_c, None] * rate_f
            # Centered with the sizes as weights, because the mean of the gene is estimated.
            mean_h = (size_c[own_c] @ feature_ch[own_c]) / size_c[own_c].sum()
            centered_ch[own_c] = feature_ch[own_c] - mean_h
        score_fh = residual_cf.T @ centered_ch
        spread_fhh = torch.einsum("cf,ch,ci->fhi", residual_cf.square(), centered_ch, centered_ch)
        jitter = 1e-9 * (1 + spread_fhh.diagonal(dim1=1, dim2=2).mean(1))
        spread_fhh = spread_fhh + jitter[:, None, None] * torch.eye(2 * N_HARMONICS, dtype=spread_fhh.dtype)
        statistic_f += torch.einsum("fh,fh->f", score_fh, torch.linalg.solve(spread_fhh, score_fh)).numpy()
    p_value_f: np.ndarray = stats.chi2.sf(statistic_f, len(LAYERS) * 2 * N_HARMONICS)
    return p_value_f
