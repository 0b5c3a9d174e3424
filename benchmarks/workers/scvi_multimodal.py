"""Run one job of peers/multimodal.py with MULTIVI or PEAKVI in their environment: arguments JOB_AS_JSON OUT_FOLDER.

workers/celldial_multimodal.py runs the same tasks on the same cells, with the same numbers in result.json. This file
does not import celldial.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from benchmarks.harness import resident_mb  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from mudata import MuData  # noqa: E402
from scipy.sparse import csr_matrix  # noqa: E402
from scvi import REGISTRY_KEYS  # noqa: E402

# Measured modalities of a cell, by the code in the array of the job; names as in the peer's tutorial.
MOSAIC = ("expression", "accessibility", "paired")


class Clock(Callback):
    """Records the time from the first step to the end of each epoch, including validation but not the setup.

    The time of `evaluate`, which is called after each epoch, is not included.
    """

    def __init__(self, evaluate: Callable[[], float] | None) -> None:
        self.evaluate = evaluate
        self.start = self.evaluation_seconds = 0.0
        self.seconds: list[float] = []
        self.values: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.start - self.evaluation_seconds)
        if self.evaluate is not None:
            self.values.append(self.evaluate())
            self.evaluation_seconds += time.perf_counter() - now


def as_mudata(adata: ad.AnnData, genes: bool | np.ndarray = True, peaks: bool | np.ndarray = True) -> MuData:
    """Return one AnnData per modality, as MULTIVI reads it. Missing modalities are zeros, which the peer detects."""
    parts = {}
    for name, kind, kept in (("rna", "Gene Expression", genes), ("atac", "Peaks", peaks)):
        parts[name] = adata[:, adata.var["feature_types"] == kind].copy()
        if kept is not True:
            kept_c = np.broadcast_to(kept, adata.n_obs).astype(np.float32)
            parts[name].X = csr_matrix(parts[name].X.multiply(kept_c[:, None]))
            parts[name].X.eliminate_zeros()
    mdata = MuData(parts)
    mdata.obs["modality"] = adata.obs.get("modality", "paired")
    mdata.obs["_indices"] = np.arange(adata.n_obs)
    return mdata


def multivi(mdata: MuData, sizes: str, **setup: Any) -> scvi.model.MULTIVI:
    scvi.model.MULTIVI.setup_mudata(mdata, modalities={"rna_layer": "rna", "atac_layer": "atac"}, **setup)
    equal = {"n_hidden": 128, "n_latent": 10, "n_layers_encoder": 1, "n_layers_decoder": 1}
    return scvi.model.MULTIVI(mdata, **(equal if sizes == "equal" else {}))


def peakvi(adata: ad.AnnData, sizes: str) -> scvi.model.PEAKVI:
    scvi.model.PEAKVI.setup_anndata(adata)
    equal = {"n_hidden": 128, "n_latent": 10, "n_layers_encoder": 1, "n_layers_decoder": 1}
    return scvi.model.PEAKVI(adata, **(equal if sizes == "equal" else {}))


def atac_loss(model: Any, cells: np.ndarray) -> float:
    """Return the negative Bernoulli log-likelihood of the cells' peaks at the posterior mean, in nats per cell.

    The probability is that of the peer's own loss: the output of the decoder times the factors of the cell and the
    region. Cells without open peaks are excluded, as in celldial.
    """
    of_multivi = isinstance(model, scvi.model.MULTIVI)
    counts, probability, depth = (
        (REGISTRY_KEYS.ATAC_X_KEY, "p", "libsize_acc") if of_multivi else (REGISTRY_KEYS.X_KEY, "px", "d")
    )
    module, total, n_cells = model.module, 0.0, 0
    was_training = module.training
    module.eval()
    # The random numbers of training do not change.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for tensors in model._make_data_loader(adata=model.adata, indices=cells, batch_size=128):
            inferred, generated = module(tensors, compute_loss=False, generative_kwargs={"use_z_mean": True})
            p_cf = generated[probability] * inferred[depth] * torch.sigmoid(module.region_factors)
            p_cf = p_cf.clamp(1e-7, 1 - 1e-7)
            open_cf = tensors[counts] > 0
            measured_c = open_cf.any(dim=1)
            log_p_c = torch.where(open_cf, p_cf.log(), torch.log1p(-p_cf)).sum(dim=1, dtype=torch.float64)
            total, n_cells = total - log_p_c[measured_c].sum().item(), n_cells + int(measured_c.sum())
    module.train(was_training)
    return total / n_cells


def train_model(model: Any, job: dict[str, Any], validation: str, evaluate: bool = False) -> dict[str, Any]:
    """Train with the peer's defaults, except for the epochs, without early stopping."""
    n_cells, held_out = model.adata.n_obs, np.array([], dtype=int)
    first = np.arange(n_cells - int(np.ceil(0.9 * n_cells)))
    clock = Clock((lambda: atac_loss(model, first)) if evaluate else None)
    start = time.perf_counter()
    model.train(
        max_epochs=job["epochs"][job["who"]],
        train_size=1.0 if validation == "none" else 0.9,
        shuffle_set_split=validation != "first",
        check_val_every_n_epoch=None if validation == "none" else 1,
        batch_size=128,
        early_stopping=False,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[clock],
    )
    wall, peak = time.perf_counter() - start, resident_mb(peak=True)
    loss: list[float] = []
    if validation != "none":
        held_out = np.asarray(model.validation_indices)
        # Reconstruction and unweighted KL divergence in nats per cell: the negative ELBO.
        loss = model.history["elbo_validation"].iloc[:, 0].astype(float).tolist()
    if validation == "first" and not np.array_equal(held_out, first):
        raise RuntimeError("the validation cells are not the first of the file")
    return {
        "n_train": n_cells - len(held_out),
        "wall": wall - clock.evaluation_seconds,
        "seconds": clock.seconds,
        "loss": loss,
        "atac_loss": clock.values,
        "peak_mb": peak,
    }


