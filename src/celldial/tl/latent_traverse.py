"""Latent traversals: move cells along an axis, decode each step, and summarize the change of every feature.

Axis suffixes: ``f`` features, ``s`` steps, ``z`` columns of the latent state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.inference import population_means
from celldial.inference.conditions import Conditions, describe_conditions, resolve_transform_batch
from celldial.inference.fitted_model import (
    FittedModel,
    feature_table,
    library_size_to_decode,
    read_from,
    to_anndata,
)
from celldial.io import results
from celldial.tl import flat_curves, replicate_curves, traversal
from celldial.tl.moved_cells import MovedCells, Sampling, move_along, move_between
from celldial.tl.traversal_axis import TraversalAxis, check_traversal, resolve_axis
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import get_column
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed
from celldial.utils.warnings import warn

__all__ = ["latent_traverse"]


@validate_types
def latent_traverse(
    model: FittedModel,
    adata: AnnData,
    axis: int | str | tuple[Any, Any] = 0,
    *,
    n_steps: int = 25,
    span: tuple[float, float] | None = None,
    at: Mapping[str, Any] | tuple[str, Any] | str | None = None,
    groupby: str | None = None,
    transform_batch: Any = None,
    n_cells: int = 32,
    n_samples: int | None = None,
    library_size: float | None = None,
    key_added: str | None = None,
    layer: str | None = None,
    replicates: str | None = None,
    seed: int | None = None,
) -> AnnData:
    r"""Move cells along an axis of latent space, and return which genes and peaks change, with credible intervals.

    A random sample of cells moves along the axis step by step while everything else about each cell stays as it is.
    Every step is decoded and averaged over the cells.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.latent_traverse(adata, ...)``.
    adata
        Cells to start from.
    axis
        The axis to move along.

        - a number, or ``"axis_3"``: a latent coordinate, counted from 0; ``"topic_3"`` in a topic model;
        - the name of an axis that `find_axis` stored in ``adata.uns["celldial"]["axes"]``;
        - the name of the periodic coordinate, ``"cell_cycle"``: one full turn, so that the last step equals the first;
        - a path between two cells or two groups, ``("CD4 T", "CD8 T")``. Each cell of the first group is paired with a
          cell of the second so that the total distance is minimal, and moves to its partner in a straight line. The
          first step shows the first group, the last step the second group, both with the covariates of the first.
    n_steps
        Number of steps.
    span
        Quantiles of the cells' positions at which the traversal of a coordinate or a named axis starts and ends. By
        default, a named axis from a column of ``obs`` is traversed from score 0, the mean of the first group, to score
        1, the mean of the last, and other axes from quantile 0.01 to 0.99.
    at
        Cells to move: all by default; a group, ``{"cell_type": "B"}`` or ``("cell_type", "B")``; or a single cell by
        its name. Not available for a path. On a periodic axis only active cells of the group are moved.
    groupby
        Column of ``adata.obs`` with the groups of a path. Needed if several columns contain both groups.
    transform_batch
        Batch to decode under, several batches to average over, or ``"all"``, as in `denoise`. By default each cell
        keeps its own covariates.
    n_cells
        Number of cells to move, chosen at random from the population; with `replicates`, from each of them.
    n_samples
        Posterior samples of each cell, at least 2; by default 64 samples over all cells. The cost of a step is
        proportional to cells × samples.
    library_size
        As in `decode`. It applies to all modalities except those with a Bernoulli likelihood.
    key_added
        Name of the result in ``adata.uns["latent_traverse"]``. By default ``"axis_3"`` (``"topic_3"`` for a topic),
        the name of the axis, or ``"CD4 T to CD8 T"``.
    layer
        As in `transform`.
    replicates
        Column of ``adata.obs`` with the independent units of the experiment, such as ``"donor"``, at least three. The
        intervals then say how well the mean over donors is known, and `lfsr` and `fdr` are about donors; see the notes.
        Not available for a path.
    seed
        Seed of the choice of cells and of the posterior samples; the model's seed by default.

    Returns
    -------
    anndata.AnnData
        Steps × features of all modalities.

        - ``X`` and ``layers["mean"]``: expected expression, mean over the cells.
        - ``layers["lower"]``, ``layers["upper"]``: 90 % credible interval of that mean; see the notes.
        - ``layers["log2_fold_change"]``: log2 fold change of the mean against the first step.
        - ``obs["position"]``: value of the coordinate (for a topic its mean share), score on the axis, angle in radians
          (also ``obs["angle"]``), or fraction of the path from 0 to 1.
        - ``var["effect_size"]``: log2 fold change of the highest step against the lowest; ``var["change"]``: log2 fold
          change of the last step against the first (0 around a circle), on a named axis between two groups that from
          group to group; ``var["peak_step"]``: the highest step.
        - ``var["lfsr"]``: local false sign rate. For two steps it is the posterior probability that the change has the
          other sign [1]_. In general it is half the p-value of the hypothesis that the curve is flat, by a chi-squared
          test of polynomials of the position, or of harmonics of the angle. ``var["fdr"]``: false discovery rate among
          this feature and all features with a smaller lfsr: their mean lfsr, and around a circle the share of flat
          curves.
        - ``var["rank"]``: 0 is the feature with the largest credible change, by the lower end of the interval of its
          log2 fold change from lowest to highest step. The fold change is moderated by the mean level of the modality's
          features, so that rare features count little. The features that rise most are ``path.var.query("change >
          0").sort_values("rank")``.
        - ``var["modality"]``.

        The same values are written as arrays to ``adata.uns["latent_traverse"][name]``, with the arguments of the call.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError
        An argument is invalid, or names something that does not exist; the message names it. Nothing is written.

    Warns
    -----
    UserWarning
        The model was saved by an earlier version without the uncertainty of the loadings, so the intervals only cover
        the uncertainty of the latent states; a named axis predicts its target no better than chance; or the model found
        no periodic process in its cells.

    Notes
    -----
    The interval is a credible interval of the population mean. It combines three sources: the posterior uncertainty of
    each cell's latent state, by sampling; the differences between the cells, since `n_cells` of them represent the
    population; and the uncertainty of the decoder loadings, from a Laplace approximation of the last layer [2]_ [3]_
    based on the counts of the training cells. It describes how well a mean is known, not how much cells differ, and it
    conditions on the other layers of the decoder.

    With `replicates`, each donor has a curve, the mean over its cells, and the result is the mean over donors, which
    all have the same weight. Its interval is a 90 % confidence interval from the differences between donors, by the t
    distribution, on the log scale. `lfsr` is half the p-value of t-tests over donors of the contrasts of the log
    curve, with Bonferroni's correction. The intervals leave out the uncertainty of the loadings, which all donors
    share.

    At most 20,000 cells are read for the quantiles, block by block, and no matrix of cells × features is made.

    References
    ----------
    .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
    .. [2] MacKay (1992), A practical Bayesian framework for backpropagation networks,
       doi:10.1162/neco.1992.4.3.448.
    .. [3] Kristiadi et al. (2020), Being Bayesian, even just a bit, fixes overconfidence in ReLU networks,
       arXiv:2002.10118.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> model.latent_traverse(adata, "axis_3", n_steps=5).shape
    (5, 765)
    >>> path = model.latent_traverse(adata, ("CD14+ Monocyte", "Dendritic"), groupby="bulk_labels")
    >>> list(adata.uns["latent_traverse"])
    ['axis_3', 'CD14+ Monocyte to Dendritic']
    """
    model = read_from(model, layer)
    for name, count, least in (("n_steps", n_steps, 2), ("n_cells", n_cells, 1), ("n_samples", n_samples, 2)):
        if count is not None or name != "n_samples":
            check_integer(name, count, least)
    check_traversal(span, key_added)
    conditions = resolve_transform_batch(model, transform_batch)
    seed = resolve_seed(seed, model.seed)
    depth = {
        name: library_size_to_decode(model, name, None if part.likelihood.binary else library_size)
        for name, part in model.module_.by_modality()
    }
    table = to_anndata(model, adata)
    resolved = resolve_axis(axis, model, results.read_axes(adata))
    if resolved.kind == "path" and at is not None:
        raise ValueError(f"at is {at!r}, but axis is a path, which moves the cells of its first group: leave at out")
    if resolved.kind == "path" and replicates is not None:
        raise ValueError(
            f"replicates is {replicates!r}, but axis is a path, whose cells are paired: find an axis between the "
            "groups with find_axis(groups=...), and traverse it"
        )
    if resolved.kind != "path" and groupby is not None:
        raise ValueError(f"groupby is {groupby!r}, but axis is not a path between groups: leave groupby out")
    if replicates is not None:
        get_column(table.obs, replicates, "replicates")
    sampling = Sampling(n_steps, n_cells, n_samples, span, np.random.default_rng(seed), replicates)
    with isolate_rng(seed):
        if resolved.kind == "path":
            moved = move_between(model, table, resolved, groupby, sampling)
        else:
            moved = move_along(model, table, resolved, at, sampling)
    if any(modality.loadings is None for _, modality in model.module_.by_modality()):
        warn(
            "this model was saved by an earlier version, without the uncertainty of its loadings: the intervals only "
            "cover the uncertainty of the latent states; fit or partial_fit adds the rest",
        )
    result, stored = decode_traversal(model, resolved, moved, conditions, depth)
    results.write_traversal(adata, model.fingerprint_, resolved.name if key_added is None else key_added, stored)
    return result


def decode_traversal(
    model: FittedModel,
    axis: TraversalAxis,
    moved: MovedCells,
    conditions: Sequence[Mapping[str, Any]],
    library_size: Mapping[str, float],
) -> tuple[AnnData, dict[str, Any]]:
    """Decode moved cells, and summarize the change of every feature.

    Parameters
    ----------
    model
        A fitted model.
    axis, moved
        The axis, and the cells along it.
    conditions
        Conditions to decode under, as `resolve_transform_batch` returns them.
    library_size
        Modality to the library size to decode with.

    Returns
    -------
    tuple[AnnData, dict[str, Any]]
        Steps × features, as `latent_traverse` returns them, and the same as arrays to store.
    """
    schema = model.schema_
    sample_of_cell_j = np.repeat(np.arange(moved.cells.n_obs), moved.n_samples)
    encoded = Conditions.encode(schema, moved.cells, conditions).cells(sample_of_cell_j)
    closed = axis.kind == "periodic"
    summarize = _curves_of_cells if moved.replicate_c is None else _curves_of_replicates
    parts = [summarize(model, name, depth, moved, encoded, closed) for name, depth in library_size.items()]
    modality_f = np.repeat(np.array(schema.modalities, dtype=object), [part[0].shape[1] for part in parts])
    likelihoods = {name: part.likelihood for name, part in model.module_.by_modality()}
    upper_bound_f = np.array([likelihoods[modality].upper_bound for modality in modality_f], dtype=np.float32)
    mean_sf, variance_sf, change_variance_f, flat_p_value_f = traversal.concat_modalities(parts)
    replicates = [] if moved.replicate_c is None else list(dict.fromkeys(moved.replicate_c))
    width = replicate_curves.half_width(len(replicates)) if replicates else traversal.HALF_WIDTH
    curves = traversal.Traversal(mean_sf, variance_sf, change_variance_f, upper_bound_f, flat_p_value_f, closed, width)
    by_step, by_feature = _summaries(curves, modality_f)
    about = {
        "axis": axis.title,
        "kind": axis.kind,
        "position_label": axis.label,
        "path": moved.path_sz.astype(np.float32),
        "likelihood": dict(schema.likelihood),
        "unit": {name: likelihood.unit for name, likelihood in likelihoods.items()},
        "library_size": dict(library_size),
        "interval": traversal.INTERVAL,
        "n_cells": moved.cells.n_obs,
        "n_samples": moved.n_samples,
        "at": moved.at,
        "covariates": describe_conditions(conditions),
        **({"phases": axis.phases} if axis.phases else {}),
        **({"replicates": np.array(replicates, dtype=object)} if replicates else {}),
    }
    names = feature_table(schema).index
    stored = {
        **about,
        "position": moved.position_s,
        "feature_names": np.array(names, dtype=object),
        "modality": modality_f,
        **by_step,
        **by_feature,
    }
    obs = pd.DataFrame({"position": moved.position_s}, pd.RangeIndex(len(moved.position_s)).map("step_{}".format))
    if axis.kind == "periodic":
        obs["angle"] = moved.position_s
    # Copies, so that a change to the result leaves the stored arrays alone.
    result = AnnData(
        curves.mean_sf.copy(),
        obs=obs,
        var=pd.DataFrame({**by_feature, "modality": modality_f}, index=names, copy=True),
        layers={name: values_sf.copy() for name, values_sf in by_step.items()},
        uns=copy.deepcopy(about),
    )
    return result, stored


def _curves_of_cells(
    model: FittedModel, name: str, library_size: float, moved: MovedCells, conditions: Conditions, closed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, its variance, variance of the change, and p-value of a flat curve, if cells are the units."""
    sizes = (library_size, moved.n_samples, moved.n_group)
    found = population_means.mean_along_path(model.module_, name, moved.state_sjz, conditions, *sizes)
    p_value_f = _flat_p_value(model, name, moved.state_sjz, conditions, library_size, found, closed)
    return found.mean_sf, found.variance_sf, found.change_variance_f, p_value_f


def _curves_of_replicates(
    model: FittedModel, name: str, library_size: float, moved: MovedCells, conditions: Conditions, closed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the same as `_curves_of_cells` if replicates are the units."""
    assert moved.replicate_c is not None
    curves = []
    for replicate in dict.fromkeys(moved.replicate_c):
        of_cell_c = moved.replicate_c == replicate
        draw_j = np.flatnonzero(np.repeat(of_cell_c, moved.n_samples))
        sizes = (library_size, moved.n_samples, int(of_cell_c.sum()))
        states_sjz, own = moved.state_sjz[:, draw_j], conditions.cells(draw_j)
        curves.append(population_means.mean_along_path(model.module_, name, states_sjz, own, *sizes).mean_sf)
    return replicate_curves.summarize(np.stack(curves), closed)


def _flat_p_value(
    model: FittedModel,
    name: str,
    state_sjz: np.ndarray,
    conditions: Conditions,
    library_size: float,
    means: population_means.PopulationMeans,
    closed: bool,
) -> np.ndarray:
    """Return the p-value of a flat curve for each feature of a modality."""
    contrast_ks = flat_curves.contrasts(len(state_sjz), closed)
    covariance_fkl = population_means.contrast_covariance(
        model.module_, name, state_sjz, conditions, library_size, contrast_ks, means.mean_sf
    )
    # A contrast is the coefficient of a function with a range of 2, so this much of it is due to the states.
    state_variance_f = means.state_variance_f / 4
    covariance_fkl = covariance_fkl + state_variance_f[:, None, None] * np.eye(len(contrast_ks))
    return flat_curves.flat_p_value(means.mean_sf, contrast_ks, covariance_fkl, closed)


def _summaries(
    curves: traversal.Traversal, modality_f: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the curves by step, and the summaries of each feature's curve."""
    by_step = {
        "mean": curves.mean_sf,
        "lower": curves.lower_sf,
        "upper": curves.upper_sf,
        "log2_fold_change": curves.log2_fold_change_sf,
    }
    by_feature = {
        "effect_size": curves.effect_size_f,
        "change": curves.change_f,
        "peak_step": curves.peak_step_f,
        "lfsr": curves.lfsr_f,
        "fdr": curves.fdr_f,
        "rank": traversal.ranks(curves.score_f(modality_f)),
    }
    return by_step, by_feature
