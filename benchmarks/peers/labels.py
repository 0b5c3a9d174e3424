#!/usr/bin/env python
"""Label transfer: macro-F1, calibration, and cells of types without a label; compared with nearest neighbors.

    python -m benchmarks.peers.labels --data DIR --out labels.json

Everything runs in this process. SCANVI is included if scvi-tools is installed. See benchmarks/README.md for what the
rows mean.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from benchmarks.harness import Row, conditions, markdown, write_report
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import celldial as cd
from celldial.inference.label_classifier import calibration_error

UNKNOWN, UNASSIGNED, LABEL = "unknown", "unassigned", "label"
N_NEIGHBORS, N_COMPONENTS, N_GENES = 15, 20, 2000
# Type to its markers, and to markers of others that count half against it.
MARKERS: dict[str, tuple[list[str], list[str]]] = {
    "CD14+ Monocytes": (["CD14", "LYZ", "S100A8", "S100A9", "FCN1", "CCL2"], []),
    "FCGR3A+ Monocytes": (["FCGR3A", "MS4A7", "VMO1", "CDKN1C", "LST1"], []),
    "B cells": (["MS4A1", "CD79A", "CD79B", "CD74"], []),
    "NK cells": (["GNLY", "NKG7", "KLRD1", "PRF1", "KLRC1"], ["CD3D", "CD3G", "CD8A", "CD8B"]),
    "CD8 T cells": (["CD8A", "CD8B", "GZMK", "GZMH", "CCL5"], ["GNLY", "KLRC1"]),
    "CD4 T cells": (["CD3D", "IL7R", "LTB", "CCR7", "SELL"], ["CD8A", "CD8B"]),
    "Dendritic cells": (["FCER1A", "CLEC10A", "HLA-DQA1", "HLA-DPA1", "HLA-DPB1"], ["CD79A", "MS4A1", "CD79B"]),
    "Megakaryocytes": (["PPBP", "PF4", "GNG11", "TUBB1"], []),
}
# Data set to the types that are left out, one at a time, in the cells of `fit` and only in new cells.
LEFT_OUT = {
    "kang_ifnb": ["B cells", "CD14+ Monocytes", "NK cells"],
    "cite_mosaic": ["B", "Mono", "NK"],
    "pbmc68k_counts": ["CD19+ B", "CD14+ Monocyte"],
}
# Fraction of known labels, in general and with a type left out: 70 labels are too few to recognize one.
KNOWN, KNOWN_LEFT_OUT = 0.1, 0.5


# --- Data -------------------------------------------------------------------------------------------------------------


def normalized(adata: ad.AnnData) -> ad.AnnData:
    """Return log1p of counts per 10,000."""
    result = adata.copy()
    sc.pp.normalize_total(result, target_sum=1e4)
    sc.pp.log1p(result)
    return result


def types_by_markers(adata: ad.AnnData) -> pd.Series[str]:
    """Cluster cells finely, and name each cluster after the markers that are highest in it."""
    cells = normalized(adata)
    sc.pp.filter_genes(cells, min_cells=3)
    sc.pp.highly_variable_genes(cells, n_top_genes=N_GENES)
    sc.pp.scale(cells, max_value=10)
    sc.pp.pca(cells, n_comps=N_COMPONENTS, mask_var="highly_variable")
    sc.pp.neighbors(cells, n_neighbors=8)
    sc.tl.leiden(cells, resolution=4, flavor="igraph", n_iterations=-1, random_state=0)

    def mean(genes: list[str]) -> Any:
        known = [gene for gene in genes if gene in cells.var_names]
        return np.asarray(cells[:, known].X).mean(1) if known else 0.0

    scores = {name: mean(own) - 0.5 * mean(others) for name, (own, others) in MARKERS.items()}
    by_cluster = pd.DataFrame(scores).groupby(cells.obs["leiden"].to_numpy()).mean().idxmax(axis=1)
    return cells.obs["leiden"].astype(str).map(by_cluster.to_dict())


def read_kang(folder: Path, n_genes: int | None = N_GENES) -> tuple[ad.AnnData, dict[str, Any]]:
    """Control cells with published types, which are known, and stimulated cells with types by markers."""
    adata = ad.read_h5ad(folder / "kang_ifnb.h5ad")
    published = adata.obs["cell_type_ctrl"].astype(str)
    stimulated = adata.obs["condition"] == "stim"
    adata.obs["type"] = published
    adata.obs.loc[stimulated, "type"] = types_by_markers(adata[stimulated])
    adata.obs[LABEL] = np.where(stimulated, UNKNOWN, published)
    adata = adata[stimulated | (published != UNKNOWN)].copy()
    if n_genes is not None:
        cells = normalized(adata)
        sc.pp.highly_variable_genes(cells, n_top_genes=n_genes, batch_key="condition")
        adata = adata[:, cells.var["highly_variable"]].copy()
    return adata, {"batch_key": "condition"}


def read_cite(folder: Path) -> tuple[ad.AnnData, dict[str, Any]]:
    """Two donors with known labels, two without."""
    adata = ad.read_h5ad(folder / "cite_mosaic.h5ad")
    adata.obs["type"] = adata.obs["celltype"].astype(str)
    adata.obs[LABEL] = adata.obs["type"].where(adata.obs["batch"].isin(["p1_0", "p2_0"]), UNKNOWN)
    return adata, {"batch_key": "batch"}


def read_pbmc(folder: Path) -> tuple[ad.AnnData, dict[str, Any]]:
    """Blood cells, without labels; see `know_some`."""
    adata = ad.read_h5ad(folder / "pbmc68k_counts.h5ad")
    adata.obs["type"] = adata.obs["bulk_labels"].astype(str)
    return adata, {}


def know_some(adata: ad.AnnData, fraction: float, seed: int) -> None:
    """Label a fraction of the cells of each type, and at least one."""
    type_c, generator = adata.obs["type"].to_numpy(), np.random.default_rng(seed)
    label_c = np.full(adata.n_obs, UNKNOWN, dtype=object)
    for name in np.unique(type_c):
        member = np.flatnonzero(type_c == name)
        label_c[generator.choice(member, max(1, round(fraction * len(member))), replace=False)] = name
    adata.obs[LABEL] = label_c


READERS: dict[str, Callable[[Path], tuple[ad.AnnData, dict[str, Any]]]] = {
    "pbmc68k_counts": read_pbmc,
    "cite_mosaic": read_cite,
    "kang_ifnb": read_kang,
    "kang_ifnb, all genes": lambda folder: read_kang(folder, None),
}


# --- Measuring --------------------------------------------------------------------------------------------------------


def macro_f1(true_c: np.ndarray, predicted_c: np.ndarray) -> float:
    return float(f1_score(true_c, predicted_c, labels=np.unique(true_c), average="macro", zero_division=0.0))


def neighbors(embedding_cz: np.ndarray, label_c: np.ndarray) -> np.ndarray:
    """Label cells by the 15 nearest cells with a known label."""
    known_c = label_c != UNKNOWN
    classifier = KNeighborsClassifier(N_NEIGHBORS).fit(embedding_cz[known_c], label_c[known_c])
    predicted_c: np.ndarray = classifier.predict(embedding_cz)
    return predicted_c


def scanvi(adata: ad.AnnData, batch_key: str | None, seed: int) -> np.ndarray:
    """Return the labels of SCANVI with its defaults, started from scVI."""
    scvi = importlib.import_module("scvi")
    scvi.settings.seed = seed
    cells = adata.copy()
    scvi.model.SCVI.setup_anndata(cells, batch_key=batch_key)
    plain = scvi.model.SCVI(cells)
    plain.train(max_epochs=200, enable_progress_bar=False)
    model = scvi.model.SCANVI.from_scvi_model(plain, UNKNOWN, labels_key=LABEL)
    model.train(enable_progress_bar=False)
    return np.asarray(model.predict())


def transfer(adata: ad.AnnData, keys: dict[str, Any], seed: int, max_epochs: Any) -> dict[str, Any]:
    """Transfer labels to the cells without one, and compare with the types."""
    type_c, label_c = (adata.obs[column].to_numpy().astype(str) for column in ("type", LABEL))
    rest_c = label_c == UNKNOWN
    cells = adata.copy()
    model = cd.VAE(seed=seed, labels_key=LABEL, **keys).fit(cells, max_epochs=max_epochs, progress=False)
    table = model.clusters(cells)
    predicted_c = table.idxmax(axis=1).to_numpy().astype(str)
    logged = normalized(adata)
    sc.pp.pca(logged, n_comps=N_COMPONENTS)
    found = {
        "celldial": predicted_c,
        "15-NN, same embedding": neighbors(cells.obsm["X_celldial"], label_c),
        "15-NN, PCA": neighbors(logged.obsm["X_pca"], label_c),
    }
    if importlib.util.find_spec("scvi") is not None:
        found["SCANVI"] = scanvi(adata, keys.get("batch_key"), seed)
    column = {name: index for index, name in enumerate(table.columns)}
    code_c = np.array([column.get(name, -1) for name in type_c])
    disputed_c = cells.obs["celldial_cluster_disputed"].to_numpy()
    return {
        "f1": {who: macro_f1(type_c[rest_c], answer_c[rest_c]) for who, answer_c in found.items()},
        "calibration_error": calibration_error(table.to_numpy()[rest_c], code_c[rest_c]),
        "reported": table.attrs["calibration_error"],
        "unassigned": float((cells.obs["celldial_cluster"] == UNASSIGNED)[rest_c].mean()),
        "disputed": float(disputed_c[rest_c].mean()),
        "right": float((predicted_c == type_c)[rest_c].mean()),
        "right_if_disputed": float((predicted_c == type_c)[rest_c & disputed_c].mean()) if disputed_c.any() else None,
    }


def leave_out(
    adata: ad.AnnData, keys: dict[str, Any], left: str, new: bool, seed: int, max_epochs: Any
) -> dict[str, float]:
    """Remove a type from the labels, or its cells from those to fit, and count the unassigned cells."""
    is_left_c = (adata.obs["type"] == left).to_numpy() | (adata.obs[LABEL] == left).to_numpy()
    cells = adata.copy()
    cells.obs.loc[is_left_c, LABEL] = UNKNOWN
    rest_c = (adata.obs[LABEL] == UNKNOWN).to_numpy() & ~is_left_c
    trained = cells[~is_left_c].copy() if new else cells
    model = cd.VAE(seed=seed, labels_key=LABEL, **keys).fit(trained, max_epochs=max_epochs, progress=False)
    model.clusters(cells)
    unassigned_c = (cells.obs["celldial_cluster"] == UNASSIGNED).to_numpy()
    return {"left_out": float(unassigned_c[is_left_c].mean()), "known": float(unassigned_c[rest_c].mean())}


def transfer_rows(data: str, runs: list[dict[str, Any]]) -> list[Row]:
    """Summarize the seeds of one data set."""
    f1 = {who: [run["f1"][who] for run in runs] for who in runs[0]["f1"]}
    ours, others = f1.pop("celldial"), {who: median(values) for who, values in f1.items()}
    middle, best = median(ours), max(others.values())
    peers = "; ".join(f"{who} {value:.3f}" for who, value in others.items())
    gap, error = middle - min(ours), median(run["calibration_error"] for run in runs)
    reported = [run["reported"] for run in runs if run["reported"] is not None]
    unassigned = median(run["unassigned"] for run in runs)
    beside = f"on held-out labels {median(reported):.3f}" if reported else ""
    return [
        Row(f"`{data}`: macro-F1, median", f"{middle:.3f}", peers, middle, f"≥ {best:.3f}", middle >= best),
        Row(f"`{data}`: worst seed below the median", f"{gap:.3f}", "", gap, "≤ 0.03", gap <= 0.03),
        Row(f"`{data}`: calibration error", f"{error:.3f}", beside, error, "≤ 0.05", error <= 0.05),
        Row(f"`{data}`: unassigned, all types known", f"{unassigned:.3f}", "", unassigned, "≤ 0.1", unassigned <= 0.1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=5, help="models of each kind that medians are of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=READERS, nargs="+", default=list(READERS), help="the data sets (all)")
    parser.add_argument("--parts", choices=("transfer", "left_out"), nargs="+", default=["transfer", "left_out"])
    parser.add_argument("--out", type=Path, help="where to write the rows and all measurements, as JSON, as they come")
    parser.add_argument("--quick", action="store_true", help="two epochs, once: does it run at all?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n_seeds, max_epochs = (1, 2) if options.quick else (options.seeds, "auto")
    rows: list[Row] = []
    runs: list[dict[str, Any]] = []

    def note(data: str, start: float, **measured: Any) -> None:
        runs.append({"data": data, "wall": time.perf_counter() - start, **measured})
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        if options.out is not None:
            about = conditions(runs, "peers", {"seeds": n_seeds, "max_epochs": max_epochs}, options.threads)
            write_report(options.out, about, rows, runs)

    for data in options.only:
        adata, keys = READERS[data](options.data)
        if "transfer" in options.parts:
            of_seeds = []
            for seed in range(n_seeds):
                start = time.perf_counter()
                if data == "pbmc68k_counts":
                    know_some(adata, KNOWN, seed)
                of_seeds.append(transfer(adata, keys, seed, max_epochs))
                note(data, start, part="transfer", seed=seed, **of_seeds[-1])
            rows += transfer_rows(data, of_seeds)
        for left in LEFT_OUT.get(data, []) if "left_out" in options.parts else []:
            for new in (False, True):
                start = time.perf_counter()
                if data == "pbmc68k_counts":
                    know_some(adata, KNOWN_LEFT_OUT, 0)
                shares = leave_out(adata, keys, left, new, 0, max_epochs)
                note(data, start, part="left_out", left=left, new=new, **shares)
                where = "in new cells" if new else "in the cells of fit"
                ours, reached = f"{shares['left_out']:.2f} / {shares['known']:.2f}", None
                reached = shares["left_out"] >= 0.8 and shares["known"] <= 0.1
                measure = f"`{data}`: unassigned of {left}, left out, {where} / of known types"
                rows.append(Row(measure, ours, "", shares["left_out"], "≥ 0.8 / ≤ 0.1", reached))
    note("all", time.perf_counter(), part="end")
    print(markdown(rows, "others"))


if __name__ == "__main__":
    main()
