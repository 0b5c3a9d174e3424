"""Differential expression of two conditions with pseudobulk DESeq2 and with scVI, for peers/differential.py.

    workers/differential.py CELLS OUT SEED EPOCHS

The file has raw counts, ``obs["condition"]`` with the values x and y, and ``obs["donor"]``. The output has, for each
method, a number by which genes are ranked (small first) and the genes that it calls at a false discovery rate of 5 %.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import anndata as ad  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from pydeseq2.dds import DeseqDataSet  # noqa: E402
from pydeseq2.ds import DeseqStats  # noqa: E402

LEVEL = 0.05


def deseq2(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return p-values, and the genes called, with donors as samples."""
    donor, position_c = np.unique(adata.obs["donor"].to_numpy(), return_inverse=True)
    counts_sf = np.stack([np.asarray(adata.X[position_c == s].sum(0)).ravel() for s in range(len(donor))])
    condition_s = adata.obs.groupby("donor", observed=True)["condition"].first().loc[donor].astype(str)
    counts = pd.DataFrame(counts_sf.astype(int), index=donor, columns=adata.var_names)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        samples = DeseqDataSet(counts=counts, metadata=condition_s.to_frame(), design="~condition", n_cpus=1)
        samples.deseq2()
        statistics = DeseqStats(samples, contrast=["condition", "x", "y"], n_cpus=1)
        statistics.summary()
    table = statistics.results_df.loc[adata.var_names]
    return table["pvalue"].fillna(1).to_numpy(), (table["padj"] < LEVEL).to_numpy()


def change_mode(adata: ad.AnnData, seed: int, max_epochs: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - the probability of a change, and the genes called, by scVI with its defaults."""
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False)
    table = model.differential_expression(
        groupby="condition", group1="x", group2="y", mode="change", fdr_target=LEVEL, silent=True
    ).loc[adata.var_names]
    return 1 - table["proba_de"].to_numpy(), table[f"is_de_fdr_{LEVEL}"].to_numpy()


def main(path: str, out: str, seed: str, max_epochs: str) -> None:
    torch.set_num_threads(1)
    adata = ad.read_h5ad(path)
    found = {
        "DESeq2": deseq2(adata),
        "scVI": change_mode(adata.copy(), int(seed), None if max_epochs == "auto" else int(max_epochs)),
    }
    np.savez(out, **{f"{name} {part}": found[name][i] for name in found for i, part in enumerate(("rank", "called"))})


if __name__ == "__main__":
    main(*sys.argv[1:])
