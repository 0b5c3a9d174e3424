"""Make data/simulated_multiome.h5ad: ``python data/make_simulated_multiome.py``; a test compares the file with it."""

from pathlib import Path

import celldial as cd

FILE = Path(__file__).with_name("simulated_multiome.h5ad")
ARGUMENTS = {"n_cells": 1500, "n_genes": 500, "n_peaks": 3000, "n_types": 5, "n_batches": 2, "seed": 0}

if __name__ == "__main__":
    cd.datasets.simulate_multiome(**ARGUMENTS).write_h5ad(FILE, compression="gzip")
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.1f} MB")
