"""Estimate the memory that training needs, and raise before it starts if there is not enough."""

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
# Each weight is stored with its gradient, the two moments of Adam, and its value in the best epoch.
WEIGHT_COPIES = 5
# A stored count has a column and a value (4 bytes each), in memory that is shared with the AnnData if that has the same
# types. Memory for counts peaks at the start of training: the sample of cells that initializes the module has column
# and value again, the row, and intermediate results (30 bytes).
BYTES_PER_COUNT = 8 + 30


def estimate_memory(
    cells: Cells, likelihood: Mapping[str, str], n_hidden: int, batch_size: int, n_categories: int = 0
) -> int:
    """Return the memory that training needs, in bytes, in addition to what the process and the AnnData have now.

    Layers between hidden units are small and left out.

    Parameters
    ----------
    cells
        The data set.
    likelihood
        Modality to the name of its likelihood.
    n_hidden
        Width of the hidden layers.
    batch_size
        Cells in a minibatch.
    n_categories
        Number of categories of all categorical covariates together; each has an effect on every feature.
    """
    n_weights = n_matrix_entries = 0
    for modality, counts in cells.counts.items():
        family = LIKELIHOODS[likelihood[modality]]
        n_weights += counts.n_columns * (n_hidden + family.n_heads * (n_hidden + 1) + n_categories)
        n_matrix_entries += counts.n_columns * (family.n_matrices + (n_categories > 0)) * batch_size
    n_counts = sum(len(counts.value_n) for counts in cells.counts.values())
    return FLOAT_BYTES * (WEIGHT_COPIES * n_weights + n_matrix_entries) + n_counts * BYTES_PER_COUNT


def check_memory(
    cells: Cells,
    likelihood: Mapping[str, str],
    n_hidden: int,
    batch_size: int,
    device: torch.device,
    n_categories: int = 0,
) -> None:
    """Raise if training needs more memory than is available; the parameters are those of `estimate_memory`.

    Raises
    ------
    MemoryError
        There is not enough memory; the message has the numbers and suggests what to change.
    """
    needed = estimate_memory(cells, likelihood, n_hidden, batch_size, n_categories)
    free = available_memory(device)
    if needed > free:
        features = " + ".join(f"{counts.n_columns} features ({name})" for name, counts in cells.counts.items())
        raise MemoryError(
            f"training on {len(cells)} cells × {features} needs about {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free on {device.type}: choose a smaller n_hidden or batch_size (it is "
            f"{batch_size}), or remove features that few cells express"
        )
