"""Do one job of peers/multimodal.py with celldial: workers/celldial_multimodal.py JOB_AS_JSON OUT_FOLDER.

The twin of workers/scvi_multimodal.py: the same tasks, the same cells, the same numbers in result.json.
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
    """Fit, and note what the peers' worker notes, too."""
    start = time.perf_counter()
    model.fit(adata, progress=False, include_periodic=True, **options)
    wall, peak = time.perf_counter() - start, resident_mb(peak=True)
    history = model.history_
    # Higher is better in celldial's history; reported are losses, as the peers have them.
    loss = [-elbo for elbo in history.get("elbo_validation", [])]
    # Of peaks alone, the log-likelihood of all there is.
    of_atac = history.get("log_likelihood_atac_validation", history.get("log_likelihood_validation", []))
    atac_loss = [-value for value in of_atac]
    return {"wall": wall, "seconds": history["seconds"], "loss": loss, "atac_loss": atac_loss, "peak_mb": peak}


def impute(model: Any, adata: ad.AnnData, out: Path) -> None:
    """Each modality from the other."""
    for of, given in (("atac", "rna"), ("rna", "atac")):
        imputed_cf = model.impute(adata, of, from_=given, dense=True)
        np.save(out / f"{of}_from_{given}.npy", np.asarray(imputed_cf, dtype=np.float32))


def train(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train, all by default but for what the job says; embed all cells; impute the validation cells, or all."""
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
    """Train on cells of which some lack a modality; then embed the paired ones by each of theirs alone."""
    has_c = np.load(Path(job["data"]).parent / job["assignment"])
    adata.obs["has_rna"], adata.obs["has_atac"] = has_c != 1, has_c != 0
    of_rna_f = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    # Not only said to be absent, but gone.
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
    """Fit as a user does, without any argument but those that the data ask for."""
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
