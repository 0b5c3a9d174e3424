#!/usr/bin/env python
"""RNA and ATAC, compared with MULTIVI and PEAKVI: speed, fit, memory, imputation, mosaics, embeddings.

    python -m benchmarks.peers.multimodal --peer-python PEERS/bin/python --data DIR

Each measurement is a separate process, with the same number of threads for all. Several rows use one long run of each
peer. See benchmarks/README.md for the rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
from benchmarks.harness import (
    Bench,
    Row,
    Run,
    best,
    cells_per_second,
    conditions,
    markdown,
    measure,
    row_of_speed,
    row_of_time,
)
from scipy.sparse import csr_matrix, diags
from scipy.stats import poisson
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from celldial.datasets import simulate_multiome
from celldial.metrics import auroc_per_cell, foscttm, ilisi, knn_f1, leiden_nmi, pearson_per_cell

WORKERS = {
    "celldial": "benchmarks.workers.celldial_multimodal",
    "MULTIVI": "benchmarks.workers.scvi_multimodal",
    "PEAKVI": "benchmarks.workers.scvi_multimodal",
}
PEER_OF = {"a549": "MULTIVI", "pbmc10k_atac": "PEAKVI", "a549_peaks": "PEAKVI"}
TREATMENT = "treatment_hours"
N_COMPONENTS = 15
N_NEIGHBORS = 15


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    repeats: int  # of cheap measurements: speed, and runs of celldial
    seeds: int
    our_epochs: int | None  # None for the default
    peer_epochs: dict[str, int]
    throughput_epochs: dict[str, dict[str, int]]


def sizes(repeats: int, quick: bool) -> Sizes:
    if quick:
        one = dict.fromkeys([*PEER_OF, "mosaic"], 1)
        return Sizes(1, 1, 3, one, {data: {"celldial": 3, peer: 2} for data, peer in PEER_OF.items()})
    throughput = {
        "a549": {"celldial": 8, "MULTIVI": 3},
        "pbmc10k_atac": {"celldial": 8, "PEAKVI": 6},
        "a549_peaks": {"celldial": 8, "PEAKVI": 3},
    }
    epochs = {"a549": 40, "pbmc10k_atac": 60, "a549_peaks": 15, "mosaic": 30}
    return Sizes(repeats, repeats, None, epochs, throughput)


# --- Data -------------------------------------------------------------------------------------------------------------


def prepare(source: Path, target: Path, quick: bool) -> dict[str, Path]:
    """Write the data sets that all models use; `quick` reduces them to few cells and features."""
    a549 = ad.read_h5ad(source / "a549_multiome.h5ad")
    # Cells are sorted by treatment in the file. They are shuffled, so that the first tenth can be held out.
    a549 = a549[np.random.default_rng(0).permutation(a549.n_obs)].copy()
    atac = ad.read_h5ad(source / "pbmc10k_atac.h5ad")
    atac.var["feature_types"] = "Peaks"
    cite = ad.read_h5ad(source / "cite_mosaic.h5ad")
    simulated = simulate_multiome(truth=True)
    if quick:
        of_peaks = np.cumsum(a549.var["feature_types"] == "Peaks").to_numpy()
        a549 = a549[:, of_peaks <= 4000].copy()
        a549 = a549[np.asarray(counts_of(a549, "Peaks").sum(axis=1)).ravel() > 0][:400].copy()
        atac, simulated = atac[:600].copy(), simulated[:400].copy()
    peaks = a549[:, a549.var["feature_types"] == "Peaks"].copy()
    data = {"a549": a549, "a549_peaks": peaks, "pbmc10k_atac": atac, "cite_mosaic": cite, "simulated": simulated}
    for name, adata in data.items():
        adata.write_h5ad(target / f"{name}.h5ad")
    # Modalities of each cell of the mosaic: RNA (0), ATAC (1) or both (2).
    np.save(target / "thirds.npy", np.random.default_rng(1).permutation(np.arange(a549.n_obs) % 3))
    return {name: target / f"{name}.h5ad" for name in data}


def counts_of(adata: ad.AnnData, feature_type: str) -> csr_matrix:
    return csr_matrix(adata[:, adata.var["feature_types"] == feature_type].X, dtype=np.float64)


def n_held_out(adata: ad.AnnData) -> int:
    """Return how many of the first cells are held out: the peers train on 90 % of the cells, rounded up."""
    return adata.n_obs - int(np.ceil(0.9 * adata.n_obs))


def shares(counts_cf: csr_matrix) -> csr_matrix:
    """Return the fraction of the cell's total count in each feature; zeros for an empty cell."""
    total_c = np.asarray(counts_cf.sum(axis=1)).ravel()
    return csr_matrix(diags(1 / np.maximum(total_c, 1)) @ counts_cf)


