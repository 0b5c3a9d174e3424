"""A fitted `VAE` as a file and back, and the module that its parameters describe."""

from __future__ import annotations

import importlib.metadata
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.data.schema import Schema
from celldial.estimator import validation
from celldial.io import model_file
from celldial.model.config import ModuleConfig
from celldial.model.elbo import parse_gradient
from celldial.model.laplace import Loadings
from celldial.model.module import Module
from celldial.periodic.markers import parse_periodic
from celldial.utils.random import isolate_rng

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["build_module", "fingerprint", "load", "save", "to_json"]


def save(model: VAE, path: Path) -> None:
    """Write a fitted model to a file."""
    about = {
        "celldial_version": importlib.metadata.version("celldial"),
        "parameters": model.parameters_,
        "schema": model.schema_.to_dict(),
        # JSON has no NaN, which stands for quantities of validation in epochs without validation cells.
        "history": {k: [None if math.isnan(v) else v for v in values] for k, values in model.history_.items()},
        "library_size_quantiles": {name: q.tolist() for name, q in model.library_size_quantiles_.items()},
        "periodic": to_json(model.periodic_),
        "clusters": to_json(model.clusters_),
    }
    model_file.write(path, about, model.module_.state_dict())


def load(cls: type[VAE], path: Path) -> VAE:
    """Read a model from a file that this version or an earlier one wrote."""
    about, tensors = model_file.read_model(path)
    # Weights are initialized before they are replaced; the seed keeps the caller's random state as it was.
    with model_file.wrap_file_errors(path), isolate_rng(0):
        model = cls(**about["parameters"])
        validation.check_parameters(model.get_params(deep=False))
        model.parameters_ = to_json(model.get_params(deep=False))  # includes parameters that the file does not have
        model.schema_ = Schema.from_dict(about["schema"])
        model.clusters_ = about["clusters"]
        model.module_ = build_module(model, model.schema_, model.clusters_)
        for name, modality in model.module_.by_modality():
            prefix = f"modalities.{name}.loadings."
            found = {key.removeprefix(prefix): part for key, part in tensors.items() if key.startswith(prefix)}
            modality.loadings = Loadings(**found) if found else None
        model.module_.load_state_dict(tensors)
        model.history_ = {k: [math.nan if v is None else v for v in values] for k, values in about["history"].items()}
        model.periodic_ = None if about["periodic"] is None else _periodic_from_json(about["periodic"])
        quantiles = about["library_size_quantiles"]
        model.library_size_quantiles_ = {name: np.array(quantiles[name]) for name in model.schema_.modalities}
        model.fingerprint_ = fingerprint(model.module_)
    model.module_.eval()
    return model


def build_module(model: VAE, schema: Schema, clusters: Mapping[str, Any] | None) -> Module:
    """Make the module that the parameters of a model and the schema of its cells describe, with initial weights."""
    config = ModuleConfig(
        n_features={modality: len(names) for modality, names in schema.feature_names.items()},
        likelihood=schema.likelihood,
        n_categories=[len(names) for names in schema.categories.values()],
        n_continuous=len(schema.continuous),
        n_latent=model.n_latent,
        n_hidden=model.n_hidden,
        n_layers=model.n_layers,
        dropout_rate=model.dropout_rate,
        fusion=model.fusion,
        modality_weights=model.modality_weights,
        periodic=parse_periodic(model.periodic) is not None,
        decoder=model.decoder,
        bayesian_loadings=model.bayesian_loadings,
        latent=model.latent,
        prior=model.prior,
        n_components=model.n_components,
        posterior=model.posterior,
        n_clusters=None if clusters is None else len(clusters["names"]),
        n_labels=0 if clusters is None else clusters.get("n_labels", 0),
        gradient=parse_gradient(model.gradient, clusters is not None),
        baseline=model.baseline,
        straight_through=model.straight_through,
    )
    return Module(config)


def fingerprint(module: Module) -> str:
    """Return a checksum of the weights, which identifies a fitted model in the results that it wrote."""
    checksum = 0
    for tensor in module.state_dict().values():
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), checksum)
    return f"{checksum:08x}"


def to_json(value: Any) -> Any:
    """Convert numbers and arrays of numpy, sequences and dicts to JSON types."""
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(part) for part in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _periodic_from_json(periodic: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the lists in the description of a periodic coordinate back to arrays."""
    dtypes = {"phases": object, "phase_start": float}
    result: dict[str, Any] = {
        key: np.array(value, dtype=dtypes[key]) if key in dtypes else value for key, value in periodic.items()
    }
    if "markers" in result:
        result["markers"] = {phase: np.array(names, dtype=object) for phase, names in result["markers"].items()}
    return result
