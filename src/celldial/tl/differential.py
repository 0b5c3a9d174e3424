"""Differential expression and accessibility between groups of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import t as student

from celldial.data.cells import Cells
from celldial.inference import group_sums
from celldial.inference.conditions import ALL, resolve_transform_batch
from celldial.inference.fitted_model import (
    FittedModel,
    get_modality,
    is_file_path,
    library_size_to_decode,
    read_from,
    read_obs,
    read_parts,
    to_anndata,
)
from celldial.io import results
from celldial.model.networks import Modality
from celldial.tl import fold_changes, moderated_t, ranking_layout, replicate_effects, shrinkage, trends
from celldial.tl.comparisons import REST, Comparison, Groups, find_groups, pair_up
from celldial.tl.traversal import HALF_WIDTH
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import format_names
from celldial.utils.random import isolate_rng
from celldial.utils.validation import resolve_seed
from celldial.utils.warnings import warn

__all__ = ["COLUMNS", "KEY", "differential"]

Method = Literal["model", "replicates"]
KEY = "rank_genes_groups"
COLUMNS = [
    "group",
    "feature",
    "log2_fold_change",
    "lower",
    "upper",
    "mean_group",
    "mean_reference",
    "share_group",
    "share_reference",
    "p_value",
    "lfsr",
    "fdr",
]


@validate_types
def differential(
    model: FittedModel,
    adata: AnnData,
    groupby: str,
    groups: Sequence[Any] | str | None = None,
    reference: Any = REST,
    *,
    method: Method | None = None,
    replicate_key: str | None = None,
    covariates: Sequence[str] | str = (),
    at: Mapping[str, Any] | tuple[str, Any] | None = None,
    modality: str | None = None,
    delta: float = 0.0,
    continuous: bool | None = None,
    transform_batch: Any = None,
    layer: str | None = None,
    key_added: str | None = KEY,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Compare the expression or accessibility of groups of cells, feature by feature.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.differential(adata, groupby)``.
    adata
        Cells; or files of cells as in `fit`, to which nothing is written.
    groupby
        Column of ``adata.obs`` with the groups, such as clusters, cell types or conditions; or with a number of each
        cell, such as a dose, an age or a score, along which expression may change (`continuous`).
    groups
        Groups to compare with the reference; all by default.
    reference
        A group, or ``"rest"``: all other cells that have a group.
    method
        How to compare.

        - ``"replicates"`` asks whether the difference would be found in other donors. The counts of each replicate are
          summed on each side, and the sums are compared between replicates by a moderated t-test with precision weights
          [1]_ [2]_. If at least half of the replicates are on both sides, each is compared with itself.
        - ``"model"`` asks how large the difference between these two groups of cells is. It returns the posterior of
          the fold change of their means. The mean of a group is the decoded mean times a correction, the ratio of
          observed to expected counts. With few counts it is that of the model, with many counts the observed one.

        By default ``"replicates"`` if `replicate_key` is given and has at least two values, otherwise ``"model"``.
    replicate_key
        Column of ``adata.obs`` with the replicates, such as donors.
    covariates
        Columns to adjust for, such as the batch. Replicates: columns that are constant in each replicate. Model:
        categorical covariates that the model was fitted with; cells are decoded under all their categories, and the
        results averaged.
    at
        Cells to compare, as a dict from column to value, ``{"cell_type": "B"}``; all by default.
    modality
        Modality of the features; by default the first of the model, which is ``"rna"`` if it has RNA.
    delta
        Size that the log2 fold change should exceed, for `p_value`, `lfsr` and `fdr` [3]_.
    continuous
        Whether `groupby` is a number and the result a trend, the log2 fold change per unit. With replicates, the slopes
        of replicates are tested if the number differs between cells of a replicate, as a dose given to cells of each
        donor; otherwise replicates are compared, as donors of different ages. By default, floating-point numbers with
        more than 10 values are continuous, and whole numbers are groups.
    transform_batch
        For the model, decode as if all cells came from this batch; or an average over several batches, or over all with
        ``"all"``; or a dict that maps covariates to such values.
    layer
        As in `transform`.
    key_added
        Key of ``adata.uns`` for the result in the layout of `scanpy.tl.rank_genes_groups`, or None to write nothing. As
        in scanpy, an earlier ranking under this key is replaced.
    seed
        Seed of the posterior samples; the model's seed by default.

    Returns
    -------
    pandas.DataFrame
        One row per group and feature, ordered by group and then by the evidence for a difference.

        - ``group`` and ``feature``. For a trend, the group is the column, and the other columns of the group and the
          reference are those of the quarters of the cells with the highest and the lowest values.
        - ``log2_fold_change`` of the group against the reference, relative to most features: if some features take a
          larger share of the counts, the others do not decrease [5]_. For a trend, the change per unit.
        - ``lower`` and ``upper`` end of its 90 % interval: a credible interval (model) or a confidence interval
          (replicates).
        - ``mean_group``, ``mean_reference``: mean expression in counts per 10,000, under a Bernoulli likelihood the
          probability at the median depth. For replicates, the mean over replicates of their observed expression.
        - ``share_group``, ``share_reference``: share of cells with a count.
        - ``p_value``: of the moderated t-test; NaN for the model, and for features with fewer than 15 counts in all
          samples, which are not tested.
        - ``lfsr``: local false sign rate, the posterior probability that the fold change is 0, has the other sign, or
          does not exceed `delta` [4]_.
        - ``fdr``: false discovery rate by the method of Benjamini and Hochberg, within each group, from the p-value or
          from the tail probability of the posterior.

        The same result is written to ``adata.uns[key_added]``, so that ``scanpy.get.rank_genes_groups_df``,
        ``scanpy.pl.rank_genes_groups`` and similar functions read it. Features are ordered there by ``scores``, the
        log2 fold change divided by its standard deviation.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    KeyError
        There is no such column, group, covariate or modality.
    ValueError
        A side of a comparison has fewer than 3 cells or fewer than 2 replicates; a trend has fewer than 3 replicates;
        covariates cannot be separated from the groups; or ``adata.uns[key_added]`` is not a ranking.
    ValueError, TypeError, FloatingPointError, OSError
        As `transform`.

    Warns
    -----
    UserWarning
        There are no replicates and `method` is not given: the result then does not describe differences between donors.

    Notes
    -----
    :doc:`/howto/differential` compares the methods. :doc:`/statistics` has the formulas.

    References
    ----------
    .. [1] Law et al. (2014), voom: precision weights unlock linear model analysis tools for RNA-seq read counts,
       doi:10.1186/gb-2014-15-2-r29.
    .. [2] Smyth (2004), Linear models and empirical Bayes methods for assessing differential expression in microarray
       experiments, doi:10.2202/1544-6115.1027.
    .. [3] McCarthy and Smyth (2009), Testing significance relative to a fold-change threshold is a TREAT,
       doi:10.1093/bioinformatics/btp053.
    .. [4] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
    .. [5] Robinson and Oshlack (2010), A scaling normalization method for differential expression analysis of RNA-seq
       data, doi:10.1186/gb-2010-11-3-r25.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> table = model.differential(adata, "bulk_labels", ["CD19+ B"], method="model")
    >>> len(table), "CD79A" in set(table["feature"].head(10))
    (765, True)
    >>> import scanpy as sc
    >>> sc.get.rank_genes_groups_df(adata, group="CD19+ B").shape
    (765, 7)
    """
    model = read_from(model, layer)
    modality = get_modality(model, modality)
    _check_options(method, replicate_key, delta, at)
    seed = resolve_seed(seed, model.seed)
    covariate_keys = [covariates] if isinstance(covariates, str) else list(covariates)
    cells = adata if is_file_path(adata) else to_anndata(model, adata)
    if key_added is not None and not is_file_path(adata):
        results.check_ranking(adata, key_added)
    keys = [groupby, *(at if isinstance(at, Mapping) else [at[0]] if at else []), *covariate_keys]
    obs = read_obs(model, cells, [*keys, *([] if replicate_key is None else [replicate_key])])
    found, comparisons = _find_comparisons(obs, groupby, at, (groups, reference), continuous)
    replicates = None
    if replicate_key is not None and method != "model":
        replicates = replicate_effects.find_replicates(obs, replicate_key, covariate_keys, found)
    method = _choose_method(method, replicates)
    conditions = _conditions(model, covariate_keys, transform_batch, method)
    request = Request(model, cells, modality, found, comparisons, delta)
    if method == "replicates":
        assert replicates is not None
        table = _compare_replicates(request, replicates)
    else:
        with isolate_rng(seed):
            table = _compare_model(request, conditions)
    if key_added is not None and not is_file_path(adata):
        params = {
            "groupby": groupby,
            "reference": comparisons[0].reference,
            "use_raw": False,
            "method": method,
            "corr_method": "benjamini-hochberg",
        }
        names = list(model.schema_.feature_names[modality])
        layout = ranking_layout.to_scanpy_layout(table, names, params)
        results.write_ranking(adata, model.fingerprint_, key_added, layout)
    return table[COLUMNS]


