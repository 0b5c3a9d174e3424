"""What ``celldial fit``, ``traverse`` and ``demo`` do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celldial.cli.files import outputs, read_cells, write_cells
from celldial.cli.messages import tell

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from celldial.estimator.vae import VAE

__all__ = ["run_demo", "run_fit", "run_traverse"]

CELLS = (".h5ad",)
MODELS = (".celldial",)
TABLES = {".csv": ",", ".tsv": "\t"}
FIGURES = (".png", ".pdf", ".svg")
PAGES = (".html",)
# What `fit` adds to obsm beside the embedding.
PROBABILITIES = "celldial_cluster_probability"


def run_fit(options: argparse.Namespace) -> None:
    """Fit a model, and write it and the embedding."""
    wanted = {"--out": (options.out, CELLS), "--model": (options.model, MODELS)}
    with outputs(wanted, options.files) as targets:
        from celldial import VAE
        from celldial.estimator import validation

        model = VAE(**parameters(options))
        validation.check_parameters(model.get_params(deep=False))  # before files are read, which may take long
        validation.check_hardware(options.device, options.precision, None, None, None)
        if not options.quiet:
            tell(f"celldial: reading {', '.join(map(str, options.files))}")
        in_memory = not options.from_disk and len(options.files) == 1
        cells = read_cells(options.files[0], backed=not in_memory) if in_memory or "--out" in targets else options.files
        model.fit(
            cells,
            max_epochs="auto" if options.max_epochs is None else options.max_epochs,
            key_added=options.key_added,
            progress=not options.quiet,
            device=options.device,
            precision=options.precision,
            checkpoint=options.checkpoint,
        )
        if "--out" in targets:
            write_cells(cells, options.files[0], targets["--out"], [options.key_added, PROBABILITIES])
        if "--model" in targets:
            model.save(targets["--model"])


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Give the arguments of `VAE` that were set."""
    names = (
        "n_latent",
        "decoder",
        "periodic",
        "n_clusters",
        "labels_key",
        "batch_key",
        "layer",
        "gene_symbols",
        "seed",
    )
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.likelihood is not None:
        by_modality = dict(options.likelihood)
        given["likelihood"] = by_modality.get("", by_modality)
    return {
        **given,
        "categorical_covariate_keys": options.categorical_covariates,
        "continuous_covariate_keys": options.continuous_covariates,
    }


def run_traverse(options: argparse.Namespace) -> None:
    """Turn a dial, and write what changes."""
    wanted = {
        "--table": (options.table, tuple(TABLES)),
        "--figure": (options.figure, FIGURES),
        "--dial": (options.dial, PAGES),
        "--out": (options.out, CELLS),
    }
    with outputs(wanted, [options.file, options.model]) as targets:
        from celldial import VAE

        model = VAE.load(options.model)
        if not options.quiet:
            tell(f"celldial: reading {options.file}")
        adata = read_cells(options.file)
        path = turn(model, adata, options)
        name = list(adata.uns["latent_traverse"])[-1]
        if "--table" in targets:
            table = table_of(path)
            table.to_csv(
                targets["--table"], sep=TABLES[options.table.suffix], index_label="feature", float_format="%.6g"
            )
        if "--figure" in targets:
            draw(adata, name, options.features, targets["--figure"])
        if "--dial" in targets:
            from celldial import pl

            choices = {"basis": options.basis, "color": options.color, "features": options.features}
            pl.dial(adata, name, path=targets["--dial"], **choices)
        if "--out" in targets:
            write_cells(adata, options.file, targets["--out"], [])


def turn(model: VAE, adata: AnnData, options: argparse.Namespace) -> AnnData:
    """Find the axis where it is new, and move cells along it."""
    axis: Any
    if options.axis is None:
        axis = tuple(value_of(adata.obs, options.groupby, end) for end in (options.start, options.end))
    else:
        axis = int(options.axis) if options.axis.isdecimal() else options.axis
    features = {name: getattr(options, name) for name in ("up", "down") if getattr(options, name)}
    if features or options.obs or options.groups:
        groups = options.groups and tuple(value_of(adata.obs, options.obs, group) for group in options.groups)
        found = model.find_axis(adata, options.axis, obs=options.obs, groups=groups, features=features or None)
        if not options.quiet:
            tell(
                f"celldial: axis {found.name!r} ({found.description}): R² {found.strength:.2f}, p = {found.p_value:.3g}"
            )
    at: Any = options.at
    if at is not None and at not in adata.obs_names and "=" in at:
        column, _, text = at.partition("=")
        at = {column: value_of(adata.obs, column, text)}
    covariates = {
        name: number(name, text) if name in model.schema_.continuous else text for name, text in options.covariate
    }
    return model.latent_traverse(
        adata,
        axis,
        n_steps=options.n_steps,
        at=at,
        groupby=options.groupby,
        transform_batch=covariates or None,
        seed=options.seed,
    )


def value_of(obs: pd.DataFrame, column: str | None, text: str) -> Any:
    """Find the value of a column that is written so: of booleans and numbers it is no text."""
    if column not in obs:
        return text
    return next((value for value in obs[column].dropna().unique() if str(value) == text), text)


def number(name: str, text: str) -> float:
    """Read the value of a continuous covariate."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--covariate {name}={text}: {name!r} is a number in this model, and {text!r} is none"
        ) from None


def table_of(path: AnnData) -> pd.DataFrame:
    """Make one table of a traversal: its features, those of the best rank first."""
    import numpy as np

    column_f = np.arange(path.n_vars)
    if path.uns["kind"] == "periodic":  # the last step is the first
        mean_sf = path.layers["mean"]
        steps = {"lowest": mean_sf.argmin(0), "highest": mean_sf.argmax(0)}
    else:
        steps = {"start": np.zeros_like(column_f), "end": np.full_like(column_f, path.n_obs - 1)}
    table = path.var[["modality", "rank", "change", "effect_size", "lfsr", "fdr"]].copy()
    table["peak_position"] = path.obs["position"].to_numpy()[path.var["peak_step"]]
    for where, step_f in steps.items():
        for name in ("mean", "lower", "upper"):
            table[f"{name}_{where}"] = path.layers[name][step_f, column_f]
    return table.sort_values("rank")


def draw(adata: AnnData, name: str, features: Sequence[str] | None, path: Path) -> None:
    """Draw a traversal."""
    import matplotlib as mpl

    mpl.use("Agg")  # the figure goes to a file: no screen is needed
    import matplotlib.pyplot as plt

    from celldial import pl

    figure: Any = pl.latent_traverse(adata, name, features, return_fig=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run_demo(arguments: list[str]) -> int:
    """Run the demo, which reads its own arguments."""
    from celldial.cli import demo

    try:
        return demo.main(arguments)
    except KeyboardInterrupt:
        tell("celldial: interrupted")
        return 130
