"""Run one job of peers/rna.py with celldial: workers/celldial_rna.py JOB_AS_JSON OUT_FOLDER.

workers/scvi_rna.py runs the same tasks on the same cells, with the same numbers in result.json.
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

import celldial


def train(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Fit with the defaults, except for the validation cells and, if the job has it, the number of epochs.

    Without validation cells, speed is measured, with the sizes and minibatches of the peer.
    """
    sizes: dict[str, Any] = {"n_latent": 10, "n_hidden": 128, "n_layers": 1} if job["validation"] == "none" else {}
    model = celldial.VAE(**sizes, seed=job["seed"])
    options: dict[str, Any] = {"max_epochs": job["epochs"]["celldial"] or "auto", "progress": False}
    held_out = 0
    if job["validation"] == "none":
        options |= {"validation_size": 0, "batch_size": 128}
    else:
        # The peer trains on 90 % of the cells, rounded up.
        held_out = adata.n_obs - math.ceil(0.9 * adata.n_obs)
    if job["validation"] == "first":
        options["validation_cells"] = np.arange(adata.n_obs) < held_out
    start = time.perf_counter()
    model.fit(adata, **options)
    wall = time.perf_counter() - start
    np.save(out / "embedding.npy", adata.obsm["X_celldial"])
    # The history has ELBOs. Losses are returned, as by the peer.
    loss = [-elbo for elbo in model.history_.get("elbo_validation", [])]
    return {"n_train": adata.n_obs - held_out, "wall": wall, "seconds": model.history_["seconds"], "loss": loss}


def transform(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Embed all cells repeatedly; the quality of the model does not matter."""
    model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    calls = []
    for _ in range(job["calls"]):
        start = time.perf_counter()
        model.transform(adata)
        calls.append(time.perf_counter() - start)
    return {"calls": calls}


def fit(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Call `fit` as a user does: it reads the AnnData, trains, and writes the embedding."""
    epochs = job["epochs"]["celldial"]
    start = time.perf_counter()
    if epochs is None:
        celldial.VAE().fit(adata)
    else:
        celldial.VAE().fit(adata, max_epochs=epochs)
    return {"wall": time.perf_counter() - start}


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    adata = ad.read_h5ad(job["data"])
    measured = {"train": train, "transform": transform, "fit": fit}[job["task"]](adata, job, out)
    result = {
        **measured,
        "n_cells": adata.n_obs,
        "threads": torch.get_num_threads(),
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
