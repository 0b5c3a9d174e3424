"""The simulated genome, its peak-to-gene links, and the effects of programs and cell cycle on peaks and genes.

Axis suffixes: ``g`` genes, ``p`` peaks, ``h`` coordinates of the state, ``k`` cell types, ``m`` regulatory programs,
``l`` peak-to-gene links.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from celldial.utils.fourier import fourier_features

__all__ = [
    "CELL_CYCLE_GENES",
    "CYCLE_HOURS",
    "N_CYCLE_HARMONICS",
    "draw_type_tree",
    "gene_effects",
    "link_peaks_to_genes",
    "make_categorical",
    "peak_effects",
    "place_features",
]

CYCLE_HOURS = 24.0
N_CYCLE_HARMONICS = 2
# Approximate hours after division at which the expression of well-known genes peaks.
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

# The genome: human chromosomes, scaled to the number of features so that the spacing of genes stays constant.
_CHROMOSOMES = [*(f"chr{number}" for number in range(1, 23)), "chrX"]
_MEGABASES = np.array(
    [248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133, 114, 107, 101, 90, 83, 80, 58, 64, 46, 50, 156]
)
_BASES_PER_GENE, _BASES_PER_PEAK = 150_000, 5_000
_PEAK_WIDTH = 500
_MEDIAN_GENE_LENGTH = 20_000
_ENHANCER_DISTANCE = 30_000  # mean distance of an enhancer from its gene
_LINK_RANGE = 100_000
_LINK_DECAY = 50_000
_SILENCER_SHARE = 0.1

# Effects, on the scale of natural logarithms.
_REGULATED_SHARE = 0.4  # of the genes that do not cycle
_REGULATED_PEAK_SHARE, _CYCLING_PEAK_SHARE = 0.3, 0.02  # of the peaks without a gene
_PROGRAM_EFFECT = (1.5, 0.4)  # mean and standard deviation over distal peaks; promoters respond half as strongly
_CYCLE_EFFECT = (0.5, 1.1)  # range of the amplitude of the first harmonic
_SECOND_HARMONIC = (0.0, 0.2)  # amplitude as a share of the first; curves below 1/4 have a single maximum
_LAG_HOURS = (0.5, 2.0)  # from a peak to its gene


def draw_type_tree(rng: np.random.Generator, n_types: int) -> np.ndarray:
    """Draw a random binary tree of cell types; return which program is active in which type, shape ``(k, m)``.

    Random pairs of types, and then of groups of types, are joined up to the root. Every group below the root has a
    program. A single type is a group, also if it is the only type. The programs of single types come first, in the
    order of the types.
    """
    groups = [{type_} for type_ in range(n_types)]
    program_groups = list(groups)
    while len(groups) > 2:
        first, second = rng.choice(len(groups), 2, replace=False)
        joined = groups[first] | groups[second]
        groups = [group for number, group in enumerate(groups) if number not in (first, second)] + [joined]
        program_groups.append(joined)
    return np.array([[type_ in group for group in program_groups] for type_ in range(n_types)])


def place_features(
    rng: np.random.Generator, n_genes: int, n_peaks: int, cell_cycle: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Place genes and peaks on the chromosomes; return both tables in genome order.

    Positions are drawn as bins. A bin is as wide as a peak, so peaks never overlap. Every gene starts in the middle of
    its promoter peak. Half of the other peaks lie around genes, and half anywhere.
    """
    n_bases = max(n_genes * _BASES_PER_GENE, n_peaks * _BASES_PER_PEAK)
    chromosome_end = np.cumsum(_MEGABASES / _MEGABASES.sum() * n_bases // _PEAK_WIDTH).astype(np.int64)
    gene_bin_g = np.sort(rng.choice(int(chromosome_end[-1]), n_genes, replace=False))
    peak_bin_p = _draw_peak_bins(rng, gene_bin_g, n_peaks, int(chromosome_end[-1]))

    peaks = _bin_table(peak_bin_p, chromosome_end)
    peaks["is_promoter"] = np.isin(peak_bin_p, gene_bin_g)
    peaks.index = pd.Index(
        [f"{chrom}:{start}-{end}" for chrom, start, end in peaks[["chrom", "start", "end"]].itertuples(index=False)]
    )

    genes = _bin_table(gene_bin_g, chromosome_end)
    width = max(4, len(str(n_genes)))
    names = np.array([f"GENE{number:0{width}}" for number in range(1, n_genes + 1)], dtype=object)
    genes["hours"] = np.nan
    if cell_cycle:
        cycling = rng.choice(n_genes, len(CELL_CYCLE_GENES), replace=False)
        names[cycling] = list(CELL_CYCLE_GENES)
        genes.loc[cycling, "hours"] = list(CELL_CYCLE_GENES.values())
    genes.index = pd.Index(names)
    genes["start"] += _PEAK_WIDTH // 2
    chromosome_length = np.diff(chromosome_end, prepend=0)[genes["chrom"].cat.codes] * _PEAK_WIDTH
    gene_length = (_MEDIAN_GENE_LENGTH * rng.lognormal(0, 1, n_genes)).astype(np.int64) + 200
    genes["end"] = np.minimum(genes["start"] + gene_length, chromosome_length)
    return genes, peaks


def _draw_peak_bins(rng: np.random.Generator, gene_bin_g: np.ndarray, n_peaks: int, n_bins: int) -> np.ndarray:
    """Return the sorted bins of all peaks: one promoter for each gene, and others until there are `n_peaks`."""
    occupied = gene_bin_g
    while len(occupied) < n_peaks:
        n_missing = n_peaks - len(occupied)
        offset = rng.laplace(0, _ENHANCER_DISTANCE / _PEAK_WIDTH, n_missing).round().astype(np.int64)
        near_gene = rng.choice(gene_bin_g, n_missing) + offset
        anywhere = rng.integers(n_bins, size=n_missing)
        bins = np.where(rng.random(n_missing) < 0.5, near_gene, anywhere)
        # Sort and compare: for half a million bins, the hashing of np.unique (numpy 2.4) takes ten times as long.
        occupied = np.sort(np.concatenate([occupied, bins[(bins >= 0) & (bins < n_bins)]]))
        occupied = occupied[np.diff(occupied, prepend=-1) > 0]
    return occupied


def _bin_table(bins: np.ndarray, chromosome_end: np.ndarray) -> pd.DataFrame:
    """Return chromosome, start and end in base pairs of each bin; `chromosome_end` is in bins."""
    chromosome = np.searchsorted(chromosome_end, bins, side="right")
    start = (bins - np.concatenate([[0], chromosome_end])[chromosome]) * _PEAK_WIDTH
    chrom = make_categorical(chromosome, _CHROMOSOMES)
    return pd.DataFrame({"chrom": chrom, "start": start, "end": start + _PEAK_WIDTH, "bin": bins})


def make_categorical(codes: np.ndarray, names: list[str]) -> pd.Categorical[str]:
    """Return a categorical with the given codes; −1 is missing."""
    return pd.Categorical.from_codes(codes, categories=pd.Index(names))


def link_peaks_to_genes(rng: np.random.Generator, genes: pd.DataFrame, peaks: pd.DataFrame) -> pd.DataFrame:
    """Link each gene to its promoter and to up to four distal peaks within range, preferring near ones.

    Returns
    -------
    pandas.DataFrame
        One row for each link: row numbers of ``gene`` and ``peak`` in their tables, ``weight``, ``distance`` and
        ``lag_hours``.
    """
    gene_bin_g, bin_p = genes["bin"].to_numpy(), peaks["bin"].to_numpy()
    promoter_g = np.searchsorted(bin_p, gene_bin_g)

    # All pairs of a gene and a peak within range, as one flat list.
    reach = _LINK_RANGE // _PEAK_WIDTH
    first_g = np.searchsorted(bin_p, gene_bin_g - reach)
    n_near_g = np.searchsorted(bin_p, gene_bin_g + reach, side="right") - first_g
    gene = np.repeat(np.arange(len(genes)), n_near_g)
    peak = np.arange(len(gene)) - np.repeat(np.cumsum(n_near_g) - n_near_g, n_near_g) + first_g[gene]
    chrom_g, chrom_p = genes["chrom"].cat.codes.to_numpy(), peaks["chrom"].cat.codes.to_numpy()
    distal = (chrom_g[gene] == chrom_p[peak]) & ~peaks["is_promoter"].to_numpy()[peak]
    gene, peak = gene[distal], peak[distal]

    # Sorting log probabilities plus Gumbel noise draws without replacement, for all genes at once.
    distance = np.abs(bin_p[peak] - gene_bin_g[gene]) * _PEAK_WIDTH
    order = np.lexsort((distance / _ENHANCER_DISTANCE - rng.gumbel(size=len(gene)), gene))
    gene, peak = gene[order], peak[order]
    rank = np.arange(len(gene)) - np.searchsorted(gene, gene)
    linked = rank < rng.binomial(4, 0.4, len(genes))[gene]

    gene = np.concatenate([np.arange(len(genes)), gene[linked]])
    peak = np.concatenate([promoter_g, peak[linked]])
    distance = (bin_p[peak] - gene_bin_g[gene]) * _PEAK_WIDTH
    sign = np.where((distance != 0) & (rng.random(len(gene)) < _SILENCER_SHARE), -1, 1)
    weight = sign * rng.uniform(0.6, 1.0, len(gene)) * np.exp(-np.abs(distance) / _LINK_DECAY)
    links = pd.DataFrame({"gene": gene, "peak": peak, "weight": weight, "distance": distance})
    links["lag_hours"] = rng.uniform(*_LAG_HOURS, len(gene))
    return links.sort_values(["gene", "peak"], ignore_index=True)


def peak_effects(
    rng: np.random.Generator,
    genes: pd.DataFrame,
    links: pd.DataFrame,
    n_peaks: int,
    n_programs: int,
    cell_cycle: bool,
) -> np.ndarray:
    """Draw the effects of programs and of four harmonics on the log level of each peak, shape ``(p, h)``.

    A gene follows one program, or cycles, or neither. Its linked peaks do the same. A peak with several genes follows
    the gene with the strongest link. Silencers have the opposite sign.
    """
    # -1: no program.
    program_g = rng.integers(n_programs, size=len(genes))
    program_g[(rng.random(len(genes)) >= _REGULATED_SHARE) | genes["hours"].notna()] = -1
    program_p = rng.integers(n_programs, size=n_peaks)
    kind_p = rng.random(n_peaks)
    program_p[kind_p >= _REGULATED_PEAK_SHARE] = -1
    cycles_p = (kind_p >= 1 - _CYCLING_PEAK_SHARE) & cell_cycle
    hours_p = np.where(cycles_p, rng.uniform(0, CYCLE_HOURS, n_peaks), np.nan)
    sign_p, promoter_p = np.ones(n_peaks), np.zeros(n_peaks, dtype=bool)

    strongest = links.sort_values("weight", key=lambda weight: -weight.abs()).drop_duplicates("peak")
    linked, gene = strongest["peak"].to_numpy(), strongest["gene"].to_numpy()
    program_p[linked] = program_g[gene]
    hours_p[linked] = genes["hours"].to_numpy()[gene] - strongest["lag_hours"].to_numpy()
    sign_p[linked] = np.sign(strongest["weight"])
    promoter_p[linked] = strongest["distance"] == 0

    effect_ph = np.zeros((n_peaks, n_programs + 4))
    size_p = sign_p * np.abs(rng.normal(*_PROGRAM_EFFECT, n_peaks)) * np.where(promoter_p, 0.5, 1.0)
    regulated = np.flatnonzero(program_p >= 0)
    effect_ph[regulated, program_p[regulated]] = size_p[regulated]

    # cos(θ − φ) is linear in cos θ and sin θ. The same holds for the second harmonic.
    amplitude_p = sign_p * rng.uniform(*_CYCLE_EFFECT, n_peaks)
    second_p = rng.uniform(*_SECOND_HARMONIC, n_peaks)
    cycling = np.flatnonzero(~np.isnan(hours_p))
    harmonic_p4 = fourier_features(hours_p[cycling] / CYCLE_HOURS * 2 * np.pi, N_CYCLE_HARMONICS)
    harmonic_p4[:, 2:] *= second_p[cycling, None]
    effect_ph[cycling, n_programs:] = amplitude_p[cycling, None] * harmonic_p4
    return effect_ph


def gene_effects(links: pd.DataFrame, effect_ph: np.ndarray, n_genes: int) -> np.ndarray:
    """Return the effects on each gene, shape ``(g, h)``: a weighted sum over its peaks, delayed by the lag."""
    effect_lh = effect_ph[links["peak"]]
    lag_l = links["lag_hours"].to_numpy() / CYCLE_HOURS * 2 * np.pi
    for column, order in ((-4, 1), (-2, 2)):
        # Written as a complex number exp(iφ), a harmonic that peaks at φ is delayed by a rotation.
        delayed_l = (effect_lh[:, column] + 1j * effect_lh[:, column + 1]) * np.exp(1j * order * lag_l)
        effect_lh[:, column], effect_lh[:, column + 1] = delayed_l.real, delayed_l.imag
    effect_gh = np.zeros((n_genes, effect_ph.shape[1]))
    np.add.at(effect_gh, links["gene"].to_numpy(), effect_lh * links["weight"].to_numpy()[:, None])
    return effect_gh
