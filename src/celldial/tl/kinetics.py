"""RNA kinetics along a periodic coordinate: the speed of the cycle, and rates of splicing and degradation.

Axis suffixes: ``c`` cells, ``f`` genes, ``g`` groups, ``j`` angles, ``k`` phases, ``n`` posterior draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.inference.fitted_model import FittedModel, check_fitted
from celldial.inference.kinetics.counts import N_BINS, CellCounts
from celldial.inference.kinetics.fit import KineticsPosterior, infer_kinetics
from celldial.inference.kinetics.summary import N_FINE, KineticsDraws, Quantiles, draw_kinetics, quantiles
from celldial.io import results
from celldial.periodic.phases import assign_phases
from celldial.tl.kinetics_cells import ChosenCells, choose_cells, choose_genes
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import format_names
from celldial.utils.names import find_name
from celldial.utils.threads import limit_threads
from celldial.utils.validation import check_integer, resolve_seed
from celldial.utils.warnings import warn

__all__ = ["kinetics"]

MIN_SAMPLES = 100
# Bins of the angle in which observed means are stored.
N_OBSERVED = 16


@validate_types
def kinetics(
    model: FittedModel,
    adata: AnnData,
    *,
    spliced: str = "spliced",
    unspliced: str = "unspliced",
    groupby: str | None = None,
    reference: Any = None,
    features: Sequence[str] | None = None,
    half_life: Mapping[str, float] | None = None,
    cycle_hours: float | None = None,
    n_samples: int = 1000,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Infer how fast cells move around the cycle, and the rates of splicing and degradation, from unspliced RNA.

    Spliced RNA follows unspliced RNA with a delay. In units of the time that RNA takes to decay, the delay is known, so
    that its size as an angle shows the speed of the cycle [1]_. The unspliced and spliced amounts u and s of a gene
    follow

    .. math:: \omega(\theta) \frac{du}{d\theta} = \alpha(\theta) - \beta u, \qquad
              \omega(\theta) \frac{ds}{d\theta} = \beta u - \gamma s,

    with the rate of transcription :math:`\alpha(\theta)`, the rates of splicing β and degradation γ of the gene, and
    the angular speed :math:`\omega(\theta)` of the group. Counts are negative binomial around the periodic solution.
    The posterior of all rates and speeds is inferred variationally.

    Parameters
    ----------
    model
        A fitted `VAE` with a periodic coordinate; omitted in the method call ``model.kinetics(adata)``.
    adata
        Cells in memory, with both layers.
    spliced, unspliced
        Layers with raw counts of spliced and of unspliced RNA.
    groupby
        Column of ``adata.obs`` with groups whose speeds are compared. Groups share the rates β and γ of each gene, and
        each has its own transcription and speed. Groups with fewer than 50 cells on the cycle are left out.
    reference
        Group that the others are compared with; by default the first.
    features
        Genes to use. By default, genes that change with the angle, with 100 or more counts in both layers, at most
        200.
    half_life
        Half-life of the spliced RNA of a gene in hours, as ``{"GENE": 4.0}``, which sets the unit of time. The gene
        must be one of those that are used.
    cycle_hours
        Duration of the cycle of the reference group in hours, such as the doubling time, which sets the unit of time.
    n_samples
        Number of posterior draws for intervals, at least 100.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    pandas.DataFrame
        One row for each group. Times are in units of the mean decay time 1 / γ of the genes (their geometric mean), or
        in hours if `half_life` or `cycle_hours` is given. Intervals are 90 % credible intervals, and point estimates
        are medians.

        - ``n_cells``: number of cells of the group that are used, and on the cycle.
        - ``duration``, ``duration_lower``, ``duration_upper``: duration of a cycle.
        - ``speed_ratio``, ``speed_ratio_lower``, ``speed_ratio_upper``: mean speed relative to the reference, which is
          the ratio of the durations. Missing for the reference.
        - ``probability_faster``: posterior probability that the group is faster than the reference. Missing for the
          reference.
        - ``share_PHASE``, ``…_lower``, ``…_upper``: share of the duration in each phase.

        Written:

        - ``adata.var``: ``cell_cycle_beta`` and ``cell_cycle_gamma``, relative to the geometric mean of γ, with
          ``_lower`` and ``_upper``; missing for genes that are not used.
        - ``adata.obs["cell_cycle_speed"]``: speed at the angle of the cell, in radians per unit of time; missing for
          cells that are not used.
        - ``adata.uns["celldial"]["kinetics"]``: the table above (``table``), the speed of each group around the circle
          (``angle``, ``speed``, ``speed_lower``, ``speed_upper``, groups × angles), the curves of the genes, and what
          was used. `celldial.pl.kinetics` draws it.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    KeyError
        There is no such layer, column, group or gene.
    ValueError
        The model has no periodic coordinate, did not find the process, or does not know its direction; no cells are on
        the cycle, or too few; too few genes change with the angle; a layer has no raw counts; `reference` is given
        without two groups; or `half_life` or `cycle_hours` is invalid.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Warns
    -----
    UserWarning
        Groups are left out, or the counts hardly inform the duration of a group or most of the degradation rates: their
        posterior is about as wide as the prior.

    Notes
    -----
    The same transcription, rates and speed all multiplied by a constant give the same counts, so only ratios of rates
    are known without a time in hours. β is that of the observed counts: if unspliced RNA is captured less well than
    spliced RNA, β is larger by this factor.

    Angles come from the model's circle, with their uncertainty, and are updated by the unspliced counts. Effects of the
    batch of the model on each gene and layer are included. Rates are assumed to be constant around the cycle and the
    same in all groups.

    References
    ----------
    .. [1] Lederer et al. (2024), Statistical inference with a manifold-constrained RNA velocity model uncovers cell
       cycle speed modulations, Nature Methods 21, 2271-2286. doi:10.1038/s41592-024-02471-8

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.simulate_kinetics(300, 100, 55, depth=4, speed_ratio=2.0)
    >>> model = celldial.VAE(periodic="cell_cycle").fit(adata, max_epochs=20, progress=False)
    >>> table = model.kinetics(adata, groupby="condition")
    >>> table.index.tolist()
    ['control', 'treated']
    >>> bool(table.loc["treated", "probability_faster"] > 0.9)
    True
    """
    check_fitted(model)
    periodic = _check_periodic(model)
    _check_arguments(adata, half_life, cycle_hours)
    check_integer("n_samples", n_samples, MIN_SAMPLES)
    seed = resolve_seed(seed, model.seed)
    results.check_kinetics(adata, periodic["name"])
    cells = choose_cells(model, adata, (unspliced, spliced), groupby, periodic)
    first = _reference_position(cells, reference, groupby)
    column_f = choose_genes(adata, cells, features)
    genes = adata.var_names[column_f]
    _check_half_life(half_life, genes)

    counts = cells.chosen_counts(column_f)
    with limit_threads(counts.counts_lcf[0].numel() * cells.weight_cj.shape[1]):
        fitted = infer_kinetics(counts, cells.weight_cj, known_angles=False, seed=seed)
    draws = draw_kinetics(fitted, n_samples, seed)
    _warn_of_priors(draws, cells, genes)
    log_hours_n, unit = _log_hours(draws, genes, half_life, cycle_hours, first)
    table = _group_table(draws, cells, periodic, first, log_hours_n)
    speed = quantiles(np.exp(draws.speed_on_grid() - log_hours_n[:, None, None]))
    report = {
        "name": periodic["name"],
        "table": table,
        "groups": np.array(cells.groups, dtype=object),
        "reference": cells.groups[first],
        **({} if groupby is None else {"groupby": groupby}),
        "unit": unit,
        "layers": {"unspliced": unspliced, "spliced": spliced},
        **_around_circle(fitted, draws, speed),
        **_observed(fitted, counts),
        "genes": genes.to_numpy(dtype=object),
        "n_genes": len(genes),
        "n_cells": len(cells.index_c),
    }
    speed_c = np.full(adata.n_obs, np.nan)
    speed_c[cells.index_c] = (fitted.weight_cj.numpy() * speed.median[cells.group_c]).sum(1)
    results.write_kinetics(adata, model.fingerprint_, _rate_table(draws, genes), speed_c, report)
    return table.copy()


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_periodic(model: FittedModel) -> dict[str, Any]:
    """Return the description of the periodic coordinate, or raise if there is no cycle with a direction."""
    periodic = model.periodic_
    if periodic is None:
        raise ValueError("this model has no periodic coordinate: fit one with VAE(periodic='cell_cycle')")
    label = str(periodic["name"]).replace("_", " ")
    if not periodic.get("is_found", True):
        raise ValueError(f"the fit found no {label} in these cells, so there is no speed to infer; see periodic_")
    if "phases" not in periodic:
        raise ValueError(f"the direction of the {label} is not known, so there is no speed to infer; see periodic_")
    return periodic


