"""Laplace approximation of the posterior of the decoder loadings."""

from __future__ import annotations

import math

import pyro
import torch
from torch import Tensor

from celldial.data.cells import Cells, decode_block_size, minibatches
from celldial.inference.posterior import sample_states, to_eval
from celldial.model.laplace import RANK, Loadings, packed_outer, posterior_covariance, principal_directions
from celldial.model.module import Module
from celldial.model.networks import Modality

__all__ = ["fit_laplace"]

# Number of cells to measure the information about the loadings on; it is scaled to all cells.
MAX_CELLS = 1000


@torch.no_grad()
def fit_laplace(module: Module, cells: Cells, index_c: Tensor, n_each: float = 1.0) -> None:
    """Fit the posterior of the loadings, and store it in the module.

    Parameters
    ----------
    module
        A trained module.
    cells
        The data set, on the CPU.
    index_c
        Training cells. A modality that none of them has keeps its earlier posterior.
    n_each
        Number of training cells that each of these cells represents.
    """
    device = to_eval(module)
    for name, modality in module.by_modality():
        with_modality = index_c[cells.mask_with(name)[index_c]]
        if len(with_modality) == 0:
            continue
        chosen = with_modality[torch.randperm(len(with_modality))[:MAX_CELLS].sort().values]
        each = n_each * len(with_modality) / len(chosen)
        modality.loadings = _loadings(module, name, modality, cells.select(chosen), each, device)


def _loadings(
    module: Module, name: str, modality: Modality, cells: Cells, n_each: float, device: torch.device
) -> Loadings:
    """Return the posterior of the loadings of one modality from cells that represent `n_each` cells each."""
    with pyro.validation_enabled(False):
        blocks = [block.to(device) for block in minibatches(cells, decode_block_size(module.n_features[name]))]
        states = [sample_states(module, block, 1)[:, 0] for block in blocks]
    decoder, likelihood = modality.decoder, modality.likelihood
    inputs = [
        decoder.inputs(z_cz, block.category_ck, block.continuous_ck) for z_cz, block in zip(states, blocks, strict=True)
    ]
    head = decoder.heads[0]
    assert isinstance(head, torch.nn.Linear)
    n_hidden, n_inputs = head.in_features, inputs[0].shape[1]
    scale_h = inputs[0].new_full((n_inputs,), decoder.harmonic_scale)
    scale_h[:n_hidden] = likelihood.loading_scale / math.sqrt(n_hidden)
    center_h = torch.cat(inputs).mean(0)
    basis_hr = principal_directions((torch.cat(inputs) - center_h) * scale_h, RANK + n_inputs - n_hidden)
    n_rows = 1 + basis_hr.shape[1]
    information_fq = center_h.new_zeros((module.n_features[name], n_rows * (n_rows + 1) // 2))
    # `packed_outer` doubles each pair of different rows; here each pair counts once.
    row_q, column_q = torch.triu_indices(n_rows, n_rows, device=device)
    weight_q = n_each / (1 + (row_q != column_q))
    for z_cz, input_ch, block in zip(states, inputs, blocks, strict=True):
        position_cr = (input_ch - center_h) * scale_h @ basis_hr
        pair_cq = packed_outer(torch.cat([torch.ones_like(position_cr[:, :1]), position_cr], 1)) * weight_q
        heads = decoder(z_cz, block.category_ck, block.continuous_ck)
        information_fq.addmm_(likelihood.fisher_information(heads, block.library_size[name]).T, pair_cq)
    return Loadings(center_h, scale_h, basis_hr, posterior_covariance(information_fq))
