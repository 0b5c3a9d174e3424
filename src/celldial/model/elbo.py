"""Estimators of the gradient of the ELBO: Pyro's, less what a training step here does not need.

Each gives, by ``differentiable_loss(model, guide, ...)``, a number whose value is the negative ELBO in nats, summed
over cells, and whose gradient is the estimate. Axis suffixes: ``c`` cells, ``p`` what a baseline is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.ops.provenance import track_provenance
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineName",
    "EnumeratedELBO",
    "Estimator",
    "Gradient",
    "MeanFieldELBO",
    "ScoreFunctionELBO",
    "parse_gradient",
]

LatentGradient = Literal["reparameterized", "score_function"]
ClusterGradient = Literal["enumerate", "gumbel_softmax", "score_function"]
BaselineName = Literal["learned", "moving_average"]
BASELINES: tuple[BaselineName | None, ...] = (*get_args(BaselineName), None)

# How much of the moving averages of a baseline is kept in a step; and the hidden units of a learned one.
EMA_DECAY, UNITS = 0.95, 64


@dataclass(frozen=True)
class Gradient:
    """How gradients are estimated: with respect to the posteriors of coordinates, and of clusters where there are."""

    z: LatentGradient = "reparameterized"
    cluster: ClusterGradient | None = None

    @property
    def score_function_sites(self) -> tuple[str, ...]:
        """What the score function is used for."""
        return tuple(name for name in ("cluster", "z") if getattr(self, name) == "score_function")


def parse_gradient(gradient: Any, clustered: bool) -> Gradient:
    """Understand what a user says of gradients.

    Parameters
    ----------
    gradient
        A word, or a dict with a word for ``"z"``, for ``"cluster"`` or for both. A word alone is of the clusters, if
        there are any and it can be.
    clustered
        Whether there are clusters.

    Raises
    ------
    ValueError
        There is no such estimator, or it does not go with the other.
    """
    known = {"z": get_args(LatentGradient), "cluster": get_args(ClusterGradient)}
    said = gradient
    if isinstance(gradient, str):
        said = {"cluster" if clustered and gradient in known["cluster"] else "z": gradient}
    if not isinstance(said, Mapping) or not set(said) <= set(known):
        raise ValueError(
            f"gradient is {gradient!r}: it must be a name, or a dict with a name for 'z', for 'cluster' or for both"
        )
    for name, word in said.items():
        if word in known["cluster"] and not clustered:
            if name == "cluster" or word not in known["z"]:
                raise ValueError(f"gradient is {gradient!r}, which is of clusters: give their number by n_clusters")
        elif word not in known[name]:
            raise ValueError(
                f"gradient is {gradient!r}: choose {', '.join(map(repr, known['z']))} for 'z', or with clusters "
                f"{', '.join(map(repr, known['cluster']))} for 'cluster'"
            )
    result = Gradient(said.get("z", "reparameterized"), said.get("cluster", "enumerate") if clustered else None)
    if result.z == "score_function" and result.cluster not in (None, "score_function"):
        raise ValueError(
            f"gradient is {gradient!r}: where the score function is used for 'z', it must be for 'cluster', too"
        )
    return result


class Estimator(Protocol):
    """What estimates a gradient."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate the negative ELBO in nats, summed over cells."""


