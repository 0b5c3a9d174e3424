"""Links of peaks to genes: nearby peaks whose decoded accessibility follows the decoded expression of the gene.

Axis suffixes: ``c`` cells, ``f`` peaks, ``g`` genes, ``n`` pairs of a gene and a nearby peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from celldial.data.positions import COLUMNS as POSITION_COLUMNS
from celldial.data.positions import positions_from_names, positions_from_table, read_gtf
from celldial.inference import posterior
from celldial.inference.decoded_correlation import Correlations, correlate
from celldial.inference.fitted_model import FittedModel, get_modality, read_cells, read_from
from celldial.inference.posterior import Covariates
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import did_you_mean, format_names
from celldial.utils.validation import check_integer, resolve_seed
from celldial.utils.warnings import warn

__all__ = ["link_peaks"]

# Peaks on the same chromosome that are as far as this are not expected to regulate the gene.
FAR = 1_000_000
# Distances at which links differ in frequency; the false discovery rate is computed in each class.
DISTANCES = (1_000, 10_000, 25_000, 50_000)
MIN_FAR = 50
MAX_BINS = 10
INTERVAL = float(stats.norm.ppf(0.975))


@validate_types
def link_peaks(
    model: FittedModel,
    adata: Any,
    genes: Sequence[str] | str | None = None,
    *,
    window: int = 100_000,
    gtf: str | Path | None = None,
    n_far: int = 500,
    n_cells: int = 2000,
    layer: str | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Find peaks near a gene whose accessibility follows the expression of the gene over the latent space.

    The latent states of the cells are decoded to expression and to accessibility, in the same batch for all cells. The
    correlation of a gene with a nearby peak is compared with its correlations with far peaks, which are on other
    chromosomes or at least 1 Mb away and have a similar mean accessibility.

    Parameters
    ----------
    model
        A fitted `VAE` with genes (``"rna"``) and peaks (``"atac"``); omitted in the method call
        ``model.link_peaks(adata, genes)``.
    adata
        Cells, with positions in base pairs: columns ``chrom``, ``start``, ``end`` and, for genes on the reverse strand,
        ``strand`` in ``var``. Without these columns, positions of peaks come from names such as ``chr1:100-200`` or
        ``chr1-100-200``.
    genes
        Genes to link; by default all that have a position.
    window
        Largest distance in base pairs between the start of a gene (the end, on the reverse strand) and the middle of a
        peak.
    gtf
        GTF file with the positions of genes, instead of those in ``var``. Genes are found by ``gene_name`` or
        ``gene_id``.
    n_far
        Number of far peaks of each gene to compare with, in each of up to 10 bins of mean accessibility.
    n_cells
        Number of cells to use, at random.
    layer
        As in `transform`.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    pandas.DataFrame
        One row for each gene and nearby peak, the most certain links first.

        - ``gene``, ``peak``.
        - ``distance``: in base pairs from the start of the gene to the middle of the peak, negative if the peak is
          upstream; 0 if the gene starts inside the peak.
        - ``correlation``: of the decoded log shares over cells, with standard deviations that include the uncertainty
          of the decoder. Negative for peaks that close as the gene is expressed.
        - ``lower``, ``upper``: 95 % credible interval, given the latent states.
        - ``p_value``: fraction of the pairs of a gene and a far peak whose correlation is as large, in absolute value.
        - ``fdr``: p-value adjusted within classes of distance by the method of Benjamini and Hochberg.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    KeyError
        The model has no genes or no peaks, or it has no such gene.
    ValueError
        There are no positions, or they are invalid; no gene has a peak nearby; there are too few far peaks; or
        `window`, `n_far` or `n_cells` is too small.
    ValueError, TypeError, FloatingPointError
        As `transform`.
    OSError
        The GTF file could not be read.

    Warns
    -----
    UserWarning
        Some genes have no position.

    Notes
    -----
    Peaks of the same program are correlated with a gene wherever they are. A small p-value therefore needs a
    correlation that few far peaks have, and the FDR is lower near a gene, where more links are (stratified FDR [1]_).
    The correlation does not show whether the peak regulates the gene. SHARE-seq data were analyzed in this way, with
    correlations of counts and matched random peaks [2]_.

    References
    ----------
    .. [1] Sun et al. (2006), Stratified false discovery control for large-scale hypothesis testing,
       doi:10.1002/gepi.20164.
    .. [2] Ma et al. (2020), Chromatin potential identified by shared single-cell profiling of RNA and chromatin,
       doi:10.1016/j.cell.2020.09.056.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.simulate_multiome(200, 100, 600)
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> links = model.link_peaks(adata, ["TOP2A", "PCNA"])
    >>> links.columns.tolist()
    ['gene', 'peak', 'distance', 'correlation', 'lower', 'upper', 'p_value', 'fdr']
    """
    model = read_from(model, layer)
    for name, value, minimum in (("window", window, 1), ("n_far", n_far, MIN_FAR), ("n_cells", n_cells, 2)):
        check_integer(name, value, minimum)
    modalities = (get_modality(model, "rna"), get_modality(model, "atac"))
    gene_names, peak_names = (model.schema_.feature_names[name] for name in modalities)
    wanted = _wanted(genes, gene_names)
    table, cells = read_cells(model, adata)
    at_genes = _gene_positions(table.var, wanted, gtf, explicit=genes is not None)
    found = positions_from_table(table.var, peak_names)
    at_peaks = found if found is not None and len(found) else positions_from_names(peak_names)
    pairs = _near_pairs(at_genes, at_peaks, window)
    if len(pairs) == 0:
        raise ValueError(
            f"no peak is within {window} base pairs of a gene: check that genes and peaks have positions on the same "
            f"genome (chromosomes of genes: {format_names(at_genes['chrom'].unique(), 3)}; of peaks: "
            f"{format_names(at_peaks['chrom'].unique(), 3)}), or raise window"
        )
    at_genes = at_genes.loc[pairs["gene"].unique()]
    random = np.random.default_rng(resolve_seed(seed, model.seed))
    chosen_c = np.sort(random.choice(len(cells), min(n_cells, len(cells)), replace=False))
    latent_state = posterior.infer(model.module_, cells.select(torch.from_numpy(chosen_c)))
    correlations = correlate(
        model.module_,
        modalities,
        latent_state.state_cz,
        _one_batch(cells.category_ck.numpy(), len(chosen_c), cells.continuous_ck.shape[1]),
        pd.Index(gene_names).get_indexer(at_genes.index),
    )
    share_f = np.asarray(cells.counts[modalities[1]].sum_columns(cells.counts[modalities[1]].value_n))
    column_f = pd.Index(peak_names).get_indexer(at_peaks.index)
    chosen = Correlations(*(values_gf[:, column_f] for values_gf in correlations))
    return _test(pairs, at_genes, at_peaks, chosen, share_f[column_f], n_far, random)


