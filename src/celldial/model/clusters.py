"""Clusters: a discrete variable of each cell, on which the prior of its coordinates depends.

In the generative model, a cell has a cluster, its coordinates scatter around the mean of the cluster, and its counts
depend on the coordinates alone.

Axis suffixes: ``c`` cells, ``k`` clusters, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import OneHotCategorical, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, constraints, kl_divergence, register_kl

from celldial.model.distributions import SINGLE_DRAW, RelaxableCategorical
from celldial.model.latent_parts import EncoderOutput
from celldial.model.latents import Latent
from celldial.model.priors import Components, Prior

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = ["FINAL_TEMPERATURE", "INITIAL_TEMPERATURE", "ClusterConditional", "Clusters", "annealed_temperature"]

# Temperature of relaxed cluster assignments at the start and at the end of training.
INITIAL_TEMPERATURE, FINAL_TEMPERATURE = 1.0, 0.3
# Added to the weights of the clusters, so that the log prior of an empty cluster is finite.
EMPTY_WEIGHT = 1e-5
# Log odds of a known label.
LABEL_LOGIT = 30.0


def annealed_temperature(progress: float) -> float:
    """Return the temperature of relaxed assignments, which falls geometrically with the fraction of training done."""
    return INITIAL_TEMPERATURE * (FINAL_TEMPERATURE / INITIAL_TEMPERATURE) ** progress


class Clusters(Prior):
    """The variable ``"cluster"``, and the prior of the coordinates given the cluster.

    Parameters
    ----------
    latent
        The latent family.
    n_clusters
        Number of clusters.
    n_labels
        Number of clusters that have a label. They come first.
    """

    in_family = True
    analytic_kl: ClassVar[bool] = True

    def __init__(self, latent: Latent, n_clusters: int, n_labels: int = 0) -> None:
        super().__init__()
        self.n_clusters, self.n_labels = n_clusters, n_labels
        self.components = Components(latent, n_clusters)

    @property
    def log_weight_k(self) -> Tensor:
        """Log prior probability of each cluster."""
        return self.components.logit_k.log_softmax(-1)

    def log_weight_prior(self) -> Tensor:
        """Return the log density of the weights, up to a constant. This prior empties clusters that are not needed.

        A cluster has two parameters per coordinate. Its cells must increase the log-likelihood by half a nat per
        parameter, otherwise its weight falls to zero (Figueiredo and Jain 2002, Unsupervised learning of finite mixture
        models, doi:10.1109/34.990138). Clusters with a label are exempt.
        """
        weight_k = self.log_weight_k[self.n_labels :].exp()
        return -self.components.latent.n_latent * (weight_k + EMPTY_WEIGHT).log().sum()

    # --- Prior of the coordinates -------------------------------------------------------------------------------------

    def distribution(self, cells: Cells) -> TorchDistribution:
        """Return the prior of each cell's coordinates, with the cluster summed out."""
        return self.components.mixture(len(cells))

    def conditional(self, choice_ck: Tensor, n_cells: int) -> ClusterConditional:
        """Return the prior of each cell's coordinates given its cluster."""
        return ClusterConditional(self.components, choice_ck, n_cells)

    # --- The cluster of a cell ----------------------------------------------------------------------------------------

    def prior_distributions(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, TorchDistribution]:
        """Return the prior of each cell's cluster."""
        return {"cluster": RelaxableCategorical(self.log_weight_k.expand(len(cells), -1))}

    def posterior_distributions(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Return the approximate posterior of each cell's cluster, which is certain for cells with a label."""
        assert encoded.logits_ck is not None
        return {"cluster": RelaxableCategorical(self.override_with_labels(encoded.logits_ck, cells.label_c))}

    def sample_prior(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sample the clusters of new cells."""
        return {"cluster": OneHotCategorical(logits=self.log_weight_k).sample([len(cells)])}

    def state_columns(self, drawn: Mapping[str, Tensor]) -> list[Tensor]:
        """Return no columns: given the coordinates, counts do not depend on the cluster."""
        return []

    def assignment_logits(self, mu_cz: Tensor, sigma_cz: Tensor, correction_ck: Tensor) -> Tensor:
        """Return unnormalized log probabilities of each cell's cluster, given the posterior of its coordinates.

        This is Bayes' rule averaged over a Gaussian posterior, which is optimal if the posterior treats coordinates and
        cluster as independent. The encoders add a learned correction, which starts at 0.
        """
        components = self.components
        precision_kz = components.scale_kz**-2
        distance_ck = (
            (mu_cz**2 + sigma_cz**2) @ precision_kz.T
            - 2 * mu_cz @ (components.mean_kz * precision_kz).T
            + (components.mean_kz**2 * precision_kz).sum(1)
        )
        expected_log_density_ck = -0.5 * distance_ck - components.log_scale_kz.sum(1)
        return self.log_weight_k + expected_log_density_ck + correction_ck

    def override_with_labels(self, logits_ck: Tensor, label_c: Tensor | None) -> Tensor:
        """Replace the log probabilities of cells with a label; a label of -1 is unknown."""
        if label_c is None:
            return logits_ck
        known_ck = LABEL_LOGIT * nn.functional.one_hot(label_c.clamp_min(0), self.n_clusters).to(logits_ck.dtype)
        return torch.where(label_c[:, None] >= 0, known_ck, logits_ck)


class ClusterConditional(TorchDistribution):
    """Distribution of the coordinates of cells given their clusters.

    For probabilities or relaxed assignments instead of one-hot vectors, the log density and the KL divergence are means
    over clusters. Both enter the ELBO linearly, so probabilities sum the cluster out exactly.

    Parameters
    ----------
    components
        One component per cluster.
    choice_ck
        Cluster of each cell: one-hot vectors, relaxed assignments or probabilities.
    n_cells
        Number of cells.
    """

    arg_constraints: ClassVar = {"choice_ck": constraints.simplex}
    support = constraints.real_vector

    def __init__(self, components: Components, choice_ck: Tensor, n_cells: int) -> None:
        self.components, self.choice_ck = components, choice_ck
        batch_shape = torch.broadcast_shapes(choice_ck.shape[:-1], (n_cells,))
        super().__init__(batch_shape, (components.latent.n_latent,), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ClusterConditional:
        """Return the distribution itself, which already has the shape of the plate."""
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, averaged over clusters."""
        return (self.choice_ck * self.components.log_prob_ck(value)).sum(-1)

    def sample(self, sample_shape: Any = SINGLE_DRAW) -> Tensor:
        """Sample coordinates, given one-hot vectors."""
        index_c = self.choice_ck.argmax(-1)
        components = self.components
        cluster = components.latent.posterior(components.mean_kz[index_c], components.scale_kz[index_c])
        drawn: Tensor = cluster.sample(sample_shape)
        return drawn


def kl_to_components(q: Independent, components: Components) -> Tensor:
    """Return the KL divergence of each cell's posterior from each component, shape ``(c, k)``."""
    component = components.latent.posterior(components.mean_kz[:, None], components.scale_kz[:, None])
    return kl_divergence(q.expand([1, *q.batch_shape]), component).T


@register_kl(Independent, ClusterConditional)
def _kl_to_cluster(q: Independent, p: ClusterConditional) -> Tensor:
    return (p.choice_ck * kl_to_components(q, p.components)).sum(-1)