@dataclass(frozen=True)
class Request:
    """Comparisons of groups of cells in one modality."""

    model: FittedModel
    cells: Any
    modality: str
    groups: Groups
    comparisons: list[Comparison]
    delta: float

    @property
    def networks(self) -> Modality:
        """The networks of the modality."""
        modality = self.model.module_.modalities[self.modality]
        assert isinstance(modality, Modality)
        return modality

    @property
    def library_size(self) -> float:
        """Library size of the mean values."""
        return library_size_to_decode(self.model, self.modality)

    def parts(self, unit_c: np.ndarray, only_modality: bool) -> Iterator[tuple[Cells, np.ndarray]]:
        """Yield the cells part by part, with the unit of each."""
        start = 0
        for _, cells in read_parts(self.model, self.cells, [self.modality] if only_modality else None):
            yield cells, unit_c[start : start + len(cells)]
            start += len(cells)


def _find_comparisons(
    obs: pd.DataFrame, groupby: str, at: Any, chosen: tuple[Any, Any], continuous: bool | None
) -> tuple[Groups, list[Comparison]]:
    """Return the groups of cells, or bins of a number, and what is to be compared."""
    groups, reference = chosen
    if not trends.is_continuous(obs, groupby, continuous):
        found = find_groups(obs, groupby, at)
        return found, pair_up(found, groups, reference)
    if groups is not None or reference != REST:
        raise ValueError(
            f"{groupby!r} is a column of numbers, along which a trend is tested: leave groups and reference out, or "
            "pass continuous=False if each number is a group"
        )
    bins, comparison = trends.bin_cells(obs, groupby, at)
    return bins, [comparison]


