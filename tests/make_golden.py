"""Write the golden files: a fitted model as this version saves it, and what it makes of some cells.

Run once for a format version, ``python tests/make_golden.py``, and commit the files. They are never written again:
`test_storage.py` holds all later versions to them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

import celldial
from celldial.storage import FORMAT_VERSION
from simulated import simulate

FOLDER = Path(__file__).parent / "golden"


def golden_paths(version: int) -> tuple[Path, Path]:
    """Where the model and what it made of the cells lie."""
    return FOLDER / f"model_v{version}.celldial", FOLDER / f"embedding_v{version}.npz"


def read_cells(path: Path) -> AnnData:
    """Make an AnnData of the cells in a golden file."""
    with np.load(path, allow_pickle=False) as stored:
        return AnnData(
            sparse.csr_matrix(stored["counts"]),
            obs=pd.DataFrame({"batch": stored["batch"], "age": stored["age"]}, index=stored["cells"]),
            var=pd.DataFrame(index=stored["genes"]),
        )


def main() -> None:
    """Fit a tiny model with a batch and a continuous covariate, and write it with its answers."""
    model_path, cells_path = golden_paths(FORMAT_VERSION)
    adata = simulate(n_cells=60, n_genes=20)
    model = celldial.VAE(n_latent=3, n_hidden=8, batch_key="batch", continuous_covariate_keys=["age"])
    model.fit(adata, max_epochs=10, progress=False)
    FOLDER.mkdir(exist_ok=True)
    model.save(model_path)
    mean, standard_deviation = model.posterior(adata)
    np.savez_compressed(
        cells_path,
        counts=adata.X.toarray().astype(np.int32),
        cells=adata.obs_names.to_numpy(str),
        genes=adata.var_names.to_numpy(str),
        batch=adata.obs["batch"].to_numpy(str),
        age=adata.obs["age"].to_numpy(),
        embedding=mean,
        standard_deviation=standard_deviation,
        expression=model.denoise(adata, transform_batch="b1").to_numpy(),
    )
    for path in (model_path, cells_path):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
