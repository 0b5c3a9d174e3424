"""The command line: ``celldial fit``, ``traverse``, ``info`` and ``demo``."""

from __future__ import annotations

import argparse
import dis
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from celldial.model import VAE

__all__ = ["main"]

PACKAGE = Path(__file__).parent
CELLS = (".h5ad",)
MODELS = (".celldial",)
TABLES = {".csv": ",", ".tsv": "\t"}
FIGURES = (".png", ".pdf", ".svg")
PAGES = (".html",)
LIKELIHOODS = ("negative_binomial", "poisson", "zero_inflated_negative_binomial", "bernoulli")
DECODERS = ("network", "additive", "linear")
# What `fit` and `latent_traverse` add to an AnnData, beside columns of obs: entries of obsm and of uns.
WRITTEN_TO_OBSM, WRITTEN_TO_UNS = ("celldial_cluster_probability",), ("celldial", "latent_traverse")
FEATURES_IN_TEXT = 5

EPILOG = """\
exit codes:
  0    done
  1    something is wrong with the data, a file or a value, and one sentence on
       stderr says what; or a bug, with its traceback
  2    wrong usage: an unknown option, options that do not go together
  130  interrupted by Ctrl-C

Results are printed to stdout, progress and messages to stderr.
celldial COMMAND --help says more of each command."""

FIT_EPILOG = """\
reads:
  An .h5ad file or a .zarr store with raw counts in X, or in the layer that
  --layer names. It is never changed. One file is read to memory. With
  --from-disk, or of several files, counts are read piece by piece, and memory
  does not grow with their number. Several files have a model alone as result.

writes:
  --out    the cells as they were read, and with them obsm["X_celldial"],
           uns["celldial"], and what --periodic, --n-clusters and --labels-key
           add to obs. Counts, layers and all else are copied as they are.
  --model  the model, for celldial traverse and info, and celldial.VAE.load.
  Each file appears whole, at the end, or not at all; one that is there is
  replaced. That it can be written is tried before training begins. The paths
  are printed to stdout.

Ctrl-C ends training early: what is written is of the best epoch so far, and the
exit code is 130. Ctrl-C once more ends it at once, and nothing is written. With
--checkpoint, the same command goes on where an earlier one was cut short.

examples:
  celldial fit cells.h5ad --batch-key donor --out embedded.h5ad \\
      --model cells.celldial
  celldial fit cells.h5ad --layer counts --periodic cell_cycle \\
      --gene-symbols symbol --out embedded.h5ad
  celldial fit liver.h5ad lung.h5ad --batch-key donor \\
      --model atlas.celldial --checkpoint runs/atlas"""

TRAVERSE_EPILOG = """\
reads:
  An .h5ad file or a .zarr store with cells, which have raw counts where those
  of the model had them; and the model. Neither is changed.

writes:
  --table   one row a feature, what most surely changes much first: change and
            effect_size (log2), lfsr (how probable it is that the change goes
            the other way), fdr, and means with 90 % intervals at start and end
            (around a circle, where the feature is lowest and highest)
  --figure  curves of some features, and a heatmap of more
  --dial    a page to turn the dial by hand, in a browser; it needs a map of the
            cells, obsm["X_umap"] or another one that --basis names
  --out     the cells as they were read, and with them uns["latent_traverse"],
            which the plots of celldial.pl read
  Each file appears whole, at the end, or not at all; one that is there is
  replaced. The paths are printed to stdout.

what to turn:
  --axis 3                     a latent coordinate
  --axis cell_cycle            the circle of a model, fitted with --periodic
  --axis NAME                  an axis that is in the file: --out left it there
  --axis NAME --up A B         a new axis, called so: by genes that rise along
                               it, and by those that fall (--down)
  --axis NAME --obs COLUMN     by a column of obs: numbers, ordered, two values
  --axis NAME --groups A B     from one group to another, of the column --obs if
                               several have both
  --from A --to B              straight from cells of one group to the other's

examples:
  celldial traverse embedded.h5ad --model cells.celldial --axis 3 \\
      --table axis_3.csv --figure axis_3.png
  celldial traverse embedded.h5ad --model cells.celldial \\
      --from "CD4 T" --to "CD8 T" --groupby cell_type --table t_cells.tsv
  celldial traverse embedded.h5ad --model cells.celldial --axis response \\
      --groups ctrl stim --at cell_type=B --covariate donor=d1 --table b.csv"""

