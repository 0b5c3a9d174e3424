"""Comparison of gradient estimators on the cells of a fitted model: bias, variance and time of each.

Axis suffixes: ``c`` cells, ``n`` samples, ``p`` parameters of one kind of a cell's posterior.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pyro
import torch
from torch import Tensor

from celldial.data import cell_checks
from celldial.data.cells import Cells, decode_block_size
from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel, read_cells, read_from
from celldial.model.clusters import FINAL_TEMPERATURE
from celldial.model.elbo import Baseline, BaselineName, Gradient, baseline_inputs
from celldial.model.latent_parts import EncoderOutput
from celldial.model.module import Module
from celldial.utils.argument_types import validate_types
from celldial.utils.random import isolate_rng
from celldial.utils.validation import check_integer, resolve_seed

if TYPE_CHECKING:
    from anndata import AnnData


__all__ = ["compare_gradients", "sweep_gradients"]

# Steps and peak learning rate for fitting the baselines.
N_BASELINE_STEPS, LEARNING_RATE = 500, 3e-2


@dataclass(frozen=True)
class EstimatorConfig:
    """Configuration of a gradient estimator."""

    gradient: Gradient
    baseline: BaselineName | None = None
    straight_through: bool = False


def available_estimators(module: Module) -> dict[str, EstimatorConfig]:
    """Return the estimators of a module by name; the first is the unbiased one with the smallest variance."""
    score = Gradient("score_function") if module.clusters is None else Gradient(cluster="score_function")
    scored = {
        "score_function": EstimatorConfig(score),
        "score_function + moving_average": EstimatorConfig(score, "moving_average"),
        "score_function + learned": EstimatorConfig(score, "learned"),
    }
    if module.clusters is not None:
        relaxed = Gradient(cluster="gumbel_softmax")
        return {
            "enumerate": EstimatorConfig(Gradient(cluster="enumerate")),
            "gumbel_softmax": EstimatorConfig(relaxed),
            "straight_through": EstimatorConfig(relaxed, straight_through=True),
            **scored,
        }
    # The score function and a flow exclude each other: see `celldial.estimator.validation.check_latent`.
    scored = {} if module.coordinates.posterior_flow is not None else scored
    return {"reparameterized": EstimatorConfig(Gradient()), **scored}


@validate_types
def compare_gradients(
    model: FittedModel,
    adata: AnnData,
    estimators: str | Sequence[str] | None = None,
    *,
    n_samples: int = 1000,
    n_cells: int = 64,
    n_reference: int = 4000,
    temperature: float = FINAL_TEMPERATURE,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare estimators of the gradient of the negative ELBO on cells of a fitted model.

    The gradient is taken with respect to the posterior of each cell: the means and log standard deviations of its
    coordinates, and the log-odds of the clusters if there are any. Each estimate uses a single sample, as in training,
    and is in nats per cell.

    Parameters
    ----------
    model
        A `VAE` fitted with any estimator; omitted in the method call ``model.compare_gradients(adata)``.
    adata
        Cells to compare on.
    estimators
        Estimators to compare, all by default. ``"reparameterized"`` [1]_ differentiates through the sample;
        ``"score_function"`` [2]_ uses the log density of the sample, and ``"score_function + moving_average"`` and
        ``"score_function + learned"`` [3]_ subtract a baseline. In a model with clusters the estimators apply to the
        log-odds of the clusters, with reparameterized samples of the coordinates: ``"enumerate"`` sums over all
        clusters, ``"gumbel_softmax"`` [4]_ relaxes the choice of a cluster, ``"straight_through"`` [5]_ rounds the
        relaxed choice; the score function estimators are also available.
    n_samples
        Samples of each estimator for each cell.
    n_cells
        Number of cells, chosen at random.
    n_reference
        Samples for the reference gradient. It uses the unbiased estimator with the smallest variance:
        ``"reparameterized"``, or ``"enumerate"`` in a model with clusters.
    temperature
        Temperature of relaxed choices; by default that at the end of training.
    layer
        As in `transform`.
    seed
        Seed of all random numbers.

    Returns
    -------
    pandas.DataFrame
        One row for each kind of parameter, ``"mu"``, ``"sigma"`` and ``"cluster"``, and each estimator. Root mean
        squares and means are over cells and parameters.

        - ``mean``: root mean square of the gradient
        - ``bias``: root mean square difference between the mean over samples and the reference
        - ``standard_error``: the ``bias`` expected by chance; a clearly larger ``bias`` is real
        - ``variance``: mean variance of single samples
        - ``microseconds``: time per sample and cell, in large batches

    Raises
    ------
    ValueError
        The model has no such estimator, or it has a periodic coordinate.

    Notes
    -----
    The weights are those of the end of training: 1 for the KL divergence, and the training weights for the
    modalities. There is no dropout, latent loadings are at their means, and baselines are fitted to these cells first.
    See [6]_ for the reasons why the variances differ.

    References
    ----------
    .. [1] Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
    .. [2] Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning,
       doi:10.1007/BF00992696.
    .. [3] Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks, arXiv:1402.0030.
    .. [4] Jang et al. (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv:1611.01144.
    .. [5] Bengio et al. (2013), Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
       Computation, arXiv:1308.3432.
    .. [6] Mohamed et al. (2020), Monte Carlo Gradient Estimation in Machine Learning, arXiv:1906.10652.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> names = ["reparameterized", "score_function"]
    >>> table = cd.tl.compare_gradients(model, adata, names, n_samples=100, n_cells=16, n_reference=100)
    >>> variance = table.loc["mu", "variance"]
    >>> bool(variance["score_function"] > 100 * variance["reparameterized"])
    True
    """
    for name, value in {"n_samples": n_samples, "n_reference": n_reference}.items():
        check_integer(name, value, minimum=2)
    seed = resolve_seed(seed)
    chosen, cells, encoded = prepare_inputs(read_from(model, layer), adata, estimators, n_cells, temperature, seed)
    reference = {name: Moments() for name in posterior_of(encoded)}
    with isolate_rng(seed):
        best = next(iter(available_estimators(model.module_).values()))
        module = configure_module(model.module_, best, cells, encoded, temperature)
        for drawn in draws(module, cells, encoded, temperature, n_reference):
            for name, moments in reference.items():
                moments.add(drawn[name])
    rows = {}
    for estimator, config in chosen.items():
        found = {name: Moments() for name in reference}
        # Samples differ from those of the reference, and do not depend on the other estimators.
        with isolate_rng(seed + 1):
            module = configure_module(model.module_, config, cells, encoded, temperature)
            start = time.perf_counter()
            for drawn in draws(module, cells, encoded, temperature, n_samples):
                for name, moments in found.items():
                    moments.add(drawn[name])
            seconds = time.perf_counter() - start
        for name, moments in found.items():
            error_cp = moments.variance_cp / moments.n + reference[name].variance_cp / reference[name].n
            rows[name, estimator] = {
                "mean": root_mean_square(moments.mean_cp),
                "bias": root_mean_square(moments.mean_cp - reference[name].mean_cp),
                "standard_error": float(error_cp.mean().sqrt()),
                "variance": float(moments.variance_cp.mean()),
                "microseconds": 1e6 * seconds / (n_samples * len(cells)),
            }
    index = pd.MultiIndex.from_tuples(
        [(name, estimator) for name in reference for estimator in chosen], names=["parameter", "estimator"]
    )
    return pd.DataFrame([rows[key] for key in index], index)


