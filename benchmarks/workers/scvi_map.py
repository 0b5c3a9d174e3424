"""Map a query with scVI (``load_query_data``), for peers/map_query.py.

    workers/scvi_map.py REFERENCE QUERY OUT EPOCHS SEED

The files have raw counts, and the batch in ``obs["batch"]``. The output has embeddings, and the seconds of the mapping.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402


def main(reference_path: str, query_path: str, out: str, max_epochs: str, seed: str) -> None:
    torch.set_num_threads(1)
    scvi.settings.seed = int(seed)
    reference, query = ad.read_h5ad(reference_path), ad.read_h5ad(query_path)
    epochs = None if max_epochs == "auto" else int(max_epochs)
    options = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(reference, batch_key="batch")
    # The settings that scvi-tools recommends for a reference.
    model = scvi.model.SCVI(reference, use_layer_norm="both", use_batch_norm="none", encode_covariates=True, n_layers=2)
    model.train(**options)
    start = time.process_time()
    scvi.model.SCVI.prepare_query_anndata(query, model)
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(plan_kwargs={"weight_decay": 0.0}, **options)
    seconds = time.process_time() - start
    found = {"reference": model.get_latent_representation(), "query": mapped.get_latent_representation()}
    np.savez(out, seconds=seconds, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
