"""Posterior predictive checks: whether held-out cells look as the model predicts.

Axis suffixes: ``c`` cells, ``j`` replicates, ``n`` draws, ``t`` features with the most counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from celldial.data import cell_checks
from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import posterior, predictive
from celldial.inference.doublets import doublet_signs
from celldial.inference.fitted_model import FittedModel, is_file_path, read_from, read_sample
from celldial.inference.predictive import Groups
from celldial.inference.psis import RELIABLE_SHAPE, pareto_shape
from celldial.io import results
from celldial.model.likelihoods import LIKELIHOODS
from celldial.tl.check_advice import advise
from celldial.tl.check_statistics import CHECKS, MIN_BATCH, Finding, coverages, find, groups_of, holm, measure_all
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed

__all__ = ["check"]

# Features with the most counts, for correlations and intervals.
N_TOP = 50
# Probability that any check of a correct model fails.
LEVEL = 0.05
N_PERMUTATIONS = 200
MIN_CELLS = 50
# The library size of doublets is about twice that of other cells, less where single cells are between them.
DOUBLET_SLOPE = 0.25
# Distance of two distribution functions of library sizes that makes no practical difference.
DEPTH_DISTANCE = 0.15
# Share of cells with heavy-tailed importance weights above which the bound is unreliable.
HEAVY_SHARE = 0.5
# Cells and draws for importance weights.
N_WEIGHTED, N_DRAWS = 100, 100
COLUMNS = ("check", "modality", "batch", "observed", "lower", "upper", "p_value", "failed", "advice")


@validate_types
def check(
    model: FittedModel,
    adata: Any,
    *,
    n_samples: int = 30,
    n_cells: int = 1000,
    layer: str | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    """Check whether held-out cells look as the model predicts, by comparison with replicates of them.

    A replicate has the covariates of the cells, latent states from their posteriors and counts from the model [1]_.
    Each check is a number that is computed for the cells and for each replicate. It fails if the number of the cells is
    far outside of those of the replicates, and if the difference is large enough to matter.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.check(adata)``.
    adata
        Cells that were not used for training, such as those of ``fit(validation_cells=...)``; or files of such cells as
        in `fit`, to which nothing is written. Of training cells, the checks find less.
    n_samples
        Number of replicates, at least 10.
    n_cells
        Number of cells to use, at random, at least 50.
    layer
        As in `transform`.
    seed
        Seed of the random numbers; the model's seed by default.

    Returns
    -------
    pandas.DataFrame
        One row for each check, modality and batch (``"all"``, and each batch with 30 or more of the cells). Written:
        the same to ``adata.uns["celldial"]["check"]``. `celldial.pl.check` draws both.

        - ``check``: name of the check, see below.
        - ``modality``, ``batch``: the cells and features that it is about.
        - ``observed``: the number of the cells.
        - ``lower``, ``upper``: 95 % interval of this number, if the model is right.
        - ``p_value``: of the observed number, not adjusted for the number of checks; missing for
          ``"importance_weights"``.
        - ``failed``: whether the p-value, adjusted for the number of checks by the method of Holm, is below 0.05 and
          the deviation is large enough to matter.
        - ``advice``: what was found, and what to try; empty unless the check failed.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        `n_samples` or `n_cells` is too small, or fewer than 50 cells have counts.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Notes
    -----
    The checks are:

    - ``"zeros"``: zeros beyond those expected, as a fraction of the counts that are expected above zero. It is 0 in
      expectation, and estimates the rate of zero inflation if the likelihood has none. Deviations up to 0.02 pass.
    - ``"dispersion"``: mean over features of the ratio of squared deviations from the mean to their variance, 1 in
      expectation. Deviations up to 10 % pass.
    - ``"feature_dispersion"``: standard deviation between features of the log of this ratio.
    - ``"mean_variance"``: slope of the log ratio on the log mean, 0 in expectation. Slopes up to 0.05 pass.
    - ``"library_size"``: relative error of the number of detected features per doubling of the library size, 0 in
      expectation.
    - ``"depth"``: distance (Kolmogorov-Smirnov) of the library sizes from those of the training cells.
    - ``"correlations"``: root mean square correlation between the residuals of the 50 features with the most counts.
    - ``"coverage"``: share of the counts of these features inside their 90 % predictive intervals.
    - ``"doublets"``: change of the log2 library size, with or without the tenth of the features with the most counts
      (the smaller change), from cells that no artificial doublet resembles to cells that only doublets resemble; 0 if
      there are none. Cell types between others that are larger have this sign, too.
    - ``"importance_weights"``: share of cells with a Pareto k above 0.7 [2]_. It fails above 0.5. Then
      ``score(n_samples=...)`` is only a bound, and posterior draws differ from the exact posterior.

    Latent states of a replicate are inferred from its own counts, so the same data are not used twice in one number
    and once in the other [3]_. Intervals are wider by the factor √(1 + r), where r is the number of cells relative to
    the number of training cells, because the parameters of the model are uncertain, too. Dispersions are measured for
    features with 20 or more expected counts, and not for a Bernoulli likelihood.

    References
    ----------
    .. [1] Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies,
       Statistica Sinica 6, 733-807.
    .. [2] Vehtari et al. (2024), Pareto smoothed importance sampling, Journal of Machine Learning Research 25 (72).
    .. [3] Hjort, Dahl and Steinbakk (2006), Post-processing posterior predictive p-values,
       doi:10.1198/016214505000001393.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata[:500].copy(), max_epochs=5, progress=False)
    >>> table = model.check(adata[500:].copy(), n_samples=10)
    >>> table.columns.tolist()
    ['check', 'modality', 'batch', 'observed', 'lower', 'upper', 'p_value', 'failed', 'advice']
    """
    model = read_from(model, layer)
    check_integer("n_samples", n_samples, 10)
    check_integer("n_cells", n_cells, MIN_CELLS)
    seed = resolve_seed(seed, model.seed)
    random = np.random.default_rng(seed)
    cells = _choose_cells(read_sample(model, adata, n_cells, seed), n_cells, random)
    with isolate_rng(seed):
        ratio = predictive.training_ratio(model.module_, cells)
        findings = _compare_with_replicates(model, cells, ratio, n_samples, random)
        findings += _compare_depths(model, cells, ratio)
        findings += _find_doublets(model, cells, random)
        findings.append(_check_weights(model, cells, random))
    table = _to_table(model, findings)
    if not is_file_path(adata):
        results.write_check(adata, model.fingerprint_, table)
    return table


def _choose_cells(cells: Cells, n_cells: int, random: np.random.Generator) -> Cells:
    """Choose some of the cells that have counts at random."""
    cell_checks.check_has_counts(cells)
    nonempty_c = np.flatnonzero(~cells.empty_c.numpy())
    if len(nonempty_c) < MIN_CELLS:
        raise ValueError(f"{len(nonempty_c)} cells have counts: the checks need at least {MIN_CELLS}")
    chosen_c = np.sort(random.choice(nonempty_c, min(n_cells, len(nonempty_c)), replace=False))
    return cells.select(torch.from_numpy(chosen_c))


def _batches(model: FittedModel, cells: Cells) -> tuple[np.ndarray, Sequence[str]]:
    """Return the batch of each cell, and the names of the batches."""
    key = model.schema_.batch_key
    if key is None:
        return np.zeros(len(cells), dtype=np.int64), ["all"]
    position = list(model.schema_.categories).index(key)
    return cells.category_ck[:, position].numpy(), model.schema_.categories[key]


def _compare_with_replicates(
    model: FittedModel, cells: Cells, ratio: Mapping[str, float], n_samples: int, random: np.random.Generator
) -> list[Finding]:
    """Return the checks that compare cells with replicates."""
    module, (batch_c, names) = model.module_, _batches(model, cells)
    top = {name: predictive.top_features(rows, N_TOP) for name, rows in cells.counts.items()}
    groups, batches = Groups(batch_c, len(names), top), groups_of(batch_c, names)
    is_binary = {name: LIKELIHOODS[model.schema_.likelihood[name]].binary for name in top}
    observed, replicated = [], []
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in top}
    for _ in range(n_samples):
        copy = predictive.replicate(module, cells)
        observed.append(measure_all(predictive.compare(module, cells, groups), is_binary, batches))
        replicated.append(measure_all(predictive.compare(module, copy, groups), is_binary, batches))
        for name, rows in copy.counts.items():
            drawn[name].append(to_csr_matrix(rows)[:, top[name]].toarray())
    for name, drawn_jct in drawn.items():
        if not is_binary[name]:
            counts_ct = to_csr_matrix(cells.counts[name])[:, top[name]].toarray()
            inside = coverages(counts_ct, np.stack(drawn_jct), random)
            has_c = cells.mask_with(name).numpy()
            for batch, label in batches:
                own_c = has_c if batch is None else has_c & (batch_c == batch)
                for numbers, inside_c in zip([*observed, *replicated], inside, strict=True):
                    if own_c.sum() >= MIN_BATCH:
                        numbers["coverage", name, label] = float(inside_c[own_c].mean())
    return [
        find(CHECKS[key[0]], key[1:], float(np.mean([numbers[key] for numbers in observed])), values, ratio[key[1]])
        for key in observed[0]
        for values in [[numbers[key] for numbers in replicated if key in numbers]]
        if len(values) == n_samples and all(key in numbers for numbers in observed)
    ]


def _compare_depths(model: FittedModel, cells: Cells, ratio: Mapping[str, float]) -> list[Finding]:
    """Return the distance of the library sizes from those of the training cells."""
    findings = []
    for name, total_c in cells.library_size.items():
        size_c = np.sort(total_c[cells.mask_with(name)].numpy().astype(np.float64))
        if len(size_c) < MIN_BATCH:
            continue
        quantile_q = np.asarray(model.library_size_quantiles_[name], dtype=np.float64)
        trained_c = np.interp(size_c, quantile_q, np.linspace(0, 1, len(quantile_q)))
        step_c = np.arange(len(size_c) + 1) / len(size_c)
        distance = float(max(np.abs(trained_c - step_c[1:]).max(), np.abs(trained_c - step_c[:-1]).max()))
        root = np.sqrt(len(size_c) / (1 + ratio[name]))
        upper, p_value = float(stats.kstwobign.ppf(0.95) / root), float(stats.kstwobign.sf(distance * root))
        findings.append(
            Finding("depth", name, "all", distance, 0.0, upper, p_value, distance, distance > DEPTH_DISTANCE)
        )
    return findings


def _find_doublets(model: FittedModel, cells: Cells, random: np.random.Generator) -> list[Finding]:
    """Return the check for doublets, in the first modality of the model."""
    name, batch_c = model.schema_.modalities[0], _batches(model, cells)[0]
    signs = doublet_signs(model.module_, cells, name, batch_c, random, N_PERMUTATIONS)
    if signs is None:
        return []
    center, deviation = float(signs.permuted_p.mean()), max(float(signs.permuted_p.std(ddof=1)), 1e-12)
    p_value = float(stats.norm.sf((signs.slope - center) / deviation))
    lower, upper = (center + side * deviation * stats.norm.ppf(0.975) for side in (-1, 1))
    matters = signs.slope > DOUBLET_SLOPE
    return [Finding("doublets", name, "all", signs.slope, lower, upper, p_value, signs.slope, matters)]


def _check_weights(model: FittedModel, cells: Cells, random: np.random.Generator) -> Finding:
    """Return the share of cells whose importance weights have a heavy tail."""
    chosen_c = np.sort(random.choice(len(cells), min(N_WEIGHTED, len(cells)), replace=False))
    blocks = posterior.log_weights(model.module_, cells.select(torch.from_numpy(chosen_c)), N_DRAWS)
    share = float((pareto_shape(blocks) > RELIABLE_SHAPE).mean())
    return Finding("importance_weights", "all", "all", share, 0.0, HEAVY_SHARE, np.nan, share, share > HEAVY_SHARE)


def _to_table(model: FittedModel, findings: Sequence[Finding]) -> pd.DataFrame:
    """Return the findings as a table, with advice on those that failed."""
    adjusted = holm([finding.p_value for finding in findings])
    overall = {(each.check, each.modality): each.deviation for each in findings if each.batch == "all"}
    rows: list[dict[str, Any]] = []
    for finding, p_value in zip(findings, adjusted, strict=True):
        failed = finding.matters and not p_value >= LEVEL
        advice = ""
        if failed:
            likelihood = model.schema_.likelihood.get(finding.modality, "")
            can_disperse = model.parameters_.get("dispersion", "feature-batch") != "feature-batch"
            advice = advise(finding, likelihood, overall.get((finding.check, finding.modality), 0.0), can_disperse)
        row = {column: getattr(finding, column) for column in COLUMNS[:-2]}
        rows.append(row | {"failed": failed, "advice": advice})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.index = table.index.astype(str)  # files of cells need names of rows
    return table
