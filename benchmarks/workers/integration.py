"""Run one job of peers/integration.py in the environment of the peers: workers/integration.py JOB_AS_JSON OUT_FOLDER.

The job is to embed cells by PCA, Harmony or scVI, or to score embeddings by scib-metrics. This file does not import
celldial.
"""

from __future__ import annotations

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
import scanpy as sc  # noqa: E402

N_COMPONENTS = 20
LABEL, BATCH = "type", "batch"


def pca(adata: ad.AnnData, seed: int) -> np.ndarray:
    cells = adata.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.scale(cells, max_value=10)
    sc.pp.pca(cells, n_comps=N_COMPONENTS, random_state=seed)
    result: np.ndarray = cells.obsm["X_pca"]
    return result


def harmony(adata: ad.AnnData, seed: int) -> np.ndarray:
    import harmonypy

    corrected = harmonypy.run_harmony(pca(adata, seed), adata.obs, [BATCH], random_state=seed, verbose=False).Z_corr
    result = np.asarray(corrected)
    return result.T if len(result) != adata.n_obs else result


def scvi(adata: ad.AnnData, seed: int, **parameters: Any) -> np.ndarray:
    import scvi as tools

    tools.settings.seed = seed
    tools.model.SCVI.setup_anndata(adata, batch_key=BATCH)
    model = tools.model.SCVI(adata, **parameters)
    model.train(accelerator="cpu", enable_progress_bar=False)
    result: np.ndarray = model.get_latent_representation()
    return result


def tuned_scvi(adata: ad.AnnData, seed: int) -> np.ndarray:
    return scvi(adata, seed, n_layers=2, n_latent=30, gene_likelihood="nb")


METHODS = {"PCA": pca, "Harmony": harmony, "scVI": scvi, "scVI, tuned": tuned_scvi}


def score(adata: ad.AnnData, folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each embedding in a folder, not rescaled between embeddings."""
    from scib_metrics.benchmark import Benchmarker

    names = sorted(path.stem for path in folder.glob("*.npy"))
    for name in names:
        adata.obsm[name] = np.load(folder / f"{name}.npy").astype(np.float32)
    adata.obsm["X_pca"] = pca(adata, 0)
    benchmark = Benchmarker(
        adata, BATCH, LABEL, names, pre_integrated_embedding_obsm_key="X_pca", n_jobs=1, progress_bar=False
    )
    benchmark.benchmark()
    table = benchmark.get_results(min_max_scale=False)
    return {name: {column: float(table.loc[name, column]) for column in table.columns} for name in names}


def main() -> None:
    job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    adata = ad.read_h5ad(job["data"])
    start = time.perf_counter()
    if job["task"] == "score":
        result: dict[str, Any] = score(adata, Path(job["folder"]))
    else:
        np.save(out / "embedding.npy", METHODS[job["method"]](adata, job["seed"]))
        result = {"seconds": time.perf_counter() - start}
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
