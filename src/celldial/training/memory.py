"""How much memory training will take, said before it starts rather than by the system in its middle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from celldial.model.likelihoods import LIKELIHOODS
from celldial.utils.device import available_memory

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = ["check_memory", "estimate_memory"]

FLOAT_BYTES = 4
# Of every weight there are the gradient, two moments of it in the optimizer, and the value in the best epoch.
WEIGHT_COPIES = 5
# Of every stored count: its column (8 bytes) and value; and among the cells that training starts from, which is when
# memory for counts is at its peak, again both, its row, and what is worked out of it.
BYTES_PER_COUNT = 12 + 26


def estimate_memory(cells: Cells, likelihood: Mapping[str, str], n_hidden: int, batch_size: int) -> int:
    """Estimate the memory that training takes, in bytes, beyond what the process has and the AnnData in it.

    Layers between hidden units, which are small, are left out.

    Parameters
    ----------
    cells
        The data set.
    likelihood
        Modality to the name of its observation model.
    n_hidden
        Width of the hidden layers.
    batch_size
        Cells in a minibatch.
    """
    weights = matrices = 0
    for modality, rows in cells.counts.items():
        observation_model = LIKELIHOODS[likelihood[modality]]
        weights += rows.n_columns * (n_hidden + observation_model.n_heads * (n_hidden + 1))
        matrices += rows.n_columns * observation_model.n_matrices * batch_size
    n_counts = sum(len(rows.value_n) for rows in cells.counts.values())
    return FLOAT_BYTES * (WEIGHT_COPIES * weights + matrices) + n_counts * BYTES_PER_COUNT


def check_memory(
    cells: Cells, likelihood: Mapping[str, str], n_hidden: int, batch_size: int, device: torch.device
) -> None:
    """Raise where training would need more memory than there is; the parameters are those of `estimate_memory`.

    Raises
    ------
    MemoryError
        With the figures, and what makes it less.
    """
    needed, free = estimate_memory(cells, likelihood, n_hidden, batch_size), available_memory(device)
    if needed > free:
        features = " + ".join(f"{rows.n_columns} features ({name})" for name, rows in cells.counts.items())
        raise MemoryError(
            f"training on {len(cells)} cells × {features} takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            f"are free on {device.type}: choose a smaller n_hidden or batch_size (it is {batch_size}), or leave out "
            "features that few cells have"
        )
