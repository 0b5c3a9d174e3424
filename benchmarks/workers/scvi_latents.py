"""Run one job of peers/latents.py with scvi-tools in its own environment: arguments JOB_AS_JSON OUT_FOLDER.

Embeds cells with scVI, and transfers known labels with SCANVI. It does not import celldial.
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

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
# Settings of SCANVI: the defaults, and those of the tutorials of scvi-tools.
WAYS: dict[str, dict[str, Any]] = {"default": {}, "tutorial": {"max_epochs": 20, "n_samples_per_label": 100}}


def transfer(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train scVI as workers/scvi_rna.py does, then SCANVI with each setting; return embedding and predicted labels."""
    adata = ad.read_h5ad(job["data"])
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, n_latent=10, gene_likelihood="nb")
    start = time.perf_counter()
    model.train(max_epochs=job["epochs"], train_size=0.9, batch_size=128, early_stopping=False, **QUIET)
    wall = {"scVI": time.perf_counter() - start}
    np.save(out / "embedding.npy", model.get_latent_representation())
    for way, options in WAYS.items():
        scvi.settings.seed = job["seed"]
        informed = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="unknown", labels_key=job["known"])
        start = time.perf_counter()
        informed.train(**options, **QUIET)
        wall[f"SCANVI, {way}"] = time.perf_counter() - start
        np.save(out / f"{way}.npy", np.asarray(informed.predict()).astype(str))
    return {"wall": wall}


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    scvi.settings.seed = job["seed"]
    measured = {"transfer": transfer}[job["task"]](job, out)
    result = {
        **measured,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "scvi-tools")},
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