@validate_types
def sweep_gradients(
    model: FittedModel,
    adata: AnnData,
    estimators: str | Sequence[str] | None = None,
    *,
    widths: Sequence[float] = (0.03, 0.1, 0.3, 1, 3),
    n_averaged: Sequence[int] = (1, 4, 16, 64),
    n_samples: int = 512,
    n_cells: int = 64,
    temperature: float = FINAL_TEMPERATURE,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the variance of gradient estimators for wider and narrower posteriors, and for averages of samples.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.sweep_gradients(adata)``.
    adata, estimators
        As in `compare_gradients`.
    widths
        Factors for the standard deviation of each cell's posterior; 1 is always included.
    n_averaged
        Numbers of samples to average, at the posterior's own width.
    n_samples
        Samples of each estimator for each cell and width, at least twice the largest number to average.
    n_cells, temperature, layer, seed
        As in `compare_gradients`.

    Returns
    -------
    pandas.DataFrame
        Table for `celldial.pl.gradient_variance` with the columns ``parameter``, ``estimator``, ``width``,
        ``n_averaged`` and ``variance``. All variances are measured, including those of averages.

    Raises
    ------
    ValueError
        As `compare_gradients`; or there are too few samples, or a width is not above 0.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.pbmc68k_reduced()
    >>> model = cd.VAE().fit(adata, max_epochs=2, progress=False)
    >>> table = cd.tl.sweep_gradients(model, adata, ["reparameterized"], n_samples=128, n_cells=16)
    >>> table[table["parameter"] == "mu"].groupby("n_averaged")["variance"].count().to_dict()
    {1: 5, 4: 1, 16: 1, 64: 1}
    """
    for k in n_averaged:
        check_integer("n_averaged", k)
    check_integer("n_samples", n_samples, minimum=2 * max(n_averaged, default=1))
    if not all(width > 0 for width in widths):
        raise ValueError(f"widths are {list(widths)}: each must be above 0")
    seed = resolve_seed(seed)
    chosen, cells, encoded = prepare_inputs(read_from(model, layer), adata, estimators, n_cells, temperature, seed)
    rows = []
    for estimator, config in chosen.items():
        for width in sorted({*map(float, widths), 1.0}):
            sizes = sorted({1, *n_averaged}) if width == 1 else [1]
            found = {(name, k): Moments(k) for name in posterior_of(encoded) for k in sizes}
            wider = encoded._replace(sigma_cz=width * encoded.sigma_cz)
            with isolate_rng(seed):
                module = configure_module(model.module_, config, cells, wider, temperature)
                for drawn in draws(module, cells, wider, temperature, n_samples):
                    for (name, _), moments in found.items():
                        moments.add(drawn[name])
            rows += [
                (name, estimator, width, k, float(moments.variance_cp.mean())) for (name, k), moments in found.items()
            ]
    return pd.DataFrame(rows, columns=["parameter", "estimator", "width", "n_averaged", "variance"])


def prepare_inputs(
    model: FittedModel,
    adata: AnnData,
    estimators: str | Sequence[str] | None,
    n_cells: int,
    temperature: float,
    seed: int,
) -> tuple[dict[str, EstimatorConfig], Cells, EncoderOutput]:
    """Return the requested estimators, some cells, and the encoder output for these cells."""
    module = model.module_
    check_integer("n_cells", n_cells)
    if module.circle is not None:
        raise ValueError(
            "the model has a periodic coordinate, for which gradients are not compared: fit a model without it"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}: it must be above 0")
    known = available_estimators(module)
    wanted = [estimators] if isinstance(estimators, str) else list(known) if estimators is None else estimators
    names = list(dict.fromkeys(wanted))
    for name in names:
        if name not in known:
            raise ValueError(f"this model has no estimator {name!r}; available: {', '.join(map(repr, known))}")
    _, cells = read_cells(model, adata)
    cell_checks.check_has_counts(cells)
    filled_c = (~cells.empty_c).nonzero()[:, 0]
    with isolate_rng(seed):
        cells = cells.select(filled_c[torch.randperm(len(filled_c))[:n_cells]]).to(posterior.to_eval(module))
    with torch.no_grad():
        return {name: known[name] for name in names}, cells, module.encode(cells)


def configure_module(
    module: Module, config: EstimatorConfig, cells: Cells, encoded: EncoderOutput, temperature: float
) -> Module:
    """Return a copy of a module with another gradient estimator, and with baselines fitted to these cells."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    module.bayesian = False  # one sample of the loadings would be shared by all samples of cells
    baselines = {}
    if config.baseline is not None:
        for name in config.gradient.score_function_sites:
            n_inputs = baseline_inputs(encoded, cells).shape[1] if config.baseline == "learned" else 0
            baselines[name] = Baseline(n_inputs).to(encoded.mu_cz.device)
    module.use_gradient(config.gradient, baselines, config.straight_through)
    if baselines:
        fit_baselines(module, cells, encoded, temperature)
    return module


def posterior_of(encoded: EncoderOutput) -> dict[str, Tensor]:
    """Return the parameters of the posterior that gradients are taken with respect to, by name, each ``(c, p)``."""
    parameters = {"mu": encoded.mu_cz, "sigma": encoded.sigma_cz.log()}
    if encoded.logits_ck is not None:
        parameters["cluster"] = encoded.logits_ck
    return parameters


def draws(
    module: Module, cells: Cells, encoded: EncoderOutput, temperature: float, n_samples: int
) -> Iterator[dict[str, Tensor]]:
    """Yield gradients of each cell, ``(n, c, p)`` by parameter, in blocks of as many samples as memory allows."""
    n_cells = len(cells)
    n_block = min(n_samples, max(1, decode_block_size(max(module.n_features.values())) // n_cells))
    # Copies of a cell are treated as separate cells, so that one pass samples for each.
    copies = repeat_cells(cells, n_block)
    for start in range(0, n_samples, n_block):
        n = min(n_block, n_samples - start)
        leaves = {name: value_cp.repeat(n, 1).requires_grad_() for name, value_cp in posterior_of(encoded).items()}
        block = copies if n == n_block else copies.slice(0, n * n_cells)
        loss = estimate(module, block, leaves, temperature)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        yield {name: part.unflatten(0, (n, n_cells)) for name, part in zip(leaves, gradients, strict=True)}


def repeat_cells(cells: Cells, n: int) -> Cells:
    """Return all cells `n` times."""
    return cells.select(torch.arange(len(cells)).repeat(n))


def estimate(module: Module, cells: Cells, parameters: dict[str, Tensor], temperature: float) -> Tensor:
    """Return the negative ELBO of cells, whose gradient with respect to the parameters is compared."""
    encoded = EncoderOutput(parameters["mu"], parameters["sigma"].exp(), parameters.get("cluster"))
    with pyro.validation_enabled(False):
        return module.elbo_estimator.differentiable_loss(module.model, module.guide, cells, encoded, 1.0, temperature)


def fit_baselines(module: Module, cells: Cells, encoded: EncoderOutput, temperature: float) -> None:
    """Fit the baselines to these cells."""
    module.baselines.train().requires_grad_(True)
    learned = list(module.baselines.parameters())
    optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE) if learned else None
    schedule = (
        None if optimizer is None else torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, N_BASELINE_STEPS)
    )
    # The inputs of baselines are standardized over cells, which needs at least two.
    n = 2 if len(cells) == 1 else 1
    cells = repeat_cells(cells, n)
    parameters = {name: part.repeat(n, 1) for name, part in posterior_of(encoded).items()}
    for _ in range(N_BASELINE_STEPS):
        loss = estimate(module, cells, parameters, temperature)
        if optimizer is not None and schedule is not None:
            optimizer.zero_grad()
            (loss / len(cells)).backward()
            optimizer.step()
            schedule.step()
    module.baselines.eval().requires_grad_(False)


class Moments:
    """Running mean and variance of samples, or of averages of `n_averaged` samples, shape ``(c, p)``."""

    def __init__(self, n_averaged: int = 1) -> None:
        self.n_averaged = n_averaged
        self.n = 0
        self.sum_cp = self.square_cp = torch.zeros(())
        self.waiting_ncp: Tensor | None = None

    def add(self, drawn_ncp: Tensor) -> None:
        """Add samples; those that do not fill an average are kept for the next call."""
        if self.waiting_ncp is not None:
            drawn_ncp = torch.cat([self.waiting_ncp, drawn_ncp])
        n = len(drawn_ncp) // self.n_averaged
        used_ncp, self.waiting_ncp = drawn_ncp.tensor_split([n * self.n_averaged])
        mean_ncp = used_ncp.double().unflatten(0, (n, self.n_averaged)).mean(1)
        self.n += n
        self.sum_cp = self.sum_cp + mean_ncp.sum(0)
        self.square_cp = self.square_cp + mean_ncp.square().sum(0)

    @property
    def mean_cp(self) -> Tensor:
        """Mean."""
        return self.sum_cp / self.n

    @property
    def variance_cp(self) -> Tensor:
        """Unbiased variance."""
        return (self.square_cp - self.n * self.mean_cp.square()).clamp_min(0) / (self.n - 1)


def root_mean_square(value_cp: Tensor) -> float:
    """Return the root mean square."""
    return float(value_cp.square().mean().sqrt())