def log_per_10k(counts_cf: csr_matrix) -> csr_matrix:
    return (1e4 * shares(counts_cf)).log1p()


# --- Baselines without a model ----------------------------------------------------------------------------------------


def rna_components(counts_cf: csr_matrix, fitted_c: slice = slice(None)) -> np.ndarray:
    """Return principal components of log1p counts per 10,000 for all cells, fitted to some of them."""
    log_cf = log_per_10k(counts_cf).toarray()
    return PCA(N_COMPONENTS, svd_solver="full").fit(log_cf[fitted_c]).transform(log_cf)


def atac_components(counts_cf: csr_matrix, fitted_c: slice = slice(None)) -> np.ndarray:
    """Return latent semantic indexing: singular vectors of log1p TF-IDF, scaled to length one per cell.

    The first component is left out if it is correlated with the depth of the cell.
    """
    n_cells_f = np.asarray((counts_cf[fitted_c] > 0).sum(axis=0)).ravel()
    frequency_f = counts_cf[fitted_c].shape[0] / np.maximum(n_cells_f, 1)
    weighted_cf = (1e4 * (shares(counts_cf) @ diags(frequency_f))).tocsr().log1p()
    z_cz = TruncatedSVD(N_COMPONENTS + 1, random_state=0).fit(weighted_cf[fitted_c]).transform(weighted_cf)
    depth_c = np.log1p(np.asarray(counts_cf.sum(axis=1)).ravel())
    z_cz = z_cz[:, 1:] if abs(np.corrcoef(z_cz[:, 0], depth_c)[0, 1]) > 0.5 else z_cz[:, :-1]
    return z_cz / np.maximum(np.linalg.norm(z_cz, axis=1, keepdims=True), 1e-12)


def neighbors_average(components_cz: np.ndarray, profile_cf: csr_matrix, n_first: int) -> np.ndarray:
    """Return, for each of the first cells, the mean profile of its nearest neighbors among the others."""
    search = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(components_cz[n_first:])
    neighbor_cn = search.kneighbors(components_cz[:n_first], return_distance=False)
    rows = np.repeat(np.arange(n_first), N_NEIGHBORS)
    shape = (n_first, profile_cf.shape[0] - n_first)
    average = csr_matrix((np.full(len(rows), 1 / N_NEIGHBORS), (rows, neighbor_cn.ravel())), shape=shape)
    return (average @ profile_cf[n_first:]).toarray()


def mean_profile(profile_cf: csr_matrix, n_first: int) -> np.ndarray:
    """Return, for each of the first cells, the mean profile of all others."""
    return np.tile(np.asarray(profile_cf[n_first:].mean(axis=0)).ravel(), (n_first, 1))


