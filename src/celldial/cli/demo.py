"""Demonstration of the package on small data sets: ``celldial demo``.

The first part uses the RNA of 700 blood cells. It fits a model, clusters the cells in latent space, moves cells along
the most important latent coordinate, and moves naive T cells along an axis to cytotoxic ones. The second part uses
2,000 simulated cells with RNA and chromatin; half of them lack one of the two. It fits a joint model with the cell
cycle as a periodic coordinate, moves cells around the cell cycle, and predicts the chromatin that was not measured.
Cells and figures are written to a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
# The two groups at the ends of an axis, and its name.
NAIVE, CYTOTOXIC, AXIS = "CD8+/CD45RA+ Naive Cytotoxic", "CD8+ Cytotoxic T", "cytotoxicity"
# Nine colors that are safe for color-blind readers (Paul Tol's scheme "muted"), and black for the few CD34+ cells.
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
# Simulated cells: their number, and the shares with both modalities, with RNA only, and with ATAC only.
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
        Command line arguments. By default those of this process.

    Returns
    -------
    int
        Exit code: 0 for success, 1 if the folder is not writable. Wrong arguments exit with code 2.

    Examples
    --------
    Ten epochs give the figures quickly. The same in a shell: ``celldial demo --out demo --max-epochs 10``.

    >>> from celldial.cli.demo import main
    >>> main(["--out", "demo", "--max-epochs", "10"])  # doctest: +SKIP
    0
    """
    options = parse(arguments)
    import matplotlib as mpl

    mpl.use("Agg")  # figures are written to files, which need no display
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        run_blood_cells(options.out, options.max_epochs or "auto")
        print()
        run_multiome(options.out, options.max_epochs or "auto")
    except OSError as error:
        print(f"cannot write to {options.out}: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line arguments."""
    from celldial.cli.argument_types import integer_at_least

    parser = argparse.ArgumentParser(prog="celldial demo", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="output folder (demo)")
    parser.add_argument(
        "--max-epochs", type=integer_at_least(1), metavar="N", help="number of epochs (depends on the number of cells)"
    )
    return parser.parse_args(arguments)


# --- RNA of blood cells -----------------------------------------------------------------------------------------------


def run_blood_cells(folder: Path, max_epochs: int | Literal["auto"]) -> None:
    """Fit a model to gene expression, find clusters and axes, and write cells, figures and metrics."""
    import scanpy as sc

    adata = cd.datasets.pbmc68k_reduced()
    print(f"Fitting a model to {adata.n_obs} blood cells × {adata.n_vars} genes.", flush=True)
    model = cd.VAE(seed=SEED).fit(adata, max_epochs=max_epochs)
    print("Finding neighbors, clusters and axes, and running two traversals.", flush=True)
    compute_umap(adata)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=SEED)
    top_coordinate = model.axes(adata).index[0]
    model.latent_traverse(adata, top_coordinate)
    axis = model.find_axis(adata, AXIS, obs=LABELS, groups=(NAIVE, CYTOTOXIC))
    traversal = model.latent_traverse(adata, AXIS, at={LABELS: NAIVE})
    figures = {
        "umap.png": draw_umap(adata),
        "history.png": cd.pl.history(adata, return_fig=True),
        "axes.png": cd.pl.axes(adata, return_fig=True),
        "latent_traverse.png": cd.pl.latent_traverse(adata, top_coordinate, return_fig=True),
        "cytotoxicity.png": cd.pl.axis_features(adata, AXIS, return_fig=True),
    }
    adata.write_h5ad(folder / "pbmc68k.h5ad")
    save_figures(figures, folder)
    cd.pl.dial(adata, AXIS, color=LABELS, path=folder / "cytotoxicity.html")
    print(f"\nWritten to {folder}/:")
    print('  pbmc68k.h5ad         the cells, with the embedding in obsm["X_celldial"], axes and traversals in uns')
    print("  umap.png             the cells, colored by type and by cluster")
    print("  history.png          the training history")
    print("  axes.png             the importance of the latent coordinates")
    print(f"  latent_traverse.png  changes along the most important coordinate, {top_coordinate}")
    print("  cytotoxicity.png     genes that increase and decrease from naive to cytotoxic CD8+ T cells")
    print("  cytotoxicity.html    the same as an interactive page")
    print("\n" + report_axis(axis, traversal))
    print(report_embedding(adata))


def compute_umap(adata: AnnData) -> None:
    """Compute neighbors in the embedding and a UMAP with scanpy."""
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_celldial", random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)


