"""The optimizer: which part of a module learns how fast, and what pulls it towards zero."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from torch.optim import Adam

if TYPE_CHECKING:
    from celldial.model.module import Module

__all__ = ["make_optimizer"]

# Log scales, such as dispersions, move this much faster.
LOG_SCALE_LR_FACTOR = 10


def make_optimizer(module: Module, learning_rate: float, weight_decay: float, n_cells: int) -> Adam:
    """Hold each part of the module as it needs it, and let log scales, such as dispersions, move faster.

    The loadings, that is the decoder's last weights, have a normal prior: a feature that is seen in few cells says
    little of its own, and without a prior Adam, which makes steps of one size of any gradient, would fit its noise.
    Other matrices decay, vectors do not.
    """
    modalities = [modality for _, modality in module.by_modality()]
    dispersions = [p for modality in modalities for p in modality.likelihood.parameters()]
    loadings = {modality: [h for h in modality.decoder.heads.parameters() if h.ndim > 1] for modality in modalities}
    turning = [modality.decoder for modality in modalities if modality.decoder.harmonics is not None]
    harmonics = [decoder.harmonics.weight for decoder in turning if decoder.harmonics is not None]
    # What is known of cells before they are seen is learned from all of them, how sure loadings are has a prior, and
    # baselines bias nothing: none of these decays. How common components are is the log scale among them.
    known = [part for part in (module.learned_prior, module.clusters, module.baselines) if part is not None]
    free = [p for part in known for name, p in part.named_parameters() if not name.endswith("logit_k")]
    fast = dispersions + [p for part in known for name, p in part.named_parameters() if name.endswith("logit_k")]
    deviations = [modality.decoder.log_deviation_fh for modality in modalities]
    free += [p for p in deviations if p is not None]
    if any(p is not None for p in deviations):
        free += chain(*loadings.values())
        loadings = {}
    others = {id(p) for p in chain(fast, harmonics, free, *loadings.values())}
    networks = [p for p in module.parameters() if id(p) not in others]
    groups: list[dict[str, Any]] = [
        *(
            {
                "params": heads,
                # The gradient of minus the log of a normal prior, per cell as the loss is.
                "weight_decay": heads[0].shape[1] / (modality.likelihood.loading_scale**2 * n_cells),
                "decoupled_weight_decay": False,
            }
            for modality, heads in loadings.items()
        ),
        *(
            {
                "params": [weight_fk],
                "weight_decay": 1 / (decoder.harmonic_scale**2 * n_cells),
                "decoupled_weight_decay": False,
            }
            for decoder, weight_fk in zip(turning, harmonics, strict=True)
        ),
        {"params": [p for p in networks if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in networks if p.ndim <= 1]},
        {"params": free},
        {"params": fast, "lr": LOG_SCALE_LR_FACTOR * learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return Adam(groups, lr=learning_rate, weight_decay=0.0, decoupled_weight_decay=True, fused=True)
