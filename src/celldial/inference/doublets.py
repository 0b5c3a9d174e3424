"""Signs of doublets: cells that lie where sums of two cells lie, and have larger library sizes than other cells.

Axis suffixes: ``c`` cells, ``p`` permutations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from celldial.data.cells import Cells, row_totals, to_csr_matrix, to_csr_tensor
from celldial.inference import posterior
from celldial.model.module import Module

__all__ = ["DoubletSigns", "doublet_signs"]

N_NEIGHBORS = 30
# Artificial doublets per cell, and repetitions with other counts kept and other doublets: both reduce noise.
DOUBLETS_PER_CELL, N_REPEATS = 2, 4
# Cells with fewer counts than this quantile are left out, because all cells are thinned to its library size.
THINNING_QUANTILE = 0.2
MIN_CELLS = 50


class DoubletSigns(NamedTuple):
    """Slope of the log2 library size on the share of artificial doublets nearby, and slopes of permuted cells.

    Of library sizes with and without the tenth of the features that have the most counts, the smaller sign.
    """

    slope: float
    permuted_p: np.ndarray


def doublet_signs(
    module: Module, cells: Cells, modality: str, batch_c: np.ndarray, random: np.random.Generator, n_permutations: int
) -> DoubletSigns | None:
    """Compare library sizes of cells that lie among artificial doublets with those of other cells.

    An artificial doublet is the sum of two cells of the same batch. Its latent state is inferred from as many counts as
    those of all other cells, because the number of counts affects the state.

    Parameters
    ----------
    module
        A trained module.
    cells
        Cells on the CPU.
    modality
        Modality to use.
    batch_c
        Batch of each cell.
    random
        Random number generator.
    n_permutations
        Number of permutations of the library sizes within batches.

    Returns
    -------
    DoubletSigns | None
        None if there are fewer than 50 cells with enough counts.

    References
    ----------
    Wolock et al. (2019), Scrublet: computational identification of cell doublets in single-cell transcriptomic data,
    doi:10.1016/j.cels.2018.11.005, for the artificial doublets.
    """
    total_c = cells.library_size[modality].numpy().astype(np.float64)
    measured_c = total_c > 0
    depth = np.quantile(total_c[measured_c], THINNING_QUANTILE) if measured_c.any() else np.inf
    kept_c = np.flatnonzero(total_c >= depth)
    if len(kept_c) < MIN_CELLS:
        return None
    cells, batch_c = cells.select(torch.from_numpy(kept_c)), batch_c[kept_c]
    shares = [_share_of_doublets(module, cells, modality, batch_c, depth, random) for _ in range(N_REPEATS)]
    share_c = _centered(np.mean(shares, axis=0), batch_c)
    spread = max(float(share_c @ share_c), 1e-12)
    signs = []
    for size_c in (total_c[kept_c], 1 + _robust_totals(to_csr_matrix(cells.counts[modality]))):
        log_size_c = _centered(np.log2(size_c), batch_c)
        permuted_p = np.array([_permute(log_size_c, batch_c, random) @ share_c for _ in range(n_permutations)]) / spread
        signs.append(DoubletSigns(float(log_size_c @ share_c) / spread, permuted_p))
    # Bursts of abundant features make one of the two slopes too large, and the other too small.
    return min(signs, key=lambda each: (each.slope - each.permuted_p.mean()) / max(each.permuted_p.std(), 1e-12))


def _share_of_doublets(
    module: Module, cells: Cells, modality: str, batch_c: np.ndarray, depth: float, random: np.random.Generator
) -> np.ndarray:
    """Return the share of artificial doublets among the nearest neighbors of each cell, all thinned to one depth."""
    counts = to_csr_matrix(cells.counts[modality])
    is_binary = bool((counts.data <= 1).all())
    states = [posterior.infer(module, _with_counts(cells, modality, _thin(counts, depth, random))).state_cz]
    for _ in range(DOUBLETS_PER_CELL):
        partner_c = np.arange(len(batch_c))
        for batch in np.unique(batch_c):
            member_c = np.flatnonzero(batch_c == batch)
            partner_c[member_c] = random.choice(member_c, len(member_c))
        both = sparse.csr_matrix(counts + counts[partner_c])
        if is_binary:
            both.data = np.minimum(both.data, 1)
        states.append(posterior.infer(module, _with_counts(cells, modality, _thin(both, depth, random))).state_cz)
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS + 1).fit(np.concatenate(states))
    neighbor = nearest.kneighbors(states[0], return_distance=False)[:, 1:]
    share_c: np.ndarray = (neighbor >= len(batch_c)).mean(1)
    return share_c


def _robust_totals(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the totals of cells without the tenth of the features that have the most counts.

    A burst of one of these features raises the total, and moves the cell away from all doublets.
    """
    total_f = np.asarray(counts.sum(0)).ravel()
    rest_f = np.argsort(-total_f, kind="stable")[len(total_f) // 10 :]
    robust_c: np.ndarray = np.asarray(counts[:, rest_f].sum(1), dtype=np.float64).ravel()
    return robust_c


def _thin(counts: sparse.csr_matrix, depth: float, random: np.random.Generator) -> sparse.csr_matrix:
    """Keep each count with the same probability within a cell, so that about `depth` counts remain."""
    kept_c = np.minimum(1, depth / np.asarray(counts.sum(1), dtype=np.float64).ravel())
    value_n = random.binomial(counts.data.astype(np.int64), np.repeat(kept_c, np.diff(counts.indptr)))
    thinned = sparse.csr_matrix((value_n.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)
    thinned.eliminate_zeros()
    return thinned


def _with_counts(cells: Cells, modality: str, counts: sparse.csr_matrix) -> Cells:
    """Return cells with other counts of one modality, and without counts of the others."""
    counts.sort_indices()
    rows, total_c = to_csr_tensor(counts), row_totals(counts)
    changed = replace(
        cells,
        counts={**cells.counts, modality: rows},
        library_size={**cells.library_size, modality: total_c},
        present={**cells.present, modality: total_c > 0},
    )
    return changed.keep_modalities(modality)


def _centered(value_c: np.ndarray, batch_c: np.ndarray) -> np.ndarray:
    """Subtract the mean of its batch from each value."""
    mean_b = np.bincount(batch_c, value_c) / np.maximum(np.bincount(batch_c), 1)
    centered_c: np.ndarray = value_c - mean_b[batch_c]
    return centered_c


def _permute(value_c: np.ndarray, batch_c: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Permute values within batches."""
    order_c = np.lexsort((random.random(len(value_c)), batch_c))
    permuted_c = np.empty_like(value_c)
    permuted_c[np.argsort(batch_c, kind="stable")] = value_c[order_c]
    return permuted_c
