"""Initial angles of cells, before training, from the markers of a periodic process.

Scores of the markers give first angles, which expectation maximization improves (`celldial.periodic.angle_em`). Other
genes that follow the same angle can make it more precise. But if they follow cell types instead of phases, they make it
worse. Therefore, several numbers of genes are tried, and compared by how well they predict held-out markers.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``p`` phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from celldial.periodic.angle_em import AngleEstimate, AngleModel, fit_em, residual_variance
from celldial.periodic.expression import MAX_VARIABLE_GENES, MIN_STD, mean_and_variance
from celldial.periodic.markers import PeriodicProcess

__all__ = ["angles_from_markers", "initial_activity", "initial_angles"]

Array = NDArray[np.floating]

MAX_FIT_CELLS = 2_000
"""Cells that the model of angles is fit to. The angles of all cells are inferred with it."""

GENE_COUNTS = (0, 100, 400, 1000)
"""Numbers of further genes to try. The largest number with a score of at least `MIN_RELATIVE_SCORE` is used."""

MIN_RELATIVE_SCORE = 0.94
"""Smallest acceptable score, relative to the best one."""

N_SELECTION_ROUNDS = 4
"""Rounds of selecting genes that follow the angle, and estimating the angle from them."""

MAX_INDEPENDENT_GENES = 100
"""The likelihood of more genes is tempered, because genes are not independent given the angle."""

RESTING_SHARE, RESTING_WIDTH = 0.12, 0.25
"""A cell is probably at rest if its fraction of marker counts is less than `RESTING_SHARE` times the 99th percentile of
all cells. The probability is a logistic function of the log fraction, with the scale `RESTING_WIDTH`."""

MIN_RESTING_FRACTION = 0.03
"""If the expected fraction of cells at rest is smaller, all cells are active."""


def initial_activity(
    counts_cf: sparse.csr_matrix, library_size_c: Array, markers: dict[str, NDArray[np.int64]]
) -> Array:
    """Return the probability that each cell is active, from its fraction of marker counts."""
    marker_f = np.concatenate(list(markers.values()))
    share_c = (np.asarray(counts_cf[:, marker_f].sum(1)).ravel() + 0.5) / np.maximum(library_size_c, 1)
    log_ratio_c = np.log(share_c / np.quantile(share_c, 0.99)) - np.log(RESTING_SHARE)
    active_c: Array = expit(log_ratio_c / RESTING_WIDTH)
    return active_c if 1 - active_c.mean() > MIN_RESTING_FRACTION else np.ones_like(active_c)


def initial_angles(
    logged_cf: sparse.csr_matrix, active_c: Array, markers: dict[str, NDArray[np.int64]], process: PeriodicProcess
) -> tuple[AngleEstimate, NDArray[np.int64]]:
    """Return initial angles of cells, and the columns of the genes that they were estimated from.

    Parameters
    ----------
    logged_cf
        Log-normalized expression of the cells that have the modality.
    active_c
        Probability that each cell is active. The angles are estimated as if all cells were active, because angles were
        worse without the cells at rest.
    markers
        Phase to the columns of its markers.
    process
        The periodic process, with the angles at which the markers peak.
    """
    sample_c = np.unique(np.linspace(0, logged_cf.shape[0] - 1, MAX_FIT_CELLS).astype(int))
    candidate_f = _candidates(logged_cf[sample_c], np.concatenate(list(markers.values())))
    sample_cf = logged_cf[sample_c][:, candidate_f]
    standard_cf = _standardize(sample_cf, sample_cf)
    position = {column: index for index, column in enumerate(candidate_f)}
    own_markers = {phase: np.array([position[column] for column in columns]) for phase, columns in markers.items()}
    n_genes = _select_n_genes(standard_cf, own_markers, process)
    fitted = _fit(standard_cf, own_markers, process, n_genes)
    if len(sample_c) == logged_cf.shape[0]:
        estimates = [fitted.estimate]
    else:
        blocks = (slice(start, start + MAX_FIT_CELLS) for start in range(0, logged_cf.shape[0], MAX_FIT_CELLS))
        estimates = [
            fitted.model.infer(_standardize(logged_cf[block][:, candidate_f], sample_cf)[:, fitted.column_f])
            for block in blocks
        ]
    angle_c = np.concatenate([estimate.angle_c for estimate in estimates])
    resultant_length_c = np.concatenate([estimate.resultant_length_c for estimate in estimates])
    return AngleEstimate(angle_c, resultant_length_c, active_c), candidate_f[fitted.column_f]


def angles_from_markers(
    logged_cf: sparse.csr_matrix, markers: dict[str, NDArray[np.int64]], process: PeriodicProcess
) -> AngleEstimate:
    """Return angles of cells that are estimated from markers alone.

    Parameters
    ----------
    logged_cf
        Log-normalized expression of the markers, phase by phase.
    markers
        Phase to its markers; only their numbers matter.
    process
        The periodic process.
    """
    end = np.cumsum([len(column_f) for column_f in markers.values()])
    own_markers = dict(zip(markers, np.split(np.arange(end[-1]), end[:-1]), strict=True))
    return _fit(_standardize(logged_cf, logged_cf), own_markers, process, 0).estimate


def _candidates(logged_cf: sparse.csr_matrix, marker_f: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the columns of the markers and of the most variable genes."""
    _, variance_f = mean_and_variance(logged_cf)
    return np.union1d(np.argsort(-variance_f, kind="stable")[:MAX_VARIABLE_GENES], marker_f)


