"""Commands, options and help texts of the command line, and which options can be combined."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celldial.cli.argument_types import integer_at_least, likelihood_of, parse_pair
from celldial.cli.commands import run_fit, run_markers, run_traverse
from celldial.cli.info import run_info
from celldial.cli.mapping import MAP_EPILOG, add_map_options

__all__ = ["check_usage", "make_parser"]

EPILOG = """\
exit codes:
  0    success
  1    an error in the data, a file or a value, which one sentence on stderr
       describes; or a bug, with its traceback
  2    wrong usage: an unknown option, or options that cannot be combined
  130  interrupted by Ctrl-C

Results are printed to stdout, progress and messages to stderr.
celldial COMMAND --help describes each command."""

FIT_EPILOG = """\
reads:
  An .h5ad file, a .zarr store or an .h5 file of Cell Ranger with raw counts in
  X, or in the layer that --layer names. The input is never changed. One file is
  read into memory. With --from-disk, or with several files, counts are read
  piece by piece, and memory does not grow with their number. For several files,
  only --model is possible.

writes:
  --out    the cells, with obsm["X_celldial"], uns["celldial"], and the columns
           that --periodic, --n-clusters and --labels-key add to obs. Counts,
           layers and everything else are copied unchanged.
  --model  the model, for celldial traverse and info, and for celldial.VAE.load
  Files are written at the end and are always complete, the model first. An
  existing file is replaced. If a path is not writable, the command ends with an
  error before training starts. The paths of the written files are printed to
  stdout.

Ctrl-C ends training early: the model of the best epoch so far is written, and
the exit code is 130. A second Ctrl-C stops the command at once, and nothing is
written.
With --checkpoint, the same command resumes an interrupted training.

examples:
  celldial fit cells.h5ad --batch-key donor --out embedded.h5ad \\
      --model cells.celldial
  celldial fit cells.h5ad --layer counts --periodic cell_cycle \\
      --gene-symbols symbol --out embedded.h5ad
  celldial fit liver.h5ad lung.h5ad --batch-key donor \\
      --model atlas.celldial --checkpoint runs/atlas"""

TRAVERSE_EPILOG = """\
reads:
  The model, and an .h5ad file or a .zarr store with cells. Their raw counts are
  in the layer that the model was fitted to, or in the one that --layer names.
  Neither is changed.

writes:
  --table   one row per feature, by rank (large and certain changes first):
            change and effect_size (log2), lfsr (local false sign rate: half
            the p-value of a flat curve), fdr, and means with 90 % intervals at
            start and end (on a circle, where the feature is lowest and
            highest)
  --figure  curves of some features, and a heatmap of more
  --dial    an interactive page for the browser; it needs a map of the cells,
            obsm["X_umap"] or the matrix that --basis names
  --out     the cells, with uns["latent_traverse"], which the plots of
            celldial.pl read
  Files are written at the end and are always complete. An existing file is
  replaced. The paths of the written files are printed to stdout.

axes:
  --axis 3                     a latent coordinate
  --axis cell_cycle            the periodic coordinate of a model that was
                               fitted with --periodic
  --axis NAME                  an axis that is stored in the file, by --out
  --axis NAME --up A B         a new axis of this name, along which the genes of
                               --up increase and those of --down decrease
  --axis NAME --obs COLUMN     a new axis that predicts a column of obs, which
                               has numbers, ordered categories, or two values
  --axis NAME --groups A B     a new axis from one group to another, of the
                               column --obs if several columns have both
  --from A --to B              a straight path from one group to another

examples:
  celldial traverse embedded.h5ad --model cells.celldial --axis 3 \\
      --table axis_3.csv --figure axis_3.png
  celldial traverse embedded.h5ad --model cells.celldial \\
      --from "CD4 T" --to "CD8 T" --groupby cell_type --table t_cells.tsv
  celldial traverse embedded.h5ad --model cells.celldial --axis response \\
      --groups ctrl stim --at cell_type=B --covariate donor=d1 --table b.csv"""

MARKERS_EPILOG = """\
reads:
  The model, and an .h5ad file or a .zarr store with cells. Their raw counts are
  in X, or in the layer that the model was fitted to. Neither is changed.

