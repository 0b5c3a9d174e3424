"""What can be said against arguments before anything is computed: what is wrong, and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from celldial.data import Cells
from celldial.estimators import BASELINES, read_gradient
from celldial.fusion import FUSIONS
from celldial.latents import LATENTS
from celldial.likelihoods import LIKELIHOODS
from celldial.markers import Rhythm, read_rhythm
from celldial.nn import DECODERS
from celldial.priors import POSTERIORS, PRIORS
from celldial.schema import Schema

__all__ = [
    "check_any_count",
    "check_clusters",
    "check_columns_free",
    "check_enough",
    "check_hardware",
    "check_latent",
    "check_latent_states",
    "check_library_size",
    "check_modality_weights",
    "check_options",
    "check_parameters",
    "check_range",
    "check_target",
    "check_whole",
    "warn_of_empty",
]


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least {least}")


def check_parameters(parameters: dict[str, Any]) -> None:
    """Raise where a parameter of `VAE` makes no sense."""
    for name, least in {"n_latent": 1, "n_hidden": 2, "n_layers": 1, "seed": 0}.items():
        check_whole(name, parameters[name], least)
    likelihood, dropout_rate, learning_rate = (parameters[k] for k in ("likelihood", "dropout_rate", "learning_rate"))
    for name in likelihood.values() if isinstance(likelihood, Mapping) else [likelihood]:
        if name not in LIKELIHOODS and likelihood is not None:
            raise ValueError(f"likelihood is {name!r}: choose one of {', '.join(map(repr, LIKELIHOODS))}")
    choices = {
        "fusion": FUSIONS,
        "decoder": DECODERS,
        "latent": tuple(LATENTS),
        "prior": PRIORS,
        "posterior": POSTERIORS,
        "baseline": BASELINES,
    }
    for name, known in choices.items():
        if parameters[name] not in known:
            raise ValueError(f"{name} is {parameters[name]!r}: choose one of {', '.join(map(repr, known))}")
    rhythm = read_rhythm(parameters["periodic"])
    check_latent(parameters, rhythm is not None)
    if not (isinstance(dropout_rate, float | int | np.number) and 0 <= dropout_rate < 1):
        raise ValueError(f"dropout_rate is {dropout_rate!r}: it must be at least 0 and below 1")
    if not (isinstance(learning_rate, float | int | np.number) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate!r}: it must be above 0")


def check_latent(parameters: Mapping[str, Any], periodic: bool) -> None:
    """Raise where what is asked of the latent state does not go together."""
    if parameters["latent"] == "logistic_normal" and parameters["n_latent"] < 2:
        raise ValueError(
            "n_latent is 1, and the share of a single topic is always 1: choose more topics, or another latent"
        )
    check_whole("n_components", parameters["n_components"], 2)
    if parameters["n_clusters"] is not None:
        check_whole("n_clusters", parameters["n_clusters"], 2)
    clustered = parameters["n_clusters"] is not None or parameters["labels_key"] is not None
    gradient = read_gradient(parameters["gradient"], clustered)
    if parameters["bayesian_loadings"] and parameters["decoder"] != "linear":
        raise ValueError(
            f"bayesian_loadings=True is of a linear decoder, and decoder is {parameters['decoder']!r}: choose "
            "decoder='linear', or leave bayesian_loadings out"
        )
    if clustered and parameters["prior"] != "standard":
        raise ValueError(
            f"prior is {parameters['prior']!r}, and there are clusters, which are a prior themselves: leave prior "
            "out, or n_clusters and labels_key"
        )
    for name in ("prior", "posterior"):
        if parameters[name] == "flow" and parameters["n_latent"] < 2:
            raise ValueError(f"{name} is 'flow', which tells how coordinates hang together: choose n_latent=2 or more")
    if gradient.z == "score_function" and parameters["posterior"] == "flow":
        raise ValueError("gradient='score_function' does not go with posterior='flow': leave one of them out")
    if periodic:
        for name, usual in {"posterior": "diagonal", "n_clusters": None, "labels_key": None}.items():
            if parameters[name] != usual:
                raise ValueError(
                    f"{name} is {parameters[name]!r}, which does not go with a periodic coordinate: leave one of them "
                    "out"
                )
        if gradient.scored:
            raise ValueError("gradient='score_function' does not go with a periodic coordinate: leave one of them out")


def check_options(max_epochs: Any, batch_size: Any, key_added: Any) -> None:
    """Raise where an option of `VAE.fit` makes no sense."""
    for name, value in {"max_epochs": max_epochs, "batch_size": batch_size}.items():
        if value != "auto":
            check_whole(name, value)
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is {key_added!r}: it must be a name, such as 'X_celldial'")


def check_hardware(
    device: str | None, precision: str | None, devices: Any, num_nodes: Any, checkpoint_minutes: float | None
) -> None:
    """Raise where what to train on makes no sense."""
    if device is not None:
        try:
            kind = torch.device(device).type
        except RuntimeError:
            kind = None
        if kind not in {"cpu", "cuda"}:
            raise ValueError(f"device is {device!r}: choose 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, and torch finds no such device here: choose 'cpu'")
    if precision not in {None, "auto", "32-true", "bf16-mixed"}:
        raise ValueError(f"precision is {precision!r}: choose '32-true' or 'bf16-mixed'")
    for name, value in {"devices": devices, "num_nodes": num_nodes}.items():
        if value is not None:
            check_whole(name, value)
    if device is not None and ":" in device and (devices or 1) > 1:
        raise ValueError(f"device is {device!r}, which is one, and devices is {devices}: leave out one of them")
    if checkpoint_minutes is not None and not checkpoint_minutes > 0:
        raise ValueError(f"checkpoint_minutes is {checkpoint_minutes!r}: it must be above 0")


def check_clusters(described: Mapping[str, Any] | None, cells: Cells) -> None:
    """Raise where there are to be more clusters than cells."""
    n_filled = int((~cells.empty_c).sum())
    if described is not None and len(described["names"]) > n_filled:
        raise ValueError(
            f"n_clusters={len(described['names'])} is more than the {n_filled} cells with counts: choose fewer"
        )


def check_columns_free(adata: AnnData, rhythm: Rhythm | None) -> None:
    """Raise where columns that tell of a rhythm would take the place of what no model wrote."""
    if rhythm is None or adata.uns.get("celldial", {}).get("periodic", {}).get("name") == rhythm.name:
        return
    for part in ("angle", "concentration", "active_probability", "active", "phase"):
        if f"{rhythm.name}_{part}" in adata.obs:
            raise ValueError(
                f"adata.obs has a column {rhythm.name + '_' + part!r} that no model wrote, and which the periodic "
                "coordinate would replace: rename it, or drop it"
            )


def check_enough(schema: Schema, cells: Cells, n_latent: int) -> None:
    """Raise where there is too little to learn from."""
    check_any_count(cells)
    n_features = sum(map(len, schema.feature_names.values()))
    n_filled = int((~cells.empty_c).sum())
    if n_filled < 2 or n_features < 2:
        raise ValueError(
            f"adata has {n_filled} cells with counts, and {n_features} features: a model is learned from at least two "
            "of each"
        )
    if n_latent > n_features:
        raise ValueError(
            f"n_latent={n_latent} is more than the {n_features} features: choose VAE(n_latent={n_features}) or less"
        )


def check_modality_weights(weights: Any, schema: Schema) -> None:
    """Raise unless weights are positive numbers by modality."""
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise TypeError(f"modality_weights is {weights!r}: it must be a dict from modality to a number above 0")
    for modality, weight in weights.items():
        if modality not in schema.modalities:
            raise KeyError(f"modality_weights names {modality!r}; the modalities are {', '.join(schema.modalities)}")
        if not (isinstance(weight, float | int | np.number) and 0 < weight < np.inf):
            raise ValueError(f"the weight of {modality} is {weight!r}: it must be a number above 0")


def check_library_size(library_size: Any) -> float:
    """Give a library size to decode with as a float, or raise."""
    if not (isinstance(library_size, float | int | np.number) and 0 < library_size < np.inf):
        raise ValueError(f"library_size is {library_size!r}: it must be a number above 0")
    return float(library_size)


def check_any_count(cells: Cells, modalities: Sequence[str] | None = None) -> None:
    """Raise where no cell has a count, of some modalities where named."""
    if cells.empty_c.all():
        of = "" if modalities is None else f" of {' or '.join(modalities)}"
        raise ValueError(f"none of the {len(cells)} cells has a single count{of}: check the layer and the features")


def check_target(adata: Any, key_added: str | None) -> None:
    """Raise where something is to be written to cells that are only in files."""
    if key_added is not None and not hasattr(adata, "obsm"):
        raise ValueError(
            f"key_added={key_added!r} names a place in adata.obsm, and there is no AnnData: leave it out and keep what "
            "is returned"
        )


def warn_of_empty(
    name_of: Callable[[int], Any], cells: Cells, consequence: str, modality: str | None = None, stacklevel: int = 3
) -> None:
    """Warn where cells have no count, in the name of who called the method of `VAE` that calls this."""
    empty_c = cells.empty_c.numpy()
    if empty_c.any():
        of = "" if modality is None else f" of {modality}"
        warnings.warn(
            f"{empty_c.sum()} of {len(empty_c)} cells have no count{of} (the first is "
            f"{name_of(int(empty_c.argmax()))!r}): {consequence}",
            stacklevel=stacklevel,
        )


def check_range(z_cz: np.ndarray, latent: str) -> None:
    """Raise where coordinates are out of the range of their family."""
    if latent == "log_normal" and not (z_cz > 0).all():
        raise ValueError("z has values that are not above 0: the coordinates of a log-normal model are positive")
    if latent == "logistic_normal" and not ((z_cz >= 0).all() and np.allclose(z_cz.sum(1), 1, atol=1e-3)):
        raise ValueError(
            "z has rows that are no shares: of each cell the shares of topics are at least 0, and sum to 1"
        )


def check_latent_states(z: Any, n_latent: int) -> np.ndarray:
    """Give latent states as float32 of shape ``(cells, n_latent)``, or raise."""
    z_cz = np.array(z, dtype=np.float32, ndmin=2)
    if z_cz.ndim != 2 or z_cz.shape[1] != n_latent:
        raise ValueError(f"z has the shape {np.shape(z)}: it must be (cells, {n_latent})")
    if not np.isfinite(z_cz).all():
        raise ValueError("z has values that are NaN or infinite: latent states are finite numbers")
    return z_cz
