"""Large tables, written block by block to an h5ad file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.io.atomic import atomic_write

__all__ = ["write_in_blocks"]


def write_in_blocks(path: Path, blocks: Iterable[np.ndarray], obs: pd.DataFrame, names: pd.Index) -> None:
    """Write an AnnData whose ``X`` comes in blocks of rows; the file appears only once it is complete.

    Parameters
    ----------
    path
        File to write; an existing one is replaced.
    blocks
        Blocks of rows of ``X``, float32, in the order of `obs`.
    obs
        Table of the cells.
    names
        Names of the features.

    Raises
    ------
    ValueError
        The number of columns differs from `names`, or the number of rows from `obs`.
    """
    with atomic_write(path) as meanwhile:
        AnnData(obs=obs, var=pd.DataFrame(index=names)).write_h5ad(meanwhile)
        with h5py.File(meanwhile, "r+") as file:
            file.pop("X", None)  # versions of anndata write different things for a missing X
            x_cf = file.create_dataset("X", (len(obs), len(names)), np.float32)
            # A dense array in the format of anndata: https://anndata.readthedocs.io/en/latest/fileformat-prose.html
            x_cf.attrs["encoding-type"], x_cf.attrs["encoding-version"] = "array", "0.2.0"
            start = 0
            for block_cf in blocks:
                if block_cf.shape[1] != len(names) or start + len(block_cf) > len(obs):
                    raise ValueError(f"a block of {block_cf.shape} from row {start} does not fit into {x_cf.shape}")
                x_cf[start : start + len(block_cf)] = block_cf
                start += len(block_cf)
        if start < len(obs):
            raise ValueError(f"the blocks have {start} rows for {len(obs)} cells")
