"""What coordinates stand for, feature by feature: the topics of a topic model, the weights of a linear decoder.

Axis suffixes: ``c`` cells (here combinations of covariates), ``f`` features, ``h`` inputs of the last layer, ``z``
latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr
from torch import Tensor

from celldial.data.cells import block_size
from celldial.inference.posterior import Covariates, ready
from celldial.model.module import Modality, Module
from celldial.tl.rank_axes import names_of
from celldial.tl.traversal import HALF_WIDTH, ranks

__all__ = ["check_covariates", "in_turn", "loading_table", "topic_table"]

# Combinations of covariates to average over, at most.
MAX_COMBINATIONS = 1000


def check_covariates(covariates: Any) -> Mapping[str, Any]:
    """Give covariates as a mapping, or raise."""
    if not isinstance(covariates, Mapping | None):
        raise TypeError(f'covariates is {covariates!r}: it must be a dict from covariate to value, {{"batch": "b2"}}')
    return {} if covariates is None else covariates


def in_turn(categories: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Take each category of each covariate in turn, until each is as common as the others of its covariate.

    Where that takes more than 1000 turns, as with several covariates of very many categories, it is only about so.

    Examples
    --------
    >>> from celldial.tl.feature_tables import in_turn
    >>> in_turn({"batch": ["b0", "b1"], "donor": ["x", "y", "z"]})["batch"]
    ['b0', 'b1', 'b0', 'b1', 'b0', 'b1']
    """
    sizes = [len(names) for names in categories.values()]
    n_turns = min(math.lcm(*sizes), max([MAX_COMBINATIONS, *sizes]))
    return {key: list(islice(cycle(names), n_turns)) for key, names in categories.items()}


@torch.no_grad()
def topic_table(
    module: Module, covariates: Covariates, features: Mapping[str, np.ndarray], n_features: int | None
) -> pd.DataFrame:
    """Say which features each topic is made of.

    Parameters
    ----------
    module
        Trained, with topics as coordinates.
    covariates
        Of cells over which shares are averaged.
    features
        Modality to the names of its features.
    n_features
        How many of each topic and modality to keep; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a topic and feature; see `celldial.VAE.topics`.
    """
    device = ready(module)
    pure_zz = module.latent.unlink(torch.eye(module.latent.n_latent, device=device))
    category_ck, continuous_ck = (torch.from_numpy(part).to(device) for part in covariates)
    parts = []
    for name, modality in module.by_modality():
        share_zf = torch.stack([_mean_share(modality, pure_z, category_ck, continuous_ck) for pure_z in pure_zz])
        share_zf = share_zf.clamp_min(torch.finfo(share_zf.dtype).tiny)
        lift_zf = (share_zf / share_zf.mean(0)).log2()
        # What a feature adds to the divergence of the topic from the average one, in bits per count.
        parts.append((name, {"share": share_zf, "log2_lift": lift_zf}, share_zf * lift_zf))
    return _long("topic", names_of(module), parts, features, n_features)


def _mean_share(modality: Modality, state_z: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
    """Average the share of each feature in one state over covariates, shape ``(f,)``, float64."""
    total_f = state_z.new_zeros(modality.decoder.rates.out_features, dtype=torch.float64)
    n_block = block_size(len(total_f))
    for start in range(0, len(category_ck), n_block):
        block = slice(start, start + n_block)
        state_cz = state_z.expand(len(category_ck[block]), -1)
        heads = modality.decoder(state_cz, category_ck[block], continuous_ck[block])
        total_f += torch.softmax(heads[0].double(), -1).sum(0)
    return total_f / len(category_ck)


@torch.no_grad()
def loading_table(module: Module, features: Mapping[str, np.ndarray], n_features: int | None) -> pd.DataFrame:
    """Say by how much each coordinate of a linear decoder changes each feature, and how sure that is.

    Parameters
    ----------
    module
        Trained, with linear decoders.
    features
        Modality to the names of its features.
    n_features
        How many of each coordinate and modality to keep; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate and feature; see `celldial.VAE.loadings`.
    """
    known = all(_is_known(modality) for _, modality in module.by_modality())
    parts = []
    for name, modality in module.by_modality():
        weight_zf = modality.decoder.rates.weight[:, : module.latent.n_latent].T.double()
        mean_zf = weight_zf - weight_zf.mean(1, keepdim=True)
        columns, score_zf = {"loading": mean_zf}, mean_zf.abs()
        if known:
            variance_zf = _variances(modality, module.latent.n_latent).double()
            # Of what is left when the mean of all is taken off, the loadings being independent of each other.
            n = variance_zf.shape[1]
            variance_zf = variance_zf * (1 - 2 / n) + variance_zf.mean(1, keepdim=True) / n
            deviation_zf = variance_zf.sqrt()
            columns |= {
                "standard_deviation": deviation_zf,
                "lower": mean_zf - HALF_WIDTH * deviation_zf,
                "upper": mean_zf + HALF_WIDTH * deviation_zf,
                "lfsr": torch.from_numpy(ndtr(-(score_zf / deviation_zf).cpu().numpy())),
            }
            score_zf = score_zf - HALF_WIDTH * deviation_zf
        parts.append((name, columns, score_zf))
    return _long("coordinate", names_of(module), parts, features, n_features)


def _is_known(modality: Modality) -> bool:
    """Tell whether it is known how sure the loadings are."""
    return modality.decoder.log_deviation_fh is not None or modality.loadings is not None


def _variances(modality: Modality, n_latent: int) -> Tensor:
    """Posterior variance of each loading, shape ``(z, f)``."""
    if modality.decoder.log_deviation_fh is not None:
        return (2 * modality.decoder.log_deviation_fh[:, :n_latent]).exp().T
    assert modality.loadings is not None
    # A loading is how a log rate differs between two states that are a unit of the coordinate apart.
    centre_h = modality.loadings.centre_h
    state_sh = torch.cat([centre_h[None], centre_h + torch.eye(len(centre_h), device=centre_h.device)[:n_latent]])
    first_f = torch.zeros(modality.decoder.rates.out_features, dtype=torch.int64, device=centre_h.device)
    return torch.stack(
        [modality.loadings.variance_of_change(state_sh, first_f, first_f + 1 + z) for z in range(n_latent)]
    )


def _long(
    what: str,
    names: list[str],
    parts: Sequence[tuple[str, Mapping[str, Tensor], Tensor]],
    features: Mapping[str, np.ndarray],
    n_features: int | None,
) -> pd.DataFrame:
    """Put matrices of coordinates × features of each modality into one table, by coordinate, modality and rank.

    Parameters
    ----------
    what
        What the column with the names of the coordinates is called.
    names
        These.
    parts
        Of each modality its name, columns of numbers, and the scores that rank the features of a coordinate.
    features, n_features
        As in `topic_table`.
    """
    tables = []
    for z, name in enumerate(names):
        for modality, columns, score_zf in parts:
            order_f = np.argsort(ranks(score_zf[z].cpu().numpy()))[:n_features]
            of = {key: of_zf[z].cpu().numpy()[order_f] for key, of_zf in columns.items()}
            rank_f = np.arange(len(order_f))
            tables.append(
                pd.DataFrame(
                    {what: name, "modality": modality, "feature": features[modality][order_f], **of, "rank": rank_f}
                )
            )
    return pd.concat(tables, ignore_index=True)
