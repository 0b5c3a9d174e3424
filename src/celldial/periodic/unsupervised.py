"""Initial angles of cells without markers: search for a periodic process among all genes.

Genes of one program rise and fall together. The genes of a periodic process form two or more such groups, which peak at
different angles. The search first removes differences between cell types and batches. It then finds axes of few genes
each (principal components, rotated by varimax [1]_), and tries every pair of axes as cosine and sine of an angle. From
there, expectation maximization refines the angle, and selects the genes that follow it.

Most candidates are not circles. Three properties indicate a circle: the angle predicts held-out genes; genes peak all
around it, and not only at the ends of one line or of two crossing lines; and cells are all around it, without gaps.

Arrays in, arrays out. Axis suffixes: ``b`` batches, ``c`` cells, ``f`` features, ``g`` groups of cells, ``j`` angles of
the grid, ``k`` axes.

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

from celldial.periodic.angle_em import ANGLE_J, AngleEstimate, AngleModel, fit_em, residual_variance
from celldial.periodic.expression import MAX_VARIABLE_GENES, MIN_STD, mean_and_variance

__all__ = ["MIN_CIRCULARITY", "discover_angles"]

Array = NDArray[np.floating]
Codes = NDArray[np.integer]

MAX_SEARCH_CELLS = 1_500
"""Cells that the search uses. The angles of all cells are inferred with its result."""

MIN_DETECTION_RATE = 0.02
"""Smallest fraction of cells in which a gene must be detected. Genes of very few cells form axes of their own."""

MAX_CLUSTERS, N_COMPONENTS, MIN_SILHOUETTE = 8, 10, 0.2
"""Cells are clustered by principal components, but only if the mean silhouette is large enough. Otherwise, the pieces
of a circle might become clusters."""

N_AXES = 8
"""Axes from which pairs are formed."""

N_GENES = 30
"""Genes of a candidate circle."""

N_REFINED, N_SELECTION_ROUNDS = 8, 4
"""Candidate circles that are refined, and rounds of selecting their genes."""

MIN_GENES = 10
MIN_CIRCULARITY = 0.012
"""Smallest circularity of a circle. In simulated and real data without a periodic process, the best candidate had at
most 0.0097. In data with a periodic process that was found, it had at least 0.014."""

CLEAR_CIRCULARITY = 0.1
"""A candidate with this circularity is accepted before cells are clustered, because its pieces must not become
clusters. Without clustering, cell types alone had at most 0.05."""


def discover_angles(
    logged_cf: sparse.csr_matrix, batch_c: Codes, seed: int = 0
) -> tuple[AngleEstimate, NDArray[np.int64], float]:
    """Search for a periodic process, and return the angles of the cells on the best candidate circle.

    The direction of the circle is arbitrary. The angle 0 is where cells are most frequent. All cells are active.

    Parameters
    ----------
    logged_cf
        Log-normalized expression of the cells that have the modality.
    batch_c
        Codes of groups of cells, such as batches, whose differences are removed.
    seed
        Seed of the clustering.

    Returns
    -------
    tuple[AngleEstimate, NDArray[np.int64], float]
        The angles; the columns of the genes that they were estimated from; and the circularity, from 0 to 1. Values
        below `MIN_CIRCULARITY` also occur in data without a periodic process.

    Raises
    ------
    ValueError
        There are too few variable genes.
    """
    sample_c = np.unique(np.linspace(0, logged_cf.shape[0] - 1, MAX_SEARCH_CELLS).astype(int))
    candidate_f = _candidates(logged_cf[sample_c])
    if len(candidate_f) < MIN_GENES:
        raise ValueError(
            f"periodic=True: only {len(candidate_f)} features vary enough between cells to search for a circle "
            f"(needed: {MIN_GENES}). Keep more features, or name the markers of the process"
        )
    sample = logged_cf[sample_c][:, candidate_f], batch_c[sample_c]
    for max_clusters in (1, MAX_CLUSTERS):
        clusters = ClusterResiduals.fit(*sample, max_clusters, seed)
        best = _most_circular(clusters.residuals(*sample), seed)
        if best.circularity >= CLEAR_CIRCULARITY:
            break
    blocks = (slice(start, start + MAX_SEARCH_CELLS) for start in range(0, logged_cf.shape[0], MAX_SEARCH_CELLS))
    estimates = [
        best.model.infer(clusters.residuals(logged_cf[block][:, candidate_f], batch_c[block])[:, best.column_f])
        for block in blocks
    ]
    zero = ANGLE_J[np.argmax(best.model.log_prior_j)]
    angle_c = (np.concatenate([estimate.angle_c for estimate in estimates]) - zero) % (2 * np.pi)
    resultant_length_c = np.concatenate([estimate.resultant_length_c for estimate in estimates])
    estimate = AngleEstimate(angle_c, resultant_length_c, np.ones_like(angle_c))
    return estimate, candidate_f[best.column_f], best.circularity


def _candidates(logged_cf: sparse.csr_matrix) -> NDArray[np.int64]:
    """Return the columns of the most variable genes among those that enough cells have."""
    _, variance_f = mean_and_variance(logged_cf)
    variance_f[np.asarray((logged_cf > 0).mean(0)).ravel() < MIN_DETECTION_RATE] = 0
    variable_f = np.sort(np.argsort(-variance_f, kind="stable")[:MAX_VARIABLE_GENES])
    columns: NDArray[np.int64] = variable_f[variance_f[variable_f] > MIN_STD**2]
    return columns


@dataclass(frozen=True)
class ClusterResiduals:
    """Clusters of cells, and the mean of each cluster in each batch, which is subtracted from the expression."""

    scale_f: Array
    batch_mean_bf: Array
    kmeans: KMeans | None
    pca: PCA
    group_mean_gf: Array
    std_f: Array

    @classmethod
    def fit(cls, logged_cf: sparse.csr_matrix, batch_c: Codes, max_clusters: int, seed: int) -> ClusterResiduals:
        """Cluster cells after removing differences between batches; there is one cluster if none are distinct."""
        dense_cf = logged_cf.toarray().astype(np.float32)
        scale_f = np.maximum(dense_cf.std(0), MIN_STD)
        n_batches = int(batch_c.max()) + 1
        batch_mean_bf = _group_means(dense_cf / scale_f, batch_c, n_batches)
        standard_cf = dense_cf / scale_f - batch_mean_bf[batch_c]
        pca = PCA(min(N_COMPONENTS, *standard_cf.shape), random_state=seed).fit(standard_cf)
        component_ck = pca.transform(standard_cf)
        best_score, kmeans = MIN_SILHOUETTE, None
        for n_clusters in range(2, min(max_clusters, len(dense_cf) - 1) + 1):
            candidate = KMeans(n_clusters, n_init=3, random_state=seed).fit(component_ck)
            score = silhouette_score(component_ck, candidate.labels_)
            if score > best_score:
                best_score, kmeans = score, candidate
        group_c = batch_c if kmeans is None else kmeans.labels_ * n_batches + batch_c
        n_groups = (1 if kmeans is None else kmeans.n_clusters) * n_batches
        group_mean_gf = _group_means(standard_cf, group_c, n_groups)
        std_f = np.maximum((standard_cf - group_mean_gf[group_c]).std(0), MIN_STD)
        return cls(scale_f, batch_mean_bf, kmeans, pca, group_mean_gf, std_f)

    def residuals(self, logged_cf: sparse.csr_matrix, batch_c: Codes) -> Array:
        """Return the standardized expression without the differences between clusters and batches."""
        standard_cf = logged_cf.toarray().astype(np.float32) / self.scale_f - self.batch_mean_bf[batch_c]
        group_c = batch_c
        if self.kmeans is not None:
            group_c = self.kmeans.predict(self.pca.transform(standard_cf)) * len(self.batch_mean_bf) + batch_c
        residual_cf: Array = (standard_cf - self.group_mean_gf[group_c]) / self.std_f
        return residual_cf


def _group_means(value_cf: Array, group_c: Codes, n_groups: int) -> Array:
    """Return the mean of each group; for groups without cells, the mean of all cells."""
    member_cg = np.eye(n_groups, dtype=value_cf.dtype)[group_c]
    size_g = member_cg.sum(0)[:, None]
    mean_gf: Array = np.where(size_g > 0, member_cg.T @ value_cf / np.maximum(size_g, 1), value_cf.mean(0))
    return mean_gf


def _varimax_axes(value_cf: Array, seed: int) -> Array:
    """Return principal components after a varimax rotation, as scores of the cells with variance 1."""
    pca = PCA(min(N_AXES, *value_cf.shape), whiten=True, random_state=seed).fit(value_cf)
    loading_fk = pca.components_.T * np.sqrt(pca.explained_variance_)
    rotation_kk, previous = np.eye(loading_fk.shape[1]), 0.0
    for _ in range(200):
        rotated_fk = loading_fk @ rotation_kk
        gradient_kk = loading_fk.T @ (rotated_fk**3 - rotated_fk * (rotated_fk**2).mean(0))
        left, singular_k, right = np.linalg.svd(gradient_kk)
        rotation_kk = left @ right
        if singular_k.sum() < previous * (1 + 1e-7):
            break
        previous = singular_k.sum()
    axis_ck: Array = pca.transform(value_cf) @ rotation_kk
    return axis_ck


@dataclass(frozen=True)
class CircleCandidate:
    """A candidate circle: its model and genes, the angles of the cells, and its circularity."""

    model: AngleModel
    column_f: NDArray[np.int64]
    angle_c: Array
    circularity: float


def _most_circular(residual_cf: Array, seed: int) -> CircleCandidate:
    """Try every pair of axes as cosine and sine, refine the best candidates, and return the most circular one."""
    axis_ck = _varimax_axes(residual_cf, seed)
    candidates = [_refine(residual_cf, np.angle(axis_ck @ pair_k)) for pair_k in _axis_pairs(axis_ck.shape[1])]
    candidates = sorted(candidates, key=lambda candidate: -candidate.circularity)[:N_REFINED]
    for _ in range(N_SELECTION_ROUNDS):
        candidates = [_refine(residual_cf, candidate.angle_c, candidate.circularity) for candidate in candidates]
    return max(candidates, key=lambda candidate: candidate.circularity)


def _axis_pairs(n_axes: int) -> list[NDArray[np.complexfloating]]:
    """Return complex weights for each pair of axes: one axis is the real part, the other one the imaginary part."""
    return [np.eye(n_axes)[i] + 1j * np.eye(n_axes)[j] for i, j in combinations(range(n_axes), 2)]


def _refine(residual_cf: Array, angle_c: Array, max_circularity: float = 1.0) -> CircleCandidate:
    """Select the genes that follow an angle most closely, and estimate the angle from them.

    A candidate that is not a circle can look like one in a single round. Therefore, its circularity is at most the one
    of the round before, `max_circularity`.
    """
    column_f = np.argsort(residual_variance(residual_cf, angle_c), kind="stable")[:N_GENES]
    value_cf = residual_cf[:, column_f]
    model, estimate = fit_em(value_cf, angle_c, 1.0)
    explained = []
    for half in (0, 1):
        _, from_half = fit_em(value_cf[:, half::2], estimate.angle_c, 1.0)
        explained.append(1 - residual_variance(value_cf[:, 1 - half :: 2], from_half.angle_c).mean())
    circularity = float(np.mean(explained)) * _evenness(model)
    return CircleCandidate(model, column_f, estimate.angle_c, min(circularity, max_circularity))


def _evenness(model: AngleModel) -> float:
    """Return how evenly the peaks of genes and the cells are spread around the circle, from 0 to 1.

    It is the product of three numbers from 0 to 1. (1) The spread of the peaks of genes: along a line, peaks are at two
    opposite angles; along two crossing lines, at four; along three, at six. (2) The fraction of the variation of genes
    that has one wave per turn: on a folded loop, it has two. (3) The smallest density of cells, relative to the mean.
    """
    first_f, second_f = np.fft.rfft(model.mean_jf, axis=0)[1:3]
    power_f = np.abs(first_f) ** 2 + 1e-12
    direction_f = first_f / np.sqrt(power_f)
    peak_spread = 1 - max(abs((power_f * direction_f**n).sum()) / power_f.sum() for n in (2, 4, 6))
    single_wave = power_f.sum() / (power_f + np.abs(second_f) ** 2).sum()
    density_j = np.exp(model.log_prior_j - model.log_prior_j.max())
    return float(peak_spread * single_wave * density_j.min() / density_j.mean())
