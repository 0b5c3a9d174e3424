"""Training a module that has clusters: first its coordinates, then where the clusters are, then both together.

Clusters that start before there is anything to see fall together, and stay so. Axis suffixes: ``c`` cells, ``j``
draws of their states, ``k`` clusters, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pyro
import torch
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin_min
from sklearn.mixture import GaussianMixture

from celldial.data.cells import MAX_BLOCK_CELLS, Cells, minibatches
from celldial.data.in_memory import Source
from celldial.model.module import Module
from celldial.training import loop
from celldial.utils.settings import settings

__all__ = ["fit"]

# The share of the epochs before there are clusters.
COORDINATES_FRACTION = 0.25
# Draws of latent states to find clusters among, at least and at most; and starts of the search.
MIN_DRAWS, MAX_DRAWS = 5_000, 20_000
# Cells that are drawn from, at most.
MAX_INITIALIZATION_CELLS = 100_000
N_RESTARTS = 10


def fit(
    module: Module, source: Source, plan: loop.TrainingPlan, seed: int, run: loop.RunContext
) -> dict[str, list[float]]:
    """Train from the start; takes and returns the same as `celldial.training.loop.fit`."""
    assert module.clusters is not None
    n_first = math.ceil(COORDINATES_FRACTION * plan.max_epochs)
    module.clusters.requires_grad_(False)
    first = run.for_stage("coordinates")
    history = loop.fit(module, source, replace(plan, max_epochs=n_first), seed, first)
    module.clusters.requires_grad_(True)
    initialize_clusters(
        module, source.sample(MAX_INITIALIZATION_CELLS), seed % 2**31
    )  # scikit-learn takes no larger ones
    if plan.max_epochs == n_first or first.interrupted:
        return history
    rest = replace(plan, max_epochs=plan.max_epochs - n_first, kl_warmup=False)
    return loop.concat_history(history, loop.fit(module, source, rest, seed + 1, run.for_stage("clusters")))


@torch.no_grad()
def initialize_clusters(module: Module, cells: Cells, seed: int) -> None:
    """Place the clusters where cells are."""
    assert module.clusters is not None
    components, device = module.clusters.components, settings.torch_device
    module.to(device).eval()
    # Draws and not means: a coordinate in which little is known of each cell must not seem to be narrow.
    n_draws = max(1, MIN_DRAWS // len(cells))
    with pyro.validation_enabled(False):
        blocks = [module.posterior(block.to(device))["z"] for block in minibatches(cells, MAX_BLOCK_CELLS)]
        z_jz = torch.cat([block.sample() for _ in range(n_draws) for block in blocks]).double().cpu().numpy()
    n_clusters = module.clusters.n_clusters
    if cells.label_c is None or not bool((cells.label_c >= 0).any()):
        found = fit_mixture(z_jz, n_clusters, seed)
    else:
        found = initialize_from_labels(z_jz, np.tile(cells.label_c.numpy(), n_draws), n_clusters, seed)
    for parameter, value in zip((components.logit_k, components.mean_kz, components.log_scale_kz), found, strict=True):
        parameter.copy_(torch.from_numpy(value))


def fit_mixture(z_jz: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find clusters by a mixture of Gaussians: log weights, means, log standard deviations."""
    if len(z_jz) > MAX_DRAWS:
        z_jz = np.random.default_rng(seed).choice(z_jz, MAX_DRAWS, replace=False)
    mixture = GaussianMixture(n_clusters, covariance_type="diag", n_init=N_RESTARTS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from where it is
        mixture.fit(z_jz)
    order_k = np.argsort(-mixture.weights_)  # the largest first
    return np.log(mixture.weights_)[order_k], mixture.means_[order_k], np.log(mixture.covariances_[order_k]) / 2


def initialize_from_labels(
    z_jz: np.ndarray, label_j: np.ndarray, n_clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place clusters at the cells of known label; those without a label start far from these and from each other.

    All are given one spread, as a label may be known of a single cell. Cells without a label do not move them yet: in
    a mixture of Gaussians that hears all, a few labelled cells would have no say.
    """
    labelled_j = label_j >= 0
    known_jk = np.eye(n_clusters)[label_j[labelled_j]]
    n_k = known_jk.sum(0)
    mean_kz = known_jk.T @ z_jz[labelled_j] / np.maximum(n_k, 1)[:, None]
    without_k = n_k == 0
    # As if each label had one draw more, scattered as all are: of a single cell there may be a single draw.
    square_z = ((z_jz[labelled_j] - known_jk @ mean_kz) ** 2).sum(0) + (~without_k).sum() * z_jz.var(0)
    scale_z = np.sqrt(square_z / (n_k.sum() + (~without_k).sum()))
    if without_k.any():
        mean_kz[without_k] = (
            distant_centers(mean_kz[~without_k] / scale_z, z_jz / scale_z, int(without_k.sum()), seed) * scale_z
        )
    # Those without a label start as common as those with one are on average, lest they die out before they are seen.
    weight_k = np.where(without_k, n_k[~without_k].mean(), n_k)
    return np.log(weight_k / weight_k.sum()), mean_kz, np.tile(np.log(scale_z), (n_clusters, 1))


def distant_centers(known_kz: np.ndarray, z_jz: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose draws that are far from known places and from each other: the best of some tries at random."""

    def distance_j(place_kz: np.ndarray) -> np.ndarray:
        nearest_j: np.ndarray = pairwise_distances_argmin_min(z_jz, place_kz)[1]
        return nearest_j**2

    from_known_j = distance_j(known_kz)
    tries = [
        kmeans_plusplus(z_jz, n, sample_weight=from_known_j, random_state=seed + start)[0]
        for start in range(N_RESTARTS)
    ]
    best_kz: np.ndarray = min(tries, key=lambda place_kz: np.minimum(from_known_j, distance_j(place_kz)).sum())
    return best_kz
