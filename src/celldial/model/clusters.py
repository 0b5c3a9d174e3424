"""Discrete cell states: which of a few clusters a cell is in, beside its latent coordinates.

A cell's cluster c comes first, its coordinates z are scattered around the place of the cluster, and its counts follow
from z alone. Axis suffixes: ``c`` cells, ``k`` clusters, ``z`` latent coordinates.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import (
    OneHotCategorical,
    TorchDistribution,
)
from torch import Tensor, nn
from torch.distributions import Independent, constraints, kl_divergence, register_kl

from celldial.model.distributions import SINGLE_DRAW, RelaxedCategorical
from celldial.model.latents import Latent
from celldial.model.priors import Components

__all__ = ["ClusterConditional", "Clusters", "temperature"]

# The temperature of relaxed choices, at the start and at the end of training.
INITIAL_TEMPERATURE, FINAL_TEMPERATURE = 1.0, 0.3
# A cluster with this share of the cells has none.
EMPTY_WEIGHT = 1e-5
# Log-odds of a label that is known.
LABEL_LOGIT = 30.0


def temperature(progress: float) -> float:
    """Anneal the temperature of relaxed choices, geometrically with the share of training that is done."""
    return INITIAL_TEMPERATURE * (FINAL_TEMPERATURE / INITIAL_TEMPERATURE) ** progress


class ClusterConditional(TorchDistribution):
    """Where cells of given clusters are in latent space.

    The choice of a cluster may be relaxed: the log density is then averaged, as it is the log density that enters the
    ELBO.
    """

    arg_constraints: ClassVar = {"choice_ck": constraints.simplex}
    support = constraints.real_vector

    def __init__(self, components: Components, choice_ck: Tensor, n_cells: int) -> None:
        self.components, self.choice_ck = components, choice_ck
        batch_shape = torch.broadcast_shapes(choice_ck.shape[:-1], (n_cells,))
        super().__init__(batch_shape, (components.latent.n_latent,), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ClusterConditional:
        """Return itself: it has the shape of the plate that asks."""
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        return (self.choice_ck * self.components.log_prob_ck(value)).sum(-1)

    def sample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Draw coordinates, of choices that are not relaxed."""
        index_c = self.choice_ck.argmax(-1)
        of = self.components
        drawn: Tensor = of.latent.posterior(of.mean_kz[index_c], of.scale_kz[index_c]).sample(sample_shape)
        return drawn


@register_kl(Independent, ClusterConditional)
def _kl_to_cluster(q: Independent, p: ClusterConditional) -> Tensor:
    return (p.choice_ck * kl_to_components(q, p.components)).sum(-1)


def kl_to_components(q: Independent, components: Components) -> Tensor:
    """KL divergence of cells' posteriors from each component, shape ``(c, k)``."""
    return kl_divergence(q.expand([1, *q.batch_shape]), _as_column(components)).T


def _as_column(components: Components) -> Independent:
    return components.latent.posterior(components.mean_kz[:, None], components.scale_kz[:, None])


class Clusters(nn.Module):
    """The clusters, how common each is, and how cells are assigned.

    Parameters
    ----------
    latent
        The latent family.
    n_clusters
        Number of clusters.
    n_labels
        How many of them, the first, have a label.
    straight_through
        Whether relaxed choices are rounded.
    """

    def __init__(self, latent: Latent, n_clusters: int, n_labels: int = 0, straight_through: bool = False) -> None:
        super().__init__()
        self.n_clusters, self.n_labels = n_clusters, n_labels
        self.components = Components(latent, n_clusters)
        self.straight_through = straight_through

    @property
    def log_weight_k(self) -> Tensor:
        """Log of how common each cluster is."""
        return self.components.logit_k.log_softmax(-1)

    def log_prior(self) -> Tensor:
        """Log density, up to a constant, of how common clusters are: one that is not needed empties itself.

        A cluster has two parameters for each coordinate, and must gain half as many nats by its cells to pay for them
        (Figueiredo and Jain 2002, Unsupervised learning of finite mixture models, doi:10.1109/34.990138). Labels are
        not asked to pay.
        """
        weight_k = self.log_weight_k[self.n_labels :].exp()
        return -self.components.latent.n_latent * (weight_k + EMPTY_WEIGHT).log().sum()

    def assignment_logits(self, mu_cz: Tensor, sigma_cz: Tensor, correction_ck: Tensor) -> Tensor:
        """Say by the posterior of its coordinates which cluster a cell is in, as log-odds ``(c, k)``.

        This is Bayes' rule, averaged over a Gaussian posterior: the best there is, given that the posterior treats
        coordinates and cluster as independent. What encoders add is learned, and starts at 0.
        """
        of = self.components
        precision_kz = of.scale_kz**-2
        distance_ck = (
            (mu_cz**2 + sigma_cz**2) @ precision_kz.T
            - 2 * mu_cz @ (of.mean_kz * precision_kz).T
            + (of.mean_kz**2 * precision_kz).sum(1)
        )
        fit_ck = -0.5 * distance_ck - of.log_scale_kz.sum(1)
        return self.log_weight_k + fit_ck + correction_ck

    def choice(self, logits_ck: Tensor, relaxed: bool, temperature: float) -> TorchDistribution:
        """Distribution of the choice of a cluster."""
        if relaxed:
            return RelaxedCategorical(logits_ck, temperature, self.straight_through, validate_args=False)
        return OneHotCategorical(logits=logits_ck)

    def log_prob(self, z_cz: Tensor) -> Tensor:
        """Log density of points, whatever their cluster, shape ``(c,)``."""
        return (self.log_weight_k + self.components.log_prob_ck(z_cz)).logsumexp(-1)

    def override_with_labels(self, logits_ck: Tensor, label_c: Tensor | None) -> Tensor:
        """Put known labels, which are not -1, in place of what is judged."""
        if label_c is None:
            return logits_ck
        known_ck = LABEL_LOGIT * nn.functional.one_hot(label_c.clamp_min(0), self.n_clusters).to(logits_ck.dtype)
        return torch.where(label_c[:, None] >= 0, known_ck, logits_ck)

    def draw(self, n_cells: int) -> Tensor:
        """Draw coordinates of so many cells."""
        choice_ck = OneHotCategorical(logits=self.log_weight_k).sample([n_cells])
        return ClusterConditional(self.components, choice_ck, n_cells).sample()
