"""Run one job of peers/rna.py with scvi-tools in its own environment: workers/scvi_rna.py JOB_AS_JSON OUT_FOLDER.

workers/celldial_rna.py runs the same tasks on the same cells, with the same numbers in result.json. This file does not
import celldial.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402


class Clock(Callback):
    """Records the time from the first step to the end of each epoch, including validation but not the setup."""

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def build(adata: ad.AnnData) -> scvi.model.SCVI:
    """Return the peer's default model (128 hidden units, one layer), with celldial's likelihood and latent size."""
    scvi.model.SCVI.setup_anndata(adata)
    return scvi.model.SCVI(adata, n_latent=10, gene_likelihood="nb")


def train(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    model, clock = build(adata), Clock()
    validation = job["validation"] != "none"
    start = time.perf_counter()
    model.train(
        max_epochs=job["epochs"]["scVI"],
        train_size=0.9 if validation else 1.0,
        shuffle_set_split=job["validation"] == "random",
        check_val_every_n_epoch=1 if validation else None,
        batch_size=128,
        early_stopping=False,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[clock],
    )
    wall = time.perf_counter() - start
    held_out = np.asarray(model.validation_indices) if validation else np.array([], dtype=int)
    if job["validation"] == "first" and not np.array_equal(held_out, np.arange(len(held_out))):
        raise RuntimeError("the validation cells are not the first of the file")
    np.save(out / "embedding.npy", model.get_latent_representation())
    # Reconstruction and unweighted KL divergence in nats per cell: the negative ELBO.
    loss = model.history["elbo_validation"].iloc[:, 0].astype(float).tolist() if validation else []
    return {"n_train": adata.n_obs - len(held_out), "wall": wall, "seconds": clock.seconds, "loss": loss}


def transform(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Embed all cells repeatedly; the quality of the model does not matter."""
    model = build(adata)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    calls = []
    for _ in range(job["calls"]):
        start = time.perf_counter()
        model.get_latent_representation()
        calls.append(time.perf_counter() - start)
    return {"calls": calls}


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    scvi.settings.seed = job["seed"]
    adata = ad.read_h5ad(job["data"])
    measured = {"train": train, "transform": transform}[job["task"]](adata, job, out)
    result = {
        **measured,
        "n_cells": adata.n_obs,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "scvi-tools")},
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