def _mean_of_sides(
    request: Request, comparison: Comparison, means: fold_changes.GroupMeans, n_cells_g: np.ndarray
) -> np.ndarray:
    """Return the mean expression on both sides of a comparison, from that of the sides or that of bins."""
    mean_sf: np.ndarray = np.exp(means.log_mean_sf)
    if comparison.value_g is None:
        return mean_sf
    weight_kg = comparison.member_sg * n_cells_g
    mean_kf: np.ndarray = (weight_kg / weight_kg.sum(1, keepdims=True)) @ mean_sf
    return mean_kf


def _check_options(method: Any, replicate_key: str | None, delta: Any, at: Any) -> None:
    """Raise if options are invalid."""
    if method not in (None, "model", "replicates"):
        raise ValueError(f"method is {method!r}: it must be 'model' or 'replicates'")
    if method == "replicates" and replicate_key is None:
        raise ValueError("method is 'replicates': pass replicate_key, the column of adata.obs with the donors")
    if not isinstance(delta, int | float | np.number) or not 0 <= delta < np.inf:
        raise ValueError(f"delta is {delta!r}: it must be a log2 fold change of at least 0")
    if not (at is None or isinstance(at, Mapping) or (isinstance(at, tuple) and len(at) == 2)):
        raise TypeError(f"at is {at!r}: pass a dict from column to value, such as {{'cell_type': 'B'}}")