def knn_accuracy(embedding_cz: np.ndarray, labels: Any) -> float:
    """Return the fraction of cells whose label is predicted by neighbors in the other folds."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    classifier = KNeighborsClassifier(N_NEIGHBORS)
    return float(cross_val_score(classifier, embedding_cz, np.asarray(labels).astype(str), cv=folds).mean())


# --- Runs that several rows share -------------------------------------------------------------------------------------


def peer_training(bench: Bench, size: Sizes, data: str) -> Run:
    """Return the long run of a peer on a data set."""
    peer = PEER_OF[data]
    options: dict[str, Any] = {"impute": "held out"} if data == "a549" else {}
    epochs = {peer: size.peer_epochs[data]}
    return bench.once(peer, "train", data, epochs=epochs, validation="first", sizes="default", **options)


def our_training(bench: Bench, size: Sizes, data: str, turn: int = 0) -> Run:
    """Return the same run with celldial and its defaults."""
    options: dict[str, Any] = {"impute": "held out"} if data == "a549" and turn == 0 else {}
    epochs = {"celldial": size.our_epochs}
    return bench.once(
        "celldial", "train", data, epochs=epochs, validation="first", sizes="default", turn=turn, **options
    )


def our_fits(bench: Bench, size: Sizes, data: str, **arguments: Any) -> list[np.ndarray]:
    """Return the embeddings of the default `fit`, one per seed."""
    epochs = {"celldial": size.our_epochs}
    runs = [bench.run("celldial", "fit", data, epochs=epochs, arguments=arguments, seed=s) for s in range(size.seeds)]
    return [np.asarray(run["embedding"]) for run in runs]


# --- Rows -------------------------------------------------------------------------------------------------------------


def above(measure: str, ours: float, others: dict[str, float]) -> Row:
    """Return the row of a score that should be better than all others."""
    comparison = ", ".join(f"{name}: {value:.3f}" for name, value in others.items())
    return Row(measure, f"{ours:.3f}", comparison, ours, f"> {max(others.values()):.3f}", ours > max(others.values()))


def at_least(measure: str, ours: float, others: dict[str, float], aim: float | None) -> Row:
    """Return the row of a score that should reach an aim, if there is one."""
    comparison = ", ".join(f"{name}: {value:.3f}" for name, value in others.items())
    if aim is None:
        return Row(measure, f"{ours:.3f}", comparison, ours)
    return Row(measure, f"{ours:.3f}", comparison, ours, f"≥ {aim:.2f}", ours >= aim)


def measure_speed(bench: Bench, size: Sizes) -> list[Row]:
    rows = []
    for data, peer in PEER_OF.items():
        both = ("celldial", peer)
        epochs = size.throughput_epochs[data]
        runs = bench.turns(both, "train", data, size.repeats, epochs=epochs, validation="none", sizes="equal")
        rows.append(row_of_speed(f"training, `{data}`, cells/s ({peer})", runs, *both, cells_per_second, 5))
    return rows


def measure_fit(bench: Bench, size: Sizes) -> list[Row]:
    rows: list[Row] = []
    for data, peer in PEER_OF.items():
        ours = [our_training(bench, size, data, turn) for turn in range(size.repeats)]
        runs = {"celldial": ours, peer: [peer_training(bench, size, data)]}
        quantities = {"held-out log-likelihood of peaks": "atac_loss"}
        if data == "a549":
            quantities["validation ELBO"] = "loss"
        for name, key in quantities.items():
            row = row_of_time(f"time to the best {name}, `{data}` ({peer})", runs, "celldial", peer, key)
            if key == "loss":  # No aim, because the models of RNA differ.
                row = Row(row.measure, row.ours, row.peer, row.value)
            lowest, of_peer = (median(best(run, key) for run in runs[who]) for who in ("celldial", peer))
            rows += [row, Row(f"best {name}, `{data}`, −nats/cell", f"{lowest:,.1f}", f"{of_peer:,.1f}", lowest)]
    return rows + rows_of_memory(ours=our_training(bench, size, "a549"), peer=peer_training(bench, size, "a549"))


def rows_of_memory(ours: Run, peer: Run) -> list[Row]:
    share = ours["peak_mb"] / peer["peak_mb"]
    more = [run["peak_mb"] - run["start_mb"] for run in (ours, peer)]
    return [
        Row(
            "peak resident memory, `a549`, MB (MULTIVI)",
            f"{ours['peak_mb']:,.0f} ({share:.2f}×)",
            f"{peer['peak_mb']:,.0f}",
            share,
            "≤ 1/2",
            share <= 0.5,
        ),
        Row("of that, beyond the imports", f"{more[0]:,.0f} ({more[0] / more[1]:.2f}×)", f"{more[1]:,.0f}", None),
    ]


def measure_imputation(bench: Bench, size: Sizes) -> list[Row]:
    ours, peer = our_training(bench, size, "a549"), peer_training(bench, size, "a549")
    adata = ad.read_h5ad(bench.paths["a549"])
    rna_cf, atac_cf = counts_of(adata, "Gene Expression"), counts_of(adata, "Peaks")
    n = n_held_out(adata)
    return [
        row_of_imputed_atac(ours, peer, rna_components(rna_cf, slice(n, None)), csr_matrix(atac_cf > 0), n),
        *rows_of_imputed_rna(ours, peer, atac_components(atac_cf, slice(n, None)), rna_cf, n),
    ]


def row_of_imputed_atac(ours: Run, peer: Run, components_cz: np.ndarray, open_cf: csr_matrix, n: int) -> Row:
    """Return how well the peaks of held-out cells are ranked, given their RNA."""
    open_cf = open_cf.astype(np.float32)
    predicted = {
        "celldial": ours["atac_from_rna"],
        "MULTIVI": peer["atac_from_rna"],
        "MULTIVI without region factors": peer["atac_from_rna_plain"],
        "mean of the training cells": mean_profile(open_cf, n),
        "15-NN": neighbors_average(components_cz, open_cf, n),
    }
    score = {name: float(np.nanmean(auroc_per_cell(open_cf[:n], p_cf))) for name, p_cf in predicted.items()}
    return above("RNA → ATAC, held-out cells of `a549`, mean AUROC per cell", score.pop("celldial"), score)


def rows_of_imputed_rna(ours: Run, peer: Run, components_cz: np.ndarray, rna_cf: csr_matrix, n: int) -> list[Row]:
    """Return how well the expression of held-out cells is predicted from their peaks, as log1p of counts per 10,000.

    There are two rows, because the logarithm of an expected share is not the expected logarithm of sparse counts, and
    baselines can average either. All methods of a row are compared on the same scale.
    """
    share_cf, log_cf = shares(rna_cf), log_per_10k(rna_cf)
    depth = float(np.median(np.asarray(rna_cf[n:].sum(axis=1))))
    models = {"celldial": ours["rna_from_atac"], "MULTIVI": peer["rna_from_atac"]}
    models = {name: x_cf / x_cf.sum(axis=1, keepdims=True) for name, x_cf in models.items()}
    baselines: dict[str, Callable[[csr_matrix], np.ndarray]] = {
        "mean of the training cells": lambda profile_cf: mean_profile(profile_cf, n),
        "15-NN": lambda profile_cf: neighbors_average(components_cz, profile_cf, n),
    }
    of_share = {name: np.log1p(1e4 * share) for name, share in models.items()}
    of_share |= {name: np.log1p(1e4 * profile(share_cf)) for name, profile in baselines.items()}
    of_log = {name: expected_log(share, depth) for name, share in models.items()}
    of_log |= {name: profile(log_cf) for name, profile in baselines.items()}
    rows = []
    for what, predicted in (("logarithm of the expected share", of_share), ("expected logarithm", of_log)):
        score = {name: float(np.nanmean(pearson_per_cell(log_cf[:n], x_cf))) for name, x_cf in predicted.items()}
        measure = f"ATAC → RNA, held-out cells of `a549`, mean Pearson per cell, {what}"
        rows.append(above(measure, score.pop("celldial"), score))
    return rows


def expected_log(share_cf: np.ndarray, depth: float) -> np.ndarray:
    """Return the expectation of log1p(10,000 · count / depth) for a Poisson count with mean share · depth."""
    mean_m = np.concatenate([[0], np.geomspace(1e-4, max(1, share_cf.max() * depth), 300)])
    count_k = np.arange(int(mean_m[-1] + 10 * np.sqrt(mean_m[-1])) + 10)
    log_m = poisson.pmf(count_k, mean_m[:, None]) @ np.log1p(1e4 * count_k / depth)
    return np.interp(share_cf * depth, mean_m, log_m)


def measure_mosaic(bench: Bench, size: Sizes) -> list[Row]:
    adata = ad.read_h5ad(bench.paths["a549"])
    epochs = {"MULTIVI": size.peer_epochs["mosaic"]}
    peer = bench.once("MULTIVI", "mosaic", "a549", epochs=epochs, assignment="thirds.npy")
    of_peer = foscttm(peer["rna"], peer["atac"]), knn_accuracy(peer["embedding"], adata.obs[TREATMENT])
    rows = []
    # The default, the same without alignment of single modalities, and the one that trains single modalities.
    for fusion in ("aligned_product", "product", "mixture"):
        options = {"epochs": {"celldial": size.our_epochs}, "arguments": {"fusion": fusion}}
        ours = bench.run("celldial", "mosaic", "a549", assignment="thirds.npy", **options)
        match, accuracy = foscttm(ours["rna"], ours["atac"]), knn_accuracy(ours["embedding"], adata.obs[TREATMENT])
        comparison, aim = f"MULTIVI: {of_peer[0]:.3f}", f"< {of_peer[0]:.3f}"
        measure = f"mosaic of thirds of `a549`, {fusion}: FOSCTTM of the paired third's RNA and ATAC"
        rows.append(Row(measure, f"{match:.3f}", comparison, match, aim, match < of_peer[0]))
        rows.append(above(f"… 15-NN accuracy of `{TREATMENT}`, all cells", accuracy, {"MULTIVI": of_peer[1]}))
    return rows


def measure_embedding(bench: Bench, size: Sizes) -> list[Row]:
    adata = ad.read_h5ad(bench.paths["a549"])
    labels = adata.obs[TREATMENT]
    ours = median(knn_f1(z_cz, labels) for z_cz in our_fits(bench, size, "a549"))
    others = {
        "MULTIVI": knn_f1(peer_training(bench, size, "a549")["embedding"], labels),
        "PCA-15 of RNA": knn_f1(rna_components(counts_of(adata, "Gene Expression")), labels),
    }
    return [at_least(f"`a549`, 15-NN macro-F1 of `{TREATMENT}`, median of {size.seeds} seeds", ours, others, 0.92)]


def measure_atac(bench: Bench, size: Sizes) -> list[Row]:
    adata = ad.read_h5ad(bench.paths["pbmc10k_atac"])
    # Fragment counts contain more than their presence. The aim applies to the better of the two.
    embeddings = {name: our_fits(bench, size, "pbmc10k_atac", likelihood=name) for name in ("poisson", "bernoulli")}
    others = {
        "PEAKVI": np.asarray(peer_training(bench, size, "pbmc10k_atac")["embedding"]),
        "TF-IDF + SVD-15": atac_components(counts_of(adata, "Peaks")),
    }
    rows = []
    for name, metric, aim in (("Leiden NMI (best of 7)", leiden_nmi, 0.62), ("15-NN macro-F1", knn_f1, 0.47)):
        comparison = {who: metric(z_cz, adata.obs["celltype"]) for who, z_cz in others.items()}
        for likelihood, each in embeddings.items():
            ours = median(metric(z_cz, adata.obs["celltype"]) for z_cz in each)
            measure = f"`pbmc10k_atac`, {name} of `celltype`, {likelihood}, median of {size.seeds} seeds"
            rows.append(at_least(measure, ours, comparison, aim if likelihood == "poisson" else None))
    return rows


def measure_cite(bench: Bench, size: Sizes) -> list[Row]:
    adata = ad.read_h5ad(bench.paths["cite_mosaic"])
    embeddings = our_fits(bench, size, "cite_mosaic", batch_key="batch")
    comparison = {}
    for name, kind, has in (("RNA", "Gene Expression", "has_rna"), ("protein", "Antibody Capture", "has_protein")):
        measured = adata[adata.obs[has]]
        comparison[f"PCA-15 of {name}, where measured"] = (rna_components(counts_of(measured, kind)), measured.obs)
    rows = []
    for name, metric, column in (
        ("Leiden NMI (best of 7)", leiden_nmi, "celltype"),
        ("15-NN macro-F1", knn_f1, "celltype"),
        ("iLISI", ilisi, "batch"),
    ):
        ours = median(metric(z_cz, adata.obs[column]) for z_cz in embeddings)
        others = {who: metric(z_cz, obs[column]) for who, (z_cz, obs) in comparison.items()}
        rows.append(at_least(f"`cite_mosaic`, {name} of `{column}`, median of {size.seeds} seeds", ours, others, None))
    return rows


def measure_simulated(bench: Bench, size: Sizes) -> list[Row]:
    """Compare imputed means and gene-peak links with the truth."""
    adata = ad.read_h5ad(bench.paths["simulated"])
    epochs, arguments = {"celldial": size.our_epochs}, {"batch_key": "batch"}
    options: dict[str, Any] = {"validation": "first", "sizes": "default", "impute": "all", "arguments": arguments}
    run = bench.run("celldial", "train", "simulated", epochs=epochs, **options)
    of_rna_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    true = {"rna": adata.layers["mean"][:, of_rna_f], "atac": adata.layers["mean"][:, ~of_rna_f]}
    counts = {"rna": counts_of(adata, "Gene Expression"), "atac": counts_of(adata, "Peaks")}
    imputed = {"rna": run["rna_from_atac"], "atac": run["atac_from_rna"]}
    n = n_held_out(adata)
    components = {
        "rna": rna_components(counts["rna"], slice(n, None)),
        "atac": atac_components(counts["atac"], slice(n, None)),
    }
    rows = []
    for of, given in (("atac", "rna"), ("rna", "atac")):
        # Shares, because the depth of a cell in one modality does not determine that in the other.
        true_cf = true[of] / true[of].sum(axis=1, keepdims=True)
        predicted = {
            "celldial": imputed[of][:n] / imputed[of][:n].sum(axis=1, keepdims=True),
            "15-NN": neighbors_average(components[given], shares(counts[of]), n),
            "measured counts of the cell itself": shares(counts[of])[:n].toarray(),
        }
        score = {who: float(np.nanmean(pearson_per_cell(true_cf[:n].T, x_cf.T))) for who, x_cf in predicted.items()}
        measure = f"simulated, {given} → {of}, held-out cells: correlation with the true share, mean over features"
        rows.append(at_least(measure, score.pop("celldial"), score, None))
    profiles = {
        "celldial": (imputed["rna"], imputed["atac"]),
        "measured": (log_per_10k(counts["rna"]).toarray(), counts["atac"].toarray() > 0),
        "true means": (
            true["rna"] / true["rna"].sum(1, keepdims=True),
            true["atac"] / true["atac"].sum(1, keepdims=True),
        ),
    }
    score = {who: links_recovered(adata, *profile) for who, profile in profiles.items()}
    return [
        *rows,
        at_least("simulated, gene-peak links: AUROC of the absolute correlation", score.pop("celldial"), score, None),
    ]


def links_recovered(adata: ad.AnnData, rna_cf: np.ndarray, atac_cf: np.ndarray) -> float:
    """Return the AUROC of absolute correlations: linked pairs against random peaks on the gene's chromosome."""
    rng = np.random.default_rng(0)
    genes = adata.var[adata.var["feature_types"] == "Gene Expression"]
    peaks = adata.var[adata.var["feature_types"] == "Peaks"]
    links = adata.uns["simulation"]["links"]
    linked = {gene: set(each) for gene, each in links.groupby("gene")["peak"]}
    on = {chromosome: list(index) for chromosome, index in peaks.groupby("chrom", observed=True).groups.items()}
    pairs, is_link = [], []
    for gene, peak in zip(links["gene"], links["peak"], strict=True):
        others = [other for other in on[genes.loc[gene, "chrom"]] if other not in linked[gene]]
        if others:
            pairs += [(gene, peak), (gene, others[rng.integers(len(others))])]
            is_link += [True, False]
    x_cf = standardized(rna_cf)[:, genes.index.get_indexer([gene for gene, _ in pairs])]
    y_cf = standardized(atac_cf)[:, peaks.index.get_indexer([peak for _, peak in pairs])]
    return float(roc_auc_score(is_link, np.abs((x_cf * y_cf).mean(axis=0))))