writes:
  --table  one row per group and feature, strong differences first: log2 fold
           change with its 90 % interval, mean expression, share of cells with
           a count, p-value (with --replicate-key), lfsr (local false sign
           rate) and fdr. Without --reference, --replicate-key and
           --covariates, only the markers: features that are higher in the
           group than in all other cells, with fdr of at most 0.05
  --out    the cells, with uns["rank_genes_groups"], which the functions and
           plots of scanpy read
  Files are written at the end and are always complete. An existing file is
  replaced. The paths of the written files are printed to stdout.

With --replicate-key, groups are compared between replicates, such as donors.
Without it, cells are compared, and fdr does not include differences between
donors.

examples:
  celldial markers embedded.h5ad --model cells.celldial --groupby cell_type \\
      --table markers.csv
  celldial markers embedded.h5ad --model cells.celldial --groupby condition \\
      --groups stim --reference ctrl --replicate-key donor --at cell_type=B \\
      --table stim.csv --out tested.h5ad"""

INFO_EPILOG = """\
reads:
  A model that celldial fit --model or VAE.save wrote. It contains no cells.

prints:
  To stdout: the version that wrote the model, parameters that differ from their
  defaults, modalities with likelihood and features, covariates with their
  categories, epochs and best validation ELBO, the periodic coordinate, and
  clusters.

examples:
  celldial info cells.celldial
  celldial info cells.celldial --json | jq .best_validation_elbo"""


class CommandParser(argparse.ArgumentParser):
    """The parser of a command. It adds its options when it is used, so that ``celldial --help`` imports no model."""

    def __init__(self, *, add_options: Callable[[argparse.ArgumentParser], None], **options: Any) -> None:
        super().__init__(**options)
        self._add_options = add_options
        self._is_complete = False

    def complete(self) -> CommandParser:
        """Add the options of the command, once."""
        if not self._is_complete:
            self._is_complete = True
            self._add_options(self)
            group = self.add_argument_group("messages")
            group.add_argument("--quiet", action="store_true", help="hide progress; warnings and errors are shown")
            group.add_argument("--traceback", action="store_true", help="show the traceback of an error")
            self.set_defaults(fail=self.error)
        return self

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse the arguments of the command."""
        return super(CommandParser, self.complete()).parse_known_args(*arguments, **options)

    def format_help(self) -> str:
        """Return the help of the command."""
        return super(CommandParser, self.complete()).format_help()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    description = "Variational autoencoders for single-cell counts."
    parser = argparse.ArgumentParser(prog="celldial", description=description, epilog=EPILOG, **style)
    parser.add_argument("--version", action="version", version=f"celldial {version('celldial')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for name, description, epilog, add_options in (
        ("fit", "Fit a model to raw counts and embed the cells.", FIT_EPILOG, add_fit_options),
        ("traverse", "Move cells along an axis and report what changes.", TRAVERSE_EPILOG, add_traverse_options),
        ("markers", "List the markers of groups, or compare groups.", MARKERS_EPILOG, add_markers_options),
        ("map", "Map cells of new batches to a fitted model.", MAP_EPILOG, add_map_options),
        ("info", "Describe a model file.", INFO_EPILOG, add_info_options),
    ):
        commands.add_parser(
            name, help=description, description=description, epilog=epilog, add_options=add_options, **style
        )
    # Only for the list of commands: `main` calls the demo, which has its own parser, before this one parses anything.
    demo_help = "Run the package on small data sets (celldial demo --help)."
    commands.add_parser("demo", help=demo_help, add_help=False, add_options=lambda _: None)
    return parser


