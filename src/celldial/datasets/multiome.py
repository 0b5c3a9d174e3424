"""A simulator of paired RNA and ATAC counts with the truth beside them; ``docs/simulation.md`` has the equations.

Everything a cell expresses is log-linear in its *state*: regulatory programmes, harmonics of its cell-cycle angle, and
its batch. Peaks respond to the state, genes to their linked peaks, later. So the model is two matrices, states of the
cells and effects on the features, whose product is the log of the expected counts, up to the library size.

Axis suffixes: ``c`` cells, ``f`` features, ``g`` genes, ``p`` peaks, ``h`` coordinates of the state, ``k`` cell types,
``m`` regulatory programmes, ``b`` batches, ``l`` peak-to-gene links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CELL_CYCLE_GENES", "simulate_multiome"]

# Hours after division at which the expression of well-known genes peaks, approximately, on a cycle of 24 hours.
_GENES_AT_HOUR = {
    7.0: "CCND1",  # G1
    11.5: "CCNE1 CCNE2 E2F1 CDT1",
    12.5: "MCM2 MCM5 MCM6 CDC6 UNG",  # S
    13.5: "MCM3 MCM4 MCM7 PCNA GINS2 SLBP",
    14.5: "TYMS FEN1 RRM1 CLSPN DHFR",
    15.5: "UHRF1 RAD51 TK1 BRCA1 HELLS RRM2",
    16.5: "ATAD2 EZH2 GMNN",
    20.5: "CCNA2 HMGB2 SMC4 CDK1",  # G2M
    21.0: "TOP2A NUSAP1 MKI67",
    21.5: "CENPF TPX2 BUB1 AURKB HMMR",
    22.0: "CCNB1 CCNB2 AURKA BIRC5",
    22.5: "CENPE UBE2C PLK1 CKS2",
    23.0: "CDC20",
}
CELL_CYCLE_GENES = {name: hour for hour, names in _GENES_AT_HOUR.items() for name in names.split()}

# The clock: the angle is 0 at division and grows evenly in time, so that phases differ in length.
_CYCLE_HOURS = 24.0
_S_START, _G2M_START = 12.0, 20.0
_CYCLING_SHARES = (0.1, 0.8)  # of the least and of the most proliferative cell type
_QUIESCENT_ANGLE, _QUIESCENT_CONCENTRATION = np.pi / 2, 8.0  # von Mises, all but surely within G1
_LAG_HOURS = (0.5, 2.0)  # from a peak to the gene it drives
_SECOND_HARMONIC = (0.0, 0.2)  # share of the first; below 1/4, a curve has one maximum

# The genome: a human one, shrunk so that genes keep their distance (and peaks, where there are very many).
_CHROMOSOMES = [*(f"chr{number}" for number in range(1, 23)), "chrX"]
_MEGABASES = np.array(
    [248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133, 114, 107, 101, 90, 83, 80, 58, 64, 46, 50, 156]
)
_BASES_PER_GENE, _BASES_PER_PEAK = 150_000, 5_000
_PEAK_WIDTH = 500
_GENE_LENGTH = 20_000  # median
_ENHANCER_DISTANCE = 30_000  # mean distance from a gene of the peaks that lie around it
_LINK_RANGE = 100_000
_LINK_DECAY = 50_000
_SILENCER_SHARE = 0.1

# Sizes of effects, all on the scale of natural logarithms.
_REGULATED_SHARE = 0.4  # of the genes that do not cycle
_REGULATED_PEAK_SHARE, _CYCLING_PEAK_SHARE = 0.3, 0.02  # of the peaks without a gene
_PROGRAMME_EFFECT = (1.5, 0.4)  # mean and standard deviation over distal peaks; promoters respond half as much
_CYCLE_EFFECT = (0.5, 1.1)
_PROGRAMME_NOISE = 0.15  # of a programme's activity, between cells of a type
_CHROMATIN_LEAD = 0.15  # of the way of differentiation
_BATCH_EFFECT, _BATCH_DEPTH = 0.15, 0.2
_MARKER_EFFECT = np.log(2)  # what a feature must reach to be called a marker

# Depths are expected counts per feature in the median cell, newborn; spreads are log-scale standard deviations.
_RNA_DEPTH, _ATAC_DEPTH = 0.65, 0.04
_RNA_SIZE_SPREAD, _ATAC_SIZE_SPREAD, _QUALITY_SPREAD = 0.2, 0.3, 0.25
_RNA_LEVEL_SPREAD, _ATAC_LEVEL_SPREAD = 2.0, 0.8
_CYCLE_GENE_LEVEL = (0.5, 0.7)  # their log levels: of middling expression, for few of them are rare
_INVERSE_DISPERSION = (3.0, 0.5)  # median and log-scale spread

# Entries of the dense block that one step of the sampling works on. They are float64, so that the last bits, in which
# machines differ, do not change a count.
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
    """Simulate RNA and chromatin accessibility of the same cells, with the truth in the AnnData.

    Cell types are the leaves of a random binary tree. Every branch has a regulatory programme that opens peaks; genes
    follow the peaks that they are linked to, some time later, both along differentiation and along the cell cycle.
    Batches differ in depth and, feature by feature, in efficiency. RNA counts are negative binomial, ATAC fragments
    Poisson. The equations are in ``docs/simulation.md``.

    Parameters
    ----------
    n_cells, n_genes, n_peaks
        Sizes. Every gene has a promoter peak, so that there must be at least as many peaks as genes. With a cell cycle,
        51 of the genes are known ones with their usual names (MCM5, TOP2A, ...). Where features lie is made up.
    n_types, n_batches
        Cell types differ in abundance, batches do not. 1 is allowed.
    cell_cycle
        Whether cells, genes and peaks cycle.
    mosaic
        Shares of the cells that were measured in (both modalities, RNA only, ATAC only). A cell's counts are zero in
        what it lacks.
    depth
        Expected counts of a cell, in both modalities, as a multiple of the default, which is that of sparse data: of
        500 genes and 3,000 peaks about 450 UMIs and 140 fragments. Library sizes, means and counts change with it,
        nothing else.
    truth
        Whether to add ``layers["mean"]``, the expected counts: a dense array of float32.
    seed
        The same seed and arguments give the same data.

    Returns
    -------
    anndata.AnnData
        Cells × (genes, then peaks in the order of the genome). ``X`` is a CSR matrix of whole counts, as float32: UMIs
        of genes, fragments of peaks.

        - ``obs``: ``cell_type`` and ``batch``; ``differentiation`` within 0 and 1, how far the cell is on the last
          branch of the tree; ``true_cell_cycle_angle`` in radians within [0, 2π), 0 at division, 2π a day later;
          ``phase`` (G1 up to π, S up to 5π/3, G2M); ``is_cycling``, where cells at rest keep to G1; ``has_rna``,
          ``has_atac``; ``rna_library_size`` and ``atac_library_size``, the expected totals, also of what was not
          measured. Without a cell cycle the angle and the phase are missing.
        - ``var``: ``feature_types`` (``"Gene Expression"`` or ``"Peaks"``); ``chrom``, ``start`` and ``end`` in base
          pairs (all genes on the forward strand); ``is_marker_of``, the cell type whose own programme raises the
          feature most, if at least twofold, else missing; ``cell_cycle_amplitude``, half the range of the feature's
          natural-log level over the cycle, and ``cell_cycle_phase``, the angle where it is highest (to a quarter of a
          degree; missing where the amplitude is 0); ``inverse_dispersion`` of the genes.
        - ``varm["batch_effect"]``: features × batches, on the scale of natural logarithms; zero on average.
          ``varm["cell_cycle_effect"]``: features × (cos θ, sin θ, cos 2θ, sin 2θ), what the angle adds on that scale
          before shares are made to sum to 1. With ``layers["mean"]`` they tell what would be expected in another batch,
          or at another angle.
        - ``uns["simulation"]``: the arguments; ``programmes``, a table of which programme (one for each branch, named
          after the types below it) is on in which type; ``links``, a table of ``gene``, ``peak``, ``weight`` (of the
          peak's log fold change in that of the gene; silencers below 0), ``distance`` in base pairs from the gene's
          start to the middle of the peak (0 for promoters), and ``lag_hours`` from the peak to the gene along the cell
          cycle.
        - ``layers["mean"]``, with ``truth=True``: expected counts of every cell and feature at the cell's own depth,
          also of what was not measured. A peak's probability to be seen open is ``1 - exp(-mean)``.

    Raises
    ------
    TypeError
        If a size or the seed is no whole number, or the depth is no number.
    ValueError
        If a size is below 1, the seed is negative, there are fewer peaks than genes or too few genes for the cell
        cycle, the depth is not above 0 and finite, or the shares of the mosaic are not three numbers of at least 0 that
        sum to 1.

    Notes
    -----
    No dense matrix of all cells is made unless ``truth=True``. That peaks change before their genes is what was seen
    in development [1]_; the shares of cells along the cycle are those of a growing population [2]_; negative binomial
    and log-normal choices follow common simulators [3]_.

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

    share_3 = _checked(n_cells, n_genes, n_peaks, n_types, n_batches, cell_cycle, mosaic, depth, seed)
    # One stream of random numbers for each part, so that the parts can change one by one.
    streams = np.random.SeedSequence(seed).spawn(6)
    genome_rng, effects_rng, cells_rng, levels_rng, mosaic_rng, counts_rng = map(np.random.default_rng, streams)

    type_names = [f"type{number}" for number in range(1, n_types + 1)]
    on_km = _grow_tree(effects_rng, n_types)
    genes, peaks = _place_features(genome_rng, n_genes, n_peaks, cell_cycle)
    links = _link(genome_rng, genes, peaks)
    effect_ph = _peak_effects(effects_rng, genes, links, n_peaks, on_km.shape[1], cell_cycle)
    effect_gh = _gene_effects(links, effect_ph, n_genes)

    obs = _draw_cells(cells_rng, n_cells, type_names, n_batches, cell_cycle)
    rna_state_ch, atac_state_ch = _draw_states(cells_rng, obs, on_km)
    obs["has_rna"], obs["has_atac"] = _assign_modalities(mosaic_rng, n_cells, share_3)
    rna_size_c, atac_size_c = _draw_library_sizes(cells_rng, obs, n_genes, n_peaks)
    obs["rna_library_size"], obs["atac_library_size"] = depth * rna_size_c, depth * atac_size_c

    cycles_g = genes["hours"].notna().to_numpy()
    level_g = levels_rng.normal(0, _RNA_LEVEL_SPREAD, n_genes)
    level_g[cycles_g] = levels_rng.normal(*_CYCLE_GENE_LEVEL, cycles_g.sum())
    # Promoters are open more often than enhancers.
    level_p = levels_rng.normal(0, _ATAC_LEVEL_SPREAD, n_peaks) + peaks["is_promoter"].to_numpy()
    batch_effect_fb = levels_rng.normal(0, _BATCH_EFFECT, (n_genes + n_peaks, n_batches))
    batch_effect_fb -= batch_effect_fb.mean(1, keepdims=True)
    median, spread = _INVERSE_DISPERSION
    inverse_dispersion_g = median * levels_rng.lognormal(0, spread, n_genes)

    # The batch is a part of the state, too, and its effect contains the features' levels.
    batch_cb = np.eye(n_batches)[obs["batch"].cat.codes]
    rna = _Modality(
        np.hstack([rna_state_ch, batch_cb]),
        np.hstack([effect_gh, level_g[:, None] + batch_effect_fb[:n_genes]]),
        obs["rna_library_size"].to_numpy(),
        obs["has_rna"].to_numpy(),
    )
    atac = _Modality(
        np.hstack([atac_state_ch, batch_cb]),
        np.hstack([effect_ph, level_p[:, None] + batch_effect_fb[n_genes:]]),
        obs["atac_library_size"].to_numpy(),
        obs["has_atac"].to_numpy(),
    )
    counts_cf, mean_cf = _draw_counts(counts_rng, rna, atac, inverse_dispersion_g, truth)

    var = _describe_features(genes, peaks, np.vstack([effect_gh, effect_ph]), type_names)
    var["inverse_dispersion"] = np.concatenate([inverse_dispersion_g, np.full(n_peaks, np.nan)])
    programme_names = ["+".join(np.array(type_names)[on_k]) for on_k in on_km.T]
    simulation = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_peaks": n_peaks,
        "n_types": n_types,
        "n_batches": n_batches,
        "cell_cycle": cell_cycle,
        "mosaic": share_3,
        "depth": depth,
        "seed": seed,
        "programmes": pd.DataFrame(on_km, index=type_names, columns=programme_names),
        "links": links.assign(
            gene=genes.index.to_numpy()[links["gene"]], peak=peaks.index.to_numpy()[links["peak"]]
        ).set_index(np.arange(len(links)).astype(str)),
    }
    return AnnData(
        counts_cf,
        obs=obs,
        var=var,
        uns={"simulation": simulation},
        varm={"batch_effect": batch_effect_fb, "cell_cycle_effect": np.vstack([effect_gh, effect_ph])[:, -4:].copy()},
        layers={"mean": mean_cf} if truth else {},
    )


