"""Where on a circle cells start out: a first angle of each cell from the markers of a rhythm, before any training.

Log-normalized expression of each gene is a short Fourier series of the angle plus noise; angles and series are found in
turns by expectation maximization, from the scores of the markers. What markers say can be made more precise by other
genes that follow the same angle, or be spoiled by them, where these tell cell types and not phases. So several choices
are tried, and judged by how well markers that were kept out are explained.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``j`` angles on the grid, ``k`` coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from celldial.periodic.markers import PeriodicProcess

__all__ = [
    "AngleEstimate",
    "assign_phases",
    "find_phase_starts",
    "initial_activity",
    "initial_angles",
    "log_normalize",
    "rotation_to_markers",
]

Array = NDArray[np.floating]

N_EM_ANGLES = 96
ANGLE_J = np.arange(N_EM_ANGLES) * (2 * np.pi / N_EM_ANGLES)
N_EM_HARMONICS = 2
# Precision of the prior on the coefficients of a harmonic, in cells; the second is taken to be smaller.
RIDGE = (1.0, 16.0)
N_ITERATIONS = 15
N_SELECTION_ROUNDS = 4
# How many genes beside the markers are tried.
N_GENES_TRIED = (0, 100, 400, 1000)
# A choice with more genes is taken if it explains markers that were kept out so nearly as well as the best.
SELECTION_TOLERANCE = 0.94
# Evidence of more genes than these is tempered: genes are not independent given the angle.
N_INDEPENDENT = 100
MAX_EM_CELLS, MAX_VARIABLE_GENES = 2_000, 2_000
MIN_STD = 0.05
# A cell is first taken to be at rest where markers, as a share of its counts, are below this part of what they are in
# the cells that have most of them; and no cell is, where there would be hardly any.
REST_SHARE, REST_WIDTH, MIN_REST = 0.12, 0.25, 0.03


@dataclass(frozen=True)
class AngleEstimate:
    """Of each cell: the angle, how sure it is (mean resultant length), and the probability to be active; ``(c,)``."""

    angle_c: Array
    length_c: Array
    active_c: Array


def log_normalize(counts_cf: sparse.csr_matrix, library_size_c: Array) -> sparse.csr_matrix:
    """Log of one plus counts per median library size."""
    scale_c = np.median(library_size_c[library_size_c > 0]) / np.maximum(library_size_c, 1)
    logged: sparse.csr_matrix = sparse.diags(scale_c) @ counts_cf
    return logged.log1p().tocsr()


def initial_activity(
    counts_cf: sparse.csr_matrix, library_size_c: Array, markers: dict[str, NDArray[np.int64]]
) -> Array:
    """Tell by how many counts of markers it has how probable it is that a cell is active, shape ``(c,)``."""
    marker_f = np.concatenate(list(markers.values()))
    share_c = (np.asarray(counts_cf[:, marker_f].sum(1)).ravel() + 0.5) / np.maximum(library_size_c, 1)
    active_c: Array = expit((np.log(share_c / np.quantile(share_c, 0.99)) - np.log(REST_SHARE)) / REST_WIDTH)
    return active_c if 1 - active_c.mean() > MIN_REST else np.ones_like(active_c)


def initial_angles(
    logged_cf: sparse.csr_matrix, active_c: Array, markers: dict[str, NDArray[np.int64]], process: PeriodicProcess
) -> tuple[AngleEstimate, NDArray[np.int64]]:
    """Find a first angle of each cell, and the columns of the genes that it was found by.

    Parameters
    ----------
    logged_cf
        Log-normalized expression; only cells that were measured.
    active_c
        How probable it is that each is active. Angles are found as if all were: to leave some out at this stage made
        them worse.
    markers
        Phase to the columns of its markers.
    process
        Where these peak.
    """
    learn_c = np.unique(np.linspace(0, logged_cf.shape[0] - 1, MAX_EM_CELLS).astype(int))
    candidate_f = _candidates(logged_cf[learn_c], np.concatenate(list(markers.values())))
    standard_cf = _standardized(logged_cf[learn_c][:, candidate_f])
    place_of = {column: place for place, column in enumerate(candidate_f)}
    own = {phase: np.array([place_of[column] for column in columns]) for phase, columns in markers.items()}
    fitted = _fit(standard_cf, own, process, _select_n_genes(standard_cf, own, process))
    heard_f = candidate_f[fitted.column_f]
    if len(learn_c) == logged_cf.shape[0]:
        return replace(fitted.place, active_c=active_c), heard_f
    like_cf = logged_cf[learn_c][:, candidate_f]
    places = [
        fitted.infer(_standardized(logged_cf[start : start + MAX_EM_CELLS][:, candidate_f], like_cf))
        for start in range(0, logged_cf.shape[0], MAX_EM_CELLS)
    ]
    angle_c, length_c = (np.concatenate([getattr(place, part) for place in places]) for part in ("angle_c", "length_c"))
    return AngleEstimate(angle_c, length_c, active_c), heard_f


def _candidates(logged_cf: sparse.csr_matrix, marker_f: NDArray[np.int64]) -> NDArray[np.int64]:
    """Markers, and the genes that vary most."""
    mean_f = np.asarray(logged_cf.mean(0)).ravel()
    variance_f = np.asarray(logged_cf.power(2).mean(0)).ravel() - mean_f**2
    return np.union1d(np.argsort(-variance_f, kind="stable")[:MAX_VARIABLE_GENES], marker_f)


def _standardized(logged_cf: sparse.csr_matrix, like_cf: sparse.csr_matrix | None = None) -> Array:
    like_cf = logged_cf if like_cf is None else like_cf
    mean_f = np.asarray(like_cf.mean(0)).ravel()
    deviation_f = np.sqrt(np.maximum(np.asarray(like_cf.power(2).mean(0)).ravel() - mean_f**2, MIN_STD**2))
    standard_cf: Array = ((logged_cf.toarray() - mean_f) / deviation_f).astype(np.float32)
    return standard_cf


def fourier_features(angle_c: Array) -> Array:
    """1, then cosine and sine of each harmonic, shape ``(c, k)``."""
    parts = [np.ones_like(angle_c)]
    for harmonic in range(1, N_EM_HARMONICS + 1):
        parts += [np.cos(harmonic * angle_c), np.sin(harmonic * angle_c)]
    return np.stack(parts, 1).astype(np.float32)


@dataclass(frozen=True)
class AngleModel:
    """A fit, and what is needed to judge other cells by it."""

    place: AngleEstimate
    column_f: NDArray[np.int64]
    mean_jf: Array
    variance_f: Array
    log_prior_j: Array
    temper: float

    def infer(self, standard_cf: Array) -> AngleEstimate:
        return circular_summary(
            _posterior(standard_cf[:, self.column_f], self.mean_jf, self.variance_f, self.log_prior_j, self.temper)
        )


def _posterior(value_cf: Array, mean_jf: Array, variance_f: Array, log_prior_j: Array, temper: float) -> Array:
    log_cj = value_cf @ (mean_jf / variance_f).T - 0.5 * (mean_jf**2 / variance_f).sum(1)
    log_cj = temper * log_cj + log_prior_j
    posterior_cj = np.exp(log_cj - log_cj.max(1, keepdims=True))
    return posterior_cj / posterior_cj.sum(1, keepdims=True)


def circular_summary(posterior_cj: Array) -> AngleEstimate:
    """Give the mean angle of each cell, and how sure it is."""
    mean_c = posterior_cj @ np.exp(1j * ANGLE_J)
    return AngleEstimate(np.angle(mean_c) % (2 * np.pi), np.abs(mean_c), np.ones(len(mean_c)))


def fit_em(value_cf: Array, angle_c: Array, temper: float) -> tuple[Array, Array, Array, Array]:
    """Maximize the expectation in turns, from given angles; returns posterior, means, variances and prior."""
    basis_jk = fourier_features(ANGLE_J)
    ridge_k = np.array([1e-3, *np.repeat(RIDGE, 2)], dtype=np.float32)
    near_cj = np.exp(8 * (np.cos(ANGLE_J - angle_c[:, None]) - 1))
    posterior_cj = (near_cj / near_cj.sum(1, keepdims=True)).astype(np.float32)
    smoothing_j = np.exp(10 * (np.cos(ANGLE_J) - 1))
    smoothing = np.fft.rfft(smoothing_j / smoothing_j.sum())
    square_f = (value_cf**2).sum(0)
    for _ in range(N_ITERATIONS):
        weight_j, total_jf = posterior_cj.sum(0), posterior_cj.T @ value_cf
        precision_kk = (basis_jk * weight_j[:, None]).T @ basis_jk + np.diag(ridge_k)
        mean_jf = basis_jk @ np.linalg.solve(precision_kk, basis_jk.T @ total_jf)
        residual_f = weight_j @ mean_jf**2 - 2 * (total_jf * mean_jf).sum(0) + square_f
        variance_f = np.maximum(residual_f / len(value_cf), 1e-3)
        share_j = posterior_cj.mean(0, dtype=np.float64)
        density_j = np.fft.irfft(np.fft.rfft(share_j) * smoothing, N_EM_ANGLES) + 1e-6
        log_prior_j = np.log(density_j).astype(np.float32)
        posterior_cj = _posterior(value_cf, mean_jf, variance_f, log_prior_j, temper)
    return posterior_cj, mean_jf, variance_f, log_prior_j


def _fit(
    standard_cf: Array,
    markers: dict[str, NDArray[np.int64]],
    process: PeriodicProcess,
    n_genes: int,
    kept_out: NDArray[np.int64] | None = None,
) -> AngleModel:
    """Find angles by the markers, and by further genes that follow these."""
    own_f = np.concatenate(list(markers.values()))
    others = np.arange(standard_cf.shape[1])
    if kept_out is not None:
        others = np.setdiff1d(others, kept_out)
    score = {phase: standard_cf[:, column_f].mean(1) for phase, column_f in markers.items()}
    score_cp = np.stack([(s_c - s_c.mean()) / max(s_c.std(), 1e-6) for s_c in score.values()], 1)
    angle_c = np.angle(score_cp @ np.exp(1j * np.array([process.peak[phase] for phase in score])))
    column_f, temper = own_f, 1.0
    found = fit_em(standard_cf[:, own_f], angle_c, temper)
    for _ in range(N_SELECTION_ROUNDS if n_genes else 0):
        place = circular_summary(found[0])
        left_f = residual_variance(standard_cf[:, others], place.angle_c)
        column_f = np.union1d(others[np.argsort(left_f, kind="stable")[: min(n_genes, len(others) // 2)]], own_f)
        temper = min(1.0, N_INDEPENDENT / len(column_f))
        found = fit_em(standard_cf[:, column_f], place.angle_c, temper)
    posterior_cj, mean_jf, variance_f, log_prior_j = found
    return AngleModel(circular_summary(posterior_cj), column_f, mean_jf, variance_f, log_prior_j, temper)


def residual_variance(value_cf: Array, angle_c: Array) -> Array:
    """Share of the variance of each gene that a Fourier series of the angle leaves."""
    design_ck = fourier_features(angle_c)
    left_cf = value_cf - design_ck @ np.linalg.lstsq(design_ck, value_cf, rcond=None)[0]
    result: Array = (left_cf**2).mean(0) / np.maximum(value_cf.var(0), 1e-6)
    return result


def _select_n_genes(standard_cf: Array, markers: dict[str, NDArray[np.int64]], process: PeriodicProcess) -> int:
    """Choose how many genes to take beside the markers, by how well every second marker is explained without it."""
    halves = [{phase: column_f[half::2] for phase, column_f in markers.items()} for half in (0, 1)]
    if any(len(column_f) < 2 for half in halves for column_f in half.values()):
        return 0
    told = {}
    for choice in N_GENES_TRIED:
        explained = []
        for half, other in zip(halves, reversed(halves), strict=True):
            kept_out = np.concatenate(list(other.values()))
            angle_c = _fit(standard_cf, half, process, choice, kept_out).place.angle_c
            explained.append(1 - residual_variance(standard_cf[:, kept_out], angle_c).mean())
        told[choice] = float(np.mean(explained))
    best = max(told.values())
    return max(choice for choice in N_GENES_TRIED if told[choice] >= SELECTION_TOLERANCE * best)


def marker_mean_direction(curve_fj: Array, density_j: Array) -> complex:
    """Say where the cells are that express the markers of a phase, as a vector; its length does not matter.

    Parameters
    ----------
    curve_fj
        Log rates of the markers around the circle, at evenly spaced angles from 0.
    density_j
        How common the angles are. Where there is no cell, a curve is guesswork, however high it is.
    """
    level_j = curve_fj.mean(0) - density_j @ curve_fj.mean(0)
    angle_j = np.arange(len(density_j)) * (2 * np.pi / len(density_j))
    return complex((density_j * np.maximum(level_j, 0) ** 2) @ np.exp(1j * angle_j))


def rotation_to_markers(curve: dict[str, Array], density_j: Array, process: PeriodicProcess) -> float:
    """Say by which angle to turn the circle so that markers peak where their phases are.

    It need not be mirrored: the scores of the markers, from which cells started, gave it its direction. (Two phases
    that lie opposite to each other have none.)

    Parameters
    ----------
    curve
        Phase to the log rates of its markers around the circle, at evenly spaced angles from 0, shape ``(f, j)``.
    density_j
        How common the angles are.
    process
        Where markers should peak.
    """
    late = [
        np.angle(marker_mean_direction(curve_fj, density_j)) - process.peak[phase] for phase, curve_fj in curve.items()
    ]
    return float(-np.angle(np.exp(1j * np.array(late)).sum()))


def find_phase_starts(curve: dict[str, Array], density_j: Array, process: PeriodicProcess) -> Array:
    """Find where phases start: as long before the peak of their markers as the rhythm has it.

    Cells of some kinds hurry through a phase, and peaks are then closer to each other than the rhythm has them.

    Parameters
    ----------
    curve
        As in `rotation_to_markers`, of a circle that was turned.
    density_j
        How common the angles are.
    process
        Its phases; those without markers (G1) start where the rhythm has it, and so do all where they would come in
        another order.
    """
    starts = []
    for phase, start in zip(process.phases, process.phase_start, strict=True):
        late = np.angle(marker_mean_direction(curve[phase], density_j)) - process.peak[phase] if phase in curve else 0.0
        starts.append((start + late) % (2 * np.pi))
    lengths = np.diff([*starts, starts[0]]) % (2 * np.pi)
    in_order = np.isclose(lengths.sum(), 2 * np.pi) and (lengths > 0).all()
    return np.array(starts if in_order else process.phase_start)


def assign_phases(angle_c: Array, phase_start: Array) -> NDArray[np.int64]:
    """Say in which phase each angle is, given the angles where phases start, in the order of the circle."""
    order = np.argsort(phase_start)
    codes: NDArray[np.int64] = order[np.searchsorted(phase_start[order], angle_c, side="right") - 1]
    return codes
