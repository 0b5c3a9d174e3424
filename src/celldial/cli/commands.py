"""The commands ``celldial fit``, ``traverse``, ``markers`` and ``demo``."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celldial.cli.files import atomic_outputs, check_outputs, read_cells, write_cells
from celldial.cli.messages import echo, format_error

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from celldial.estimator.vae import VAE

__all__ = ["run_demo", "run_fit", "run_markers", "run_traverse"]

CELL_SUFFIXES = (".h5ad",)
MODEL_SUFFIXES = (".celldial",)
TABLE_SEPARATORS = {".csv": ",", ".tsv": "\t"}
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
PAGE_SUFFIXES = (".html",)
# Options of `fit` that are parameters of `VAE` with the same name.
PARAMETERS = (
    "n_latent",
    "decoder",
    "periodic",
    "n_clusters",
    "labels_key",
    "batch_key",
    "integration",
    "layer",
    "gene_symbols",
    "seed",
)


# --- fit --------------------------------------------------------------------------------------------------------------


def run_fit(options: argparse.Namespace) -> None:
    """Fit a model, and write the model and the embedded cells."""
    outputs = {"--out": (options.out, CELL_SUFFIXES), "--model": (options.model, MODEL_SUFFIXES)}
    check_outputs(outputs, options.files)  # before files are read and the model is trained, which can take long
    from celldial import VAE
    from celldial.estimator import validation

    model = VAE(**model_parameters(options))
    validation.check_parameters(model)
    validation.check_hardware(options.device, options.precision, None, None, None)
    if not options.quiet:
        echo(f"celldial: reading {', '.join(map(str, options.files))}")
    in_memory = not options.from_disk and len(options.files) == 1
    cells: Any = options.files
    if in_memory or options.out is not None:
        cells = read_cells(options.files[0], backed=not in_memory, unique_names=options.make_names_unique)
    model.fit(
        cells,
        max_epochs="auto" if options.max_epochs is None else options.max_epochs,
        key_added=options.key_added,
        progress=not options.quiet,
        device=options.device,
        precision=options.precision,
        checkpoint=options.checkpoint,
    )
    write_fit(model, cells, options)


def write_fit(model: VAE, cells: Any, options: argparse.Namespace) -> None:
    """Write the model first, and then the cells: if they cannot be written, the training is not lost."""
    from celldial.io.results import CLUSTER_PROBABILITY

    kept: Path | None = options.model
    if kept is not None:
        with atomic_outputs({"--model": (kept, MODEL_SUFFIXES)}, options.files) as targets:
            model.save(targets["--model"])
    if options.out is None:
        return
    try:
        with atomic_outputs({"--out": (options.out, CELL_SUFFIXES)}, options.files) as targets:
            source = None if options.make_names_unique else options.files[0]
            write_cells(cells, source, targets["--out"], [options.key_added, CLUSTER_PROBABILITY])
    except Exception as error:
        if kept is None:
            kept = save_elsewhere(model, options.out)
        rescued = "the model could not be saved either" if kept is None else f"the model is in {kept}"
        raise OSError(f"--out {options.out} could not be written ({format_error(error)}); {rescued}") from error


def save_elsewhere(model: VAE, out: Path) -> Path | None:
    """Save a model whose cells could not be written next to them, or in the folder for temporary files."""
    for folder in (out.resolve().parent, Path(tempfile.gettempdir())):
        path = folder / f"{out.stem}.celldial"
        if path.exists():
            path = folder / f"{out.stem}.{secrets.token_hex(4)}.celldial"
        with suppress(OSError):
            model.save(path)
            return path
    return None


def model_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of `VAE` that the options set."""
    parameters = {name: getattr(options, name) for name in PARAMETERS if getattr(options, name) is not None}
    if options.likelihood is not None:
        by_modality = dict(options.likelihood)
        parameters["likelihood"] = by_modality.get("", by_modality)
    return {
        **parameters,
        "categorical_covariate_keys": options.categorical_covariates,
        "continuous_covariate_keys": options.continuous_covariates,
    }


# --- traverse ---------------------------------------------------------------------------------------------------------


def run_traverse(options: argparse.Namespace) -> None:
    """Run a traversal, and write its table, figure, page and cells."""
    outputs = {
        "--table": (options.table, tuple(TABLE_SEPARATORS)),
        "--figure": (options.figure, FIGURE_SUFFIXES),
        "--dial": (options.dial, PAGE_SUFFIXES),
        "--out": (options.out, CELL_SUFFIXES),
    }
    with atomic_outputs(outputs, [options.file, options.model]) as targets:
        from celldial import VAE
        from celldial.io.results import read_traversals

        model = VAE.load(options.model)
        if not options.quiet:
            echo(f"celldial: reading {options.file}")
        adata = read_cells(options.file)
        traversal = run_traversal(model, adata, options)
        name = list(read_traversals(adata))[-1]
        if "--table" in targets:
            separator = TABLE_SEPARATORS[options.table.suffix]
            table = summary_table(traversal)
            table.to_csv(targets["--table"], sep=separator, index_label="feature", float_format="%.6g")
        if "--figure" in targets:
            save_figure(adata, name, options.features, targets["--figure"])
        if "--dial" in targets:
            from celldial import pl

            choices = {"basis": options.basis, "color": options.color, "features": options.features}
            pl.dial(adata, name, path=targets["--dial"], **choices)
        if "--out" in targets:
            write_cells(adata, options.file, targets["--out"], [])


