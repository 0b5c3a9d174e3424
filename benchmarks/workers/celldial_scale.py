"""Run one job of peers/scale.py with celldial: workers/celldial_scale.py JOB_AS_JSON OUT_FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import torch

import celldial


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    model = celldial.VAE(n_latent=10, n_hidden=128, n_layers=1, seed=job["seed"])
    options = {"max_epochs": job["epochs"], "batch_size": job["batch_size"], "validation_size": 0, "progress": False}
    adata = ad.read_h5ad(job["data"])
    model.fit(adata, device="cpu", devices=job["devices"], **options)
    result = {"n_train": adata.n_obs, "seconds": model.history_["seconds"], "threads": torch.get_num_threads()}
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":  # new processes import this file first
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
