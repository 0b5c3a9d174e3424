"""Training of a module with clusters: first the coordinates alone, then the clusters are initialized and trained, too.

Clusters that are trained from the start, before the coordinates separate groups of cells, collapse onto each other.

Axis suffixes: ``c`` cells, ``j`` draws of their latent states, ``k`` clusters, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import torch
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.mixture import GaussianMixture

from celldial.data.cells import MAX_DECODE_CELLS, Cells, minibatches
from celldial.data.source import Source
from celldial.model.module import Module
from celldial.training.plan import Stage, StagePlan, TrainingPlan
from celldial.utils.settings import settings

__all__ = ["first_stages"]

# Fraction of the epochs before clusters are initialized, without and with labels. Labels of the cells of one batch pull
# the clusters towards these cells. They must not do so before the cells of all batches share the latent space.
COORDINATES_FRACTION, COORDINATES_FRACTION_WITH_LABELS = 0.25, 0.6
# Minimum and maximum number of draws of latent states to which the mixture is fitted.
MIN_DRAWS, MAX_DRAWS = 5_000, 20_000
# Maximum number of cells from whose posteriors these are drawn.
MAX_INITIALIZATION_CELLS = 100_000
# Number of restarts of the mixture and of the choice of centers; the best result is used.
N_RESTARTS = 10


def first_stages(plan: TrainingPlan, seed: int, has_labels: bool = False) -> StagePlan:
    """Return the stages that train a new module with clusters; parameters as in `celldial.training.stages`."""
    fraction = COORDINATES_FRACTION_WITH_LABELS if has_labels else COORDINATES_FRACTION
    n_first = math.ceil(fraction * plan.max_epochs)
    start = partial(start_clusters, seed=seed)
    coordinates = Stage("coordinates", replace(plan, max_epochs=n_first), before=freeze_clusters, after=start)
    if plan.max_epochs == n_first:
        return StagePlan((coordinates,))
    rest = replace(plan, max_epochs=plan.max_epochs - n_first, kl_warmup=False)
    return StagePlan((coordinates, Stage("clusters", rest)))


def freeze_clusters(module: Module, source: Source) -> Source:
    """Exclude the parameters of the clusters from training."""
    assert module.clusters is not None
    module.clusters.requires_grad_(False)
    return source


def start_clusters(module: Module, source: Source, seed: int) -> Source:
    """Include the parameters of the clusters in training, and initialize them from cells of the source."""
    assert module.clusters is not None
    module.clusters.requires_grad_(True)
    # scikit-learn takes seeds below 2**32, and adds to them.
    initialize_clusters(module, source.training_sample(MAX_INITIALIZATION_CELLS), seed % 2**31)
    return source


@torch.no_grad()
def initialize_clusters(module: Module, cells: Cells, seed: int) -> None:
    """Set weights, means and scales of the clusters to those of groups of cells in the latent space."""
    assert module.clusters is not None
    components, device = module.clusters.components, settings.torch_device
    module.to(device).eval()
    # Draws, not means: a coordinate with wide posteriors must not appear narrow.
    n_draws = max(1, MIN_DRAWS // len(cells))
    with pyro.validation_enabled(False):
        blocks = [module.posterior(block.to(device))["z"] for block in minibatches(cells, MAX_DECODE_CELLS)]
        z_jz = torch.cat([block.sample() for _ in range(n_draws) for block in blocks]).double().cpu().numpy()
    n_clusters = module.clusters.n_clusters
    if cells.label_c is None or not bool((cells.label_c >= 0).any()):
        values = fit_mixture(z_jz, n_clusters, seed)
    else:
        values = initialize_from_labels(z_jz, np.tile(cells.label_c.numpy(), n_draws), n_clusters, seed)
    for parameter, value in zip((components.logit_k, components.mean_kz, components.log_scale_kz), values, strict=True):
        parameter.copy_(torch.from_numpy(value))


def fit_mixture(z_jz: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a Gaussian mixture; return log weights, means and log standard deviations, the heaviest component first."""
    if len(z_jz) > MAX_DRAWS:
        z_jz = np.random.default_rng(seed).choice(z_jz, MAX_DRAWS, replace=False)
    mixture = GaussianMixture(n_clusters, covariance_type="diag", n_init=N_RESTARTS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training continues from any mixture
        mixture.fit(z_jz)
    order_k = np.argsort(-mixture.weights_)
    return np.log(mixture.weights_)[order_k], mixture.means_[order_k], np.log(mixture.covariances_[order_k]) / 2


def initialize_from_labels(
    z_jz: np.ndarray, label_j: np.ndarray, n_clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log weights, means and log standard deviations: each labeled cluster is centered on its labeled cells.

    Clusters without labeled cells start far from these centers and from each other. All clusters share one standard
    deviation per coordinate, because a label may have a single cell. Unlabeled cells are not used: in a mixture fitted
    to all cells, a few labeled cells would have no influence.
    """
    labeled_j = label_j >= 0
    indicator_jk = np.eye(n_clusters)[label_j[labeled_j]]
    n_k = indicator_jk.sum(0)
    mean_kz = indicator_jk.T @ z_jz[labeled_j] / np.maximum(n_k, 1)[:, None]
    empty_k = n_k == 0
    # As if each label had one more draw, scattered like all draws: a label may have a single draw of a single cell.
    square_z = ((z_jz[labeled_j] - indicator_jk @ mean_kz) ** 2).sum(0) + (~empty_k).sum() * z_jz.var(0)
    scale_z = np.sqrt(square_z / (n_k.sum() + (~empty_k).sum()))
    if empty_k.any():
        centers_kz = distant_centers(mean_kz[~empty_k] / scale_z, z_jz / scale_z, int(empty_k.sum()), seed)
        mean_kz[empty_k] = centers_kz * scale_z
    # Clusters without labels start with the mean weight of those with labels. Otherwise they could vanish at once.
    weight_k = np.where(empty_k, n_k[~empty_k].mean(), n_k)
    return np.log(weight_k / weight_k.sum()), mean_kz, np.tile(np.log(scale_z), (n_clusters, 1))


def distant_centers(known_kz: np.ndarray, z_jz: np.ndarray, n_centers: int, seed: int) -> np.ndarray:
    """Return draws that are far from known centers and from each other: the best of several runs of k-means++."""

    def square_distance_j(center_kz: np.ndarray) -> np.ndarray:
        nearest_j: np.ndarray = pairwise_distances_argmin_min(z_jz, center_kz)[1]
        return nearest_j**2

    to_known_j = square_distance_j(known_kz)
    candidates = [
        kmeans_plusplus(z_jz, n_centers, sample_weight=to_known_j, random_state=seed + restart)[0]
        for restart in range(N_RESTARTS)
    ]
    best_kz: np.ndarray = min(
        candidates, key=lambda center_kz: np.minimum(to_known_j, square_distance_j(center_kz)).sum()
    )
    return best_kz
