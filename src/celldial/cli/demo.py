"""Show what the package does: ``python -m celldial.cli.demo``, or ``make demo``.

First on the RNA of 700 blood cells: trains a model, clusters the cells in its latent space, turns the latent coordinate
that matters most, and moves naive T cells along an axis that leads to cytotoxic ones. Then on 2,000 simulated cells
with RNA and chromatin, many of which lack one of the two: trains one model of both, with the cell cycle as a circle,
goes once round it, and predicts the chromatin that was not measured. Writes cells and figures to a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

import celldial as cd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from celldial.tl.find_axis import Axis

__all__ = ["main"]

SEED = 0
LABELS = "bulk_labels"
# The ends of an axis, and what to call it.
NAIVE, CYTOTOXIC, AXIS = "CD8+/CD45RA+ Naive Cytotoxic", "CD8+ Cytotoxic T", "cytotoxicity"
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
# Of the simulated cells: how many, and which share of them is measured in both, in RNA only, in ATAC only.
N_CELLS = 2000
MOSAIC = (0.5, 0.25, 0.25)
N_NEIGHBORS = 100
TYPE_COLORS = ["#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677"]
MEASURED_COLORS = {"both": "#BBBBBB", "RNA only": "#0072B2", "ATAC only": "#D55E00"}
BATCH_COLORS = ["#009E73", "#CC79A7"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Parameters
    ----------
    arguments
        Of the command line; by default those of this process.

    Returns
    -------
    int
        The exit code: 0, or 1 where the folder cannot be written to. Wrong arguments exit with 2.

    Examples
    --------
    Ten epochs, to see the figures soon; in a shell ``python -m celldial.demo --out demo --max-epochs 10``:

    >>> from celldial.cli.demo import main
    >>> main(["--out", "demo", "--max-epochs", "10"])  # doctest: +SKIP
    0
    """
    options = parse(arguments)
    import matplotlib as mpl

    mpl.use("Agg")  # the figures go to files: no screen is needed
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        show_expression(options.out, options.max_epochs or "auto")
        print()
        show_multiome(options.out, options.max_epochs or "auto")
    except OSError as error:
        print(f"cannot write to {options.out}: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="celldial demo", description=(__doc__ or "").partition("\n\n")[2])
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


# --- RNA of blood cells -----------------------------------------------------------------------------------------------


def show_expression(folder: Path, max_epochs: int | Literal["auto"]) -> None:
    """Show a model of gene expression: fit, cluster, find axes, traverse, draw, judge."""
    import scanpy as sc

    adata = cd.datasets.pbmc68k_reduced()
    print(f"Fitting a model to {adata.n_obs} blood cells × {adata.n_vars} genes.", flush=True)
    model = cd.VAE(seed=SEED).fit(adata, max_epochs=max_epochs)
    print("Finding neighbors, clusters and axes, and moving cells along two of these.", flush=True)
    make_map(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=SEED)
    first = model.axes(adata).index[0]
    model.latent_traverse(adata, first)
    axis = model.find_axis(adata, AXIS, obs=LABELS, groups=(NAIVE, CYTOTOXIC))
    path = model.latent_traverse(adata, AXIS, at={LABELS: NAIVE})
    figures = {
        "umap.png": draw_umap(adata),
        "history.png": cd.pl.history(adata, return_fig=True),
        "axes.png": cd.pl.axes(adata, return_fig=True),
        "latent_traverse.png": cd.pl.latent_traverse(adata, first, return_fig=True),
        "cytotoxicity.png": cd.pl.axis_features(adata, AXIS, return_fig=True),
    }
    adata.write_h5ad(folder / "pbmc68k.h5ad")
    save(figures, folder)
    cd.pl.dial(adata, AXIS, color=LABELS, path=folder / "cytotoxicity.html")
    print(f"\nWritten to {folder}/:")
    print('  pbmc68k.h5ad         the cells, with the embedding in obsm["X_celldial"], axes and traversals in uns')
    print("  umap.png             the cells, colored by type and by cluster")
    print("  history.png          how training went")
    print("  axes.png             which latent coordinates matter")
    print(f"  latent_traverse.png  what changes along the one that matters most, {first}")
    print("  cytotoxicity.png     what rises and falls on the way from naive to cytotoxic CD8+ T cells")
    print("  cytotoxicity.html    the same as a dial to turn, in a browser")
    print("\n" + describe(axis, path))
    print(compare(adata))


def make_map(adata: AnnData) -> None:
    """Find neighbors in the embedding and draw a map of them, as a scanpy user does."""
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_celldial", random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)


def describe(axis: Axis, path: AnnData) -> str:
    """Say in plain words how much a named axis tells, and what rises along it."""
    risers = path.var.query("change > 0").sort_values("rank").index[:8]
    return f"""\
How much the axis from naive to cytotoxic CD8+ T cells tells:
  {axis.strength:.2f}  of what tells the two apart is in its score (R², 1 at best; p = {axis.p_value:.3f}).
  Genes that rise along it, the surest first: {", ".join(risers)}."""


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


def save(figures: dict[str, Any], folder: Path) -> None:
    """Write figures to files, and forget them."""
    import matplotlib.pyplot as plt

    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
        plt.close(figure)


def principal_components(adata: AnnData) -> np.ndarray:
    """Compute ten principal components of the log-normalized counts."""
    import scanpy as sc

    normalized = adata.copy()
    sc.pp.normalize_total(normalized, target_sum=1e4)
    sc.pp.log1p(normalized)
    sc.pp.pca(normalized, n_comps=10, random_state=SEED)
    components_cz: np.ndarray = normalized.obsm["X_pca"]
    return components_cz


def compare(adata: AnnData) -> str:
    """Say in plain words how well the embedding separates the cell types, with PCA as the yardstick."""
    spaces = (adata.obsm["X_celldial"], principal_components(adata))
    nmi, nmi_pca = (cd.metrics.leiden_nmi(space_cz, adata.obs[LABELS]) for space_cz in spaces)
    f1, f1_pca = (cd.metrics.knn_f1(space_cz, adata.obs[LABELS]) for space_cz in spaces)
    return f"""\
How well the embedding separates the ten cell types, from 0 (not at all) to 1 (perfectly):
  {nmi:.2f} (PCA: {nmi_pca:.2f})  The best of seven Leiden clusterings agrees with them to this degree (NMI).
  {f1:.2f} (PCA: {f1_pca:.2f})  The type of a cell is predicted this well from its neighbors' (macro-F1).
PCA is the yardstick: 10 components of the log-normalized counts."""


# --- RNA and chromatin of simulated cells -----------------------------------------------------------------------------


def show_multiome(folder: Path, max_epochs: int | Literal["auto"]) -> None:
    """Show one model of two modalities and a circle, of cells that often lack one: fit, map, turn, impute, judge."""
    adata = cd.datasets.simulate_multiome(N_CELLS, mosaic=MOSAIC, seed=SEED)
    # The same cells measured once more, and in full: the answers to what the model has to guess.
    complete = cd.datasets.simulate_multiome(N_CELLS, truth=True, seed=SEED)
    measured = np.select([~adata.obs["has_atac"], ~adata.obs["has_rna"]], ["RNA only", "ATAC only"], "both")
    adata.obs["measured"] = pd.Categorical(measured, list(MEASURED_COLORS))
    n_genes, n_peaks = adata.var["feature_types"].value_counts()[["Gene Expression", "Peaks"]]
    print(
        f"Fitting a model to {N_CELLS} simulated cells × {n_genes} genes and {n_peaks} peaks; "
        f"{(measured == 'both').mean():.0%} of the cells have both.",
        flush=True,
    )
    model = cd.VAE(batch_key="batch", periodic="cell_cycle", seed=SEED).fit(adata, max_epochs=max_epochs)
    print("Finding neighbors, going round the cell cycle, and predicting chromatin from RNA.", flush=True)
    make_map(adata)
    model.latent_traverse(adata, "cell_cycle", n_steps=49)
    lacking = adata[measured == "RNA only"].copy()
    truth = openness(complete[lacking.obs_names])
    peaks = truth.columns.tolist()
    predicted = model.impute(lacking, "atac", from_="rna", features=peaks)
    averaged = average_of_neighbors(adata, peaks)
    figures = {
        "multiome_umap.png": draw_multiome(adata),
        "multiome_impute.png": draw_imputed(lacking, predicted, truth, averaged),
        "multiome_cell_cycle.png": cd.pl.cell_cycle(adata, return_fig=True),
        "multiome_latent_traverse.png": cd.pl.latent_traverse(adata, "cell_cycle", return_fig=True),
    }
    adata.write_h5ad(folder / "multiome.h5ad")
    save(figures, folder)
    cd.pl.dial(adata, "cell_cycle", "circle", "cell_type", path=folder / "multiome_dial.html")
    print(f"\nWritten to {folder}/:")
    print("  multiome.h5ad                 the cells, with one embedding of all, their angles, and the traversal")
    print("  multiome_umap.png             the cells, colored by type, by what was measured, and by batch")
    print("  multiome_impute.png           chromatin predicted from RNA, where it was not measured, beside the truth")
    print("  multiome_cell_cycle.png       the cells on the circle, and marker genes around it")
    print("  multiome_latent_traverse.png  which genes and peaks change around the cell cycle")
    print("  multiome_dial.html            the same as a dial to turn, in a browser")
    print("\n" + compare_angles(adata))
    print(compare_multiome(model, complete, measured, predicted, truth, averaged))


def openness(complete: AnnData) -> pd.DataFrame:
    """Look up how likely the peaks that mark a cell type truly are to be seen open, at the median depth."""
    markers = complete[:, (complete.var["feature_types"] == "Peaks") & complete.var["is_marker_of"].notna()]
    depth_c = complete.obs["atac_library_size"].to_numpy()
    mean_cf = markers.layers["mean"] * (np.median(depth_c) / depth_c)[:, None]
    return pd.DataFrame(-np.expm1(-mean_cf), index=markers.obs_names, columns=markers.var_names)


def average_of_neighbors(adata: AnnData, peaks: list[str]) -> pd.DataFrame:
    """Predict peaks from RNA the simple way: how many of the cells with the most similar RNA have them open."""
    from sklearn.neighbors import KNeighborsRegressor

    with_rna = adata[adata.obs["measured"] != "ATAC only"]
    components_cz = principal_components(with_rna[:, with_rna.var["feature_types"] == "Gene Expression"])
    paired_c = (with_rna.obs["measured"] == "both").to_numpy()
    neighbors = KNeighborsRegressor(min(N_NEIGHBORS, paired_c.sum()))
    neighbors.fit(components_cz[paired_c], with_rna[paired_c, peaks].to_df() > 0)
    lacking = with_rna.obs_names[~paired_c]
    return pd.DataFrame(neighbors.predict(components_cz[~paired_c]), index=lacking, columns=peaks)


def draw_multiome(adata: AnnData) -> Figure:
    """Draw the map three times: cell types, what was measured, batches."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    titles = {"cell_type": "cell types, as simulated", "measured": "what was measured", "batch": "batches"}
    palettes = (TYPE_COLORS, MEASURED_COLORS, BATCH_COLORS)
    for panel, (column, title), palette in zip(panels, titles.items(), palettes, strict=True):
        sc.pl.umap(adata, color=column, ax=panel, title=title, palette=palette, show=False, frameon=False, size=18)
    return figure


def draw_imputed(lacking: AnnData, predicted: pd.DataFrame, truth: pd.DataFrame, averaged: pd.DataFrame) -> Figure:
    """Draw one peak on the map, predicted and true, beside how well all of them are predicted."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=[1, 1, 1.15])
    figure.suptitle(f"{len(lacking)} cells whose chromatin was not measured", fontweight="bold")
    peak = truth.std().idxmax()
    x_c, y_c = lacking.obsm["X_umap"].T
    for panel, values, what in zip(panels, (predicted, truth), ("predicted from RNA", "the truth"), strict=False):
        points = panel.scatter(x_c, y_c, c=values[peak], s=14, cmap="viridis", vmin=0, vmax=truth[peak].max())
        panel.set_title(f"{peak}, {what}", fontsize="medium")
        panel.set_axis_off()
    figure.colorbar(points, ax=panels[:2], label="probability to be seen open\n", shrink=0.8)

    right = panels[2]
    edges = np.linspace(-1, 1, 81)
    simple = f"mean of the {N_NEIGHBORS} cells with the most similar RNA"
    right.hist(averaged.corrwith(truth), edges, color="0.7", label=simple)
    right.hist(
        predicted.corrwith(truth), edges, color="#0072B2", alpha=0.75, label="predicted by the model from RNA alone"
    )
    right.set_xlabel("correlation with the truth over these cells")
    right.set_ylabel("number of peaks")
    right.set_title(f"all {truth.shape[1]} peaks that mark a cell type", fontsize="medium")
    right.set_xlim(-0.4, 1)
    right.spines[["top", "right"]].set_visible(False)
    right.margins(y=0.25)
    right.legend(frameon=False, loc="upper left", fontsize="small")
    return figure


def compare_angles(adata: AnnData) -> str:
    """Say in plain words how well the angle of the cell cycle agrees with the true one."""
    cycling = adata.obs[adata.obs["is_cycling"]]
    angle_c, true_c = cycling["cell_cycle_angle"].to_numpy(), cycling["true_cell_cycle_angle"].to_numpy()
    rna_c = cycling["has_rna"].to_numpy()
    correlation = cd.metrics.fisher_lee(angle_c[rna_c], true_c[rna_c])
    error, error_atac = (cd.metrics.angular_error(angle_c[c], true_c[c], align=False) for c in (rna_c, ~rna_c))
    hours = 24 * error / (2 * np.pi)
    return f"""\
How well the angle of the cell cycle, which marker genes alone anchor, agrees with the truth
(Fisher and Lee's correlation; ATAC: in cycling cells with nothing else):
  {correlation:.2f}               is the circular correlation in cycling cells with RNA (1 at best, 0 by chance).
  {error:.2f} (ATAC: {error_atac:.2f})  is the mean error in radians (1.57 by chance): {hours:.1f} of 24 hours."""


def lsi(complete: AnnData) -> np.ndarray:
    """Compute ten components of the chromatin as is customary: TF-IDF, then a singular value decomposition."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    peaks_cf = complete[:, complete.var["feature_types"] == "Peaks"].X > 0
    weighted_cf = TfidfTransformer(sublinear_tf=True).fit_transform(peaks_cf.astype(np.float32))
    components_cz: np.ndarray = TruncatedSVD(10, random_state=SEED).fit_transform(weighted_cf)
    return components_cz


def compare_multiome(
    model: cd.VAE,
    complete: AnnData,
    measured: np.ndarray,
    predicted: pd.DataFrame,
    truth: pd.DataFrame,
    averaged: pd.DataFrame,
) -> str:
    """Say in plain words how well types, cells and peaks are found, with simple methods as yardsticks."""
    rna_cz, atac_cz = (model.transform(complete, modality=name) for name in ("rna", "atac"))
    genes = complete[:, complete.var["feature_types"] == "Gene Expression"]
    spaces = (model.transform(complete), rna_cz, principal_components(genes), atac_cz, lsi(complete))
    f1, f1_rna, f1_pca, f1_atac, f1_lsi = (cd.metrics.knn_f1(space, complete.obs["cell_type"]) for space in spaces)
    alone = measured != "both"
    closer = cd.metrics.foscttm(rna_cz[alone], atac_cz[alone])
    correlation, correlation_averaged = (values.corrwith(truth).median() for values in (predicted, averaged))
    return f"""\
How well the types of all cells, measured once more, are predicted from their neighbors' (macro-F1, 1 at best):
  {f1:.2f}               from both modalities
  {f1_rna:.2f} (PCA: {f1_pca:.2f})   from RNA alone
  {f1_atac:.2f} (LSI: {f1_lsi:.2f})   from ATAC alone
How well RNA and ATAC find each other, in cells of which the model had seen only one of the two:
  {closer:.2f}               of the other cells are closer than the right one (FOSCTTM, 0 at best; 0.5 is chance).
How well marker peaks are predicted from RNA, in cells whose chromatin was not measured:
  {correlation:.2f} (mean: {correlation_averaged:.2f})  is the correlation with the truth, median over the peaks.
PCA, LSI and the mean are yardsticks: 10 components of the log-normalized RNA; 10 of the TF-IDF of the peaks; and the
mean of the {N_NEIGHBORS} cells with both modalities whose RNA is most similar.
The cells are simulated: these numbers say that it works as meant, not how well it does on yours."""


if __name__ == "__main__":
    sys.exit(main())