# --- Options ----------------------------------------------------------------------------------------------------------


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``celldial fit``."""
    from celldial.model.likelihoods import LIKELIHOODS
    from celldial.model.networks import DECODERS

    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".h5ad, .zarr or 10x .h5; before options")
    parser.add_argument("--from-disk", action="store_true", help="read counts piece by piece, not all into memory")
    parser.add_argument(
        "--make-names-unique", action="store_true", help="append numbers to repeated names of cells and features"
    )
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the embedding")
    group.add_argument("--model", type=Path, metavar="FILE.celldial", help="the model")
    group.add_argument(
        "--key-added", default="X_celldial", metavar="KEY", help="obsm key of the embedding (X_celldial)"
    )
    group = parser.add_argument_group("data")
    group.add_argument("--layer", metavar="NAME", help="layer with raw counts (X)")
    group.add_argument("--batch-key", metavar="COLUMN", help="obs column of the batch, for batch correction")
    group.add_argument(
        "--integration",
        type=float,
        default=1.0,
        metavar="STRENGTH",
        help="how strongly batches are pulled together, from 0 (1)",
    )
    for kind in ("categorical", "continuous"):
        group.add_argument(
            f"--{kind}-covariates",
            nargs="+",
            action="extend",
            default=[],
            metavar="COLUMN",
            help=f"obs columns of further {kind} covariates to correct for",
        )
    group.add_argument("--gene-symbols", metavar="COLUMN", help="var column of gene symbols, if var_names are IDs")
    group = parser.add_argument_group("model")
    group.add_argument("--n-latent", type=integer_at_least(1), metavar="N", help="number of latent coordinates (10)")
    group.add_argument(
        "--likelihood",
        nargs="+",
        type=likelihood_of(list(LIKELIHOODS)),
        metavar="[MODALITY=]NAME",
        help=f"likelihood of the counts: {', '.join(LIKELIHOODS)}; for one modality: atac=poisson (bernoulli for atac, "
        "negative_binomial for others)",
    )
    group.add_argument("--decoder", choices=DECODERS, help="how expression depends on the coordinates (network)")
    group.add_argument("--periodic", metavar="PROCESS", help="add a periodic coordinate, such as cell_cycle")
    group.add_argument("--n-clusters", type=integer_at_least(2), metavar="N", help="learn N clusters with the model")
    group.add_argument("--labels-key", metavar="COLUMN", help="obs column of cell labels; unlabeled cells: 'unknown'")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--max-epochs", type=integer_at_least(1), metavar="N", help="number of epochs (depends on the number of cells)"
    )
    group.add_argument("--seed", type=integer_at_least(0), default=0, metavar="N", help="random seed (0)")
    group.add_argument("--device", metavar="DEVICE", help="cpu or cuda (cuda if available)")
    group.add_argument("--precision", metavar="FORMAT", help="32-true or bf16-mixed (32-true)")
    group.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="save the state here, to resume the training")
    parser.set_defaults(run=run_fit, usage_error=fit_usage_error)


def add_traverse_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``celldial traverse``."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".h5ad file or .zarr store with cells")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.celldial", help="the model")
    group = parser.add_argument_group("axis (see below)")
    group.add_argument("--axis", metavar="AXIS", help="number of a latent coordinate, or name of an axis")
    group.add_argument("--from", dest="start", metavar="GROUP", help="start of a path: a group, or a cell")
    group.add_argument("--to", dest="end", metavar="GROUP", help="end of the path")
    group.add_argument("--groupby", metavar="COLUMN", help="obs column of both groups")
    group.add_argument("--obs", metavar="COLUMN", help="obs column that a new axis predicts")
    group.add_argument("--groups", nargs=2, metavar=("FROM", "TO"), help="two groups that a new axis separates")
    group.add_argument("--up", nargs="+", metavar="GENE", help="genes that increase along a new axis")
    group.add_argument("--down", nargs="+", metavar="GENE", help="genes that decrease along a new axis")
    group = parser.add_argument_group("traversal")
    group.add_argument("--at", metavar="COLUMN=GROUP", help="move cells of this group, or the cell of this name (any)")
    group.add_argument(
        "--covariate",
        action="append",
        type=parse_pair,
        default=[],
        metavar="NAME=VALUE",
        help="decode all cells with this batch or other covariate; NAME=all, or several, for an average",
    )
    group.add_argument("--layer", metavar="NAME", help="layer with raw counts, or X (that of the model)")
    group.add_argument("--n-steps", type=integer_at_least(2), default=25, metavar="N", help="number of steps (25)")
    group.add_argument("--seed", type=integer_at_least(0), metavar="N", help="random seed (that of the model)")
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--table", type=Path, metavar="FILE.csv|tsv", help="table of features and their changes")
    group.add_argument("--figure", type=Path, metavar="FILE.png|pdf|svg", help="curves and a heatmap")
    group.add_argument("--dial", type=Path, metavar="FILE.html", help="an interactive page with a slider")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the traversal")
    group = parser.add_argument_group("figure and page")
    group.add_argument("--features", nargs="+", metavar="NAME", help="features to show (those of the best ranks)")
    group.add_argument(
        "--basis", default="X_umap", metavar="KEY", help="obsm key of the map of the page (X_umap), or circle"
    )
    group.add_argument("--color", metavar="COLUMN", help="obs column that colors the map of the page (gray)")
    parser.set_defaults(run=run_traverse, usage_error=traverse_usage_error)


def add_markers_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``celldial markers``."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".h5ad file or .zarr store with cells")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.celldial", help="the model")
    group = parser.add_argument_group("groups")
    group.add_argument("--groupby", required=True, metavar="COLUMN", help="obs column of the groups")
    group.add_argument("--groups", nargs="+", metavar="GROUP", help="groups to compare with the reference (all)")
    group.add_argument("--reference", metavar="GROUP", help="group to compare with (all other cells)")
    group.add_argument("--at", metavar="COLUMN=GROUP", help="use only the cells of this group (all)")
    group = parser.add_argument_group("comparison")
    group.add_argument("--replicate-key", metavar="COLUMN", help="obs column of the donors, to test between donors")
    group.add_argument(
        "--covariates", nargs="+", default=[], metavar="COLUMN", help="obs columns to adjust for, such as the batch"
    )
    group.add_argument("--modality", metavar="NAME", help="modality of the features (the first of the model)")
    group.add_argument("--layer", metavar="NAME", help="layer with raw counts (that of the fit)")
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--table", type=Path, metavar="FILE.csv|tsv", help="table of groups and features")
    group.add_argument("--n-features", type=integer_at_least(1), metavar="N", help="features of each group (all)")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the ranking")
    parser.set_defaults(run=run_markers, usage_error=markers_usage_error)


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``celldial info``."""
    parser.add_argument("model", type=Path, metavar="FILE.celldial", help="the model")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names of all features")
    parser.set_defaults(run=run_info, usage_error=lambda _: None)