def _check_arguments(adata: Any, half_life: Any, cycle_hours: Any) -> None:
    """Raise unless the cells are in memory and at most one time in hours is given."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"kinetics needs an AnnData with two layers, not {type(adata).__name__}")
    if half_life is not None and cycle_hours is not None:
        raise ValueError("half_life and cycle_hours both set the unit of time: pass one of them")
    hours: Mapping[str, Any] = {} if cycle_hours is None else {"cycle_hours": cycle_hours}
    if half_life is not None:
        if not isinstance(half_life, Mapping) or not half_life:
            raise TypeError(
                f"half_life is {half_life!r}: it must be a dict from gene to hours, such as {{'MCM5': 4.0}}"
            )
        hours = {f"half_life[{gene!r}]": value for gene, value in half_life.items()}
    for name, value in hours.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
            raise ValueError(f"{name} is {value!r}: it must be a positive number of hours")


def _check_half_life(half_life: Mapping[str, float] | None, genes: pd.Index) -> None:
    """Raise if the gene of a half-life is not used."""
    for gene in {} if half_life is None else half_life:
        if gene not in genes:
            raise KeyError(
                f"half_life has the gene {gene!r}, which is not one of the {len(genes)} genes used: "
                f"{format_names(genes)}. features= can include it"
            )


def _reference_position(cells: ChosenCells, reference: str | None, groupby: str | None) -> int:
    """Return the position of the reference group."""
    if reference is None:
        return 0
    if groupby is None:
        raise ValueError(f"reference is {reference!r}, but there are no groups: pass groupby, too")
    position = find_name(reference, cells.groups)
    if position < 0:
        raise KeyError(
            f"{groupby!r} has no group {reference!r} with enough cells; groups: {format_names(cells.groups)}"
        )
    if len(cells.groups) < 2:
        raise ValueError(f"there is one group, {cells.groups[0]!r}, so there is nothing to compare with the reference")
    return position


def _warn_of_priors(draws: KineticsDraws, cells: ChosenCells, genes: pd.Index) -> None:
    """Warn about what the counts do not inform."""
    vague = [name for name, is_vague in zip(cells.groups, draws.uninformed_groups(), strict=True) if is_vague]
    if vague:
        warn(
            f"the counts hardly inform the speed of {format_names(vague)}: its posterior is about as wide as the "
            "prior. More cells, or more unspliced counts, are needed"
        )
    n_vague = int(draws.uninformed_genes().sum())
    if 2 * n_vague > len(genes):
        warn(
            f"the counts hardly inform the degradation rates of {n_vague} of {len(genes)} genes: their posteriors are "
            "about as wide as the prior"
        )


# --- Tables -----------------------------------------------------------------------------------------------------------


def _log_hours(
    draws: KineticsDraws,
    genes: pd.Index,
    half_life: Mapping[str, float] | None,
    cycle_hours: float | None,
    first: int,
) -> tuple[np.ndarray, str]:
    """Return the log of the unit of time in hours in each draw, and the name of the resulting unit."""
    if cycle_hours is not None:
        return np.log(cycle_hours) - draws.log_duration_ng[:, first], "hours"
    if half_life is not None:
        column_f = genes.get_indexer(pd.Index(list(half_life)))
        log_decay_f = np.log(np.array(list(half_life.values()), dtype=float) / np.log(2))
        return (log_decay_f + draws.log_gamma_nf[:, column_f]).mean(1), "hours"
    return np.zeros(len(draws.log_duration_ng)), "mean decay times"


def _group_table(
    draws: KineticsDraws, cells: ChosenCells, periodic: Mapping[str, Any], first: int, log_hours_n: np.ndarray
) -> pd.DataFrame:
    """Return durations, ratios of speeds and shares of phases of each group."""
    table = pd.DataFrame(index=pd.Index(cells.groups, dtype=object))
    table["n_cells"] = np.bincount(cells.group_c, minlength=len(cells.groups))
    _add(table, "duration", quantiles(np.exp(draws.log_duration_ng + log_hours_n[:, None])))
    ratio_ng = np.exp(draws.log_duration_ng[:, [first]] - draws.log_duration_ng)
    is_reference_g = np.arange(len(cells.groups)) == first
    _add(table, "speed_ratio", quantiles(ratio_ng))
    table["probability_faster"] = (ratio_ng > 1).mean(0)
    table.loc[is_reference_g, [column for column in table if str(column).startswith(("speed", "probability"))]] = np.nan
    phase_j = assign_phases(np.arange(N_FINE) * (2 * np.pi / N_FINE), np.asarray(periodic["phase_start"]))
    shares = quantiles(draws.phase_shares(phase_j, len(periodic["phases"])))
    for k, phase in enumerate(periodic["phases"]):
        _add(table, f"share_{phase}", Quantiles(shares.median[:, k], shares.lower[:, k], shares.upper[:, k]))
    return table


def _add(table: pd.DataFrame, name: str, values: Quantiles) -> None:
    """Add the columns of a median and its interval to a table."""
    table[name], table[f"{name}_lower"], table[f"{name}_upper"] = values.median, values.lower, values.upper


def _rate_table(draws: KineticsDraws, genes: pd.Index) -> pd.DataFrame:
    """Return the rates of the genes."""
    table = pd.DataFrame(index=genes)
    _add(table, "beta", quantiles(np.exp(draws.log_beta_nf)))
    _add(table, "gamma", quantiles(np.exp(draws.log_gamma_nf)))
    return table


def _around_circle(fitted: KineticsPosterior, draws: KineticsDraws, speed: Quantiles) -> dict[str, Any]:
    """Return what depends on the angle: speed of the groups, and counts of the genes in a cell of median size."""
    unspliced_gjf, spliced_gjf = draws.curve_lgjf.astype(np.float32)
    return {
        "angle": np.arange(N_BINS) * (2 * np.pi / N_BINS),
        "speed": speed.median,
        "speed_lower": speed.lower,
        "speed_upper": speed.upper,
        "unspliced": unspliced_gjf,
        "spliced": spliced_gjf,
        "inverse_dispersion": fitted.theta_lf.numpy(),
    }


def _observed(fitted: KineticsPosterior, counts: CellCounts) -> dict[str, Any]:
    """Return mean counts of cells in wide bins of the angle, relative to the sizes of the cells; groups × bins × genes.

    The first bin is centered on angle 0. A bin without cells has missing values.
    """
    data = counts.sum_in_bins(fitted.weight_cj, fitted.theta_lf)
    width = N_BINS // N_OBSERVED
    shape = (2, counts.n_groups, counts.n_batches, N_OBSERVED, width)
    total_lgjf = data.total_lbjf.roll(width // 2, 2).reshape(*shape, -1).sum((2, 4))
    size_lgj1 = data.size_lbj.roll(width // 2, 2).reshape(*shape, 1).sum((2, 4))
    mean_lgjf = np.where(size_lgj1 > 0.5, total_lgjf / size_lgj1.clamp_min(0.5), np.nan).astype(np.float32)
    return {"observed_unspliced": mean_lgjf[0], "observed_spliced": mean_lgjf[1]}
