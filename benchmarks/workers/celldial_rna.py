"""Do one job of peers/rna.py with celldial: workers/celldial_rna.py JOB_AS_JSON OUT_FOLDER.

The twin of workers/scvi_rna.py: the same tasks, the same cells, the same numbers in result.json.
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
    """Fit with all defaults, but for the validation cells and, where asked for, the number of epochs.

    Without validation cells it is speed that is asked for: then sizes and minibatches are as large as the peer's.
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
    # Higher is better for celldial's ELBO; reported is the loss, as the peer has it.
    loss = [-elbo for elbo in model.history_.get("elbo_validation", [])]
    return {"n_train": adata.n_obs - held_out, "wall": wall, "seconds": model.history_["seconds"], "loss": loss}


def transform(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Embed all cells again and again; how well the model is trained does not matter."""
    model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    calls = []
    for _ in range(job["calls"]):
        start = time.perf_counter()
        model.transform(adata)
        calls.append(time.perf_counter() - start)
    return {"calls": calls}


def fit(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """The one call that a user makes: reading the AnnData, training, writing the embedding."""
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
