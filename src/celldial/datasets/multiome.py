"""Simulation of paired RNA and ATAC counts with known truth; ``docs/simulation.md`` has the equations.

The log expression of a cell is linear in its *state*: regulatory programs, harmonics of its cell-cycle angle, and its
batch. Peaks respond to the state. Genes respond to their linked peaks, with a delay. The expected counts are therefore
softmax(states × effects), scaled to the library size.

Axis suffixes: ``c`` cells, ``f`` features, ``g`` genes, ``p`` peaks, ``h`` coordinates of the state, ``k`` cell types,
``m`` regulatory programs, ``b`` batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from celldial.datasets._regulation import (
    CELL_CYCLE_GENES,
    CYCLE_HOURS,
    N_CYCLE_HARMONICS,
    draw_type_tree,
    gene_effects,
    link_peaks_to_genes,
    make_categorical,
    peak_effects,
    place_features,
)
from celldial.utils.fourier import fourier_features

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["simulate_multiome"]

# The cell cycle: the angle is 0 at division and grows linearly with time.
_S_START, _G2M_START = 12.0, 20.0  # hours
_CYCLING_SHARES = (0.1, 0.8)  # range over the cell types
_RESTING_ANGLE, _RESTING_CONCENTRATION = np.pi / 2, 8.0  # von Mises; almost all resting cells are in G1

# Effects, on the scale of natural logarithms.
_PROGRAM_NOISE = 0.15  # standard deviation of a program's activity between cells of a type
_CHROMATIN_LEAD = 0.15  # on the scale of differentiation, 0 to 1
_BATCH_EFFECT, _BATCH_DEPTH = 0.15, 0.2
_MARKER_EFFECT = np.log(2)  # smallest effect of a marker

# Depths are expected counts per feature in the median newborn cell. Spreads are standard deviations on the log scale.
_RNA_DEPTH, _ATAC_DEPTH = 0.65, 0.04
_RNA_SIZE_SPREAD, _ATAC_SIZE_SPREAD, _QUALITY_SPREAD = 0.2, 0.3, 0.25
_RNA_LEVEL_SPREAD, _ATAC_LEVEL_SPREAD = 2.0, 0.8
_CYCLE_GENE_LEVEL = (0.5, 0.7)  # mean and spread of log levels: cell-cycle genes are moderately expressed
_INVERSE_DISPERSION = (3.0, 0.5)  # median and spread

# Counts are sampled in dense blocks with at most this many entries. The blocks are float64: rounding differences
# between machines are then too small to change a count.
_BLOCK_ENTRIES = 2**23


def simulate_multiome(
    n_cells: int = 2000,
    n_genes: int = 500,
    n_peaks: int = 3000,
    n_types: int = 5,
    n_batches: int = 2,
    *,
    cell_cycle: bool = True,
    mosaic: Sequence[float] = (1.0, 0.0, 0.0),
    depth: float = 1.0,
    truth: bool = False,
    seed: int = 0,
) -> AnnData:
    """Simulate RNA and chromatin accessibility of the same cells, with the truth stored in the AnnData.

    Cell types are the leaves of a random binary tree. Every branch has a regulatory program that opens peaks. Genes
    follow their linked peaks with a delay, both during differentiation and during the cell cycle. Batches differ in
    depth and in the efficiency of each feature. RNA counts are negative binomial, ATAC fragments are Poisson.
    ``docs/simulation.md`` has the equations.

    Parameters
    ----------
    n_cells, n_genes, n_peaks
        Numbers of cells, genes and peaks. Every gene has a promoter peak, so there must be at least as many peaks as
        genes. With a cell cycle, 51 genes have the names of known cell-cycle genes (MCM5, TOP2A, ...). All genomic
        positions are simulated.
    n_types, n_batches
        Numbers of cell types and batches, at least 1. Cell types differ in abundance, batches do not.
    cell_cycle
        Whether cells, genes and peaks follow a cell cycle.
    mosaic
        Shares of the cells measured in both modalities, in RNA only, and in ATAC only. Counts of a modality that was
        not measured are zero.
    depth
        Expected counts of a cell, in both modalities, as a multiple of the default. The default is that of sparse data:
        about 450 UMIs and 140 fragments for 500 genes and 3,000 peaks. Only library sizes, means and counts depend on
        it.
    truth
        Whether to add the expected counts as ``layers["mean"]``, a dense float32 array.
    seed
        Random seed. The same seed and arguments give the same data.

    Returns
    -------
    anndata.AnnData
        Cells × features: genes first, then peaks in genome order. ``X`` is a CSR matrix of integer counts stored as
        float32: UMIs of genes and fragments of peaks.

        - ``obs``: ``cell_type`` and ``batch``. ``differentiation`` in (0, 1) is the position of the cell on the last
          branch of the tree. ``true_cell_cycle_angle`` in [0, 2π) is in radians, 0 at division; 2π is one day.
          ``phase`` is G1 up to π, S up to 5π/3, then G2M. ``is_cycling`` is False for resting cells, which are in G1.
          ``has_rna`` and ``has_atac`` are the measured modalities. ``rna_library_size`` and ``atac_library_size`` are
          the expected total counts, also of modalities that were not measured. Without a cell cycle, angle and phase
          are missing.
        - ``var``: ``feature_types`` (``"Gene Expression"`` or ``"Peaks"``). ``chrom``, ``start`` and ``end`` in base
          pairs; all genes are on the forward strand. ``is_marker_of`` is the cell type whose own program raises the
          feature most, if at least twofold; otherwise it is missing. ``cell_cycle_amplitude`` is half the range of the
          feature's natural-log level over the cycle. ``cell_cycle_phase`` is the angle of the highest level, to a
          quarter of a degree; it is missing if the amplitude is 0. ``inverse_dispersion`` is that of the genes.
        - ``varm["batch_effect"]``: features × batches, on the scale of natural logarithms, with mean zero.
          ``varm["cell_cycle_effect"]``: features × (cos θ, sin θ, cos 2θ, sin 2θ), the effect of the angle on that
          scale before normalization to the library size. Together with ``layers["mean"]``, they determine the expected
          counts in another batch or at another angle.
        - ``uns["simulation"]``: the arguments. ``programs`` is a table of programs and the cell types in which they
          are active; each program belongs to a branch and is named after the types below it. ``links`` is a table of
          ``gene``, ``peak``, ``weight`` (the log fold change of the gene per log fold change of the peak; negative for
          silencers), ``distance`` in base pairs from the start of the gene to the middle of the peak (0 for promoters),
          and ``lag_hours`` from peak to gene in the cell cycle.
        - ``layers["mean"]``, if ``truth=True``: expected counts of every cell and feature at the depth of the cell,
          also of modalities that were not measured. A peak is observed open with probability ``1 - exp(-mean)``.

    Raises
    ------
    TypeError
        If a size or the seed is not an integer, or if the depth is not a number.
    ValueError
        If a size is below 1, if the seed is negative, if there are fewer peaks than genes or too few genes for the cell
        cycle, if the depth is not positive and finite, or if `mosaic` is not three numbers of at least 0 that sum to 1.

    Notes
    -----
    A dense matrix of all cells is only made with ``truth=True``. Chromatin was observed to change before gene
    expression in development [1]_. The distribution of cells over the cycle is that of a growing population [2]_. The
    negative binomial and log-normal distributions follow common simulators [3]_.

    References
    ----------
    .. [1] Ma et al. (2020), Chromatin potential identified by shared single-cell profiling of RNA and chromatin,
       Cell 183, 1103-1116. doi:10.1016/j.cell.2020.09.056
    .. [2] Powell (1956), Growth rate and generation time of bacteria, with special reference to continuous culture,
       Journal of General Microbiology 15, 492-511. doi:10.1099/00221287-15-3-492
    .. [3] Zappia et al. (2017), Splatter: simulation of single-cell RNA sequencing data, Genome Biology 18, 174.
       doi:10.1186/s13059-017-1305-0

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_multiome(n_cells=300, n_genes=100, n_peaks=400, mosaic=(0.5, 0.25, 0.25))
    >>> adata.shape
    (300, 500)
    >>> adata.obs["has_rna"].sum(), adata.obs["has_atac"].sum()
    (np.int64(225), np.int64(225))
    >>> list(adata.uns["simulation"]["links"])
    ['gene', 'peak', 'weight', 'distance', 'lag_hours']
    """
    from anndata import AnnData

    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_peaks": n_peaks, "n_types": n_types, "n_batches": n_batches}
    share_3 = _validate_arguments(sizes, cell_cycle, mosaic, depth, seed)
    # Each part has its own stream of random numbers, so that one part can change without changing the others.
    streams = np.random.SeedSequence(seed).spawn(6)
    genome_rng, effects_rng, cells_rng, levels_rng, mosaic_rng, counts_rng = map(np.random.default_rng, streams)

    type_names = [f"type{number}" for number in range(1, n_types + 1)]
    active_km = draw_type_tree(effects_rng, n_types)
    genes, peaks = place_features(genome_rng, n_genes, n_peaks, cell_cycle)
    links = link_peaks_to_genes(genome_rng, genes, peaks)
    effect_ph = peak_effects(effects_rng, genes, links, n_peaks, active_km.shape[1], cell_cycle)
    effect_gh = gene_effects(links, effect_ph, n_genes)

    obs = _draw_cells(cells_rng, n_cells, type_names, n_batches, cell_cycle)
    rna_state_ch, atac_state_ch = _draw_states(cells_rng, obs, active_km)
    obs["has_rna"], obs["has_atac"] = _assign_modalities(mosaic_rng, n_cells, share_3)
    rna_size_c, atac_size_c = _draw_library_sizes(cells_rng, obs, n_genes, n_peaks)
    obs["rna_library_size"], obs["atac_library_size"] = depth * rna_size_c, depth * atac_size_c
    levels = _draw_levels(levels_rng, genes, peaks, n_batches)

    # The batch is part of the state. Its effect includes the level of the feature.
    batch_cb = np.eye(n_batches)[obs["batch"].cat.codes]
    level_fb = levels.level_f[:, None] + levels.batch_effect_fb
    rna = _ExpectedCounts(
        np.hstack([rna_state_ch, batch_cb]),
        np.hstack([effect_gh, level_fb[:n_genes]]),
        obs["rna_library_size"].to_numpy(),
        obs["has_rna"].to_numpy(),
    )
    atac = _ExpectedCounts(
        np.hstack([atac_state_ch, batch_cb]),
        np.hstack([effect_ph, level_fb[n_genes:]]),
        obs["atac_library_size"].to_numpy(),
        obs["has_atac"].to_numpy(),
    )
    counts_cf, mean_cf = _draw_counts(counts_rng, rna, atac, levels.inverse_dispersion_g, truth)

    effect_fh = np.vstack([effect_gh, effect_ph])
    var = _describe_features(genes, peaks, effect_fh, type_names)
    var["inverse_dispersion"] = np.concatenate([levels.inverse_dispersion_g, np.full(n_peaks, np.nan)])
    arguments = {**sizes, "cell_cycle": cell_cycle, "mosaic": share_3, "depth": depth, "seed": seed}
    tables = {
        "programs": _program_table(active_km, type_names),
        "links": links.assign(
            gene=genes.index.to_numpy()[links["gene"]], peak=peaks.index.to_numpy()[links["peak"]]
        ).set_index(np.arange(len(links)).astype(str)),
    }
    return AnnData(
        counts_cf,
        obs=obs,
        var=var,
        uns={"simulation": {**arguments, **tables}},
        varm={"batch_effect": levels.batch_effect_fb, "cell_cycle_effect": effect_fh[:, -4:].copy()},
        layers={"mean": mean_cf} if truth else {},
    )


def _validate_arguments(
    sizes: dict[str, Any], cell_cycle: bool, mosaic: Sequence[float], depth: float, seed: int
) -> np.ndarray:
    """Return the shares of the mosaic, or raise if an argument is invalid."""
    for name, value in {**sizes, "seed": seed}.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, not {value!r}.")
        minimum = 0 if name == "seed" else 1
        if int(value) < minimum:
            raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    n_genes, n_peaks = sizes["n_genes"], sizes["n_peaks"]
    if cell_cycle and n_genes < len(CELL_CYCLE_GENES):
        raise ValueError(
            f"n_genes is {n_genes}, but the cell cycle needs at least {len(CELL_CYCLE_GENES)} genes. Raise n_genes or "
            "pass cell_cycle=False."
        )
    if n_peaks < n_genes:
        raise ValueError(
            f"n_peaks is {n_peaks}, fewer than n_genes, {n_genes}. Every gene has a promoter peak: raise n_peaks to at "
            "least n_genes."
        )
    if isinstance(depth, bool) or not isinstance(depth, Real):
        raise TypeError(f"depth must be a number, not {depth!r}.")
    if not 0 < depth < np.inf:
        raise ValueError(f"depth must be positive and finite, not {depth}. A depth of 2 doubles the default counts.")
    share_3 = np.asarray(mosaic, dtype=float)
    # "not all >= 0" instead of "any < 0", so that NaN fails, too.
    if share_3.shape != (3,) or not (share_3 >= 0).all() or not np.isclose(share_3.sum(), 1):
        raise ValueError(
            "mosaic must be three shares of at least 0 that sum to 1: of cells with both modalities, with RNA only, "
            f"and with ATAC only. It is {mosaic!r}."
        )
    return share_3


# --- Cells ------------------------------------------------------------------------------------------------------------


def _draw_cells(
    rng: np.random.Generator, n_cells: int, type_names: list[str], n_batches: int, cell_cycle: bool
) -> pd.DataFrame:
    """Draw type, batch, differentiation and cell-cycle angle of each cell."""
    n_types = len(type_names)
    share_k = rng.lognormal(0, 0.5, n_types)
    type_c = rng.choice(n_types, n_cells, p=share_k / share_k.sum())
    batch_c = rng.integers(n_batches, size=n_cells)
    width = max(4, len(str(n_cells)))
    obs = pd.DataFrame(index=[f"cell_{number:0{width}}" for number in range(1, n_cells + 1)])
    obs["cell_type"] = make_categorical(type_c, type_names)
    obs["batch"] = make_categorical(batch_c, [f"batch{number}" for number in range(1, n_batches + 1)])
    obs["differentiation"] = rng.beta(2, 1, n_cells)

    lowest, highest = _CYCLING_SHARES
    cycling_share_k = lowest + (highest - lowest) * rng.permutation((np.arange(n_types) + 0.5) / n_types)
    cycling_c = rng.random(n_cells) < cycling_share_k[type_c]
    # A growing population has twice as many newborn cells as dividing cells: density 2^(-θ/2π), drawn by inversion.
    growing_c = -2 * np.pi * np.log2(1 - rng.random(n_cells) / 2)
    resting_c = rng.vonmises(_RESTING_ANGLE, _RESTING_CONCENTRATION, n_cells)
    angle_c = np.where(cycling_c, growing_c, resting_c) % (2 * np.pi)
    phase_c = np.searchsorted([_S_START, _G2M_START], angle_c / (2 * np.pi) * CYCLE_HOURS, side="right")
    obs["true_cell_cycle_angle"] = angle_c if cell_cycle else np.nan
    obs["phase"] = make_categorical(phase_c if cell_cycle else np.full(n_cells, -1), ["G1", "S", "G2M"])
    obs["is_cycling"] = cycling_c & cell_cycle
    return obs


def _draw_states(rng: np.random.Generator, obs: pd.DataFrame, active_km: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the states that act on genes and on peaks, both ``(c, h)``: programs, then four harmonics.

    The programs of the branches that a cell has passed are active. The program of its own type is switched on during
    differentiation, earlier in chromatin than in RNA. The activity of each program varies from cell to cell.
    """
    type_c = obs["cell_type"].cat.codes.to_numpy()
    activity_cm = active_km[type_c] + rng.normal(0, _PROGRAM_NOISE, (len(obs), active_km.shape[1]))
    angle_c = obs["true_cell_cycle_angle"].to_numpy()
    harmonic_c4 = np.nan_to_num(fourier_features(angle_c, N_CYCLE_HARMONICS))  # 0 without a cell cycle
    states = []
    for lead in (0.0, _CHROMATIN_LEAD):
        state_ch = np.hstack([activity_cm, harmonic_c4])
        progress_c = obs["differentiation"].to_numpy() + lead - _CHROMATIN_LEAD
        state_ch[np.arange(len(obs)), type_c] += _program_activation(progress_c) - 1
        states.append(state_ch)
    return states[0], states[1]