def run_traversal(model: VAE, adata: AnnData, options: argparse.Namespace) -> AnnData:
    """Return the traversal along an axis; find the axis first if the options define a new one."""
    axis: Any
    if options.axis is None:
        axis = tuple(parse_value(adata.obs, options.groupby, end) for end in (options.start, options.end))
    else:
        axis = int(options.axis) if options.axis.isdecimal() else options.axis
    features = {name: getattr(options, name) for name in ("up", "down") if getattr(options, name)}
    if features or options.obs or options.groups:
        groups = options.groups and tuple(parse_value(adata.obs, options.obs, group) for group in options.groups)
        found = model.find_axis(
            adata, options.axis, obs=options.obs, groups=groups, features=features or None, layer=options.layer
        )
        if not options.quiet:
            echo(
                f"celldial: axis {found.name!r} ({found.description}): R² {found.strength:.2f}, p = {found.p_value:.3g}"
            )
    at: Any = options.at
    if at is not None and at not in adata.obs_names and "=" in at:
        column, _, text = at.partition("=")
        at = {column: parse_value(adata.obs, column, text)}
    covariates: dict[str, Any] = {}
    for name, text in options.covariate:
        covariates.setdefault(name, []).append(parse_number(name, text) if name in model.schema_.continuous else text)
    return model.latent_traverse(
        adata,
        axis,
        n_steps=options.n_steps,
        at=at,
        groupby=options.groupby,
        transform_batch={name: values[0] if len(values) == 1 else values for name, values in covariates.items()},
        layer=options.layer,
        seed=options.seed,
    )


def parse_value(obs: pd.DataFrame, column: str | None, text: str) -> Any:
    """Return the value of a column that is written as `text`, which can be a boolean or a number; else the text."""
    if column not in obs:
        return text
    return next((value for value in obs[column].dropna().unique() if str(value) == text), text)


def parse_number(name: str, text: str) -> float:
    """Return the value of a continuous covariate."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--covariate {name}={text}: {name!r} is a continuous covariate of this model, and {text!r} is not a number"
        ) from None


def summary_table(traversal: AnnData) -> pd.DataFrame:
    """Return the table of a traversal: one row for each feature, by rank."""
    import numpy as np

    column_f = np.arange(traversal.n_vars)
    if traversal.uns["kind"] == "periodic":  # the last step equals the first
        mean_sf = traversal.layers["mean"]
        steps = {"lowest": mean_sf.argmin(0), "highest": mean_sf.argmax(0)}
    else:
        steps = {"start": np.zeros_like(column_f), "end": np.full_like(column_f, traversal.n_obs - 1)}
    table = traversal.var[["modality", "rank", "change", "effect_size", "lfsr", "fdr"]].copy()
    table["peak_position"] = traversal.obs["position"].to_numpy()[traversal.var["peak_step"]]
    for suffix, step_f in steps.items():
        for name in ("mean", "lower", "upper"):
            table[f"{name}_{suffix}"] = traversal.layers[name][step_f, column_f]
    return table.sort_values("rank")


def save_figure(adata: AnnData, name: str, features: Sequence[str] | None, path: Path) -> None:
    """Write the figure of a traversal."""
    import matplotlib as mpl

    mpl.use("Agg")  # files need no display
    import matplotlib.pyplot as plt

    from celldial import pl

    figure: Any = pl.latent_traverse(adata, name, features, return_fig=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# --- markers ----------------------------------------------------------------------------------------------------------


def run_markers(options: argparse.Namespace) -> None:
    """Compare groups of cells, and write the table and the cells."""
    outputs = {"--table": (options.table, tuple(TABLE_SEPARATORS)), "--out": (options.out, CELL_SUFFIXES)}
    with atomic_outputs(outputs, [options.file, options.model]) as targets:
        from celldial import VAE

        model = VAE.load(options.model)
        if not options.quiet:
            echo(f"celldial: reading {options.file}")
        adata = read_cells(options.file)
        table = compare_groups(model, adata, options)
        if "--table" in targets:
            separator = TABLE_SEPARATORS[options.table.suffix]
            table.to_csv(targets["--table"], sep=separator, index=False, float_format="%.6g")
        if "--out" in targets:
            write_cells(adata, options.file, targets["--out"], [])


def compare_groups(model: VAE, adata: AnnData, options: argparse.Namespace) -> pd.DataFrame:
    """Return the markers of groups, or their differences from a reference or between replicates."""
    shared: dict[str, Any] = {"groups": options.groups, "modality": options.modality, "layer": options.layer}
    if options.at is not None:
        column, _, text = options.at.partition("=")
        shared["at"] = {column: parse_value(adata.obs, column, text)}
    if options.reference is None and options.replicate_key is None and not options.covariates:
        return model.markers(adata, options.groupby, options.n_features, **shared)
    table = model.differential(
        adata,
        options.groupby,
        reference="rest" if options.reference is None else options.reference,
        method="model" if options.replicate_key is None else None,
        replicate_key=options.replicate_key,
        covariates=options.covariates,
        **shared,
    )
    return table.groupby("group", sort=False).head(options.n_features or len(table))


# --- demo -------------------------------------------------------------------------------------------------------------


def run_demo(arguments: list[str]) -> int:
    """Run the demo, which has its own parser, and return its exit code."""
    from celldial.cli import demo

    try:
        return demo.main(arguments)
    except KeyboardInterrupt:
        echo("celldial: interrupted")
        return 130
