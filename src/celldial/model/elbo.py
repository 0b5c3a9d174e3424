"""Estimators of the gradient of the ELBO: those of Pyro, without computations that training does not need here.

The method ``differentiable_loss(model, guide, ...)`` of an estimator returns a scalar. Its value is the negative ELBO
in nats, summed over cells; its gradient is the estimate. The estimators override private methods of Pyro;
``tests/model/test_elbo.py`` fails if a version of Pyro changes these.

Axis suffixes: ``c`` cells, ``p`` inputs of a baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.ops.provenance import track_provenance
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

if TYPE_CHECKING:
    from celldial.data.cells import Cells
    from celldial.model.latent_parts import EncoderOutput

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineName",
    "EnumeratedELBO",
    "Estimator",
    "Gradient",
    "MeanFieldELBO",
    "ScoreFunctionELBO",
    "baseline_inputs",
    "make_estimator",
    "parse_gradient",
]

LatentGradient = Literal["reparameterized", "score_function"]
ClusterGradient = Literal["enumerate", "gumbel_softmax", "score_function"]
BaselineName = Literal["learned", "moving_average"]
BASELINES: tuple[BaselineName | None, ...] = (*get_args(BaselineName), None)

# Decay of the moving averages of a baseline.
EMA_DECAY = 0.95
# Hidden units of a learned baseline.
N_HIDDEN = 64
# Site to the sites of the model whose log probability depends on its draw.
DOWNSTREAM = {"cluster": ("cluster", "z"), "z": ("z", "counts")}


@dataclass(frozen=True)
class Gradient:
    """Estimators of the gradient with respect to the posteriors of the coordinates and of the clusters, if any."""

    z: LatentGradient = "reparameterized"
    cluster: ClusterGradient | None = None

    @property
    def score_function_sites(self) -> tuple[str, ...]:
        """Sites whose gradient is estimated by the score function."""
        return tuple(name for name in ("cluster", "z") if getattr(self, name) == "score_function")


def parse_gradient(gradient: Any, has_clusters: bool) -> Gradient:
    """Return the estimators that the `gradient` parameter of `celldial.VAE` names.

    Parameters
    ----------
    gradient
        The name of an estimator, or a dict with a name for ``"z"``, ``"cluster"`` or both. A single name applies to the
        clusters if the model has clusters and the estimator supports them, otherwise to the coordinates.
    has_clusters
        Whether the model has clusters.

    Raises
    ------
    ValueError
        An estimator does not exist, or the two estimators cannot be combined.
    """
    known = {"z": get_args(LatentGradient), "cluster": get_args(ClusterGradient)}
    names = gradient
    if isinstance(gradient, str):
        names = {"cluster" if has_clusters and gradient in known["cluster"] else "z": gradient}
    if not isinstance(names, Mapping) or not set(names) <= set(known):
        raise ValueError(
            f"gradient is {gradient!r}: it must be a name, or a dict with a name for 'z', for 'cluster' or for both"
        )
    for site, name in names.items():
        if name in known["cluster"] and not has_clusters:
            if site == "cluster" or name not in known["z"]:
                raise ValueError(f"gradient is {gradient!r}, which needs clusters: set their number by n_clusters")
        elif name not in known[site]:
            raise ValueError(
                f"gradient is {gradient!r}; available for 'z': {', '.join(map(repr, known['z']))}; available for "
                f"'cluster', in a model with clusters: {', '.join(map(repr, known['cluster']))}"
            )
    z, cluster = names.get("z", "reparameterized"), names.get("cluster", "enumerate") if has_clusters else None
    if z == "score_function" and cluster not in (None, "score_function"):
        raise ValueError(
            f"gradient is {gradient!r}: 'score_function' for 'z' requires 'score_function' for 'cluster', too"
        )
    return Gradient(z, cluster)


class Estimator(Protocol):
    """An estimator of the gradient of the ELBO."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO in nats, summed over cells, with the estimate as its gradient."""


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's ELBO with analytic KL terms, without unused log probabilities and without a NaN warning in each step.

    An analytic KL term makes the log probabilities of the latent sites unnecessary. `celldial.training.loop` checks for
    NaN once per epoch.

    Parameters
    ----------
    analytic
        Whether the KL divergence of the coordinates has a closed form. Otherwise it is estimated at the draws.
    """

    def __init__(self, analytic: bool = True) -> None:
        super().__init__()
        self.analytic = analytic

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO in nats, summed over cells, with the estimate as its gradient."""
        traces = self._get_trace(model, guide, args, kwargs)
        _, loss = self._differentiable_loss_particle(*traces)
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        model_trace, guide_trace = trace_model_guide(model, guide, args, kwargs)
        sampled = () if self.analytic else ("z",)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"] or name in sampled)
        if sampled:
            guide_trace.compute_score_parts()
        return model_trace, guide_trace


