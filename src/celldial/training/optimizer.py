"""The optimizer: learning rate, weight decay and prior of each kind of parameter."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Adam

if TYPE_CHECKING:
    from celldial.model.module import Module
    from celldial.model.networks import Decoder

__all__ = ["make_optimizer"]

# The learning rate of log scales, such as dispersions, is higher by this factor.
LOG_SCALE_LR_FACTOR = 10

Parameters = list[Tensor]


def make_optimizer(module: Module, learning_rate: float, weight_decay: float, n_cells: int) -> Adam:
    """Return an Adam optimizer with a group for each kind of parameter.

    The loadings, which are the weights of the decoder's last layer, have a normal prior. A feature that few
    cells express has little information about its loadings. Without the prior, Adam would fit its noise, because the
    size of its steps does not depend on the size of the gradient. Other matrices decay; vectors do not.

    Parameters
    ----------
    module
        The module to train.
    learning_rate
        Peak learning rate.
    weight_decay
        Decay of the matrices that have no prior.
    n_cells
        Number of training cells. The loss is per cell, so a prior counts ``1 / n_cells``.
    """
    groups: list[dict[str, Any]] = []
    for _, modality in module.by_modality():
        decoder = modality.decoder
        if decoder.log_deviation_fh is None:  # otherwise the KL term of the loadings contains their prior
            loadings = _loadings(decoder)
            scale, n_hidden = modality.likelihood.loading_scale, loadings[0].shape[1]
            groups.append(_group_with_prior(loadings, scale, n_hidden, n_cells))
        if decoder.harmonics is not None:
            groups.append(_group_with_prior([decoder.harmonics.weight], decoder.harmonic_scale, 1, n_cells))
        if (effects := decoder.feature_effects) is not None:
            for table_sf, scale in zip(effects.tables, effects.scale_k.tolist(), strict=True):
                groups.append(_group_with_prior([table_sf], scale, 1, n_cells))
        if (effects := decoder.dispersion_effects) is not None:
            group = _group_with_prior(effects.tables, float(effects.scale_k[0]), 1, n_cells)
            groups.append({**group, "lr": LOG_SCALE_LR_FACTOR * learning_rate})
    free, log_scales = _without_decay(module)
    assigned = {id(p) for p in chain(free, log_scales, *(group["params"] for group in groups))}
    others = [p for p in module.parameters() if id(p) not in assigned]
    groups += [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1]},
        {"params": free},
        {"params": log_scales, "lr": LOG_SCALE_LR_FACTOR * learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return Adam(groups, lr=learning_rate, weight_decay=0.0, decoupled_weight_decay=True, fused=True)


def _group_with_prior(parameters: Parameters, scale: float, n_inputs: int, n_cells: int) -> dict[str, Any]:
    """Return a group with a normal prior of variance ``scale**2 / n_inputs``.

    Its decay is the gradient of minus the log density of the prior, per cell.
    """
    weight_decay = n_inputs / (scale**2 * n_cells)
    return {"params": parameters, "weight_decay": weight_decay, "decoupled_weight_decay": False}


def _without_decay(module: Module) -> tuple[Parameters, Parameters]:
    """Return the parameters of any shape that do not decay: those at the usual learning rate, and log scales.

    Priors and clusters are learned from all cells, loadings with a posterior have a prior in the loss, and baselines
    do not bias the gradient.
    """
    free: Parameters = []
    log_scales: Parameters = [p for _, modality in module.by_modality() for p in modality.likelihood.parameters()]
    for part in (module.coordinates.prior, module.baselines):
        for name, parameter in part.named_parameters():
            (log_scales if name.endswith("logit_k") else free).append(parameter)
    for _, modality in module.by_modality():
        if modality.decoder.log_deviation_fh is not None:
            free += [modality.decoder.log_deviation_fh, *_loadings(modality.decoder)]
    return free, log_scales


def _loadings(decoder: Decoder) -> Parameters:
    return [p for p in decoder.heads.parameters() if p.ndim > 1]