def _wanted(genes: Sequence[str] | str | None, known: Sequence[str]) -> list[str]:
    """Return the names of the genes to link; raise if the model does not have one of them."""
    if genes is None:
        return list(known)
    names = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    if not names:
        raise ValueError("genes is empty: name a gene, or use None for all genes")
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        raise KeyError(
            f"the model has no gene {unknown[0]!r}{did_you_mean(unknown[0], known)} ({len(unknown)} unknown)"
        )
    return names


def _gene_positions(var: pd.DataFrame, names: list[str], gtf: str | Path | None, explicit: bool) -> pd.DataFrame:
    """Return the positions of genes; raise if none has one, and warn if some of those that the user named lack one."""
    if gtf is not None:
        table, source = read_gtf(gtf, names), str(gtf)
    else:
        found = positions_from_table(var, names)
        if found is None:
            raise ValueError(
                f"adata.var has no columns {format_names(POSITION_COLUMNS)} with the positions of genes: add them, or "
                "pass gtf="
            )
        table, source = found, "adata.var"
    missing = [name for name in names if name not in table.index]
    if len(missing) == len(names):
        raise ValueError(f"{source} has no position of any of the {len(names)} genes, such as {names[0]!r}")
    if missing and explicit:
        warn(f"{len(missing)} genes have no position in {source} and are left out: {format_names(missing, 3)}")
    return table