def report_axis(axis: Axis, traversal: AnnData) -> str:
    """Return a text on how well the axis separates its two groups, and which genes increase along it."""
    increasing = traversal.var.query("change > 0").sort_values("rank").index[:8]
    return f"""\
The axis from naive to cytotoxic CD8+ T cells:
  {axis.strength:.2f}  R² of its score for the two groups (1 is the maximum; p = {axis.p_value:.3f}).
  Top-ranked genes that increase along it: {", ".join(increasing)}."""


def draw_umap(adata: AnnData) -> Figure:
    """Draw the cell types next to the clusters."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, (types, clusters) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    options = {"show": False, "frameon": False, "size": 40}
    sc.pl.umap(adata, color=LABELS, ax=types, title="annotated cell types", palette=COLORS, **options)
    # Clusters can be too many for distinct colors: their numbers are on the map.
    on_data = {"legend_loc": "on data", "legend_fontoutline": 2}
    sc.pl.umap(adata, color="leiden", ax=clusters, title="clusters in the latent space", **on_data, **options)
    return figure


def save_figures(figures: dict[str, Any], folder: Path) -> None:
    """Write figures to files and close them."""
    import matplotlib.pyplot as plt

    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
        plt.close(figure)


def principal_components(adata: AnnData) -> np.ndarray:
    """Return ten principal components of the log-normalized counts."""
    import scanpy as sc

    normalized = adata.copy()
    sc.pp.normalize_total(normalized, target_sum=1e4)
    sc.pp.log1p(normalized)
    sc.pp.pca(normalized, n_comps=10, random_state=SEED)
    components_cz: np.ndarray = normalized.obsm["X_pca"]
    return components_cz


def report_embedding(adata: AnnData) -> str:
    """Return a text on how well the embedding separates the cell types, compared with PCA."""
    embeddings = (adata.obsm["X_celldial"], principal_components(adata))
    nmi, nmi_pca = (cd.metrics.leiden_nmi(embedding_cz, adata.obs[LABELS]) for embedding_cz in embeddings)
    f1, f1_pca = (cd.metrics.knn_f1(embedding_cz, adata.obs[LABELS]) for embedding_cz in embeddings)
    return f"""\
Separation of the ten cell types in the embedding, from 0 (none) to 1 (perfect):
  {nmi:.2f} (PCA: {nmi_pca:.2f})  agreement with the best of seven Leiden clusterings (NMI)
  {f1:.2f} (PCA: {f1_pca:.2f})  prediction of a cell's type from its neighbors (macro-F1)
