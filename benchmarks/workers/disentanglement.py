"""Run one job of peers/disentanglement.py with DRVI or scVI in their environment: arguments JOB_AS_JSON OUT_FOLDER.

Embeds cells with one of the two, or scores an embedding by the metrics of drvi-py. It does not import celldial.
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
from drvi.model import DRVI  # noqa: E402
from drvi.utils.metrics import DiscreteDisentanglementBenchmark  # noqa: E402


def train(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train with the peer's defaults for the epochs of the job; embed all cells."""
    adata = ad.read_h5ad(job["data"])
    held_out = np.arange(adata.n_obs - int(np.ceil(0.9 * adata.n_obs)))
    Model = DRVI if job["who"] == "DRVI" else scvi.model.SCVI
    Model.setup_anndata(adata, batch_key="batch")
    model = Model(adata)
    start = time.perf_counter()
    model.train(
        max_epochs=job["epochs"],
        train_size=0.9,
        shuffle_set_split=False,
        check_val_every_n_epoch=min(10, job["epochs"]),
        early_stopping=False,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    wall = time.perf_counter() - start
    if not np.array_equal(np.asarray(model.validation_indices), held_out):
        raise RuntimeError("the validation cells are not the first of the file")
    np.save(out / "embedding.npy", model.get_latent_representation())
    return {"wall": wall, "loss": model.history["elbo_validation"].iloc[:, 0].dropna().astype(float).tolist()}


def score(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Score an embedding by each set of labels, cells × labels of 0 and 1."""
    with np.load(job["data"]) as arrays:
        labels = dict(arrays)
    embedding_cz = np.load(job["embedding"])
    scores = {}
    for name, label_cl in labels.items():
        np.random.seed(job["seed"])  # noqa: NPY002 (the benchmark shuffles the cells by the global stream)
        benchmark = DiscreteDisentanglementBenchmark(embedding_cz, one_hot_target=label_cl)
        benchmark.evaluate()
        scores[name] = {measure: float(value) for measure, value in benchmark.get_results().items()}
    return {"scores": scores}


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    scvi.settings.seed = job["seed"]
    measured = {"train": train, "score": score}[job["task"]](job, out)
    result = {
        **measured,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "scvi-tools", "drvi-py")},
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
