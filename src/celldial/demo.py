"""Show on 700 blood cells what the package does: ``python -m celldial.demo``, or ``make demo``.

Trains a model, clusters the cells in its latent space, turns the latent coordinate that changes most genes, and writes
the cells and three figures to a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import celldial as cd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

__all__ = ["main"]

SEED = 0
LABELS = "bulk_labels"
# Nine colors that color-blind readers tell apart, too (Paul Tol's scheme "muted"), and black for the few CD34+ cells.
COLORS = {
    "CD4+/CD25 T Reg": "#332288",
    "CD4+/CD45RA+/CD25- Naive T": "#88CCEE",
    "CD4+/CD45RO+ Memory": "#44AA99",
    "CD8+ Cytotoxic T": "#117733",
    "CD8+/CD45RA+ Naive Cytotoxic": "#999933",
    "CD14+ Monocyte": "#DDCC77",
    "CD19+ B": "#CC6677",
    "CD34+": "#000000",
    "CD56+ NK": "#AA4499",
    "Dendritic": "#882255",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Parameters
    ----------
    arguments
        Of the command line; by default those of this process.

    Returns
    -------
    The exit code: 0, or 1 where the folder cannot be written to. (Wrong arguments exit with 2.)

    Examples
    --------
    Ten epochs, to see the figures soon::

        python -m celldial.demo --out demo --max-epochs 10
    """
    options = parse(arguments)
    import matplotlib as mpl

    mpl.use("Agg")  # the figures go to files: no screen is needed
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        show_expression(options.out, options.max_epochs or "auto")
    except OSError as error:
        print(f"cannot write to {options.out}: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m celldial.demo", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where to write (demo)")
    parser.add_argument(
        "--max-epochs", type=epochs, metavar="N", help="passes over the cells (a number chosen by theirs)"
    )
    return parser.parse_args(arguments)


def epochs(text: str) -> int:
    """Read a number of epochs, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def show_expression(folder: Path, max_epochs: int | Literal["auto"]) -> None:
    """Show a model of gene expression: fit, cluster, traverse, draw, judge."""
    adata = cd.datasets.pbmc68k_reduced()
    print(f"Fitting a model to {adata.n_obs} blood cells × {adata.n_vars} genes.", flush=True)
    model = cd.VAE(seed=SEED).fit(adata, max_epochs=max_epochs)
    print("Finding neighbors and clusters, and turning each latent coordinate.", flush=True)
    cluster(adata)
    axis = choose_axis(model, adata)
    name = f"axis_{axis}"

    figures: dict[str, Any] = {
        "umap.png": draw_umap(adata),
        "history.png": cd.pl.history(adata, return_fig=True),
        "latent_traverse.png": cd.pl.latent_traverse(adata, name, return_fig=True),
    }
    adata.write_h5ad(folder / "pbmc68k.h5ad")
    for file_name, figure in figures.items():
        save(figure, folder / file_name)

    print(f"\nWritten to {folder}/:")
    print('  pbmc68k.h5ad         the cells, with the embedding in obsm["X_celldial"] and all traversals in uns')
    print("  umap.png             the cells, colored by type and by cluster")
    print("  history.png          how training went")
    print(f"  latent_traverse.png  what changes along latent coordinate {axis}: of all, it moves the genes most")
    print("\n" + compare(adata))


def cluster(adata: AnnData) -> None:
    """Find neighbors, draw a map, and find clusters in the embedding, as a scanpy user does."""
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_celldial", random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=SEED)


def choose_axis(model: cd.VAE, adata: AnnData) -> int:
    """Turn each latent coordinate, and choose the one along which expression changes most, on average over genes.

    The change of a gene is the range of its log-normalized mean, so that genes which are hardly expressed count little.
    All traversals stay in ``adata.uns``.
    """
    traversals = [model.latent_traverse(adata, axis) for axis in range(model.n_latent)]
    return int(np.argmax([np.ptp(np.log1p(traversal.X), axis=0).mean() for traversal in traversals]))


def draw_umap(adata: AnnData) -> Figure:
    """Draw the cell types beside the clusters."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, (types, clusters) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    options = {"show": False, "frameon": False, "size": 40}
    sc.pl.umap(adata, color=LABELS, ax=types, title="annotated cell types", palette=COLORS, **options)
    # Clusters have numbers and may be many: written into the map, they need no telling colors apart.
    on_data = {"legend_loc": "on data", "legend_fontoutline": 2}
    sc.pl.umap(adata, color="leiden", ax=clusters, title="clusters in the latent space", **on_data, **options)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, and forget it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(adata: AnnData) -> str:
    """Say in plain words how well the embedding separates the cell types, with PCA as the yardstick."""
    import scanpy as sc

    normalized = adata.copy()
    sc.pp.normalize_total(normalized, target_sum=1e4)
    sc.pp.log1p(normalized)
    sc.pp.pca(normalized, n_comps=10, random_state=SEED)
    spaces = (adata.obsm["X_celldial"], normalized.obsm["X_pca"])
    nmi, nmi_pca = (cd.metrics.leiden_nmi(space_cz, adata.obs[LABELS]) for space_cz in spaces)
    f1, f1_pca = (cd.metrics.knn_f1(space_cz, adata.obs[LABELS]) for space_cz in spaces)
    return f"""\
How well the embedding separates the ten cell types, from 0 (not at all) to 1 (perfectly):
  {nmi:.2f} (PCA: {nmi_pca:.2f})  The best of seven Leiden clusterings agrees with them to this degree (NMI).
  {f1:.2f} (PCA: {f1_pca:.2f})  The type of a cell is predicted this well from its neighbors' (macro-F1).
PCA is the yardstick: 10 components of the log-normalized counts."""


if __name__ == "__main__":
    sys.exit(main())