def _standardize(logged_cf: sparse.csr_matrix, reference_cf: sparse.csr_matrix) -> Array:
    """Return dense expression, standardized by mean and standard deviation of reference cells."""
    mean_f, variance_f = mean_and_variance(reference_cf)
    std_f = np.sqrt(np.maximum(variance_f, MIN_STD**2))
    standard_cf: Array = ((logged_cf.toarray() - mean_f) / std_f).astype(np.float32)
    return standard_cf


@dataclass(frozen=True)
class _Fit:
    """A model of angles, the columns of its genes, and the angles of the cells that it was fit to."""

    model: AngleModel
    column_f: NDArray[np.int64]
    estimate: AngleEstimate


def _fit(
    standard_cf: Array,
    markers: dict[str, NDArray[np.int64]],
    process: PeriodicProcess,
    n_genes: int,
    held_out_f: NDArray[np.int64] | None = None,
) -> _Fit:
    """Estimate angles from the markers and from `n_genes` further genes that follow the angle."""
    marker_f = np.concatenate(list(markers.values()))
    candidate_f = np.arange(standard_cf.shape[1])
    if held_out_f is not None:
        candidate_f = np.setdiff1d(candidate_f, held_out_f)
    score = {phase: standard_cf[:, column_f].mean(1) for phase, column_f in markers.items()}
    score_cp = np.stack([(score_c - score_c.mean()) / max(score_c.std(), 1e-6) for score_c in score.values()], 1)
    angle_c = np.angle(score_cp @ np.exp(1j * np.array([process.peak_angle[phase] for phase in score])))
    column_f = marker_f
    model, estimate = fit_em(standard_cf[:, column_f], angle_c, 1.0)
    for _ in range(N_SELECTION_ROUNDS if n_genes else 0):
        residual_f = residual_variance(standard_cf[:, candidate_f], estimate.angle_c)
        following_f = candidate_f[np.argsort(residual_f, kind="stable")[: min(n_genes, len(candidate_f) // 2)]]
        column_f = np.union1d(following_f, marker_f)
        temper = min(1.0, MAX_INDEPENDENT_GENES / len(column_f))
        model, estimate = fit_em(standard_cf[:, column_f], estimate.angle_c, temper)
    return _Fit(model, column_f, estimate)


def _select_n_genes(standard_cf: Array, markers: dict[str, NDArray[np.int64]], process: PeriodicProcess) -> int:
    """Return how many further genes to use. The score of a number is the explained variance of held-out markers."""
    halves = [{phase: column_f[half::2] for phase, column_f in markers.items()} for half in (0, 1)]
    if any(len(column_f) < 2 for half in halves for column_f in half.values()):
        return 0
    score = {}
    for n_genes in GENE_COUNTS:
        explained = []
        for half, other in zip(halves, reversed(halves), strict=True):
            held_out_f = np.concatenate(list(other.values()))
            angle_c = _fit(standard_cf, half, process, n_genes, held_out_f).estimate.angle_c
            explained.append(1 - residual_variance(standard_cf[:, held_out_f], angle_c).mean())
        score[n_genes] = float(np.mean(explained))
    best = max(score.values())
    return max(n_genes for n_genes in GENE_COUNTS if score[n_genes] >= MIN_RELATIVE_SCORE * best)
