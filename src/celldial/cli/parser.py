"""What the command line takes, and what its help says."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celldial.cli.commands import run_fit, run_traverse
from celldial.cli.info import run_info

__all__ = ["check_usage", "make_parser"]

LIKELIHOODS = ("negative_binomial", "poisson", "zero_inflated_negative_binomial", "bernoulli")
DECODERS = ("network", "additive", "linear")

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
    group.add_argument(
        "--basis", default="X_umap", metavar="KEY", help="of obsm: the map of the dial (X_umap), or circle"
    )
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