@dataclass(frozen=True)
class _Modality:
    """What there is to know of a modality: expected counts are the library size times softmax(states × effects)."""

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


def _checked(
    n_cells: int,
    n_genes: int,
    n_peaks: int,
    n_types: int,
    n_batches: int,
    cell_cycle: bool,
    mosaic: Sequence[float],
    depth: float,
    seed: int,
) -> np.ndarray:
    """Refuse what cannot be simulated; return the shares of the mosaic."""
    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_peaks": n_peaks, "n_types": n_types, "n_batches": n_batches}
    for name, value in {**sizes, "seed": seed}.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, not {value!r}.")
        least = 0 if name == "seed" else 1
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}.")
    if cell_cycle and n_genes < len(CELL_CYCLE_GENES):
        raise ValueError(
            f"n_genes is {n_genes}, but the cell cycle alone has {len(CELL_CYCLE_GENES)} genes; ask for at least so "
            "many, or pass cell_cycle=False."
        )
    if n_peaks < n_genes:
        raise ValueError(
            f"There are fewer peaks ({n_peaks}) than genes ({n_genes}), but every gene has a promoter peak; ask for at "
            "least as many peaks as genes."
        )
    if isinstance(depth, bool) or not isinstance(depth, Real):
        raise TypeError(f"depth must be a number, not {depth!r}.")
    if not 0 < depth < np.inf:
        raise ValueError(f"depth must be above 0 and finite, not {depth}: 2 has twice the counts of the default.")
    share_3 = np.asarray(mosaic, dtype=float)
    # Not "<": a NaN must fail, too.
    if share_3.shape != (3,) or not (share_3 >= 0).all() or not np.isclose(share_3.sum(), 1):
        raise ValueError(
            "mosaic must be three shares of at least 0 that sum to 1, of cells with (both modalities, RNA only, ATAC "
            f"only), not {mosaic!r}."
        )
    return share_3


