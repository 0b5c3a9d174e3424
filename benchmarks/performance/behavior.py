"""Check that a change of the code does not change results: embeddings, histories, traversals and imputations by seed.

Run it on two checkouts (``PYTHONPATH=CHECKOUT/src``), then compare the two files that it wrote:

    python -m benchmarks.performance.behavior run before.npz --data DIR
    python -m benchmarks.performance.behavior run after.npz --data DIR
    python -m benchmarks.performance.behavior compare before.npz after.npz

`compare` prints the largest relative difference of every array, and exits with 1 if one is above ``--tolerance``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc

import celldial as cd

Arrays = dict[str, np.ndarray]


def collect(model: cd.VAE, adata: anndata.AnnData, axis: str | int | tuple) -> Arrays:
    """Return the results of a fitted model: embedding, history, score and a traversal."""
    found = {"embedding": model.transform(adata)}
    found |= {f"history_{name}": np.array(values) for name, values in model.history_.items() if name != "seconds"}
    found["score"] = np.array(model.score(adata[:200].copy()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = model.latent_traverse(adata, axis, n_steps=7, groupby="bulk_labels" if isinstance(axis, tuple) else None)
    found |= {f"traversal_{layer}": np.asarray(path.layers[layer]) for layer in ("mean", "lower", "upper")}
    found |= {f"traversal_{key}": path.var[key].to_numpy() for key in ("effect_size", "lfsr", "rank")}
    return found


def most_variable(path: Path, n_genes: int = 2_000) -> anndata.AnnData:
    adata = anndata.read_h5ad(path)
    if adata.n_vars > n_genes and "feature_types" not in adata.var:
        work = adata.copy()
        sc.pp.normalize_total(work)
        sc.pp.log1p(work)
        sc.pp.highly_variable_genes(work, n_top_genes=n_genes)
        adata = adata[:, work.var["highly_variable"].to_numpy()].copy()
    return adata


def rna(name: str, n_cells: int, epochs: int, **parameters: object) -> Callable[[Path], Arrays]:
    """Return the case of one file, cut to its first `n_cells` and fitted with `parameters`."""

    def case(data: Path) -> Arrays:
        adata = most_variable(data / f"{name}.h5ad")[:n_cells].copy()
        model = cd.VAE(seed=0, **parameters).fit(adata, max_epochs=epochs, progress=False)
        return collect(model, adata, "axis_0")

    return case


def multiome(data: Path) -> Arrays:
    adata = anndata.read_h5ad(data / "a549_multiome.h5ad")
    by_detection = np.argsort(-np.asarray((adata.X > 0).sum(0)).ravel(), kind="stable")
    adata = adata[:1_000, np.sort(by_detection[:6_000])].copy()
    model = cd.VAE(seed=0).fit(adata, max_epochs=4, progress=False)
    found = collect(model, adata, "axis_1")
    source, target = model.schema_.modalities[:2]
    features = model.schema_.feature_names[target][:50]
    found["imputed"] = model.impute(adata, target, from_=source, features=list(features)).to_numpy()
    return found


def circle(data: Path) -> Arrays:
    adata = most_variable(data / "mesc_cell_cycle.h5ad")
    model = cd.VAE(seed=0, periodic="cell_cycle").fit(adata, max_epochs=10, progress=False)
    found = collect(model, adata, "cell_cycle")
    table = model.phase(adata)
    found |= {f"phase_{name}": table[name].to_numpy() for name in table if table[name].dtype.kind == "f"}
    found["axes"] = model.axes(adata)[["kl", "variance", "share"]].to_numpy(dtype=float)
    return found


def labels(data: Path) -> Arrays:
    adata = cd.datasets.pbmc68k_reduced()
    model = cd.VAE(5, seed=0, labels_key="bulk_labels", n_clusters=12).fit(adata, max_epochs=12, progress=False)
    found = collect(model, adata, ("CD14+ Monocyte", "Dendritic"))
    return found | {"clusters": model.clusters(adata).to_numpy()}


def linear(data: Path) -> Arrays:
    adata = cd.datasets.pbmc68k_reduced()
    options = {"decoder": "linear", "bayesian_loadings": True, "prior": "mixture", "batch_key": "phase"}
    model = cd.VAE(5, seed=0, **options).fit(adata, max_epochs=6, progress=False)
    found = collect(model, adata, "axis_2")
    found["loadings"] = model.loadings()[["loading", "lower", "upper", "lfsr"]].to_numpy()
    axis = model.find_axis(adata, "b_to_t", groups=("CD4+/CD25 T Reg", "CD19+ B"))
    return found | {"axis": axis.direction_z, "p_value": np.array(axis.p_value)}


def topics(data: Path) -> Arrays:
    adata = cd.datasets.pbmc68k_reduced()
    model = cd.VAE(6, seed=0, latent="logistic_normal", posterior="flow").fit(adata, max_epochs=4, progress=False)
    found = collect(model, adata, "topic_0")
    sampled = model.sample(50)
    return found | {"topics": model.topics()[["share"]].to_numpy(), "sampled": sampled.X.toarray()}


def gumbel(data: Path) -> Arrays:
    adata = cd.datasets.pbmc68k_reduced()
    gradient = {"cluster": "gumbel_softmax"}
    model = cd.VAE(5, seed=0, n_clusters=6, gradient=gradient).fit(adata, max_epochs=8, progress=False)
    return collect(model, adata, "axis_0")


def scored(data: Path) -> Arrays:
    adata = cd.datasets.pbmc68k_reduced()
    model = cd.VAE(5, seed=0, gradient="score_function").fit(adata, max_epochs=8, progress=False)
    return collect(model, adata, "axis_0")


def from_file(data: Path) -> Arrays:
    adata = cd.datasets.simulate_multiome(600, 100, 200, depth=6)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cells.h5ad")
        adata.write_h5ad(path)
        model = cd.VAE(seed=0).fit(path, max_epochs=3, progress=False)
        found = {"transform_file": model.transform(path)}
    return found | collect(model, adata, "axis_0")


CASES: dict[str, Callable[[Path], Arrays]] = {
    "pbmc68k_counts": rna("pbmc68k_counts", 700, 15),
    "balf": rna("balf", 3_000, 4),
    "a549_multiome": multiome,
    "mesc_cell_cycle": circle,
    "labels": labels,
    "linear": linear,
    "topics": topics,
    "gumbel": gumbel,
    "scored": scored,
    "from_file": from_file,
}


def run(out: Path, data: Path, names: list[str]) -> None:
    found: Arrays = {}
    for name in names:
        for key, values in CASES[name](data).items():
            found[f"{name}/{key}"] = values
        print(f"{name}: done", flush=True)
    np.savez_compressed(out, **found)


def compare(before: Path, after: Path, tolerance: float) -> int:
    old, new = np.load(before), np.load(after)
    worst, lines = 0.0, []
    for key in sorted({*old.files, *new.files}):
        if key not in old.files or key not in new.files or old[key].shape != new[key].shape:
            lines.append((np.inf, key))
            continue
        scale = np.nanmax(np.abs(old[key]), initial=1e-12)
        gap = np.nan_to_num(np.abs(old[key] - new[key]), nan=0.0)
        same_missing = np.array_equal(np.isnan(old[key]), np.isnan(new[key]))
        lines.append((float(gap.max(initial=0) / scale) if same_missing else np.inf, key))
    for difference, key in sorted(lines, reverse=True)[:25]:
        print(f"{difference:.1e}  {key}")
    worst = max(difference for difference, _ in lines)
    identical = sum(difference == 0 for difference, _ in lines)
    print(f"{identical} of {len(lines)} arrays identical; largest relative difference {worst:.1e}")
    return int(worst > tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("out", type=Path)
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    compares = commands.add_parser("compare")
    compares.add_argument("before", type=Path)
    compares.add_argument("after", type=Path)
    compares.add_argument("--tolerance", type=float, default=0.0)
    options = parser.parse_args()
    if options.command == "run":
        run(options.out, options.data, options.only)
        return 0
    return compare(options.before, options.after, options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
