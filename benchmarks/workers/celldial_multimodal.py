"""Run one job of peers/multimodal.py with celldial: workers/celldial_multimodal.py JOB_AS_JSON OUT_FOLDER.

workers/scvi_multimodal.py runs the same tasks on the same cells, with the same numbers in result.json.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from benchmarks.harness import resident_mb
from scipy.sparse import csr_matrix

import celldial


def train_model(model: Any, adata: ad.AnnData, **options: Any) -> dict[str, Any]:
    """Fit, and return the same measurements as the worker of the peers."""
    start = time.perf_counter()
    model.fit(adata, progress=False, include_periodic=True, **options)
    wall, peak = time.perf_counter() - start, resident_mb(peak=True)
    history = model.history_
    # The history has ELBOs. Losses are returned, as by the peers.
    loss = [-elbo for elbo in history.get("elbo_validation", [])]
    # With peaks alone, the log-likelihood has no suffix.
    of_atac = history.get("log_likelihood_atac_validation", history.get("log_likelihood_validation", []))
    atac_loss = [-value for value in of_atac]
    return {"wall": wall, "seconds": history["seconds"], "loss": loss, "atac_loss": atac_loss, "peak_mb": peak}


def impute(model: Any, adata: ad.AnnData, out: Path) -> None:
    """Impute each modality from the other."""
    for of, given in (("atac", "rna"), ("rna", "atac")):
        imputed_cf = model.impute(adata, of, from_=given, dense=True)
        np.save(out / f"{of}_from_{given}.npy", np.asarray(imputed_cf, dtype=np.float32))


def train(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train with the defaults, except for options of the job; embed all cells; impute validation cells or all cells."""
    equal = job["sizes"] == "equal"
    sizes = {"n_latent": 10, "n_hidden": 128, "n_layers": 1} if equal else {}
    model = celldial.VAE(**sizes, **job.get("arguments", {}), seed=job["seed"])
    options: dict[str, Any] = {"max_epochs": job["epochs"]["celldial"] or "auto"}
    if equal:
        options["batch_size"] = 128
    # The peers train on 90 % of the cells, rounded up.
    held_out = 0 if job["validation"] == "none" else adata.n_obs - math.ceil(0.9 * adata.n_obs)
    if job["validation"] == "none":
        options["validation_size"] = 0
    elif job["validation"] == "first":
        options["validation_cells"] = np.arange(adata.n_obs) < held_out
    measured = {"n_train": adata.n_obs - held_out, **train_model(model, adata, **options)}
    np.save(out / "embedding.npy", adata.obsm["X_celldial"])
    if "impute" in job:
        impute(model, adata if job["impute"] == "all" else adata[:held_out].copy(), out)
    return measured


def mosaic(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train on cells of which some lack a modality; then embed the paired cells by each modality alone."""
    has_c = np.load(Path(job["data"]).parent / job["assignment"])
    adata.obs["has_rna"], adata.obs["has_atac"] = has_c != 1, has_c != 0
    of_rna_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    # The counts of missing modalities are removed, too.
    keep_cf = csr_matrix(adata.X).tocoo()
    kept_n = np.where(of_rna_f[keep_cf.col], has_c[keep_cf.row] != 1, has_c[keep_cf.row] != 0)
    adata.X = csr_matrix((keep_cf.data[kept_n], (keep_cf.row[kept_n], keep_cf.col[kept_n])), shape=adata.shape)
    model = celldial.VAE(**job.get("arguments", {}), seed=job["seed"])
    epochs = job["epochs"]["celldial"] or "auto"
    measured = {"n_train": adata.n_obs, **train_model(model, adata, max_epochs=epochs)}
    np.save(out / "embedding.npy", adata.obsm["X_celldial"])
    paired = adata[has_c == 2].copy()
    for modality in ("rna", "atac"):
        np.save(out / f"{modality}.npy", model.transform(paired, modality=modality))
    return measured


def fit(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Fit with the defaults and the arguments that the data require."""
    model = celldial.VAE(**job.get("arguments", {}), seed=job["seed"])
    epochs = job["epochs"]["celldial"]
    measured = train_model(model, adata, **({} if epochs is None else {"max_epochs": epochs}))
    np.save(out / "embedding.npy", adata.obsm["X_celldial"])
    return measured


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    start_mb = resident_mb()
    measured = {"train": train, "mosaic": mosaic, "fit": fit}[job["task"]](ad.read_h5ad(job["data"]), job, out)
    result = {**measured, "start_mb": start_mb, "threads": torch.get_num_threads()}
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
