"""One row for each likelihood, latent family, prior and plot. The tests of a kind run over its table.

Each table has all names of the package: a test fails if a name has no row.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from celldial.model.latents import LatentName
from celldial.model.priors import PriorName
from helpers.figures import checked, cycling, fitted, integrated, kinetic, ranked, stored_in, sweep, traversal

# --- Likelihoods ------------------------------------------------------------------------------------------------------

# Log-probability of counts: of counts, rates (exposure times share), the learned parameters by name, the outputs of the
# decoder after the first, and the library sizes.
LogPmf = Callable[[np.ndarray, np.ndarray, Mapping[str, np.ndarray], list[np.ndarray], np.ndarray], np.ndarray]


def negative_binomial(x: np.ndarray, rate: np.ndarray, parameters: Mapping[str, np.ndarray], *_: Any) -> np.ndarray:
    theta = np.exp(parameters["log_inverse_dispersion_f"])
    return stats.nbinom.logpmf(x, theta, theta / (theta + rate))


def zero_inflated(
    x: np.ndarray, rate: np.ndarray, parameters: Mapping[str, np.ndarray], heads: list[np.ndarray], _: Any
) -> np.ndarray:
    log_lost, log_kept = -np.logaddexp(0, -heads[0]), -np.logaddexp(0, heads[0])
    kept = log_kept + negative_binomial(x, rate, parameters)
    return np.where(x > 0, kept, np.logaddexp(log_lost, kept))


def with_background(
    x: np.ndarray, rate: np.ndarray, parameters: Mapping[str, np.ndarray], heads: list[np.ndarray], library: np.ndarray
) -> np.ndarray:
    background = library * np.exp(parameters["log_background_f"])
    log_background = negative_binomial(x, background, parameters) - np.logaddexp(0, -heads[0])
    log_foreground = negative_binomial(x, background + rate, parameters) - np.logaddexp(0, heads[0])
    return np.logaddexp(log_background, log_foreground)


LIKELIHOOD_CASES: dict[str, LogPmf] = {
    "bernoulli": lambda x, rate, *_: np.where(x > 0, np.log(-np.expm1(-rate)), -rate),
    "negative_binomial": negative_binomial,
    "negative_binomial_mixture": with_background,
    "poisson": lambda x, rate, *_: stats.poisson.logpmf(x, rate),
    "zero_inflated_negative_binomial": zero_inflated,
}


# --- Latent families --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentCase:
    """A latent family: its density, and the range of what its decoder reads."""

    # Log density of a coordinate u, given its mean and its standard deviation.
    log_density: Callable[[np.ndarray, float, float], np.ndarray]
    # Whether values z of cells are in the range of the link.
    contains: Callable[[np.ndarray], bool] = lambda z_cz: bool(np.isfinite(z_cz).all())
    # Values of cells with three coordinates that are outside of it.
    outside: tuple[list[float], ...] = ()


def are_proportions(z_cz: np.ndarray) -> bool:
    return bool((z_cz >= 0).all() and np.allclose(z_cz.sum(1), 1, atol=1e-5))


LATENT_CASES: dict[LatentName, LatentCase] = {
    "gaussian": LatentCase(stats.norm.logpdf),
    "laplace": LatentCase(lambda u, mu, sigma: stats.laplace.logpdf(u, mu, sigma / math.sqrt(2))),
    "logistic": LatentCase(lambda u, mu, sigma: stats.logistic.logpdf(u, mu, sigma * math.sqrt(3) / math.pi)),
    "log_normal": LatentCase(
        stats.norm.logpdf, lambda z_cz: bool((z_cz > 0).all()), ([1.0, -0.1, 2.0], [1.0, 0.0, 2.0])
    ),
    "logistic_normal": LatentCase(
        stats.norm.logpdf, are_proportions, ([0.6, 0.6, -0.2], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1])
    ),
}


# --- Priors -----------------------------------------------------------------------------------------------------------

# Parameters of `VAE` that go with the prior.
PRIOR_CASES: dict[PriorName, dict[str, Any]] = {
    "standard": {},
    "mixture": {"n_components": 3},
    "flow": {},
}


# --- Plots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlotCase:
    """A plot of matplotlib: `tests/figures/NAME.png` shows what it draws of `data`."""

    # Return what is drawn: cells, or a table.
    data: Callable[[], Any]
    panels: list[str]
    # Facts that the error names if `data` has no results: what is missing, or the call that computes it.
    missing: list[str]
    options: dict[str, Any] = field(default_factory=dict)


PLOT_CASES: dict[str, PlotCase] = {
    "axes": PlotCase(
        lambda: ranked(6, ("rna", "atac")), ["share", "share_rna", "share_atac", "kl"], ["model.axes(adata)"]
    ),
    "axis_features": PlotCase(
        lambda: stored_in(axis_3=traversal(n_features={"rna": 40, "atac": 30})),
        ["rna", "atac"],
        ["uns['latent_traverse']", "model.latent_traverse"],
    ),
    "cell_cycle": PlotCase(
        cycling,
        ["circle", "MCM5", "PCNA", "MCM6", "UBE2C", "TOP2A", "CDK1"],
        ["'cell_cycle_angle'", "VAE(periodic='cell_cycle')"],
    ),
    "check": PlotCase(
        checked,
        ["zeros", "dispersion", "library_size", "correlations", "coverage", "doublets", "importance_weights"],
        ["model.check(adata)"],
    ),
    "gradient_variance": PlotCase(sweep, ["width", "n_averaged"], ["'parameter'", "celldial.tl.sweep_gradients"]),
    "history": PlotCase(fitted, ["elbo", "kl"], ["model.fit(adata)"]),
    "integration_report": PlotCase(integrated, ["metrics", "types"], ["no report", "model.integration_report(adata)"]),
    "kinetics": PlotCase(kinetic, ["speed", "TOP2A", "CDK1", "MCM5"], ["no kinetics", "model.kinetics(adata)"]),
    "latent_traverse": PlotCase(
        fitted,
        ["GENE34", "GENE11", "GENE28", "GENE5", "GENE17", "GENE33", "heatmap"],
        ["uns['latent_traverse']", "model.latent_traverse"],
    ),
    "traverse_path": PlotCase(
        cycling, ["map"], ["uns['latent_traverse']", "model.latent_traverse"], {"name": "CD4 T to CD8 T"}
    ),
}