# --- Values -----------------------------------------------------------------------------------------------------------


# --- Combinations of options ------------------------------------------------------------------------------------------


def check_usage(options: argparse.Namespace) -> None:
    """Exit with code 2 if options cannot be combined."""
    error = options.usage_error(options)
    if error is not None:
        options.fail(error)


def fit_usage_error(options: argparse.Namespace) -> str | None:
    """Return which options of ``celldial fit`` cannot be combined, or None."""
    if options.out is None and options.model is None:
        return "no output: use --out, --model or both"
    if len(options.files) > 1 and options.out is not None:
        return (
            "--out needs a single input file: for several files, use --model only, or concatenate them first "
            "(anndata.experimental.concat_on_disk)"
        )
    if options.from_disk and options.out is not None and options.files[0].is_dir():
        return "--from-disk with --out needs an .h5ad file: for a .zarr store, use --model only, or omit --from-disk"
    if options.make_names_unique and (options.from_disk or len(options.files) > 1):
        return "--make-names-unique needs all cells in memory: use one file without --from-disk"
    if options.periodic is not None and (options.from_disk or len(options.files) > 1):
        return "--periodic needs all cells in memory: use one file without --from-disk, or omit --periodic"
    if options.likelihood is not None and len(options.likelihood) > 1:
        modalities = [modality for modality, _ in options.likelihood]
        if "" in modalities or len(set(modalities)) < len(modalities):
            return "--likelihood takes one NAME, or one MODALITY=NAME for each modality"
    return None


def markers_usage_error(options: argparse.Namespace) -> str | None:
    """Return which options of ``celldial markers`` cannot be combined, or None."""
    if options.table is None and options.out is None:
        return "no output: use --table, --out or both"
    if options.at is not None and "=" not in options.at:
        return f"--at {options.at} is not COLUMN=GROUP"
    return None


def traverse_usage_error(options: argparse.Namespace) -> str | None:
    """Return which options of ``celldial traverse`` cannot be combined, or None."""
    if all(getattr(options, name) is None for name in ("table", "figure", "dial", "out")):
        return "no output: use --table, --figure, --dial or --out"
    if (options.start is None) != (options.end is None):
        return "--from and --to go together: use both"
    if (options.axis is None) == (options.start is None):
        return "use either --axis, or --from and --to"
    defines_axis = any(getattr(options, name) is not None for name in ("obs", "groups", "up", "down"))
    if defines_axis and options.axis is None:
        return "--obs, --groups, --up and --down define a new axis: name it with --axis"
    if (options.obs or options.groups) and (options.up or options.down):
        return "define a new axis by --obs and --groups, or by --up and --down, not by both"
    if options.features is not None and options.figure is None and options.dial is None:
        return "--features needs --figure or --dial"
    return None
