"""What ``celldial info`` says of a model file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["describe", "in_words", "run_info"]

FEATURES_IN_TEXT = 5


def run_info(options: argparse.Namespace) -> None:
    """Print what is in a model file."""
    about = describe(options.model)
    print(json.dumps(about, indent=2, allow_nan=False) if options.json else in_words(about))


def describe(path: Path) -> dict[str, Any]:
    """Say what is in a model file, in JSON types."""
    from celldial import VAE
    from celldial.io import model_file

    header, _ = model_file.read_model(path)
    if "identity" in header:
        raise ValueError(
            f"{str(path)!r} is the checkpoint of a training, no model: the same celldial fit goes on from it"
        )
    model = VAE.load(path)
    schema, history = model.schema_, model.history_
    usual = VAE().get_params(deep=False)
    kept = [epoch for epoch, is_kept in enumerate(history["kept"]) if is_kept]
    best = history.get("elbo_validation", [math.nan] * len(history["kept"]))[kept[-1]]
    return {
        "file": str(path),
        "celldial_version": header["celldial_version"],
        "format_version": header["format_version"],
        "parameters": {name: value for name, value in model.parameters_.items() if value != plain(usual[name])},
        "layer": schema.layer,
        "modalities": {
            name: {
                "likelihood": schema.likelihood[name],
                "n_features": len(features),
                "feature_names": list(features),
            }
            for name, features in schema.feature_names.items()
        },
        "batch_key": schema.batch_key,
        "categorical_covariates": {name: list(categories) for name, categories in schema.categories.items()},
        "continuous_covariates": {
            name: {"mean": mean, "standard_deviation": deviation}
            for name, (mean, deviation) in schema.continuous.items()
        },
        "epochs": len(history["kept"]),
        "best_epoch": kept[-1] + 1,
        "best_validation_elbo": None if math.isnan(best) else best,
        "periodic": periodic_of(model.periodic_),
        "clusters": None if model.clusters_ is None else list(model.clusters_["names"]),
    }


def plain(value: Any) -> Any:
    """Give a default as a model file has it: JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def periodic_of(described: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Say what is periodic, in JSON types."""
    if described is None:
        return None
    starts = zip(described.get("phases", ()), described.get("phase_start", ()), strict=True)
    markers = described.get("markers", {})
    return {
        "name": described["name"],
        "phase_start": {str(phase): float(start) for phase, start in starts},
        "markers": {phase: [str(name) for name in names] for phase, names in markers.items()},
    }


def in_words(about: Mapping[str, Any]) -> str:
    """Write what is in a model file for people."""
    from celldial.utils.messages import feature_noun

    lines = [
        about["file"],
        f"written by    celldial {about['celldial_version']} (file format {about['format_version']})",
    ]
    changed = ", ".join(f"{name}={value!r}" for name, value in about["parameters"].items())
    lines.append(f"parameters    {changed or 'all'}{', others' if changed else ''} as by default")
    for name, modality in about["modalities"].items():
        features = f"{modality['n_features']:,} {feature_noun(name)}s: {few(modality['feature_names'])}"
        lines.append(f"modality      {name} ({modality['likelihood']}), {features}")
    lines.append(f"counts        {'X' if about['layer'] is None else 'layer ' + repr(about['layer'])}")
    for name, categories in about["categorical_covariates"].items():
        what = f"{'batch' if name == about['batch_key'] else 'category'}, {len(categories):,} values: {few(categories)}"
        lines.append(f"covariate     {name} ({what})")
    for name, moments in about["continuous_covariates"].items():
        lines.append(
            f"covariate     {name} (number, mean {moments['mean']:.4g}, standard deviation "
            f"{moments['standard_deviation']:.4g})"
        )
    elbo = about["best_validation_elbo"]
    best = "no cells for validation" if elbo is None else f"validation ELBO {elbo:.1f} nats/cell"
    lines.append(f"training      {about['epochs']} epochs; weights of epoch {about['best_epoch']}, {best}")
    if about["periodic"] is not None:
        starts = ", ".join(f"{name} from {start:.2f} rad" for name, start in about["periodic"]["phase_start"].items())
        lines.append(f"periodic      {about['periodic']['name']}{': ' if starts else ''}{starts}")
    if about["clusters"] is not None:
        lines.append(f"clusters      {len(about['clusters'])}: {few(about['clusters'], 20)}")
    return "\n  ".join(lines)


def few(names: Sequence[Any], limit: int = FEATURES_IN_TEXT) -> str:
    """Write the first few names."""
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")
