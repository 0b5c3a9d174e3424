"""Training a module that has clusters: first its coordinates, then where the clusters are, then both together.

Clusters that start before there is anything to see fall together, and stay so. Axis suffixes: ``c`` cells, ``k``
clusters, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from celldial import train
from celldial.data import MAX_BLOCK_CELLS, Cells, minibatches
from celldial.module import Module
from celldial.settings import settings

__all__ = ["fit"]

# The share of the epochs before there are clusters, and by how much slower the rest learns.
FIRST_SHARE, SLOWER = 0.5, 2.0
# Of the first clusters, relative to the spread of all cells: no narrower than this.
MIN_SCALE = 0.1
N_STARTS = 10


def fit(
    module: Module, cells: Cells, train_c: Tensor, validation_c: Tensor, plan: train.Plan, seed: int
) -> dict[str, list[float]]:
    """Train from the start; takes and returns the same as `celldial.train.fit`."""
    assert module.clusters is not None
    n_first = math.ceil(FIRST_SHARE * plan.max_epochs)
    module.clusters.requires_grad_(False)
    history = train.fit(module, cells, train_c, validation_c, replace(plan, max_epochs=n_first), seed)
    module.clusters.requires_grad_(True)
    place(module, cells.select(train_c), seed)
    if plan.max_epochs == n_first:
        return history
    rest = replace(
        plan,
        max_epochs=plan.max_epochs - n_first,
        learning_rate=plan.learning_rate / SLOWER,
        warm_up=False,
    )
    return train.continued(history, train.fit(module, cells, train_c, validation_c, rest, seed + 1))


@torch.no_grad()
def place(module: Module, cells: Cells, seed: int) -> None:
    """Place the clusters where cells are: those of known labels there, others by a mixture of Gaussians."""
    assert module.clusters is not None
    components = module.clusters.components
    device = settings.torch_device
    module.to(device).eval()
    blocks = [module.encode(block.to(device)).mu_cz.cpu() for block in minibatches(cells, MAX_BLOCK_CELLS)]
    mu_cz = torch.cat(blocks).double().numpy()
    start_kz = None
    mixture = GaussianMixture(
        module.clusters.n_clusters,
        covariance_type="diag",
        reg_covar=(MIN_SCALE * mu_cz.std()) ** 2,
        n_init=N_STARTS,
        random_state=seed,
        means_init=start_kz,
    ).fit(mu_cz)
    for parameter, value in (
        (components.mean_kz, mixture.means_),
        (components.log_scale_kz, np.log(mixture.covariances_) / 2),
        (components.logit_k, np.log(mixture.weights_)),
    ):
        parameter.copy_(torch.from_numpy(value))