INFO_EPILOG = """\
reads:
  A model that celldial fit --model or VAE.save wrote. Cells are not in it.

prints:
  To stdout: the version that wrote it, parameters that are not the default,
  modalities with likelihood and features, covariates with their categories,
  epochs and best validation ELBO, what is periodic, clusters. How many cells it
  was trained on is not kept in the file.

examples:
  celldial info cells.celldial
  celldial info cells.celldial --json | jq .best_validation_elbo"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Of the command line; by default those of this process.

    Returns
    -------
    int
        The exit code: 0; 1 where something is wrong with the data, a file or a value; 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With code 2, of wrong usage.
    Exception
        A bug, and with ``--traceback`` any error.

    Examples
    --------
    >>> import celldial
    >>> from celldial.cli import main
    >>> celldial.datasets.pbmc68k_reduced().write_h5ad("cells.h5ad")
    >>> main(["fit", "cells.h5ad", "--model", "cells.celldial", "--max-epochs", "1", "--quiet"])
    cells.celldial
    0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["demo"]:
        return run_demo(arguments[1:])
    options = make_parser().parse_args(arguments)
    check_usage(options)
    try:
        with warnings.catch_warnings(), Interrupts() as interrupts:
            warnings.showwarning = show_warning
            options.run(options)
            sys.stdout.flush()
            if interrupts.n:
                tell("celldial: interrupted; what is written is of the best epoch so far")
                return 130
            return 0
    except (KeyboardInterrupt, Abandoned):
        tell("celldial: interrupted; nothing was written")
        return 130
    except BrokenPipeError:  # who reads stdout has seen enough: `celldial info ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.traceback or not is_expected(error):
            raise
        tell(f"celldial: error: {sentence(error)}")
        return 1


# --- Arguments --------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    about = "Variational autoencoders for single-cell counts, with dials to turn."
    parser = argparse.ArgumentParser(prog="celldial", description=about, epilog=EPILOG, **style)
    parser.add_argument("--version", action="version", version=f"celldial {version('celldial')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    described = {
        "fit": ("Fit a model to raw counts, and embed the cells.", FIT_EPILOG, add_fit),
        "traverse": (
            "Turn a dial of a model, and see what changes.",
            TRAVERSE_EPILOG,
            add_traverse,
        ),
        "info": ("Say what is in a model file.", INFO_EPILOG, add_info),
    }
    for name, (about, epilog, add_options) in described.items():
        command = commands.add_parser(name, help=about, description=about, epilog=epilog, **style)
        add_options(command)
        group = command.add_argument_group("messages")
        group.add_argument("--quiet", action="store_true", help="no progress on stderr; warnings and errors stay")
        group.add_argument("--traceback", action="store_true", help="show where an error was raised, for a bug report")
        command.set_defaults(usage_error=command.error)
    # Listed here, and run before anything is parsed: the demo has a parser of its own.
    commands.add_parser("demo", help="See it work on small data sets (celldial demo --help).", add_help=False)
    return parser


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Describe ``celldial fit``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".h5ad file or .zarr store; before options")
    parser.add_argument("--from-disk", action="store_true", help="read counts piece by piece, not to memory")
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the embedding")
    group.add_argument("--model", type=Path, metavar="FILE.celldial", help="the model")
    group.add_argument("--key-added", default="X_celldial", metavar="KEY", help="of the embedding in obsm (X_celldial)")
    group = parser.add_argument_group("what the cells have")
    group.add_argument("--layer", metavar="NAME", help="layer with raw counts (X)")
    group.add_argument("--batch-key", metavar="COLUMN", help="of obs: the batch, kept out of the embedding")
    for kind in ("categorical", "continuous"):
        group.add_argument(
            f"--{kind}-covariates",
            nargs="+",
            action="extend",
            default=[],
            metavar="COLUMN",
            help=f"of obs: further {kind} covariates, kept out as well",
        )
    group.add_argument("--gene-symbols", metavar="COLUMN", help="of var: gene symbols, where names are identifiers")
    group = parser.add_argument_group("model")
    group.add_argument("--n-latent", type=whole_number(1), metavar="N", help="number of latent coordinates (10)")
    group.add_argument(
        "--likelihood",
        nargs="+",
        type=likelihood,
        metavar="[MODALITY=]NAME",
        help=f"of the counts: {', '.join(LIKELIHOODS)}; for one modality: atac=poisson (bernoulli for atac, else "
        "negative_binomial)",
    )
    group.add_argument("--decoder", choices=DECODERS, help="how shares depend on the coordinates (network)")
    group.add_argument("--periodic", metavar="RHYTHM", help="a circle beside the coordinates: cell_cycle")
    group.add_argument("--n-clusters", type=whole_number(2), metavar="N", help="clusters, learned with the embedding")
    group.add_argument("--labels-key", metavar="COLUMN", help="of obs: labels of some cells; others are 'unknown'")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--max-epochs", type=whole_number(1), metavar="N", help="passes over the cells (by their number)"
    )
    group.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of all randomness (0)")
    group.add_argument("--device", metavar="DEVICE", help="cpu or cuda (cuda where there is one)")
    group.add_argument("--precision", metavar="FORMAT", help="32-true or bf16-mixed (32-true)")
    group.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="to go on from after a kill or a time limit")
    parser.set_defaults(run=run_fit, wrong_usage=wrong_usage_of_fit)


def add_traverse(parser: argparse.ArgumentParser) -> None:
    """Describe ``celldial traverse``."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".h5ad file or .zarr store with cells")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.celldial", help="the model")
    group = parser.add_argument_group("what to turn (see below)")
    group.add_argument("--axis", metavar="AXIS", help="a number, or a name")
    group.add_argument("--from", dest="start", metavar="GROUP", help="start of a path: a group, or a cell")
    group.add_argument("--to", dest="end", metavar="GROUP", help="its end")
    group.add_argument("--groupby", metavar="COLUMN", help="of obs: the column that has both groups")
    group.add_argument("--obs", metavar="COLUMN", help="of obs: what a new axis tells")
    group.add_argument("--groups", nargs=2, metavar=("FROM", "TO"), help="two groups that a new axis tells apart")
    group.add_argument("--up", nargs="+", metavar="GENE", help="genes that rise along a new axis")
    group.add_argument("--down", nargs="+", metavar="GENE", help="genes that fall along a new axis")
    group = parser.add_argument_group("how to turn it")
    group.add_argument("--at", metavar="COLUMN=GROUP", help="move cells of this group, or one cell by its name (any)")
    group.add_argument(
        "--covariate", action="append", type=pair, default=[], metavar="NAME=VALUE", help="decode all cells as of it"
    )
    group.add_argument("--n-steps", type=whole_number(2), default=25, metavar="N", help="number of steps (25)")
    group.add_argument("--seed", type=whole_number(0), metavar="N", help="of the choice of cells (the model's)")
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--table", type=Path, metavar="FILE.csv|tsv", help="features, and how they change")
    group.add_argument("--figure", type=Path, metavar="FILE.png|pdf|svg", help="curves and a heatmap")
    group.add_argument("--dial", type=Path, metavar="FILE.html", help="a page to turn the dial by hand")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the traversal")
    group = parser.add_argument_group("what they show")
    group.add_argument("--features", nargs="+", metavar="NAME", help="of figure and dial (those of the best ranks)")
    group.add_argument("--basis", default="X_umap", metavar="KEY", help="of obsm: the map of the dial (X_umap)")
    group.add_argument("--color", metavar="COLUMN", help="of obs: what colors the map of the dial (gray)")
    parser.set_defaults(run=run_traverse, wrong_usage=wrong_usage_of_traverse)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Describe ``celldial info``."""
    parser.add_argument("model", type=Path, metavar="FILE.celldial", help="the model")
    parser.add_argument("--json", action="store_true", help="print JSON, with all names of features")
    parser.set_defaults(run=run_info, wrong_usage=lambda _: None)


def whole_number(least: int) -> Any:
    """Make a reader of whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return read