class EnumeratedELBO(TraceEnum_ELBO):
    """Pyro's ELBO with discrete variables summed out."""

    def __init__(self) -> None:
        super().__init__(max_plate_nesting=1)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO in nats, summed over cells, with the estimate as its gradient."""
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        elbo = _compute_dice_elbo(model_trace, guide_trace)
        assert not is_identically_zero(elbo)
        return -elbo


class ScoreFunctionELBO(TraceGraph_ELBO):
    """Pyro's ELBO with score-function gradients: through the log probability of draws, not through the draws.

    Pyro tracks tensors to find the terms that depend on a draw. Here `DOWNSTREAM` lists them.

    Parameters
    ----------
    sites
        Sites with score-function gradients: ``"z"``, ``"cluster"`` or both.
    baselines
        Baseline of each site; a site may have none.
    """

    def __init__(self, sites: tuple[str, ...], baselines: Mapping[str, Baseline]) -> None:
        super().__init__(max_plate_nesting=1)
        self.sites, self.baselines = sites, baselines

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO in nats, summed over cells, with the estimate as its gradient."""
        traces = self._get_trace(model, guide, args, kwargs)
        elbo, surrogate = self._loss_and_surrogate_loss_particle(*traces)
        # The gradient of the surrogate, with the value of the negative ELBO.
        loss: Tensor = surrogate - (surrogate + elbo).detach()
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        model_trace, guide_trace = trace_model_guide(model, guide, args, kwargs)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        for name in self.sites:
            sites = [guide_trace.nodes[name]]
            sites += [site for at, site in model_trace.nodes.items() if at.split("_")[0] in DOWNSTREAM[name]]
            for site in sites:
                site["log_prob_sum"] = track_provenance(site["log_prob_sum"], frozenset({name}))
            if name in self.baselines:
                cost_c = sum(site["log_prob"].detach() for site in sites[1:]) - sites[0]["log_prob"].detach()
                self.baselines[name].update(cost_c)
        return model_trace, guide_trace


def make_estimator(gradient: Gradient, baselines: Mapping[str, Baseline], analytic_kl: bool) -> Estimator:
    """Return the estimator of a gradient.

    Parameters
    ----------
    gradient
        How the gradient is estimated.
    baselines
        Baseline of each site; a site may have none.
    analytic_kl
        Whether the KL divergence of the coordinates has a closed form.
    """
    if gradient.score_function_sites:
        return ScoreFunctionELBO(gradient.score_function_sites, baselines)
    if gradient.cluster == "enumerate":
        return EnumeratedELBO()
    return MeanFieldELBO(analytic_kl)


def trace_model_guide(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """Return the traces of the model and of the guide, with the model run on the draws of the guide."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


class Baseline(nn.Module):
    """A learned baseline for the ELBO of each cell. Subtracting it lowers the variance of the gradient.

    Parameters
    ----------
    n_inputs
        Number of inputs per cell; 0 for a moving average without inputs.

    References
    ----------
    Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks, arXiv:1402.0030.
    """

    mean: Tensor
    deviation: Tensor
    n_updates: Tensor

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        for name, value in {"mean": 0.0, "deviation": 1.0, "n_updates": 0.0}.items():
            self.register_buffer(name, torch.tensor(value))
        self.network = None
        if n_inputs:
            # Standardizes the inputs, which have different scales.
            self.norm = nn.BatchNorm1d(n_inputs, affine=False)
            self.network = nn.Sequential(nn.Linear(n_inputs, N_HIDDEN), nn.SiLU(), nn.Linear(N_HIDDEN, 1))

    def forward(self, input_cp: Tensor) -> Tensor:
        """Predict the terms of each cell's ELBO that depend on the draw, shape ``(c,)``."""
        mean_c = self.mean.clone().expand(len(input_cp))
        if self.network is None:
            return mean_c
        self.norm.train(self.training and len(input_cp) > 1)  # a single cell has no variance
        standardized_c1: Tensor = self.network(self.norm(input_cp))
        # Clones, because `update` changes the buffers before the backward pass.
        return mean_c + self.deviation.clone() * standardized_c1[:, 0]

    @torch.no_grad()
    def update(self, cost_c: Tensor) -> None:
        """Update the moving averages with the ELBO terms of a minibatch; in training only."""
        if not self.training:
            return
        self.n_updates += 1
        # A plain mean over the first updates, so that the initial values have no lasting influence.
        weight = torch.clamp(1 / self.n_updates, min=1 - EMA_DECAY)
        self.mean.lerp_(cost_c.mean(), weight)
        self.deviation.lerp_((cost_c - self.mean).square().mean().sqrt(), weight)


def baseline_inputs(encoded: EncoderOutput, cells: Cells) -> Tensor:
    """Return the inputs of learned baselines ``(c, p)``: each cell's posterior, library sizes, numbers of features."""
    inputs = [
        encoded.mu_cz,
        encoded.sigma_cz.log(),
        *(total_c.log1p()[:, None] for total_c in cells.library_size.values()),
        *(counts.indptr_c.diff().to(encoded.mu_cz.dtype).log1p()[:, None] for counts in cells.counts.values()),
    ]
    if encoded.logits_ck is not None:
        inputs.append(encoded.logits_ck)
    return torch.cat(inputs, 1).detach()
