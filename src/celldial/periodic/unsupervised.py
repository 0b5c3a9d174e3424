"""Where on a circle cells start out when there are no markers: a circle is looked for among the genes themselves.

Genes of one programme rise and fall together, and those of a rhythm make two such groups or more, which peak at
different angles. So what tells cell types and batches apart is taken out, axes are found that each move few genes
(principal components, turned by varimax [1]_), and every two of these are tried as cosine and sine of an angle. From
there angles and genes are found in turns, as `celldial.periodic.initial_angles` does it for markers.

Most of what is found so is no circle. Three things tell one: genes that were kept out of the fit follow its angle,
genes peak all around it, not only at the ends of one line or of two crossing ones, and cells are all around it, too,
not in clumps.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``g`` groups of cells, ``j`` angles on the grid,
``k`` axes or coefficients.

.. [1] Kaiser (1958), The varimax criterion for analytic rotation in factor analysis, Psychometrika 23, 187-200,
   doi:10.1007/BF02289233
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from celldial.periodic.initial_angles import (
    ANGLE_J,
    MAX_VARIABLE_GENES,
    MIN_STD,
    AngleEstimate,
    AngleModel,
    circular_summary,
    fit_em,
    residual_variance,
)

__all__ = ["MIN_CIRCULARITY", "discover_angles"]

Array = NDArray[np.floating]
Codes = NDArray[np.integer]

MAX_SEARCH_CELLS = 1_500
# A gene is listened to if this share of the cells have it: what a few cells are alone with makes axes of its own.
MIN_DETECTION_RATE = 0.02
# Cells are put into so many clusters at most, by so many principal components, and into more than one only where the
# mean silhouette is so large: a rhythm must not be what is clustered.
MAX_CLUSTERS, N_COMPONENTS, MIN_SILHOUETTE = 8, 10, 0.2
# Axes that pairs are made of; genes that a circle is found by; pairs gone on with; rounds of choosing genes.
N_AXES, N_GENES, N_REFINED, N_SELECTION_ROUNDS = 8, 30, 8, 4
MIN_GENES = 10
# In data without a rhythm, simulated and real, the roundest that was found had 0.0097; where there was one and it was
# found, the least round had 0.014.
MIN_CIRCULARITY = 0.012
# A circle this round is seen before cells are clustered, and its pieces must not be taken for clusters. What cell types
# made of themselves, without clusters, was not rounder than 0.05.
CLEAR_CIRCULARITY = 0.1


def discover_angles(
    logged_cf: sparse.csr_matrix, batch_c: Codes, seed: int = 0
) -> tuple[AngleEstimate, NDArray[np.int64], float]:
    """Look for a circle, and say where cells are on the best one.

    Which way round angles grow is arbitrary; 0 is where cells are most common. All cells are taken to be active.

    Parameters
    ----------
    logged_cf
        Log-normalized expression; only cells that were measured.
    batch_c
        Codes of what cells differ by for reasons of no interest, such as batches.
    seed
        For the clusters.

    Returns
    -------
    tuple[Place, NDArray[np.int64], float]
        The places; the columns of the genes they were found by; and the roundness, from 0 to 1: less than
        `MIN_CIRCULARITY` is found in data without any circle, too.

    Raises
    ------
    ValueError
        There are hardly any genes to look at.
    """
    learn_c = np.unique(np.linspace(0, logged_cf.shape[0] - 1, MAX_SEARCH_CELLS).astype(int))
    candidate_f = _candidates(logged_cf[learn_c])
    if len(candidate_f) < MIN_GENES:
        raise ValueError(
            f"periodic=True: only {len(candidate_f)} features differ enough between cells to look for a circle "
            f"(needed: {MIN_GENES}). Keep more features, or name the markers of the rhythm"
        )
    learned = logged_cf[learn_c][:, candidate_f], batch_c[learn_c]
    for max_clusters in (1, MAX_CLUSTERS):
        groups = ClusterResiduals.fit(*learned, max_clusters, seed)
        best = _most_circular(groups.residuals(*learned), seed)
        if best.circularity >= CLEAR_CIRCULARITY:
            break
    blocks = (slice(start, start + MAX_SEARCH_CELLS) for start in range(0, logged_cf.shape[0], MAX_SEARCH_CELLS))
    places = [best.fitted.infer(groups.residuals(logged_cf[block][:, candidate_f], batch_c[block])) for block in blocks]
    zero = ANGLE_J[np.argmax(best.fitted.log_prior_j)]
    angle_c = (np.concatenate([place.angle_c for place in places]) - zero) % (2 * np.pi)
    length_c = np.concatenate([place.length_c for place in places])
    heard_f = candidate_f[best.fitted.column_f]
    return AngleEstimate(angle_c, length_c, np.ones_like(angle_c)), heard_f, best.circularity


def _candidates(logged_cf: sparse.csr_matrix) -> NDArray[np.int64]:
    """Genes that vary most, of those that enough cells have."""
    mean_f = np.asarray(logged_cf.mean(0)).ravel()
    variance_f = np.asarray(logged_cf.power(2).mean(0)).ravel() - mean_f**2
    variance_f[np.asarray((logged_cf > 0).mean(0)).ravel() < MIN_DETECTION_RATE] = 0
    most_f = np.sort(np.argsort(-variance_f, kind="stable")[:MAX_VARIABLE_GENES])
    columns: NDArray[np.int64] = most_f[variance_f[most_f] > MIN_STD**2]
    return columns


@dataclass(frozen=True)
class ClusterResiduals:
    """Clusters of cells in each batch, and the mean of each, which is taken out."""

    scale_f: Array
    center_bf: Array
    clusters: KMeans | None
    pca: PCA
    mean_gf: Array
    deviation_f: Array

    @classmethod
    def fit(cls, logged_cf: sparse.csr_matrix, batch_c: Codes, max_clusters: int, seed: int) -> ClusterResiduals:
        """Cluster cells, if they form clusters at all, by what batches do not differ by."""
        dense_cf = logged_cf.toarray().astype(np.float32)
        scale_f = np.maximum(dense_cf.std(0), MIN_STD)
        n_batches = int(batch_c.max()) + 1
        center_bf = _means(dense_cf / scale_f, batch_c, n_batches)
        standard_cf = dense_cf / scale_f - center_bf[batch_c]
        pca = PCA(min(N_COMPONENTS, *standard_cf.shape), random_state=seed).fit(standard_cf)
        reduced_ck = pca.transform(standard_cf)
        best, clusters = MIN_SILHOUETTE, None
        for n_clusters in range(2, min(max_clusters, len(dense_cf) - 1) + 1):
            tried = KMeans(n_clusters, n_init=3, random_state=seed).fit(reduced_ck)
            score = silhouette_score(reduced_ck, tried.labels_)
            if score > best:
                best, clusters = score, tried
        group_c = batch_c if clusters is None else clusters.labels_ * n_batches + batch_c
        mean_gf = _means(standard_cf, group_c, (1 if clusters is None else clusters.n_clusters) * n_batches)
        deviation_f = np.maximum((standard_cf - mean_gf[group_c]).std(0), MIN_STD)
        return cls(scale_f, center_bf, clusters, pca, mean_gf, deviation_f)

    def residuals(self, logged_cf: sparse.csr_matrix, batch_c: Codes) -> Array:
        """Take out of each gene what the groups differ by, and standardize it."""
        standard_cf = logged_cf.toarray().astype(np.float32) / self.scale_f - self.center_bf[batch_c]
        group_c = batch_c
        if self.clusters is not None:
            group_c = self.clusters.predict(self.pca.transform(standard_cf)) * len(self.center_bf) + batch_c
        left_cf: Array = (standard_cf - self.mean_gf[group_c]) / self.deviation_f
        return left_cf


def _means(value_cf: Array, group_c: Codes, n_groups: int) -> Array:
    """Mean of each group, and of all cells where there is none of a group."""
    member_cg = np.eye(n_groups, dtype=value_cf.dtype)[group_c]
    n_g = member_cg.sum(0)[:, None]
    mean_gf: Array = np.where(n_g > 0, member_cg.T @ value_cf / np.maximum(n_g, 1), value_cf.mean(0))
    return mean_gf


def _varimax_axes(value_cf: Array, seed: int) -> Array:
    """Principal components, turned so that each moves few genes: scores of the cells, of variance 1."""
    pca = PCA(min(N_AXES, *value_cf.shape), whiten=True, random_state=seed).fit(value_cf)
    loading_fk = pca.components_.T * np.sqrt(pca.explained_variance_)
    turn_kk, before = np.eye(loading_fk.shape[1]), 0.0
    for _ in range(200):
        turned_fk = loading_fk @ turn_kk
        left, strength_k, right = np.linalg.svd(loading_fk.T @ (turned_fk**3 - turned_fk * (turned_fk**2).mean(0)))
        turn_kk = left @ right
        if strength_k.sum() < before * (1 + 1e-7):
            break
        before = strength_k.sum()
    axis_ck: Array = pca.transform(value_cf) @ turn_kk
    return axis_ck


def _most_circular(left_cf: Array, seed: int) -> CircleCandidate:
    """Try every two axes as cosine and sine, go on with the roundest, and give the one that stayed so."""
    axis_ck = _varimax_axes(left_cf, seed)
    tried = [refine(left_cf, np.angle(axis_ck @ pair)) for pair in _pairs(axis_ck.shape[1])]
    tried = sorted(tried, key=lambda circle: -circle.circularity)[:N_REFINED]
    for _ in range(N_SELECTION_ROUNDS):
        tried = [refine(left_cf, circle.angle_c, circle.circularity) for circle in tried]
    return max(tried, key=lambda circle: circle.circularity)


def _pairs(n_axes: int) -> list[NDArray[np.complexfloating]]:
    """For every two axes, one as real and one as imaginary part."""
    return [np.eye(n_axes)[i] + 1j * np.eye(n_axes)[j] for i, j in combinations(range(n_axes), 2)]


@dataclass(frozen=True)
class CircleCandidate:
    """A circle that was tried: where cells are, by which genes, and how much it is one."""

    angle_c: Array
    fitted: AngleModel
    circularity: float


def refine(left_cf: Array, angle_c: Array, most: float = 1.0) -> CircleCandidate:
    """Choose the genes that follow an angle most, and find it anew by these.

    What is no circle may look like one in passing, so that one is held to be no rounder than it was, `most`, before.
    """
    column_f = np.argsort(residual_variance(left_cf, angle_c), kind="stable")[:N_GENES]
    chosen_cf = left_cf[:, column_f]
    posterior_cj, mean_jf, variance_f, log_prior_j = fit_em(chosen_cf, angle_c, 1.0)
    place = circular_summary(posterior_cj)
    explained = []
    for half in (0, 1):
        told_c = circular_summary(fit_em(chosen_cf[:, half::2], place.angle_c, 1.0)[0]).angle_c
        explained.append(1 - residual_variance(chosen_cf[:, 1 - half :: 2], told_c).mean())
    fitted = AngleModel(place, column_f, mean_jf, variance_f, log_prior_j, 1.0)
    circularity = float(np.mean(explained)) * _evenness(mean_jf, log_prior_j)
    return CircleCandidate(place.angle_c, fitted, min(circularity, most))


def _evenness(mean_jf: Array, log_density_j: Array) -> float:
    """Say how evenly genes and cells go round.

    Three numbers from 0 to 1, multiplied. How genes' peaks are spread: along a line these are at two opposite angles,
    along two that cross at four, along three at six. How much of what genes do is one wave a turn: in a loop that was
    folded it is two. How many cells are where there are fewest, compared with an even spread.
    """
    first_f, second_f = np.fft.rfft(mean_jf, axis=0)[1:3]
    weight_f = np.abs(first_f) ** 2 + 1e-12
    turned_f = first_f / np.sqrt(weight_f)
    spread = 1 - max(abs((weight_f * turned_f**n).sum()) / weight_f.sum() for n in (2, 4, 6))
    single = weight_f.sum() / (weight_f + np.abs(second_f) ** 2).sum()
    density_j = np.exp(log_density_j - log_density_j.max())
    return float(spread * single * density_j.min() / density_j.mean())
