"""Checks of the parameters of `VAE` and of the arguments of `VAE.fit` before any computation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData

from celldial.model.elbo import BASELINES, parse_gradient
from celldial.model.fusion import FUSIONS
from celldial.model.latents import LATENTS
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.networks import DECODERS, DISPERSIONS
from celldial.model.priors import POSTERIORS, PRIORS
from celldial.periodic.markers import parse_periodic
from celldial.utils.argument_types import check_types
from celldial.utils.messages import describe_value
from celldial.utils.validation import check_integer, resolve_seed

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["check_hardware", "check_latent", "check_loggers", "check_options", "check_parameters"]


def check_parameters(model: VAE) -> None:
    """Raise if a parameter of `VAE` is invalid."""
    parameters = model.get_params(deep=False)
    for name, value in parameters.items():
        if isinstance(value, AnnData):
            raise TypeError(f"{name} is an AnnData: pass the cells to fit, as in VAE().fit(adata)")
    check_types(type(model).__init__, parameters)
    check_integer("seed", parameters["seed"], 0)
    resolve_seed(parameters["seed"])
    for name, least in {"n_latent": 1, "n_hidden": 2, "n_layers": 1}.items():
        check_integer(name, parameters[name], least)
    likelihood, dropout_rate, learning_rate = (parameters[k] for k in ("likelihood", "dropout_rate", "learning_rate"))
    for name in likelihood.values() if isinstance(likelihood, Mapping) else [likelihood]:
        if not (isinstance(name, str) and name in LIKELIHOODS) and likelihood is not None:
            raise ValueError(f"likelihood is {name!r}: choose one of {', '.join(map(repr, LIKELIHOODS))}")
    choices = {
        "fusion": FUSIONS,
        "decoder": DECODERS,
        "dispersion": DISPERSIONS,
        "latent": tuple(LATENTS),
        "prior": PRIORS,
        "posterior": POSTERIORS,
        "baseline": BASELINES,
    }
    for name, known in choices.items():
        if parameters[name] not in known:
            raise ValueError(f"{name} is {parameters[name]!r}: choose one of {', '.join(map(repr, known))}")
    periodic = parameters["periodic"]
    process = None if periodic is None else parse_periodic(periodic)
    check_latent(parameters, process is not None)
    if not (isinstance(dropout_rate, float | int | np.number) and 0 <= dropout_rate < 1):
        raise ValueError(f"dropout_rate is {dropout_rate!r}: it must be at least 0 and below 1")
    if parameters["dispersion"] == "feature-batch" and parameters["batch_key"] is None:
        raise ValueError(
            "dispersion is 'feature-batch', but there is no batch_key: name the column of adata.obs with the batch, or "
            "leave dispersion out"
        )
    integration = parameters["integration"]
    if not (isinstance(integration, float | int | np.number) and 0 <= integration < math.inf):
        raise ValueError(
            f"integration is {integration!r}: it must be a number from 0, which leaves batches where they are"
        )
    if not (isinstance(learning_rate, float | int | np.number) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate!r}: it must be above 0")


def check_latent(parameters: Mapping[str, Any], periodic: bool) -> None:
    """Raise if parameters of the latent state are invalid or exclude each other."""
    family, n_latent = LATENTS[parameters["latent"]], parameters["n_latent"]
    if n_latent < family.min_latent:
        raise ValueError(
            f"n_latent is {n_latent}: latent={parameters['latent']!r} needs at least {family.min_latent} coordinates"
        )
    check_integer("n_components", parameters["n_components"], 2)
    if parameters["n_clusters"] is not None:
        check_integer("n_clusters", parameters["n_clusters"], 2)
    has_clusters = parameters["n_clusters"] is not None or parameters["labels_key"] is not None
    gradient = parse_gradient(parameters["gradient"], has_clusters)
    if parameters["bayesian_loadings"] and parameters["decoder"] != "linear":
        raise ValueError(
            f"bayesian_loadings=True needs a linear decoder, but decoder is {parameters['decoder']!r}: choose "
            "decoder='linear', or leave bayesian_loadings out"
        )
    if has_clusters and parameters["prior"] != "standard":
        raise ValueError(
            f"prior is {parameters['prior']!r}, but clusters already define the prior: leave out prior, or n_clusters "
            "and labels_key"
        )
    for name in ("prior", "posterior"):
        if parameters[name] == "flow" and parameters["n_latent"] < 2:
            raise ValueError(f"{name} is 'flow', which needs at least two coordinates: choose n_latent=2 or more")
    if gradient.z == "score_function" and parameters["posterior"] == "flow":
        raise ValueError("gradient='score_function' and posterior='flow' exclude each other: leave one of them out")
    if periodic:
        for name, usual in {"posterior": "diagonal", "n_clusters": None, "labels_key": None}.items():
            if parameters[name] != usual:
                raise ValueError(
                    f"{name} is {parameters[name]!r}, which excludes a periodic coordinate: leave one of them out"
                )
        if gradient.score_function_sites:
            raise ValueError(
                "gradient='score_function' and a periodic coordinate exclude each other: leave one of them out"
            )


def check_options(max_epochs: Any, batch_size: Any, key_added: Any) -> None:
    """Raise if an argument of `VAE.fit` is invalid."""
    for name, value in {"max_epochs": max_epochs, "batch_size": batch_size}.items():
        if not (isinstance(value, str) and value == "auto"):
            check_integer(name, value)
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is {key_added!r}: it must be a name, such as 'X_celldial'")


def check_loggers(loggers: Sequence[Any]) -> None:
    """Raise if a logger cannot receive the history of a training."""
    for logger in loggers:
        if not hasattr(logger, "log_metrics"):
            raise TypeError(
                f"loggers has {describe_value(logger)}: pass loggers of Lightning Fabric, such as "
                "lightning_fabric.loggers.CSVLogger('logs')"
            )


def check_hardware(
    device: str | None, precision: str | None, devices: Any, num_nodes: Any, checkpoint_minutes: float | None
) -> None:
    """Raise if an argument about devices, precision or checkpoints is invalid."""
    if device is not None:
        try:
            kind = torch.device(device).type
        except RuntimeError:
            kind = None
        if kind not in {"cpu", "cuda"}:
            raise ValueError(f"device is {device!r}: choose 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, but torch finds no such device: choose 'cpu'")
    if precision not in {None, "auto", "32-true", "bf16-mixed"}:
        raise ValueError(f"precision is {precision!r}: choose '32-true' or 'bf16-mixed'")
    for name, value in {"devices": devices, "num_nodes": num_nodes}.items():
        if value is not None:
            check_integer(name, value)
    if device is not None and ":" in device and (devices or 1) > 1:
        raise ValueError(f"device is {device!r}, a single device, but devices is {devices}: leave out one of them")
    if checkpoint_minutes is not None and not checkpoint_minutes > 0:
        raise ValueError(f"checkpoint_minutes is {checkpoint_minutes!r}: it must be above 0")