def standardized(x_cf: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and standard deviation 1 over cells; a constant feature becomes 0."""
    x_cf = np.asarray(x_cf, dtype=np.float64)
    x_cf = x_cf - x_cf.mean(axis=0)
    deviation_f = x_cf.std(axis=0)
    return x_cf / np.where(deviation_f > 0, deviation_f, 1)


PARTS = {
    "speed": measure_speed,
    "fit": measure_fit,
    "impute": measure_imputation,
    "mosaic": measure_mosaic,
    "embedding": measure_embedding,
    "atac": measure_atac,
    "cite": measure_cite,
    "simulated": measure_simulated,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--peer-python", required=True, help="interpreter of the environment that has scvi-tools, mudata"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the .h5ad files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of cheap measurements, and seeds, for medians")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="the parts to measure (all)")
    parser.add_argument("--keep", type=Path, help="folder with long runs of the peers, which are not repeated")
    parser.add_argument("--out", type=Path, help="JSON file for the rows and all measurements, written after each part")
    parser.add_argument("--quick", action="store_true", help="few cells, few epochs, once, to check that it runs")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.quick and options.keep is not None:
        parser.error("--quick uses other cells than the runs in --keep")

    size = sizes(options.repeats, options.quick)
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(options.data, Path(scratch), options.quick)
        interpreter = dict.fromkeys(WORKERS, options.peer_python) | {"celldial": sys.executable}
        bench = Bench(interpreter, WORKERS, paths, Path(scratch), options.threads, keep=options.keep)
        rows, failed = measure(PARTS, bench, size, options.only, options.out)
    about = conditions(bench.done, "peers", asdict(size), options.threads)
    print(markdown(rows, "others"))
    print(
        f"\n{options.threads} threads, {about['processor']}; celldial {about['celldial']} and scvi-tools "
        f"{about['scvi-tools']}, torch {about['torch']['celldial']}; medians of {size.repeats} cheap runs."
    )
    if options.quick:
        print("QUICK: few cells and epochs, so these numbers mean nothing.")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