def _choose_method(method: Method | None, replicates: replicate_effects.Replicates | None) -> Method:
    """Return the method, and warn if the choice is made here and limits what the result shows."""
    if method is not None:
        return method
    if replicates is not None and len(replicates.names) > 1:
        return "replicates"
    reason = "no replicate_key is given" if replicates is None else f"there is only one {replicates.column}"
    warn(
        f"{reason}, so the cells are compared as one population: intervals and fdr do not include differences between "
        "donors; pass replicate_key to test between donors, or method='model' if this is intended"
    )
    return "model"


def _conditions(
    model: FittedModel, covariates: Sequence[str], transform_batch: Any, method: Method
) -> list[group_sums.CodedCondition]:
    """Return the conditions to decode under: all categories of the covariates to adjust for."""
    if method == "replicates":
        if transform_batch is not None:
            raise ValueError("transform_batch needs method='model': replicates are compared by their counts")
        return []
    schema = model.schema_
    for key in covariates:
        if key not in schema.categories:
            raise KeyError(
                f"covariate {key!r} is not a categorical covariate of the model ({format_names(schema.categories)}): "
                "method='model' adjusts for those, method='replicates' for any column"
            )
    conditions = resolve_transform_batch(model, transform_batch)
    if covariates:
        if transform_batch is not None:
            raise ValueError("both covariates and transform_batch are given: pass a dict as transform_batch instead")
        conditions = resolve_transform_batch(model, dict.fromkeys(covariates, ALL))
    categorical, columns = list(schema.categories), schema.continuous_columns()
    return [
        group_sums.CodedCondition(
            {
                categorical.index(key): schema.categories[key].index(str(value))
                for key, value in condition.items()
                if key in categorical
            },
            {
                column: float(encoded)
                for key, value in condition.items()
                if key in columns
                for column, encoded in enumerate(
                    schema.encode_continuous(key, np.array([float(value)]))[0], columns[key].start
                )
            },
        )
        for condition in conditions
    ]


def _compare_model(request: Request, conditions: Sequence[group_sums.CodedCondition]) -> pd.DataFrame:
    """Return the table of the method "model"."""
    networks = request.networks
    if networks.loadings is None:
        warn(
            "this model was saved by an earlier version, without the uncertainty of its loadings: the intervals do not "
            "include it; fit or partial_fit adds it",
        )
    group_c = request.groups.group_c
    sums = group_sums.decoded_sums(
        request.model.module_,
        request.parts(group_c, only_modality=False),
        request.modality,
        len(request.groups.names),
        request.library_size,
        conditions,
    )
    precision = fold_changes.correction_precision(sums)
    tables = []
    for comparison in request.comparisons:
        sides = sums.merge(comparison.member_sg)
        sets, contrast_s = sides, np.array([1.0, -1.0])
        if comparison.value_g is not None:
            sets, contrast_s = sums, trends.slope_contrast(comparison.value_g, sums.n_cells_g)
            # Most features have no trend. The precision that they suggest would shrink the means of all bins, and with
            # them a slope for which the bins together have many counts.
            precision = fold_changes.PRECISION_BOUNDS[0]
        means = fold_changes.group_means(sets, precision, networks.likelihood.upper_bound)
        change_f, deviation_f = fold_changes.log_fold_change(means, contrast_s, networks, request.library_size)
        used_f = sides.count_gf.min(0) >= moderated_t.MIN_EXPECTED
        change_f = change_f - moderated_t.trimmed_center(change_f[used_f], deviation_f[used_f] ** -2.0)
        mean_kf = _mean_of_sides(request, comparison, means, sums.n_cells_g)
        effect = _Effect(change_f / np.log(2), deviation_f / np.log(2), np.inf, has_p_value=False)
        tables.append(_table(request, comparison, sides, mean_kf, effect))
    return pd.concat(tables, ignore_index=True)


