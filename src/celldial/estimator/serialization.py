"""Save a fitted `VAE` to a file, and load it again."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from celldial.data.cells import checksum
from celldial.data.schema import Schema
from celldial.estimator import validation
from celldial.estimator.prepare import build_module
from celldial.inference.label_classifier import LabelClassifier
from celldial.inference.reference import ReferenceSummary
from celldial.io import model_file
from celldial.io.json_types import to_json
from celldial.model.laplace import Loadings
from celldial.utils.random import isolate_rng

if TYPE_CHECKING:
    from celldial.estimator.vae import VAE

__all__ = ["load", "save"]


def save(model: VAE, path: Path) -> None:
    """Write a fitted model to a file."""
    metadata = {
        "celldial_version": importlib.metadata.version("celldial"),
        "parameters": model.parameters_,
        "schema": model.schema_.to_dict(),
        # JSON has no NaN, the value of validation quantities in epochs without validation cells.
        "history": {k: [None if math.isnan(v) else v for v in values] for k, values in model.history_.items()},
        "library_size_quantiles": {name: q.tolist() for name, q in model.library_size_quantiles_.items()},
        "periodic": to_json(model.periodic_),
        "clusters": to_json(model.clusters_),
        "reference": None if model.reference_ is None else model.reference_.to_dict(),
        "label_classifier": None if model.label_classifier_ is None else model.label_classifier_.to_dict(),
    }
    model_file.write(path, metadata, model.module_.state_dict())


def load(cls: type[VAE], path: Path) -> VAE:
    """Read a model from a file that this version or an earlier one wrote."""
    metadata, tensors = model_file.read_model(path)
    # Weights are initialized before they are replaced; the seed keeps the caller's random state as it was.
    with model_file.wrap_file_errors(path), isolate_rng(0):
        model = cls(**metadata["parameters"])
        validation.check_parameters(model)
        model.parameters_ = to_json(model.get_params(deep=False))  # includes parameters that the file does not have
        model.schema_ = Schema.from_dict(metadata["schema"])
        model.clusters_ = metadata["clusters"]
        # Files of earlier versions have no classifier; their labels are the clusters of the mixture.
        classifier = metadata.get("label_classifier")
        model.label_classifier_ = None if classifier is None else LabelClassifier.from_dict(classifier)
        reference = metadata.get("reference")
        model.reference_ = None if reference is None else ReferenceSummary.from_dict(reference)
        _check_sizes(model, tensors)
        model.module_ = build_module(model, model.schema_, model.clusters_)
        for name, modality in model.module_.by_modality():
            prefix = f"modalities.{name}.loadings."
            found = {key.removeprefix(prefix): part for key, part in tensors.items() if key.startswith(prefix)}
            modality.loadings = Loadings(**found) if found else None
            if modality.loadings is not None:
                modality.loadings.check_shapes(len(model.schema_.feature_names[name]), model.n_hidden)
        model.module_.load_state_dict(tensors)
        model.history_ = {
            k: [math.nan if v is None else v for v in values] for k, values in metadata["history"].items()
        }
        model.periodic_ = None if metadata["periodic"] is None else _periodic_from_json(metadata["periodic"])
        quantiles = metadata["library_size_quantiles"]
        model.library_size_quantiles_ = {name: np.array(quantiles[name]) for name in model.schema_.modalities}
        model.fingerprint_ = checksum(model.module_.state_dict().values())
    model.module_.eval()
    return model


def _check_sizes(model: VAE, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors with what the parameters ask for, before any memory is allocated for it."""
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for name in ("n_latent", "n_hidden", "n_layers", "n_components", "n_clusters"):
        value = getattr(model, name)
        if value is not None and name not in ("n_layers", "n_components") and value > largest:
            raise ValueError(f"{name} is {value}, and no tensor is larger than {largest}")
        if value is not None and value > len(tensors) * max(largest, 1):
            raise ValueError(f"{name} is {value}, which is more than the tensors have")
    if "flow" in (model.prior, model.posterior):
        return  # their networks cannot be created without values; their tensors are compared when they are set
    with torch.device("meta"):
        _check_tensors(build_module(model, model.schema_, model.clusters_).state_dict(), tensors)


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors of a file have the shapes and types of the model's, and finite values.

    Names are compared when the tensors are set. The uncertainty of the loadings is not part of every model.
    """
    for name, tensor in found.items():
        if name in expected and (tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, and the model that it describes "
                f"has {tuple(expected[name].shape)} and {expected[name].dtype}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
    for name, tensor in expected.items():
        if name not in found:
            raise ValueError(f"the file lacks {name}, of shape {tuple(tensor.shape)}")


def _periodic_from_json(periodic: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the lists in the description of a periodic coordinate back to arrays."""
    dtypes = {"phases": object, "phase_start": float}
    result: dict[str, Any] = {
        key: np.array(value, dtype=dtypes[key]) if key in dtypes else value for key, value in periodic.items()
    }
    if "markers" in result:
        result["markers"] = {phase: np.array(names, dtype=object) for phase, names in result["markers"].items()}
    return result
