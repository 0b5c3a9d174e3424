"""The counts of a minibatch as distributions for Pyro, whose values are sparse matrices.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from celldial.model.distributions import SINGLE_DRAW
from celldial.model.likelihoods import Likelihood
from celldial.ops.csr import CSRTensor

__all__ = ["MaskedObservation", "SparseObservation"]


class SparseObservation(TorchDistribution):
    """The counts of a minibatch as a Pyro distribution, whose values are sparse matrices.

    Pyro's own count distributions take dense values and evaluate the special functions on every zero.

    Parameters
    ----------
    likelihood
        The observation model.
    heads
        Outputs of the decoder.
    library_size_c
        Library size of each cell.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, likelihood: Likelihood, heads: Sequence[Tensor], library_size_c: Tensor) -> None:
        self.likelihood, self.heads, self.library_size_c = likelihood, heads, library_size_c
        super().__init__(heads[0].shape[:1], heads[0].shape[1:], validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> SparseObservation:
        """Return the distribution itself, which already has the shape of the Pyro plate."""
        check_batch_shape(self, batch_shape)
        return self

    @property
    def mean(self) -> Tensor:
        """Expected value of every entry, shape ``(c, f)``."""
        return self.likelihood.mean(self.heads, self.library_size_c)

    @property
    def foreground(self) -> Tensor:
        """Part of the expected value of every entry that is not background, shape ``(c, f)``."""
        return self.likelihood.foreground(self.heads, self.library_size_c)

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``."""
        return self.likelihood.log_prob(self.heads, self.library_size_c, value)

    def sample(self, sample_shape: Size = SINGLE_DRAW) -> Tensor:
        """Sample counts, shape ``(*sample_shape, c, f)``."""
        sample_shape = Size(sample_shape)
        draws = [self.likelihood.sample(self.heads, self.library_size_c) for _ in range(sample_shape.numel())]
        return torch.stack(draws).reshape(sample_shape + draws[0].shape)


class MaskedObservation(TorchDistribution):
    """The counts of the cells that have a modality, as a distribution over all cells.

    The log-likelihood of cells without the modality is 0.

    Parameters
    ----------
    observation
        Distribution of the counts of the cells that have the modality.
    index_c
        Indices of these cells, int64; None if all cells have the modality.
    n_cells
        Number of all cells.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, observation: SparseObservation, index_c: Tensor | None, n_cells: int) -> None:
        self.observation, self.index_c = observation, index_c
        super().__init__(Size([n_cells]), observation.event_shape, validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> MaskedObservation:
        """Return the distribution itself, as `SparseObservation` does."""
        check_batch_shape(self, batch_shape)
        return self

    def log_prob(self, value: CSRTensor) -> Tensor:
        """Return the log-likelihood in nats, shape ``(c,)``, of the counts of the cells that have the modality."""
        log_p_c = self.observation.log_prob(value)
        if self.index_c is None:
            return log_p_c
        return log_p_c.new_zeros(self.batch_shape).index_copy(0, self.index_c, log_p_c)

    def sample(self, sample_shape: Size = SINGLE_DRAW) -> Tensor:
        """Sample counts of the cells that have the modality, shape ``(*sample_shape, c, f)``."""
        return self.observation.sample(sample_shape)


def check_batch_shape(distribution: TorchDistribution, batch_shape: Size) -> None:
    """Raise a ValueError unless a distribution has this batch shape."""
    if tuple(batch_shape) != tuple(distribution.batch_shape):
        shape = tuple(distribution.batch_shape)
        raise ValueError(f"an observation of batch shape {shape} cannot be expanded to {tuple(batch_shape)}")