def _near_pairs(genes: pd.DataFrame, peaks: pd.DataFrame, window: int) -> pd.DataFrame:
    """Return all pairs of a gene and a peak within the window, with their distance."""
    parts = []
    middle_f = (peaks["start"] + peaks["end"]).to_numpy() // 2
    for chrom, of_chrom in genes.groupby("chrom"):
        on_f = np.flatnonzero((peaks["chrom"] == chrom).to_numpy())
        on_f = on_f[np.argsort(middle_f[on_f], kind="stable")]
        start_g = _gene_starts(of_chrom)
        first_g = np.searchsorted(middle_f[on_f], start_g - window)
        n_near_g = np.searchsorted(middle_f[on_f], start_g + window, side="right") - first_g
        gene_n = np.repeat(np.arange(len(of_chrom)), n_near_g)
        position_n = np.arange(len(gene_n)) - np.repeat(np.cumsum(n_near_g) - n_near_g, n_near_g) + first_g[gene_n]
        peak_n = on_f[position_n]
        distance_n = middle_f[peak_n] - start_g[gene_n]
        inside_n = (peaks["start"].to_numpy()[peak_n] <= start_g[gene_n]) & (
            start_g[gene_n] < peaks["end"].to_numpy()[peak_n]
        )
        sign_n = np.where(of_chrom["strand"].to_numpy()[gene_n] == "-", -1, 1)
        parts.append(
            pd.DataFrame(
                {
                    "gene": of_chrom.index.to_numpy()[gene_n],
                    "peak": peaks.index.to_numpy()[peak_n],
                    "distance": np.where(inside_n, 0, sign_n * distance_n),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _gene_starts(genes: pd.DataFrame) -> np.ndarray:
    """Return where genes start: their end, on the reverse strand."""
    start_g: np.ndarray = np.where(genes["strand"] == "-", genes["end"], genes["start"])
    return start_g


def _one_batch(category_ck: np.ndarray, n_cells: int, n_continuous: int) -> Covariates:
    """Return the same covariates for all cells: the most frequent categories, and means."""
    most_k = [np.bincount(code_c).argmax() for code_c in category_ck.T]
    return Covariates(
        np.tile(np.array(most_k, dtype=np.int64), (n_cells, 1)), np.zeros((n_cells, n_continuous), dtype=np.float32)
    )


def _test(
    pairs: pd.DataFrame,
    genes: pd.DataFrame,
    peaks: pd.DataFrame,
    correlations: Correlations,
    share_f: np.ndarray,
    n_far: int,
    random: np.random.Generator,
) -> pd.DataFrame:
    """Return the table of pairs, compared with pairs of the same genes and far peaks in bins of accessibility."""
    gene_n, peak_n = genes.index.get_indexer(pd.Index(pairs["gene"])), peaks.index.get_indexer(pd.Index(pairs["peak"]))
    mean_n, deviation_n = (values_gf[gene_n, peak_n].astype(np.float64) for values_gf in correlations)
    n_bins = int(np.clip(len(peaks) // (2 * n_far), 1, MAX_BINS))
    bin_f = np.argsort(np.argsort(share_f, kind="stable"), kind="stable") * n_bins // len(share_f)
    p_value_n = np.ones(len(pairs))
    for number in range(n_bins):
        own_n = np.flatnonzero(bin_f[peak_n] == number)
        if len(own_n) == 0:
            continue
        near_g = np.bincount(gene_n[own_n], minlength=len(genes))
        size, weight = _far_sizes(
            genes, peaks, correlations.mean_gf, np.flatnonzero(bin_f == number), near_g, n_far, random
        )
        p_value_n[own_n] = _tail(np.abs(mean_n[own_n]), size, weight)
    class_n = np.searchsorted(DISTANCES, pairs["distance"].abs().to_numpy())
    fdr_n = np.ones(len(pairs))
    for number in np.unique(class_n):
        fdr_n[class_n == number] = stats.false_discovery_control(p_value_n[class_n == number])
    table = pairs.assign(
        correlation=mean_n,
        lower=np.clip(mean_n - INTERVAL * deviation_n, -1, 1),
        upper=np.clip(mean_n + INTERVAL * deviation_n, -1, 1),
        p_value=p_value_n,
        fdr=fdr_n,
    )
    order = np.lexsort([-table["correlation"].abs(), table["p_value"], table["fdr"]])
    return table.iloc[order].reset_index(drop=True)


def _far_sizes(
    genes: pd.DataFrame,
    peaks: pd.DataFrame,
    mean_gf: np.ndarray,
    column_f: np.ndarray,
    near_g: np.ndarray,
    n_far: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the absolute correlations of genes with far peaks of a bin, and their weights.

    Each gene has the weight of its nearby peaks, so that the far pairs are the nearby ones in all but the distance.
    """
    chrom_f = peaks["chrom"].to_numpy()[column_f]
    middle_f = (peaks["start"] + peaks["end"]).to_numpy()[column_f] // 2
    sizes, weights = [], []
    for g, (chrom, start) in enumerate(zip(genes["chrom"], _gene_starts(genes), strict=True)):
        if near_g[g] == 0:
            continue
        far_f = column_f[(chrom_f != chrom) | (np.abs(middle_f - start) >= FAR)]
        if len(far_f) > n_far:
            far_f = random.choice(far_f, n_far, replace=False)
        sizes.append(np.abs(mean_gf[g, far_f]))
        weights.append(np.full(len(far_f), near_g[g] / max(len(far_f), 1)))
    size, weight = np.concatenate(sizes), np.concatenate(weights)
    if len(size) < MIN_FAR:
        raise ValueError(
            f"there are {len(size)} pairs of a gene and a peak that is on another chromosome or {FAR:,} base pairs "
            f"away: at least {MIN_FAR} are needed to compare with"
        )
    return size, weight


def _tail(value_n: np.ndarray, size: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted share of sizes that are as large as each value; the value itself counts once."""
    order = np.argsort(size, kind="stable")
    above = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
    one = weight.mean()
    share_n: np.ndarray = (above[np.searchsorted(size[order], value_n - 1e-9)] + one) / (above[0] + one)
    return share_n