def _grow_tree(rng: np.random.Generator, n_types: int) -> np.ndarray:
    """Join random pairs of types, then of groups, up to the root; say which programme is on in which type.

    Every group below the root has a programme (a single type is a group, also where it is the only one). Those of the
    single types come first, in the order of the types. Shape ``(k, m)``.
    """
    groups = [{type_} for type_ in range(n_types)]
    programmes = list(groups)
    while len(groups) > 2:
        first, second = rng.choice(len(groups), 2, replace=False)
        joined = groups[first] | groups[second]
        groups = [group for number, group in enumerate(groups) if number not in (first, second)] + [joined]
        programmes.append(joined)
    return np.array([[type_ in group for group in programmes] for type_ in range(n_types)])


def _place_features(
    rng: np.random.Generator, n_genes: int, n_peaks: int, cell_cycle: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put genes and peaks on the chromosomes; both tables are in the order of the genome.

    Positions are numbers of bins, each as wide as a peak, so that no two peaks overlap. Every gene starts in the middle
    of its promoter peak. Half of the other peaks lie around genes, half anywhere.
    """
    n_bases = max(n_genes * _BASES_PER_GENE, n_peaks * _BASES_PER_PEAK)
    end_of_chromosome = np.cumsum(_MEGABASES / _MEGABASES.sum() * n_bases // _PEAK_WIDTH).astype(np.int64)
    n_bins = int(end_of_chromosome[-1])

    gene_bin_g = np.sort(rng.choice(n_bins, n_genes, replace=False))
    taken = gene_bin_g
    while len(taken) < n_peaks:
        n_missing = n_peaks - len(taken)
        offset = rng.laplace(0, _ENHANCER_DISTANCE / _PEAK_WIDTH, n_missing).round().astype(np.int64)
        near = rng.choice(gene_bin_g, n_missing) + offset
        anywhere = rng.integers(n_bins, size=n_missing)
        bins = np.where(rng.random(n_missing) < 0.5, near, anywhere)
        # Plain sorting: the hashing of np.unique (numpy 2.4) takes ten times as long on half a million bins.
        taken = np.sort(np.concatenate([taken, bins[(bins >= 0) & (bins < n_bins)]]))
        taken = taken[np.diff(taken, prepend=-1) > 0]

    def table(bins: np.ndarray) -> pd.DataFrame:
        chromosome = np.searchsorted(end_of_chromosome, bins, side="right")
        start = (bins - np.concatenate([[0], end_of_chromosome])[chromosome]) * _PEAK_WIDTH
        chrom = _categories(chromosome, _CHROMOSOMES)
        return pd.DataFrame({"chrom": chrom, "start": start, "end": start + _PEAK_WIDTH, "bin": bins})

    peaks = table(taken)
    peaks["is_promoter"] = np.isin(taken, gene_bin_g)
    peaks.index = pd.Index(
        [f"{chrom}:{start}-{end}" for chrom, start, end in peaks[["chrom", "start", "end"]].itertuples(index=False)]
    )

    genes = table(gene_bin_g)
    width = max(4, len(str(n_genes)))
    names = np.array([f"GENE{number:0{width}}" for number in range(1, n_genes + 1)], dtype=object)
    genes["hours"] = np.nan
    if cell_cycle:
        known = rng.choice(n_genes, len(CELL_CYCLE_GENES), replace=False)
        names[known] = list(CELL_CYCLE_GENES)
        genes.loc[known, "hours"] = list(CELL_CYCLE_GENES.values())
    genes.index = pd.Index(names)
    genes["start"] += _PEAK_WIDTH // 2
    length = np.diff(end_of_chromosome, prepend=0)[genes["chrom"].cat.codes] * _PEAK_WIDTH
    body = (_GENE_LENGTH * rng.lognormal(0, 1, n_genes)).astype(np.int64) + 200
    genes["end"] = np.minimum(genes["start"] + body, length)
    return genes, peaks


def _link(rng: np.random.Generator, genes: pd.DataFrame, peaks: pd.DataFrame) -> pd.DataFrame:
    """Link each gene to its promoter and to none to four distal peaks around, near ones rather than far ones.

    Returns
    -------
    pandas.DataFrame
        A row a link: positions of gene and peak in their tables, weight, distance, lag.
    """
    gene_bin_g, bin_p = genes["bin"].to_numpy(), peaks["bin"].to_numpy()
    promoter_g = np.searchsorted(bin_p, gene_bin_g)

    # All pairs within range, as one flat list.
    reach = _LINK_RANGE // _PEAK_WIDTH
    first_g = np.searchsorted(bin_p, gene_bin_g - reach)
    n_near_g = np.searchsorted(bin_p, gene_bin_g + reach, side="right") - first_g
    gene = np.repeat(np.arange(len(genes)), n_near_g)
    peak = np.arange(len(gene)) - np.repeat(np.cumsum(n_near_g) - n_near_g, n_near_g) + first_g[gene]
    chrom_g, chrom_p = genes["chrom"].cat.codes.to_numpy(), peaks["chrom"].cat.codes.to_numpy()
    distal = (chrom_g[gene] == chrom_p[peak]) & ~peaks["is_promoter"].to_numpy()[peak]
    gene, peak = gene[distal], peak[distal]

    # Gumbel noise on log-probabilities, highest first: a draw without replacement, for all genes at once.
    distance = np.abs(bin_p[peak] - gene_bin_g[gene]) * _PEAK_WIDTH
    order = np.lexsort((distance / _ENHANCER_DISTANCE - rng.gumbel(size=len(gene)), gene))
    gene, peak = gene[order], peak[order]
    rank = np.arange(len(gene)) - np.searchsorted(gene, gene)
    chosen = rank < rng.binomial(4, 0.4, len(genes))[gene]

    gene = np.concatenate([np.arange(len(genes)), gene[chosen]])
    peak = np.concatenate([promoter_g, peak[chosen]])
    distance = (bin_p[peak] - gene_bin_g[gene]) * _PEAK_WIDTH
    sign = np.where((distance != 0) & (rng.random(len(gene)) < _SILENCER_SHARE), -1, 1)
    weight = sign * rng.uniform(0.6, 1.0, len(gene)) * np.exp(-np.abs(distance) / _LINK_DECAY)
    links = pd.DataFrame({"gene": gene, "peak": peak, "weight": weight, "distance": distance})
    links["lag_hours"] = rng.uniform(*_LAG_HOURS, len(gene))
    return links.sort_values(["gene", "peak"], ignore_index=True)


def _harmonics(angle: np.ndarray) -> np.ndarray:
    """Return the cell-cycle part of the state, ``cos θ, sin θ, cos 2θ, sin 2θ``, shape ``(..., 4)``."""
    return np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=-1)


def _peak_effects(
    rng: np.random.Generator,
    genes: pd.DataFrame,
    links: pd.DataFrame,
    n_peaks: int,
    n_programmes: int,
    cell_cycle: bool,
) -> np.ndarray:
    """Draw what the state does to the log level of each peak: programmes, then four harmonics; shape ``(p, h)``.

    A gene has one programme, or cycles, or neither, and so have its linked peaks; where genes share a peak, it goes by
    the one with the strongest link. Silencers do the contrary.
    """
    # -1 stands for none.
    programme_g = rng.integers(n_programmes, size=len(genes))
    programme_g[(rng.random(len(genes)) >= _REGULATED_SHARE) | genes["hours"].notna()] = -1
    programme_p = rng.integers(n_programmes, size=n_peaks)
    kind_p = rng.random(n_peaks)
    programme_p[kind_p >= _REGULATED_PEAK_SHARE] = -1
    cycles_p = (kind_p >= 1 - _CYCLING_PEAK_SHARE) & cell_cycle
    hours_p = np.where(cycles_p, rng.uniform(0, _CYCLE_HOURS, n_peaks), np.nan)
    sign_p, promoter_p = np.ones(n_peaks), np.zeros(n_peaks, dtype=bool)

    strongest = links.sort_values("weight", key=lambda weight: -weight.abs()).drop_duplicates("peak")
    linked, owner = strongest["peak"].to_numpy(), strongest["gene"].to_numpy()
    programme_p[linked] = programme_g[owner]
    hours_p[linked] = genes["hours"].to_numpy()[owner] - strongest["lag_hours"].to_numpy()
    sign_p[linked] = np.sign(strongest["weight"])
    promoter_p[linked] = strongest["distance"] == 0

    effect_ph = np.zeros((n_peaks, n_programmes + 4))
    size_p = sign_p * np.abs(rng.normal(*_PROGRAMME_EFFECT, n_peaks)) * np.where(promoter_p, 0.5, 1.0)
    regulated = np.flatnonzero(programme_p >= 0)
    effect_ph[regulated, programme_p[regulated]] = size_p[regulated]

    # cos(θ − φ) is linear in cos θ and sin θ, so is the second harmonic.
    amplitude_p = sign_p * rng.uniform(*_CYCLE_EFFECT, n_peaks)
    second_p = rng.uniform(*_SECOND_HARMONIC, n_peaks)
    cycling = np.flatnonzero(~np.isnan(hours_p))
    harmonic_p4 = _harmonics(hours_p[cycling] / _CYCLE_HOURS * 2 * np.pi)
    harmonic_p4[:, 2:] *= second_p[cycling, None]
    effect_ph[cycling, n_programmes:] = amplitude_p[cycling, None] * harmonic_p4
    return effect_ph


def _gene_effects(links: pd.DataFrame, effect_ph: np.ndarray, n_genes: int) -> np.ndarray:
    """Sum up what the linked peaks do to each gene, with their harmonics turned by the lag; shape ``(g, h)``."""
    effect_lh = effect_ph[links["peak"]]
    lag_l = links["lag_hours"].to_numpy() / _CYCLE_HOURS * 2 * np.pi
    for column, order in ((-4, 1), (-2, 2)):
        # A peak at φ is the complex number exp(iφ): a delay of its response is a rotation.
        turned_l = (effect_lh[:, column] + 1j * effect_lh[:, column + 1]) * np.exp(1j * order * lag_l)
        effect_lh[:, column], effect_lh[:, column + 1] = turned_l.real, turned_l.imag
    effect_gh = np.zeros((n_genes, effect_ph.shape[1]))
    np.add.at(effect_gh, links["gene"].to_numpy(), effect_lh * links["weight"].to_numpy()[:, None])
    return effect_gh


def _draw_cells(
    rng: np.random.Generator, n_cells: int, type_names: list[str], n_batches: int, cell_cycle: bool
) -> pd.DataFrame:
    """Draw type, batch, differentiation and cell cycle of each cell."""
    n_types = len(type_names)
    share_k = rng.lognormal(0, 0.5, n_types)
    type_c = rng.choice(n_types, n_cells, p=share_k / share_k.sum())
    batch_c = rng.integers(n_batches, size=n_cells)
    width = max(4, len(str(n_cells)))
    obs = pd.DataFrame(index=[f"cell_{number:0{width}}" for number in range(1, n_cells + 1)])
    obs["cell_type"] = _categories(type_c, type_names)
    obs["batch"] = _categories(batch_c, [f"batch{number}" for number in range(1, n_batches + 1)])
    obs["differentiation"] = rng.beta(2, 1, n_cells)

    least, most = _CYCLING_SHARES
    cycling_share_k = least + (most - least) * rng.permutation((np.arange(n_types) + 0.5) / n_types)
    cycling_c = rng.random(n_cells) < cycling_share_k[type_c]
    # A growing population has twice as many cells just born as about to divide: density 2^(-θ/2π), by inversion.
    growing_c = -2 * np.pi * np.log2(1 - rng.random(n_cells) / 2)
    resting_c = rng.vonmises(_QUIESCENT_ANGLE, _QUIESCENT_CONCENTRATION, n_cells)
    angle_c = np.where(cycling_c, growing_c, resting_c) % (2 * np.pi)
    phase_c = np.searchsorted([_S_START, _G2M_START], angle_c / (2 * np.pi) * _CYCLE_HOURS, side="right")
    obs["true_cell_cycle_angle"] = angle_c if cell_cycle else np.nan
    obs["phase"] = _categories(phase_c if cell_cycle else np.full(n_cells, -1), ["G1", "S", "G2M"])
    obs["is_cycling"] = cycling_c & cell_cycle
    return obs


def _draw_states(rng: np.random.Generator, obs: pd.DataFrame, on_km: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the states as genes and as peaks see them, both ``(c, h)``: programmes, then four harmonics.

    The programmes of the branches that a cell has passed are on, and the one of its type is coming, in the chromatin
    first. How strongly they are on varies from cell to cell.
    """
    type_c = obs["cell_type"].cat.codes.to_numpy()
    activity_cm = on_km[type_c] + rng.normal(0, _PROGRAMME_NOISE, (len(obs), on_km.shape[1]))
    harmonic_c4 = np.nan_to_num(_harmonics(obs["true_cell_cycle_angle"].to_numpy()))  # all 0 without a cell cycle
    states = []
    for lead in (0.0, _CHROMATIN_LEAD):
        state_ch = np.hstack([activity_cm, harmonic_c4])
        progress_c = obs["differentiation"].to_numpy() + lead - _CHROMATIN_LEAD
        state_ch[np.arange(len(obs)), type_c] += _switched_on(progress_c) - 1
        states.append(state_ch)
    return states[0], states[1]


def _draw_library_sizes(
    rng: np.random.Generator, obs: pd.DataFrame, n_genes: int, n_peaks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the expected totals of RNA and of ATAC.

    Both rise with the quality of the cell and differ between batches. RNA doubles steadily from division to division,
    ATAC with the DNA, during S.
    """
    batch_c, n_batches = obs["batch"].cat.codes.to_numpy(), obs["batch"].cat.categories.size
    hours_c = obs["true_cell_cycle_angle"].fillna(0).to_numpy() / (2 * np.pi) * _CYCLE_HOURS
    rna_amount_c = 2 ** (hours_c / _CYCLE_HOURS)
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


def _switched_on(progress_c: np.ndarray) -> np.ndarray:
    """Return how far a programme is on, along differentiation: a smooth step from 0 to 1."""
    x = np.clip(progress_c / (1 - _CHROMATIN_LEAD), 0, 1)
    return x**2 * (3 - 2 * x)


def _assign_modalities(rng: np.random.Generator, n_cells: int, share_3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say which cells have RNA and which have ATAC; numbers are exact, up to rounding."""
    n_both, n_with_rna = np.round(np.cumsum(share_3)[:2] * n_cells)
    place_c = rng.permutation(n_cells)
    return place_c < n_with_rna, (place_c < n_both) | (place_c >= n_with_rna)


def _draw_counts(
    rng: np.random.Generator, rna: _Modality, atac: _Modality, inverse_dispersion_g: np.ndarray, truth: bool
) -> tuple[csr_matrix, np.ndarray | None]:
    """Draw counts block by block of cells, Gamma-Poisson for genes and Poisson for peaks; keep the means if asked."""
    n_cells, n_genes = len(rna.size_c), len(inverse_dispersion_g)
    n_features = n_genes + len(atac.effect_fh)
    mean_cf = np.empty((n_cells, n_features), dtype=np.float32) if truth else None
    blocks = []
    step = max(1, _BLOCK_ENTRIES // n_features)
    for first in range(0, n_cells, step):
        cells = slice(first, min(first + step, n_cells))
        rate_cf = np.hstack([rna.mean(cells), atac.mean(cells)])
        if mean_cf is not None:
            mean_cf[cells] = rate_cf
        rate_cf[:, :n_genes] *= rng.standard_gamma(inverse_dispersion_g, (len(rate_cf), n_genes)) / inverse_dispersion_g
        rate_cf[:, :n_genes] *= rna.measured_c[cells, None]
        rate_cf[:, n_genes:] *= atac.measured_c[cells, None]
        blocks.append(_poisson(rng, rate_cf))
    return vstack(blocks, format="csr"), mean_cf


def _poisson(rng: np.random.Generator, rate_cf: np.ndarray) -> csr_matrix:
    """Draw Poisson counts as sparse rows; the random numbers are as many as the counts, not as the entries.

    Independent Poisson counts are a Poisson total, thrown into the features with probabilities in proportion to their
    rates.
    """
    indices, data, indptr = [], [], [0]
    for rate_f in rate_cf:
        edge_f = np.cumsum(rate_f)
        throw_n = np.sort(rng.random(rng.poisson(edge_f[-1]))) * edge_f[-1]
        # Rounding must not carry a throw to the upper end, where features of rate 0 may lie.
        feature_n = np.searchsorted(edge_f, np.minimum(throw_n, np.nextafter(edge_f[-1], 0)), side="right")
        first = np.flatnonzero(np.diff(feature_n, prepend=-1))
        indices.append(feature_n[first].astype(np.int32))
        data.append(np.diff(first, append=len(feature_n)).astype(np.float32))
        indptr.append(indptr[-1] + len(first))
    return csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=rate_cf.shape)


def _categories(codes: np.ndarray, names: list[str]) -> pd.Categorical[str]:
    return pd.Categorical.from_codes(codes, categories=pd.Index(names))


def _describe_features(
    genes: pd.DataFrame, peaks: pd.DataFrame, effect_fh: np.ndarray, type_names: list[str]
) -> pd.DataFrame:
    """Make the table of the features, with what their effects amount to."""
    columns = ["chrom", "start", "end"]
    var = pd.concat([genes[columns], peaks[columns]])
    kind_f = np.repeat([0, 1], [len(genes), len(peaks)])
    var["feature_types"] = _categories(kind_f, ["Gene Expression", "Peaks"])

    own_fk = effect_fh[:, : len(type_names)]
    marked_f = np.where(own_fk.max(1) >= _MARKER_EFFECT, own_fk.argmax(1), -1)
    var["is_marker_of"] = _categories(marked_f, type_names)

    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    amplitude_f, phase_f = np.zeros(len(var)), np.full(len(var), np.nan)
    cycling = np.flatnonzero(effect_fh[:, -4:].any(axis=1))
    curve = effect_fh[cycling, -4:] @ _harmonics(angle).T
    amplitude_f[cycling], phase_f[cycling] = np.ptp(curve, axis=1) / 2, angle[curve.argmax(axis=1)]
    var["cell_cycle_amplitude"], var["cell_cycle_phase"] = amplitude_f, phase_f
    return var