def _program_activation(progress_c: np.ndarray) -> np.ndarray:
    """Return the activity of a program during differentiation: a smooth step from 0 to 1."""
    x = np.clip(progress_c / (1 - _CHROMATIN_LEAD), 0, 1)
    return x**2 * (3 - 2 * x)


def _assign_modalities(rng: np.random.Generator, n_cells: int, share_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells have RNA and which have ATAC; the shares are exact, up to rounding."""
    n_both, n_with_rna = np.round(np.cumsum(share_3)[:2] * n_cells)
    position_c = rng.permutation(n_cells)
    return position_c < n_with_rna, (position_c < n_both) | (position_c >= n_with_rna)


def _draw_library_sizes(
    rng: np.random.Generator, obs: pd.DataFrame, n_genes: int, n_peaks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the expected total counts of RNA and of ATAC.

    Both increase with the quality of the cell and differ between batches. RNA doubles steadily from one division to the
    next. ATAC doubles together with the DNA, during S phase.
    """
    batch_c, n_batches = obs["batch"].cat.codes.to_numpy(), obs["batch"].cat.categories.size
    hours_c = obs["true_cell_cycle_angle"].fillna(0).to_numpy() / (2 * np.pi) * CYCLE_HOURS
    rna_amount_c = 2 ** (hours_c / CYCLE_HOURS)
    dna_amount_c = 1 + np.clip((hours_c - _S_START) / (_G2M_START - _S_START), 0, 1)
    quality_c = rng.normal(0, _QUALITY_SPREAD, len(obs))
    sizes = []
    for median, spread, amount_c in (
        (_RNA_DEPTH * n_genes, _RNA_SIZE_SPREAD, rna_amount_c),
        (_ATAC_DEPTH * n_peaks, _ATAC_SIZE_SPREAD, dna_amount_c),
    ):
        depth_b = rng.normal(0, _BATCH_DEPTH, n_batches)
        depth_b -= depth_b.mean()
        sizes.append(median * amount_c * np.exp(quality_c + depth_b[batch_c] + rng.normal(0, spread, len(obs))))
    return sizes[0], sizes[1]


# --- Features ---------------------------------------------------------------------------------------------------------


class _FeatureLevels(NamedTuple):
    """Log levels and batch effects of the features, and inverse dispersions of the genes."""

    level_f: np.ndarray
    batch_effect_fb: np.ndarray
    inverse_dispersion_g: np.ndarray


def _draw_levels(rng: np.random.Generator, genes: pd.DataFrame, peaks: pd.DataFrame, n_batches: int) -> _FeatureLevels:
    """Draw the level, the batch effects and the dispersion of each feature."""
    n_genes, n_peaks = len(genes), len(peaks)
    cycles_g = genes["hours"].notna().to_numpy()
    level_g = rng.normal(0, _RNA_LEVEL_SPREAD, n_genes)
    level_g[cycles_g] = rng.normal(*_CYCLE_GENE_LEVEL, cycles_g.sum())
    # Promoters are open more often than enhancers.
    level_p = rng.normal(0, _ATAC_LEVEL_SPREAD, n_peaks) + peaks["is_promoter"].to_numpy()
    batch_effect_fb = rng.normal(0, _BATCH_EFFECT, (n_genes + n_peaks, n_batches))
    batch_effect_fb -= batch_effect_fb.mean(1, keepdims=True)
    median, spread = _INVERSE_DISPERSION
    inverse_dispersion_g = median * rng.lognormal(0, spread, n_genes)
    return _FeatureLevels(np.concatenate([level_g, level_p]), batch_effect_fb, inverse_dispersion_g)


def _describe_features(
    genes: pd.DataFrame, peaks: pd.DataFrame, effect_fh: np.ndarray, type_names: list[str]
) -> pd.DataFrame:
    """Return the table of features, with marker types and cell-cycle curves derived from their effects."""
    columns = ["chrom", "start", "end"]
    var = pd.concat([genes[columns], peaks[columns]])
    kind_f = np.repeat([0, 1], [len(genes), len(peaks)])
    var["feature_types"] = make_categorical(kind_f, ["Gene Expression", "Peaks"])

    type_effect_fk = effect_fh[:, : len(type_names)]
    marked_f = np.where(type_effect_fk.max(1) >= _MARKER_EFFECT, type_effect_fk.argmax(1), -1)
    var["is_marker_of"] = make_categorical(marked_f, type_names)

    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    amplitude_f, phase_f = np.zeros(len(var)), np.full(len(var), np.nan)
    cycling = np.flatnonzero(effect_fh[:, -4:].any(axis=1))
    curve = effect_fh[cycling, -4:] @ fourier_features(angle, N_CYCLE_HARMONICS).T
    amplitude_f[cycling], phase_f[cycling] = np.ptp(curve, axis=1) / 2, angle[curve.argmax(axis=1)]
    var["cell_cycle_amplitude"], var["cell_cycle_phase"] = amplitude_f, phase_f
    return var


def _program_table(active_km: np.ndarray, type_names: list[str]) -> pd.DataFrame:
    """Return which program is active in which type; a program is named after its types."""
    program_names = ["+".join(np.array(type_names)[active_k]) for active_k in active_km.T]
    return pd.DataFrame(active_km, index=type_names, columns=program_names)


# --- Counts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ExpectedCounts:
    """The expected counts of a modality: the library size times softmax(states × effects)."""

    state_ch: np.ndarray
    effect_fh: np.ndarray
    size_c: np.ndarray
    measured_c: np.ndarray

    def mean(self, cells: slice) -> np.ndarray:
        """Return the expected counts of some cells, dense, shape ``(c, f)``."""
        mean_cf: np.ndarray = self.state_ch[cells] @ self.effect_fh.T
        np.exp(mean_cf, out=mean_cf)
        mean_cf *= (self.size_c[cells] / mean_cf.sum(1))[:, None]
        return mean_cf


def _draw_counts(
    rng: np.random.Generator,
    rna: _ExpectedCounts,
    atac: _ExpectedCounts,
    inverse_dispersion_g: np.ndarray,
    keep_mean: bool,
) -> tuple[csr_matrix, np.ndarray | None]:
    """Draw gamma-Poisson counts of genes and Poisson counts of peaks in blocks of cells; return counts and means."""
    n_cells, n_genes = len(rna.size_c), len(inverse_dispersion_g)
    n_features = n_genes + len(atac.effect_fh)
    mean_cf = np.empty((n_cells, n_features), dtype=np.float32) if keep_mean else None
    blocks = []
    block_cells = max(1, _BLOCK_ENTRIES // n_features)
    for first in range(0, n_cells, block_cells):
        cells = slice(first, min(first + block_cells, n_cells))
        rate_cf = np.hstack([rna.mean(cells), atac.mean(cells)])
        if mean_cf is not None:
            mean_cf[cells] = rate_cf
        rate_cf[:, :n_genes] *= rng.standard_gamma(inverse_dispersion_g, (len(rate_cf), n_genes)) / inverse_dispersion_g
        rate_cf[:, :n_genes] *= rna.measured_c[cells, None]
        rate_cf[:, n_genes:] *= atac.measured_c[cells, None]
        blocks.append(_sparse_poisson(rng, rate_cf))
    return vstack(blocks, format="csr"), mean_cf


def _sparse_poisson(rng: np.random.Generator, rate_cf: np.ndarray) -> csr_matrix:
    """Draw Poisson counts as a sparse matrix, with one random number for each count instead of each entry.

    Independent Poisson counts are equivalent to a Poisson total that is distributed over the features with
    probabilities proportional to their rates.
    """
    indices, data, indptr = [], [], [0]
    for rate_f in rate_cf:
        edge_f = np.cumsum(rate_f)
        draw_n = np.sort(rng.random(rng.poisson(edge_f[-1]))) * edge_f[-1]
        # Rounding must not move a draw to the upper end, where features of rate 0 may be.
        feature_n = np.searchsorted(edge_f, np.minimum(draw_n, np.nextafter(edge_f[-1], 0)), side="right")
        first = np.flatnonzero(np.diff(feature_n, prepend=-1))
        indices.append(feature_n[first].astype(np.int32))
        data.append(np.diff(first, append=len(feature_n)).astype(np.float32))
        indptr.append(indptr[-1] + len(first))
    return csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=rate_cf.shape)