def impute(model: scvi.model.MULTIVI, adata: ad.AnnData, out: Path) -> None:
    """Impute each modality from the other, for cells that were not used in training."""
    rna_only, atac_only = as_mudata(adata, peaks=False), as_mudata(adata, genes=False)
    # With the factors of the regions, as in the peer's loss. They affect the order of the peaks of a cell.
    p_cf = model.get_normalized_accessibility(rna_only, normalize_regions=True, return_numpy=True)
    np.save(out / "atac_from_rna.npy", p_cf.astype(np.float32))
    # The same with default arguments, without these factors.
    p_cf = model.get_normalized_accessibility(rna_only, return_numpy=True)
    np.save(out / "atac_from_rna_plain.npy", p_cf.astype(np.float32))
    share_cf = model.get_normalized_expression(atac_only, return_numpy=True)
    np.save(out / "rna_from_atac.npy", share_cf.astype(np.float32))


def train(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train; embed all cells; and impute the validation cells if the job has that option."""
    held_out = adata[: adata.n_obs - int(np.ceil(0.9 * adata.n_obs))].copy() if "impute" in job else None
    model = multivi(as_mudata(adata), job["sizes"]) if job["who"] == "MULTIVI" else peakvi(adata, job["sizes"])
    del adata
    measured = train_model(model, job, job["validation"], evaluate=job["validation"] == "first")
    np.save(out / "embedding.npy", model.get_latent_representation())
    if held_out is not None:
        impute(model, held_out, out)
    return measured


def mosaic(adata: ad.AnnData, job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train on cells of which some lack a modality; then embed the paired cells by each modality alone.

    Following the peer's documentation, missing modalities are zeros, and the measured modalities are the batch, which
    an adversary mixes.
    """
    has_c = np.load(Path(job["data"]).parent / job["assignment"])
    adata.obs["modality"] = np.array(MOSAIC)[has_c]
    model = multivi(as_mudata(adata, has_c != 1, has_c != 0), "default", batch_key="modality")
    measured = train_model(model, job, "random")
    np.save(out / "embedding.npy", model.get_latent_representation())
    paired = adata[has_c == 2].copy()
    np.save(out / "rna.npy", model.get_latent_representation(as_mudata(paired, peaks=False)))
    np.save(out / "atac.npy", model.get_latent_representation(as_mudata(paired, genes=False)))
    return measured


def main(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(job["threads"])
    scvi.settings.seed = job["seed"]
    start_mb = resident_mb()
    measured = {"train": train, "mosaic": mosaic}[job["task"]](ad.read_h5ad(job["data"]), job, out)
    result = {
        **measured,
        "start_mb": start_mb,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "scvi-tools")},
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