def pair(text: str) -> tuple[str, str]:
    """Read ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def likelihood(text: str) -> tuple[str, str]:
    """Read ``NAME``, of all modalities (then called ""), or ``MODALITY=NAME``."""
    modality, name = pair(text) if "=" in text else ("", text)
    if name not in LIKELIHOODS:
        raise argparse.ArgumentTypeError(f"{name!r} is no likelihood: choose one of {', '.join(LIKELIHOODS)}")
    return modality, name


def check_usage(options: argparse.Namespace) -> None:
    """End with exit code 2 where options do not go together."""
    wrong = options.wrong_usage(options)
    if wrong is not None:
        options.usage_error(wrong)


def wrong_usage_of_fit(options: argparse.Namespace) -> str | None:
    """Say what does not go together, if anything."""
    if options.out is None and options.model is None:
        return "nothing to write: give --out, --model or both"
    if len(options.files) > 1 and options.out is not None:
        return (
            "--out is of one file: of several, give --model alone, or make one file of them first "
            "(anndata.experimental.concat_on_disk)"
        )
    if options.from_disk and options.out is not None and options.files[0].is_dir():
        return (
            "--from-disk with --out reads an .h5ad file: of a .zarr store, give --model alone, or leave --from-disk out"
        )
    if options.periodic is not None and (options.from_disk or len(options.files) > 1):
        return (
            "--periodic looks at all cells again and again, which takes memory: give one file, without --from-disk, or "
            "leave --periodic out"
        )
    if options.likelihood is not None and len(options.likelihood) > 1:
        modalities = [modality for modality, _ in options.likelihood]
        if "" in modalities or len(set(modalities)) < len(modalities):
            return "--likelihood takes one NAME, or one MODALITY=NAME for each modality"
    return None


def wrong_usage_of_traverse(options: argparse.Namespace) -> str | None:
    """Say what does not go together, if anything."""
    if all(getattr(options, name) is None for name in ("table", "figure", "dial", "out")):
        return "nothing to write: give --table, --figure, --dial or --out"
    if (options.start is None) != (options.end is None):
        return "--from and --to go together: give both"
    if (options.axis is None) == (options.start is None):
        return "what to turn: give --axis, or --from and --to"
    new = any(getattr(options, name) is not None for name in ("obs", "groups", "up", "down"))
    if new and options.axis is None:
        return "--obs, --groups, --up and --down make a new axis: give it a name by --axis"
    if (options.obs or options.groups) and (options.up or options.down):
        return "a new axis is told by --obs and --groups, or by --up and --down, not by both"
    if options.features is not None and options.figure is None and options.dial is None:
        return "--features are those of --figure and --dial, and neither is given"
    return None


# --- Commands ---------------------------------------------------------------------------------------------------------


def run_fit(options: argparse.Namespace) -> None:
    """Fit a model, and write it and the embedding."""
    wanted = {"--out": (options.out, CELLS), "--model": (options.model, MODELS)}
    with outputs(wanted, options.files) as targets:
        from celldial import VAE, checks

        model = VAE(**parameters(options))
        checks.check_parameters(model.get_params(deep=False))  # before files are read, which may take long
        checks.check_hardware(options.device, options.precision, None, None, None)
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
            write_cells(cells, options.files[0], targets["--out"], [options.key_added, *WRITTEN_TO_OBSM])
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
    genes = {name: getattr(options, name) for name in ("up", "down") if getattr(options, name)}
    if genes or options.obs or options.groups:
        groups = options.groups and tuple(value_of(adata.obs, options.obs, group) for group in options.groups)
        found = model.find_axis(adata, options.axis, obs=options.obs, groups=groups, genes=genes or None)
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
        covariates=covariates or None,
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


def run_info(options: argparse.Namespace) -> None:
    """Print what is in a model file."""
    about = describe(options.model)
    print(json.dumps(about, indent=2, allow_nan=False) if options.json else in_words(about))


def describe(path: Path) -> dict[str, Any]:
    """Say what is in a model file, in JSON types."""
    from celldial import VAE, storage

    header, _ = storage.read(path)
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


def run_demo(arguments: list[str]) -> int:
    """Run the demo, which reads its own arguments."""
    from celldial import demo

    try:
        return demo.main(arguments)
    except KeyboardInterrupt:
        tell("celldial: interrupted")
        return 130


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
    from celldial.lookup import noun_of

    lines = [
        about["file"],
        f"written by    celldial {about['celldial_version']} (file format {about['format_version']})",
    ]
    changed = ", ".join(f"{name}={value!r}" for name, value in about["parameters"].items())
    lines.append(f"parameters    {changed or 'all'}{', others' if changed else ''} as by default")
    for name, modality in about["modalities"].items():
        features = f"{modality['n_features']:,} {noun_of(name)}s: {few(modality['feature_names'])}"
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


# --- Files ------------------------------------------------------------------------------------------------------------


@contextmanager
def outputs(
    wanted: Mapping[str, tuple[Path | None, Sequence[str]]], inputs: Sequence[Path]
) -> Iterator[dict[str, Path]]:
    """Have files written whole, all of them at the end of this block, or none.

    Parameters
    ----------
    wanted
        Option to the path that was given, if one was, and the suffixes that it may have.
    inputs
        What is read, and must not be written over.

    Yields
    ------
    dict[str, Path]
        Option to the path to write to meanwhile, beside the one that was given. The latter are printed at the end.

    Raises
    ------
    ValueError, OSError
        Before the block runs, where a file cannot be written.
    """
    given = {option: path for option, (path, _) in wanted.items() if path is not None}
    for option, path in given.items():
        check_output(option, path, wanted[option][1], inputs)
    final = {option: path.resolve() for option, path in given.items()}  # through links, which stay
    if len(set(final.values())) < len(final):
        raise ValueError(f"{' and '.join(final)} are the same file: give each its own")
    # Files are made when they are written: a job that is killed in training leaves none.
    meanwhile = {option: path.with_name(f".{os.getpid()}.{path.name}") for option, path in final.items()}
    try:
        yield meanwhile
        for option, path in final.items():
            with meanwhile[option].open("rb") as file:
                os.fsync(file.fileno())
            os.replace(meanwhile[option], path)
    finally:
        for path in meanwhile.values():
            path.unlink(missing_ok=True)
    for path in given.values():
        print(path)


def check_output(option: str, path: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> None:
    """Raise where a file cannot be written."""
    if path.suffix not in suffixes:
        raise ValueError(f"{option} is {path}: its name must end in {' or '.join(suffixes)}")
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise ValueError(f"{option} is {path}, which is also read, and is not written over: give another path")
    if path.is_dir():
        raise IsADirectoryError(f"{option} is {path}, which is a folder: give the path of a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{option} is {path}, and there is no folder {folder}: make it first, or choose another"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} is {path}, which is there and must not be changed: give another path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option} is {path}, and nothing can be written to {folder}: {error.strerror}") from error


def read_cells(path: Path, backed: bool = False) -> AnnData:
    """Read cells to memory; all but ``X`` where `backed`."""
    import anndata

    from celldial.stored import File

    with File(path).reading():  # says of any failure what it is about
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path, backed="r" if backed else None)


def write_cells(adata: AnnData, source: Path, target: Path, obsm_keys: Sequence[str]) -> None:
    """Write cells with what was added to them: into a copy of their file, in which all else stays as it is.

    Parameters
    ----------
    adata
        The cells.
    source
        Where they were read from.
    target
        Where to write.
    obsm_keys
        What was added to ``obsm``, if it is there.
    """
    import h5py
    from anndata.io import write_elem

    if source.is_dir() or not is_current(source):
        (adata.to_memory() if adata.isbacked else adata).write_h5ad(target)
        return
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        write_elem(file, "obs", adata.obs)
        for slot, keys in {"obsm": obsm_keys, "uns": WRITTEN_TO_UNS}.items():
            if slot not in file:
                write_elem(file, slot, {})
            for key in keys:
                if key in getattr(adata, slot):
                    write_elem(file[slot], key, getattr(adata, slot)[key])


def is_current(path: Path) -> bool:
    """Tell whether an h5ad file is of the layout that anndata has written since 0.8, to which parts can be added."""
    import h5py

    with h5py.File(path, "r") as file:
        return file.attrs.get("encoding-type") == "anndata"


# --- Messages and interrupts ------------------------------------------------------------------------------------------


def tell(text: str) -> None:
    """Say something to stderr."""
    print(text, file=sys.stderr, flush=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning without the line of code that gave it."""
    tell(f"celldial: warning: {message}")


def is_expected(error: Exception) -> bool:
    """Tell an error that is meant for the user from a bug: the package itself raised it, or the system did."""
    import torch

    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, ValueError | TypeError | KeyError | FloatingPointError):
        return False
    place = error.__traceback__
    assert place is not None  # it was caught
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code
    raised = dis.opname[code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(code.co_filename).is_relative_to(PACKAGE)


def sentence(error: Exception) -> str:
    """Write the message of an error on one line."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str puts it in quotes
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = text or "there is not enough memory"
    return " ".join(text.split())


class Abandoned(BaseException):
    """Ctrl-C for the second time, which nothing takes as a wish to end early."""


class Interrupts:
    """Count Ctrl-C in this block: `fit` takes the first as a wish to end early, and the exit code must tell."""

    def __init__(self) -> None:
        self.n = 0
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        self.before = signal.getsignal(signal.SIGINT)
        if self.before is signal.default_int_handler:  # a shell has background jobs ignore it
            signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self.before)

    def _count(self, _: int, __: FrameType | None) -> None:
        self.n += 1
        raise KeyboardInterrupt if self.n == 1 else Abandoned
