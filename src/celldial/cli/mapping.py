"""The command ``celldial map``: its options and help text."""

from __future__ import annotations

import argparse
from pathlib import Path

from celldial.cli.argument_types import integer_at_least
from celldial.cli.commands import CELL_SUFFIXES, MODEL_SUFFIXES
from celldial.cli.files import atomic_outputs, read_cells, write_cells
from celldial.cli.messages import echo

__all__ = ["MAP_EPILOG", "add_map_options"]

MAP_EPILOG = """\
reads:
  A model, and an .h5ad file or a .zarr store with the new cells. Their raw
  counts are in X, or in the layer that the model was fitted to, and obs has the
  covariates of the model, with new categories, such as new donors. Neither is
  changed.

writes:
  --out       the cells, with obsm["X_celldial"], uns["celldial"], the mapping
              quality of each cell in obs and, if the model has labels, the
              label of each cell
  --save      the model with the new categories; all else in it is unchanged
  Files are written at the end and are always complete. An existing file is
  replaced. The paths of the written files are printed to stdout.

examples:
  celldial map new_donors.h5ad --model atlas.celldial --out mapped.h5ad
  celldial map new_donors.h5ad --model atlas.celldial --out mapped.h5ad \\
      --save atlas_and_new_donors.celldial"""


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``celldial map``."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".h5ad file or .zarr store with new cells")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.celldial", help="the model to map to")
    group = parser.add_argument_group("results, at least one of them")
    group.add_argument("--out", type=Path, metavar="CELLS.h5ad", help="the cells with the results")
    group.add_argument("--save", type=Path, metavar="FILE.celldial", help="the model with the new categories")
    group.add_argument(
        "--key-added", default="X_celldial", metavar="KEY", help="obsm key of the embedding (X_celldial)"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--max-epochs", type=integer_at_least(1), metavar="N", help="number of epochs (depends on the number of cells)"
    )
    parser.set_defaults(run=run_map, usage_error=map_usage_error)


def map_usage_error(options: argparse.Namespace) -> str | None:
    """Return which options of ``celldial map`` cannot be combined, or None."""
    return "no output: use --out, --save or both" if options.out is None and options.save is None else None


def run_map(options: argparse.Namespace) -> None:
    """Map new cells to a model, and write them and the model with the new categories."""
    outputs = {"--out": (options.out, CELL_SUFFIXES), "--save": (options.save, MODEL_SUFFIXES)}
    with atomic_outputs(outputs, [options.file, options.model]) as targets:
        from celldial import VAE
        from celldial.io.results import CLUSTER_PROBABILITY

        model = VAE.load(options.model)
        if not options.quiet:
            echo(f"celldial: reading {options.file}")
        adata = read_cells(options.file)
        mapped = model.map_query(
            adata,
            max_epochs="auto" if options.max_epochs is None else options.max_epochs,
            key_added=options.key_added,
            progress=not options.quiet,
        )
        if "--out" in targets:
            write_cells(adata, options.file, targets["--out"], [options.key_added, CLUSTER_PROBABILITY])
        if "--save" in targets:
            mapped.save(targets["--save"])