class MeanFieldELBO(TraceMeanField_ELBO):
    """Pyro's ELBO with an analytic KL term where there is one, less what costs time in every step and serves nothing.

    That is the log-probabilities of the latent sites, which the analytic term replaces, and a warning about NaN in
    each step; `celldial.training.loop` looks once an epoch, and raises.

    Parameters
    ----------
    analytic
        Whether the KL divergence of the coordinates has a closed form. Where it has none, it is estimated, without
        bias, by the difference of the log densities at the draw.
    """

    def __init__(self, analytic: bool = True) -> None:
        super().__init__()
        self.analytic = analytic

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate the negative ELBO in nats, summed over cells."""
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
    """Pyro's ELBO in which discrete choices are summed out."""

    def __init__(self) -> None:
        super().__init__(max_plate_nesting=1)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate the negative ELBO in nats, summed over cells."""
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        elbo = _compute_dice_elbo(model_trace, guide_trace)
        assert not is_identically_zero(elbo)
        return -elbo


# The sites of the model whose log probability depends on what is drawn.
DOWNSTREAM = {"cluster": ("cluster", "z"), "z": ("z", "counts")}


class ScoreFunctionELBO(TraceGraph_ELBO):
    """Pyro's ELBO whose gradient goes through the log probability of what is drawn, and not through the draw.

    Pyro finds by tracking tensors which terms depend on a draw. Here that is known, and said.

    Parameters
    ----------
    scored
        Sites that are drawn so: ``"z"``, ``"cluster"`` or both.
    baselines
        Site to its baseline, as far as there are any.
    """

    def __init__(self, scored: tuple[str, ...], baselines: Mapping[str, Baseline]) -> None:
        super().__init__(max_plate_nesting=1)
        self.scored, self.baselines = scored, baselines

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimate the negative ELBO in nats, summed over cells."""
        traces = self._get_trace(model, guide, args, kwargs)
        elbo, surrogate = self._loss_and_surrogate_loss_particle(*traces)
        # The gradient of the one, the value of the other.
        loss: Tensor = surrogate - (surrogate + elbo).detach()
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        model_trace, guide_trace = trace_model_guide(model, guide, args, kwargs)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        for name in self.scored:
            sites = [guide_trace.nodes[name]]
            sites += [site for at, site in model_trace.nodes.items() if at.split("_")[0] in DOWNSTREAM[name]]
            for site in sites:
                site["log_prob_sum"] = track_provenance(site["log_prob_sum"], frozenset({name}))
            if name in self.baselines:
                cost_c = sum(site["log_prob"].detach() for site in sites[1:]) - sites[0]["log_prob"].detach()
                self.baselines[name].update(cost_c)
        return model_trace, guide_trace


def trace_model_guide(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """Run a guide, and a model with what the guide drew."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


class Baseline(nn.Module):
    """What the ELBO of a cell is about, before anything is drawn: it is taken off, and leaves gradients less noisy.

    Parameters
    ----------
    n_inputs
        What it is told of a cell: so many numbers. With 0 it is told nothing, and is a moving average.

    References
    ----------
    Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks, arXiv:1402.0030.
    """

    mean: Tensor
    deviation: Tensor
    n_seen: Tensor

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        for name, start in {"mean": 0.0, "deviation": 1.0, "n_seen": 0.0}.items():
            self.register_buffer(name, torch.tensor(start))
        self.network = None
        if n_inputs:
            # Inputs are of any size, such as the log of a library size, so that they are standardized on the way.
            self.norm = nn.BatchNorm1d(n_inputs, affine=False)
            self.network = nn.Sequential(nn.Linear(n_inputs, UNITS), nn.SiLU(), nn.Linear(UNITS, 1))

    def forward(self, input_cp: Tensor) -> Tensor:
        """Guess the ELBO of each cell, as far as it depends on what is drawn, shape ``(c,)``."""
        mean_c = self.mean.clone().expand(len(input_cp))
        if self.network is None:
            return mean_c
        self.norm.train(self.training and len(input_cp) > 1)  # one cell has no spread
        guess_c1: Tensor = self.network(self.norm(input_cp))
        return (
            mean_c + self.deviation.clone() * guess_c1[:, 0]
        )  # cloned: `update` moves it before the gradient is taken

    @torch.no_grad()
    def update(self, cost_c: Tensor) -> None:
        """Let the averages move on to what was found; in training only."""
        if not self.training:
            return
        self.n_seen += 1
        # At first a plain mean, so that the start does not count for long.
        share = torch.clamp(1 / self.n_seen, min=1 - EMA_DECAY)
        self.mean.lerp_(cost_c.mean(), share)
        self.deviation.lerp_((cost_c - self.mean).square().mean().sqrt(), share)