For comparison, PCA: 10 components of the log-normalized counts."""


# --- RNA and chromatin of simulated cells -----------------------------------------------------------------------------


@dataclass
class Imputation:
    """Predicted and true probabilities of open peaks, in cells whose chromatin was not measured."""

    predicted: pd.DataFrame
    neighbor_mean: pd.DataFrame
    truth: pd.DataFrame


def run_multiome(folder: Path, max_epochs: int | Literal["auto"]) -> None:
    """Fit a joint model of RNA and chromatin with a cell cycle, and write cells, figures and metrics."""
    adata = cd.datasets.simulate_multiome(N_CELLS, mosaic=MOSAIC, seed=SEED)
    # The same cells, measured again with both modalities, and the true means.
    complete = cd.datasets.simulate_multiome(N_CELLS, truth=True, seed=SEED)
    measured = np.select([~adata.obs["has_atac"], ~adata.obs["has_rna"]], ["RNA only", "ATAC only"], "both")
    adata.obs["measured"] = pd.Categorical(measured, list(MEASURED_COLORS))
    n_genes, n_peaks = adata.var["feature_types"].value_counts()[["Gene Expression", "Peaks"]]
    print(
        f"Fitting a model to {N_CELLS} simulated cells × {n_genes} genes and {n_peaks} peaks; "
        f"{(measured == 'both').mean():.0%} of the cells have both modalities.",
        flush=True,
    )
    model = cd.VAE(batch_key="batch", periodic="cell_cycle", seed=SEED).fit(adata, max_epochs=max_epochs)
    print("Finding neighbors, running a traversal of the cell cycle, and predicting chromatin from RNA.", flush=True)
    compute_umap(adata)
    model.latent_traverse(adata, "cell_cycle", n_steps=49)
    imputation = impute_peaks(model, adata, complete)
    figures = {
        "multiome_umap.png": draw_multiome_umap(adata),
        "multiome_impute.png": draw_imputation(adata, imputation),
        "multiome_cell_cycle.png": cd.pl.cell_cycle(adata, return_fig=True),
        "multiome_latent_traverse.png": cd.pl.latent_traverse(adata, "cell_cycle", return_fig=True),
    }
    adata.write_h5ad(folder / "multiome.h5ad")
    save_figures(figures, folder)
    cd.pl.dial(adata, "cell_cycle", "circle", "cell_type", path=folder / "multiome_dial.html")
    print(f"\nWritten to {folder}/:")
    print("  multiome.h5ad                 the cells, with the joint embedding, angles and the traversal")
    print("  multiome_umap.png             the cells, colored by type, by measured modalities, and by batch")
    print("  multiome_impute.png           chromatin predicted from RNA, compared with the truth")
    print("  multiome_cell_cycle.png       the cells on the circle, and marker genes against the angle")
    print("  multiome_latent_traverse.png  genes and peaks that change along the cell cycle")
    print("  multiome_dial.html            the same as an interactive page")
    print("\n" + report_angles(adata))
    print(report_multiome(model, complete, measured, imputation))


def impute_peaks(model: cd.VAE, adata: AnnData, complete: AnnData) -> Imputation:
    """Return predictions of marker peaks from RNA, and the truth, in the cells with RNA only."""
    rna_only = adata[adata.obs["measured"] == "RNA only"].copy()
    truth = open_probability(complete[rna_only.obs_names])
    peaks = truth.columns.tolist()
    predicted = model.impute(rna_only, "atac", from_="rna", features=peaks)
    return Imputation(predicted, mean_of_neighbors(adata, peaks), truth)


def open_probability(complete: AnnData) -> pd.DataFrame:
    """Return the true probability that each marker peak is observed open, at the median depth."""
    markers = complete[:, (complete.var["feature_types"] == "Peaks") & complete.var["is_marker_of"].notna()]
    depth_c = complete.obs["atac_library_size"].to_numpy()
    mean_cf = markers.layers["mean"] * (np.median(depth_c) / depth_c)[:, None]
    return pd.DataFrame(-np.expm1(-mean_cf), index=markers.obs_names, columns=markers.var_names)


def mean_of_neighbors(adata: AnnData, peaks: list[str]) -> pd.DataFrame:
    """Return a simple prediction of peaks: the share of the cells with the most similar RNA in which they are open."""
    from sklearn.neighbors import KNeighborsRegressor

    with_rna = adata[adata.obs["measured"] != "ATAC only"]
    components_cz = principal_components(with_rna[:, with_rna.var["feature_types"] == "Gene Expression"])
    paired_c = (with_rna.obs["measured"] == "both").to_numpy()
    neighbors = KNeighborsRegressor(min(N_NEIGHBORS, paired_c.sum()))
    neighbors.fit(components_cz[paired_c], with_rna[paired_c, peaks].to_df() > 0)
    rna_only = with_rna.obs_names[~paired_c]
    return pd.DataFrame(neighbors.predict(components_cz[~paired_c]), index=rna_only, columns=peaks)


def draw_multiome_umap(adata: AnnData) -> Figure:
    """Draw the UMAP three times: cell types, measured modalities, batches."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    titles = {"cell_type": "simulated cell types", "measured": "measured modalities", "batch": "batches"}
    palettes = (TYPE_COLORS, MEASURED_COLORS, BATCH_COLORS)
    for panel, (column, title), palette in zip(panels, titles.items(), palettes, strict=True):
        sc.pl.umap(adata, color=column, ax=panel, title=title, palette=palette, show=False, frameon=False, size=18)
    return figure


def draw_imputation(adata: AnnData, imputation: Imputation) -> Figure:
    """Draw one peak on the UMAP, predicted and true, and the accuracy of all marker peaks."""
    import matplotlib.pyplot as plt

    predicted, truth = imputation.predicted, imputation.truth
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=[1, 1, 1.15])
    figure.suptitle(f"{len(truth)} cells whose chromatin was not measured", fontweight="bold")
    peak = truth.std().idxmax()
    x_c, y_c = adata[truth.index].obsm["X_umap"].T
    for panel, values, title in zip(panels, (predicted, truth), ("predicted from RNA", "truth"), strict=False):
        points = panel.scatter(x_c, y_c, c=values[peak], s=14, cmap="viridis", vmin=0, vmax=truth[peak].max())
        panel.set_title(f"{peak}, {title}", fontsize="medium")
        panel.set_axis_off()
    figure.colorbar(points, ax=panels[:2], label="probability open\n", shrink=0.8)

    panel = panels[2]
    edges = np.linspace(-1, 1, 81)
    label = f"mean of the {N_NEIGHBORS} cells with the most similar RNA"
    panel.hist(imputation.neighbor_mean.corrwith(truth), edges, color="0.7", label=label)
    panel.hist(predicted.corrwith(truth), edges, color="#0072B2", alpha=0.75, label="predicted by the model from RNA")
    panel.set_xlabel("correlation with the truth over these cells")
    panel.set_ylabel("number of peaks")
    panel.set_title(f"all {truth.shape[1]} marker peaks of cell types", fontsize="medium")
    panel.set_xlim(-0.4, 1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.25)
    panel.legend(frameon=False, loc="upper left", fontsize="small")
    return figure


