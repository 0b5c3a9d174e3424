"""Compile the networks of a module with ``torch.compile`` during training."""

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
    """Within the block, run the dense layers between the sparse product and the likelihood compiled, in training mode.

    Their shapes vary only in the number of cells, so they are compiled once for all sizes of a minibatch. On a CUDA
    device each network becomes a CUDA graph, one per size. The code around them cannot be traced (Pyro's handlers) or
    does not need it (the kernels for sparse counts).

    Parameters
    ----------
    module
        A module on the device on which it is trained. After the block it runs uncompiled again.
    """
    networks: list[nn.Module] = []
    for _, modality in module.by_modality():
        networks += [*modality.encoder.layers, modality.decoder]
    for network in networks:
        network.forward = _compiled_in_training(network, network.forward)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # which hid the method of the class


def _compiled_in_training(network: nn.Module, forward: Callable) -> Callable:
    """Return a forward pass that is compiled in training only: validation has other sizes and no gradients."""
    compiled = torch.compile(forward, dynamic=True, mode="reduce-overhead")
    return lambda *inputs: compiled(*inputs) if network.training else forward(*inputs)
