"""The networks compiled by ``torch.compile``, for the time of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from celldial.model.module import Module

__all__ = ["compiled_networks"]


@contextmanager
def compiled_networks(module: Module) -> Iterator[None]:
    """Compile what lies between the sparse product and the likelihood, in this block and in training mode.

    That is dense, and its shapes change with the number of cells alone: it is compiled once for all sizes of a
    minibatch. On a CUDA device each network becomes a CUDA graph, one for each size. What surrounds it cannot be traced
    (Pyro's handlers) or need not be (the kernels over sparse counts).

    Parameters
    ----------
    module
        On the device where it is trained. Afterwards it is as it was, but for its weights.
    """
    networks: list[nn.Module] = []
    for _, modality in module.by_modality():
        networks += [*modality.encoder.layers, modality.decoder]
    for network in networks:
        network.forward = _in_training(network, network.forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # which hid that of its class


def _in_training(network: nn.Module, forward: Callable) -> Callable:
    """Compile a network's forward pass, but leave validation as it is: that has other sizes, and no gradient."""
    faster = torch.compile(forward, dynamic=True, mode="reduce-overhead")
    return lambda *inputs: faster(*inputs) if network.training else forward(*inputs)