def report_angles(adata: AnnData) -> str:
    """Return a text on how well the inferred cell-cycle angle agrees with the true one."""
    cycling = adata.obs[adata.obs["is_cycling"]]
    angle_c, true_c = cycling["cell_cycle_angle"].to_numpy(), cycling["true_cell_cycle_angle"].to_numpy()
    rna_c = cycling["has_rna"].to_numpy()
    correlation = cd.metrics.fisher_lee(angle_c[rna_c], true_c[rna_c])
    error, error_atac = (cd.metrics.angular_error(angle_c[c], true_c[c], align=False) for c in (rna_c, ~rna_c))
    hours = 24 * error / (2 * np.pi)
    return f"""\
Agreement of the cell-cycle angle with the truth, in cycling cells (ATAC: cells with ATAC only). Only marker genes
determine the origin and direction of the angle.
  {correlation:.2f}               circular correlation of Fisher and Lee, cells with RNA (1 is the maximum, 0 is chance)
  {error:.2f} (ATAC: {error_atac:.2f})  mean error in radians (1.57 is chance): {hours:.1f} of 24 hours"""


def lsi(complete: AnnData) -> np.ndarray:
    """Return ten LSI components of the chromatin: TF-IDF, then a singular value decomposition."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    peaks_cf = complete[:, complete.var["feature_types"] == "Peaks"].X > 0
    weighted_cf = TfidfTransformer(sublinear_tf=True).fit_transform(peaks_cf.astype(np.float32))
    components_cz: np.ndarray = TruncatedSVD(10, random_state=SEED).fit_transform(weighted_cf)
    return components_cz


def report_multiome(model: cd.VAE, complete: AnnData, measured: np.ndarray, imputation: Imputation) -> str:
    """Return a text on cell types, matching of modalities and imputation, compared with simple methods."""
    rna_cz, atac_cz = (model.transform(complete, modality=name) for name in ("rna", "atac"))
    genes = complete[:, complete.var["feature_types"] == "Gene Expression"]
    spaces = (model.transform(complete), rna_cz, principal_components(genes), atac_cz, lsi(complete))
    f1, f1_rna, f1_pca, f1_atac, f1_lsi = (cd.metrics.knn_f1(space, complete.obs["cell_type"]) for space in spaces)
    unpaired_c = measured != "both"
    closer = cd.metrics.foscttm(rna_cz[unpaired_c], atac_cz[unpaired_c])
    predictions = (imputation.predicted, imputation.neighbor_mean)
    correlation, correlation_mean = (values.corrwith(imputation.truth).median() for values in predictions)
    return f"""\
Prediction of cell types from neighbors in the embedding (macro-F1, 1 is the maximum). All cells are measured again:
  {f1:.2f}               embedding from both modalities
  {f1_rna:.2f} (PCA: {f1_pca:.2f})   embedding from RNA alone
  {f1_atac:.2f} (LSI: {f1_lsi:.2f})   embedding from ATAC alone
Matching of RNA and ATAC, in cells that had only one of them during training:
  {closer:.2f}               share of other cells that are closer than the same cell (FOSCTTM; 0 is best, 0.5 is chance)
Imputation of marker peaks from RNA, in cells whose chromatin was not measured:
  {correlation:.2f} (mean: {correlation_mean:.2f})  correlation with the truth, median over peaks
For comparison, PCA: 10 components of the log-normalized RNA. LSI: 10 components of the TF-IDF of the peaks. Mean: over
the {N_NEIGHBORS} cells with both modalities and the most similar RNA.
The cells are simulated: these numbers show that the method works, not how well it works on your data."""


if __name__ == "__main__":
    sys.exit(main())
