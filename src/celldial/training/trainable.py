"""Which values of a module training may change; all others stay as they are, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["TrainableRows"]


@dataclass(frozen=True)
class TrainableRows:
    """The last rows of some parameters. Training changes these rows and nothing else.

    Parameters
    ----------
    first_row
        Name of a parameter, as in ``module.named_parameters()``, to the first of its rows that training changes.
    """

    first_row: Mapping[str, int]

    @contextmanager
    def only(self, module: nn.Module) -> Iterator[None]:
        """Within the block, only the parameters with trainable rows get gradients; afterwards, all parameters do.

        Buffers, such as the moving average of a baseline, are restored at the end.
        """
        parameters = dict(module.named_parameters())
        unknown = self.first_row.keys() - parameters.keys()
        if unknown:
            raise KeyError(f"the module has no parameter {min(unknown)!r}")
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.first_row)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        try:
            yield
        finally:
            module.requires_grad_(True)
            for buffer, before in buffers:
                buffer.copy_(before)

    def protect(self, module: nn.Module, optimizer: Optimizer) -> None:
        """Undo each step of an optimizer in the rows that must not change.

        A gradient of 0 does not suffice: weight decay and priors change a parameter without a gradient.
        """
        parameters = dict(module.named_parameters())
        fixed = [(parameters[name], parameters[name][:row].detach().clone()) for name, row in self.first_row.items()]

        @torch.no_grad()
        def restore(*_: object) -> None:
            for parameter, rows in fixed:
                parameter[: len(rows)].copy_(rows)

        optimizer.register_step_post_hook(restore)
