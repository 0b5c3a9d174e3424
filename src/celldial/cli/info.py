"""The output of ``celldial info`` about a model file, as text or JSON."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["format_summary", "run_info", "summarize_model"]

MAX_FEATURES_IN_TEXT = 5


def run_info(options: argparse.Namespace) -> None:
    """Print a summary of a model file."""
    summary = summarize_model(options.model)
    print(json.dumps(summary, indent=2, allow_nan=False) if options.json else format_summary(summary))


def summarize_model(path: Path) -> dict[str, Any]:
    """Return a summary of a model file, in JSON types."""
    from celldial import VAE
    from celldial.io import model_file
    from celldial.io.json_types import to_json

    header, _ = model_file.read_model(path)
    if "identity" in header:
        raise ValueError(
            f"{str(path)!r} is a checkpoint of a training, not a model: run the same celldial fit again to resume it"
        )
    model = VAE.load(path)
    schema, history = model.schema_, model.history_
    defaults = to_json(VAE().get_params(deep=False))
    kept = [epoch for epoch, is_kept in enumerate(history["kept"]) if is_kept]
    best = history.get("elbo_validation", [math.nan] * len(history["kept"]))[kept[-1]]
    return {
        "file": str(path),
        "celldial_version": header["celldial_version"],
        "format_version": header["format_version"],
        "parameters": {name: value for name, value in model.parameters_.items() if value != defaults[name]},
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
            | ({"basis": schema.bases[name].to_dict()["kind"]} if name in schema.bases else {})
            for name, (mean, deviation) in schema.continuous.items()
        },
        "epochs": len(history["kept"]),
        "best_epoch": kept[-1] + 1,
        "best_validation_elbo": None if math.isnan(best) else best,
        "periodic": summarize_periodic(model.periodic_),
        "clusters": None if model.clusters_ is None else list(model.clusters_["names"]),
    }


def summarize_periodic(periodic: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return name, phases and markers of the periodic coordinate, in JSON types."""
    if periodic is None:
        return None
    starts = zip(periodic.get("phases", ()), periodic.get("phase_start", ()), strict=True)
    markers = periodic.get("markers", {})
    return {
        "name": periodic["name"],
        "phase_start": {str(phase): float(start) for phase, start in starts},
        "p_value": periodic.get("p_value"),
        "direction_probability": periodic.get("direction_probability"),
        "markers": {phase: [str(name) for name in names] for phase, names in markers.items()},
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """Return the summary of a model file as text."""
    from celldial.utils.messages import feature_noun

    lines = [
        summary["file"],
        f"written by    celldial {summary['celldial_version']} (file format {summary['format_version']})",
    ]
    changed = ", ".join(f"{name}={value!r}" for name, value in summary["parameters"].items())
    lines.append(f"parameters    {changed + '; others' if changed else 'all'} have their defaults")
    for name, modality in summary["modalities"].items():
        features = f"{modality['n_features']:,} {feature_noun(name)}s: {head(modality['feature_names'])}"
        lines.append(f"modality      {name} ({modality['likelihood']}), {features}")
    lines.append(f"counts        {'X' if summary['layer'] is None else 'layer ' + repr(summary['layer'])}")
    for name, categories in summary["categorical_covariates"].items():
        kind = "batch" if name == summary["batch_key"] else "category"
        lines.append(f"covariate     {name} ({kind}, {len(categories):,} values: {head(categories)})")
    for name, moments in summary["continuous_covariates"].items():
        lines.append(
            f"covariate     {name} (number, mean {moments['mean']:.4g}, standard deviation "
            f"{moments['standard_deviation']:.4g}{', ' + moments['basis'] if 'basis' in moments else ''})"
        )
    elbo = summary["best_validation_elbo"]
    best = "no validation cells" if elbo is None else f"validation ELBO {elbo:.1f} nats/cell"
    lines.append(f"training      {summary['epochs']} epochs; weights of epoch {summary['best_epoch']}, {best}")
    if summary["periodic"] is not None:
        starts = ", ".join(f"{name} from {start:.2f} rad" for name, start in summary["periodic"]["phase_start"].items())
        lines.append(f"periodic      {summary['periodic']['name']}{': ' if starts else ''}{starts}")
        certainty = {"p": summary["periodic"]["p_value"], "direction": summary["periodic"]["direction_probability"]}
        known = [f"{name} = {value:.3g}" for name, value in certainty.items() if value is not None]
        if known:
            lines.append(f"              {', '.join(known)}")
    if summary["clusters"] is not None:
        lines.append(f"clusters      {len(summary['clusters'])}: {head(summary['clusters'], 20)}")
    return "\n  ".join(lines)


def head(names: Sequence[Any], limit: int = MAX_FEATURES_IN_TEXT) -> str:
    """Return the first names as text."""
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")