def _compare_replicates(request: Request, replicates: replicate_effects.Replicates) -> pd.DataFrame:
    """Return the table of the method "replicates"."""
    unit_c = replicates.unit_c(request.groups)
    n_units = len(request.groups.names) * len(replicates.names)
    n_features = len(request.model.schema_.feature_names[request.modality])
    parts = request.parts(unit_c, only_modality=True)
    sums = group_sums.count_sums(parts, request.modality, n_units, n_features)
    tables = []
    for comparison in request.comparisons:
        sides = sums.merge(np.repeat(comparison.member_sg, len(replicates.names), axis=1))
        if comparison.value_g is not None:
            tested, tested_f = trends.replicate_slope(comparison, sums, request.groups, replicates)
            share_kf = sides.count_gf / np.maximum(sides.library_size_g, 1)[:, None]
        else:
            samples = replicate_effects.samples_of(comparison, sums, replicates)
            covariate_sp = replicate_effects.covariates_of(samples, comparison, request.groups, replicates)
            tested, tested_f = replicate_effects.replicate_effect(samples, covariate_sp)
            share_kf = samples.mean_shares()
        mean_kf = request.library_size * share_kf
        estimate_f, deviation_f = (np.full(n_features, np.nan) for _ in range(2))
        estimate_f[tested_f], deviation_f[tested_f] = tested.estimate_f, tested.deviation_f
        tables.append(
            _table(request, comparison, sides, mean_kf, _Effect(estimate_f, deviation_f, tested.degrees, True))
        )
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Effect:
    """Log2 fold changes with standard deviations, NaN where they are not known, and degrees of freedom."""

    estimate_f: np.ndarray
    deviation_f: np.ndarray
    degrees: float
    has_p_value: bool


def _table(
    request: Request, comparison: Comparison, sides: group_sums.CountSums, mean_kf: np.ndarray, effect: _Effect
) -> pd.DataFrame:
    """Return the rows of one comparison, by the evidence for a difference."""
    estimate_f, deviation_f, delta = effect.estimate_f, effect.deviation_f, request.delta
    known_f = np.isfinite(estimate_f)
    p_value_f, lfsr_f = np.full(len(estimate_f), np.nan), np.full(len(estimate_f), np.nan)
    estimate, deviation = estimate_f[known_f], deviation_f[known_f]
    p_value_f[known_f] = shrinkage.tail_probability(estimate, deviation, delta, effect.degrees)
    if known_f.any():
        lfsr_f[known_f] = shrinkage.local_false_sign_rate(
            estimate, shrinkage.normal_deviation(estimate, deviation, effect.degrees), delta
        )
    score_f = np.sign(estimate_f) * np.maximum(np.abs(estimate_f) - delta, 0) / deviation_f
    half_width = HALF_WIDTH if np.isinf(effect.degrees) else student.ppf(0.95, effect.degrees)
    share_kf = sides.expressing_gf / np.maximum(sides.n_cells_g, 1)[:, None]
    fdr_f = shrinkage.adjusted(p_value_f)
    columns = {
        "group": comparison.group,
        "feature": np.array(request.model.schema_.feature_names[request.modality], dtype=object),
        "log2_fold_change": estimate_f,
        "lower": estimate_f - half_width * deviation_f,
        "upper": estimate_f + half_width * deviation_f,
        "mean_group": mean_kf[0],
        "mean_reference": mean_kf[1],
        "share_group": share_kf[0],
        "share_reference": share_kf[1],
        "p_value": p_value_f if effect.has_p_value else np.nan,
        "lfsr": lfsr_f,
        "fdr": fdr_f,
        # For the layout of scanpy, which has no missing values.
        "score": np.nan_to_num(score_f, nan=0.0),
        "p": np.nan_to_num(p_value_f, nan=1.0),
    }
    order_f = np.lexsort([-np.nan_to_num(np.abs(score_f), nan=-1.0)])
    return pd.DataFrame(columns).iloc[order_f]
