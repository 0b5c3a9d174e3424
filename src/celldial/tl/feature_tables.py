"""Tables of features by coordinate: the profiles of topics, and the loadings of a linear decoder.

Axis suffixes: ``c`` combinations of covariates, ``f`` features, ``h`` inputs of the last layer, ``s`` states, ``z``
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

from celldial.data.cells import decode_block_size
from celldial.inference.fitted_model import (
    FittedModel,
    check_fitted,
    coordinate_names,
    features_by_modality,
)
from celldial.inference.posterior import Covariates, to_eval
from celldial.model.module import Module
from celldial.model.networks import Modality
from celldial.tl.traversal import HALF_WIDTH, ranks
from celldial.utils.argument_types import validate_types
from celldial.utils.validation import check_integer

__all__ = ["balanced_combinations", "check_covariates", "loading_table", "topic_table"]

# Largest number of combinations of covariates to average over.
MAX_COMBINATIONS = 1000


@validate_types
def topics(
    model: FittedModel, n_features: int | None = None, *, covariates: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Return the genes and peaks of each topic of a topic model, ``latent="logistic_normal"``.

    The profile of a topic is that of a cell that consists of this topic only.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.topics()``.
    n_features
        Number of features to list for each topic and modality, by rank; all by default.
    covariates
        Dict that maps covariates to values, ``{"batch": "b2"}``. Without it, shares are averaged over the categories of
        a categorical covariate, and a continuous covariate has its mean over the training cells.

    Returns
    -------
    pandas.DataFrame
        One row per topic and feature, ordered by topic, modality and rank.

        - ``topic``: ``"topic_0"`` and so on, in the order of the embedding's columns; ``feature`` and ``modality``.
        - ``share``: share of the feature in the expected counts of its modality, for a cell of this topic only. The
          shares of a topic and modality sum to 1.
        - ``log2_lift``: log2 of that share relative to the mean share over topics.
        - ``rank``: 0 is the feature that distinguishes the topic most, by share × log2 lift. These values sum to the
          Kullback-Leibler divergence of the topic from the mean over topics, in bits per count.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model is not a topic model.
    TypeError
        `covariates` is not a dict.
    KeyError
        The model has no such covariate.

    Notes
    -----
    The mean of the embedding, ``adata.obsm["X_celldial"].mean(0)``, is the frequency of each topic. Few cells consist
    of one topic only. A linear decoder extrapolates from mixed cells to such cells in a defined way; a neural network
    may not.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(5, latent="logistic_normal").fit(adata, max_epochs=2, progress=False)
    >>> table = model.topics(n_features=10)
    >>> list(table.columns), len(table)
    (['topic', 'modality', 'feature', 'share', 'log2_lift', 'rank'], 50)
    """
    check_fitted(model)
    if model.module_.latent.coordinate_noun != "topic":
        raise ValueError(
            f"latent is {model.parameters_['latent']!r}, whose coordinates are not topics: fit "
            "VAE(latent='logistic_normal') for topics; latent_traverse shows the effect of a coordinate"
        )
    if n_features is not None:
        check_integer("n_features", n_features)
    given = check_covariates(covariates)
    others = balanced_combinations({key: names for key, names in model.schema_.categories.items() if key not in given})
    means = {key: mean for key, (mean, _) in model.schema_.continuous.items() if key not in given}
    n_cells = max([1, *map(len, others.values())])
    encoded = Covariates(*model.schema_.encode_covariates(others | means, given, n_cells=n_cells))
    return topic_table(model.module_, encoded, features_by_modality(model.schema_), n_features)


@validate_types
def loadings(model: FittedModel, n_features: int | None = None) -> pd.DataFrame:
    """Return the loadings of a linear decoder: the effect of each coordinate on each gene and peak.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.loadings()``.
    n_features
        Number of features to list for each coordinate and modality, by rank; all by default.

    Returns
    -------
    pandas.DataFrame
        One row per coordinate and feature, ordered by coordinate, modality and rank.

        - ``coordinate``: ``"axis_0"`` and so on (``"topic_0"`` in a topic model); ``feature`` and ``modality``.
        - ``loading``: change of the natural logarithm of the feature's share per unit of the coordinate in the
          embedding, relative to the mean over the features of the modality, so that the loadings of a coordinate sum to
          0. A constant added to all of them has no effect, because shares sum to 1.
        - ``standard_deviation``, and the 90 % credible interval from ``lower`` to ``upper``.
        - ``lfsr``: local false sign rate, the posterior probability that the loading has the opposite sign [1]_.
        - ``rank``: 0 is the feature with the largest credible loading: absolute value minus half the width of the
          interval.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The decoder is not linear.

    Notes
    -----
    With `bayesian_loadings` the intervals come from the posterior that was learned together with the
    loadings. Without it they come from a Laplace approximation, see `latent_traverse`, in the ten main directions of
    the coordinates and covariates; in all other directions the intervals are those of the prior. Both treat the latent
    states as independent of the loadings, and condition on the rotation of the coordinates.

    References
    ----------
    .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(5, decoder="linear", bayesian_loadings=True).fit(adata, max_epochs=2, progress=False)
    >>> model.loadings(n_features=3).query("coordinate == 'axis_0'")["rank"].tolist()
    [0, 1, 2]
    """
    check_fitted(model)
    if model.parameters_["decoder"] != "linear":
        raise ValueError(
            f"decoder is {model.parameters_['decoder']!r}, which has no loadings: fit "
            "VAE(decoder='linear') for them; latent_traverse shows the effect of a coordinate"
        )
    if n_features is not None:
        check_integer("n_features", n_features)
    return loading_table(model.module_, features_by_modality(model.schema_), n_features)


def check_covariates(covariates: Any) -> Mapping[str, Any]:
    """Return covariates as a mapping, or raise."""
    if not isinstance(covariates, Mapping | None):
        raise TypeError(f'covariates is {covariates!r}: it must be a dict from covariate to value, {{"batch": "b2"}}')
    return {} if covariates is None else covariates


def balanced_combinations(categories: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return combinations of categories in which all categories of a covariate are equally frequent.

    With more than 1,000 such combinations, as for several covariates with many categories, the frequencies are only
    approximately equal.

    Examples
    --------
    >>> from celldial.tl.feature_tables import balanced_combinations
    >>> balanced_combinations({"batch": ["b0", "b1"], "donor": ["x", "y", "z"]})["batch"]
    ['b0', 'b1', 'b0', 'b1', 'b0', 'b1']
    """
    sizes = [len(names) for names in categories.values()]
    n_turns = min(math.lcm(*sizes), max([MAX_COMBINATIONS, *sizes]))
    return {key: list(islice(cycle(names), n_turns)) for key, names in categories.items()}


@torch.no_grad()
def topic_table(
    module: Module, covariates: Covariates, features: Mapping[str, np.ndarray], n_features: int | None
) -> pd.DataFrame:
    """Return the share and lift of each feature in each topic.

    Parameters
    ----------
    module
        A trained module with topics.
    covariates
        Covariates to average the shares over.
    features
        Modality to the names of its features.
    n_features
        Number of features to keep for each topic and modality; all by default.

    Returns
    -------
    pandas.DataFrame
        One row per topic and feature; see `celldial.tl.topics`.
    """
    device = to_eval(module)
    pure_zz = module.latent.inverse_link(torch.eye(module.latent.n_latent, device=device))
    category_ck, continuous_ck = (torch.from_numpy(part).to(device) for part in covariates)
    parts = []
    for name, modality in module.by_modality():
        share_zf = torch.stack([_mean_share(modality, pure_z, category_ck, continuous_ck) for pure_z in pure_zz])
        share_zf = share_zf.clamp_min(torch.finfo(share_zf.dtype).tiny)
        lift_zf = (share_zf / share_zf.mean(0)).log2()
        # Contribution of the feature to the divergence of the topic from the mean over topics, in bits per count.
        parts.append((name, {"share": share_zf, "log2_lift": lift_zf}, share_zf * lift_zf))
    return _to_long_table("topic", coordinate_names(module), parts, features, n_features)


def _mean_share(modality: Modality, state_z: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
    """Return the share of each feature in one latent state, averaged over covariates, shape ``(f,)``, float64."""
    total_f = state_z.new_zeros(modality.decoder.rate_head.out_features, dtype=torch.float64)
    n_block = decode_block_size(len(total_f))
    for start in range(0, len(category_ck), n_block):
        block = slice(start, start + n_block)
        state_cz = state_z.expand(len(category_ck[block]), -1)
        heads = modality.decoder(state_cz, category_ck[block], continuous_ck[block])
        total_f += torch.softmax(heads[0].double(), -1).sum(0)
    return total_f / len(category_ck)


@torch.no_grad()
def loading_table(module: Module, features: Mapping[str, np.ndarray], n_features: int | None) -> pd.DataFrame:
    """Return the loadings of a linear decoder with their uncertainty.

    Parameters
    ----------
    module
        A trained module with linear decoders.
    features
        Modality to the names of its features.
    n_features
        Number of features to keep for each coordinate and modality; all by default.

    Returns
    -------
    pandas.DataFrame
        One row per coordinate and feature; see `celldial.tl.loadings`.
    """
    has_uncertainty = all(_has_uncertainty(modality) for _, modality in module.by_modality())
    parts = []
    for name, modality in module.by_modality():
        weight_zf = modality.decoder.rate_head.weight[:, : module.latent.n_latent].T.double()
        mean_zf = weight_zf - weight_zf.mean(1, keepdim=True)
        columns, score_zf = {"loading": mean_zf}, mean_zf.abs()
        if has_uncertainty:
            variance_zf = _variances(modality, module.latent.n_latent).double()
            # Variance after subtraction of the mean over features, for independent loadings.
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
    return _to_long_table("coordinate", coordinate_names(module), parts, features, n_features)


def _has_uncertainty(modality: Modality) -> bool:
    """Return whether the uncertainty of the loadings is known."""
    return modality.decoder.log_deviation_fh is not None or modality.loadings is not None


def _variances(modality: Modality, n_latent: int) -> Tensor:
    """Return the posterior variance of each loading, shape ``(z, f)``."""
    if modality.decoder.log_deviation_fh is not None:
        return (2 * modality.decoder.log_deviation_fh[:, :n_latent]).exp().T
    assert modality.loadings is not None
    # A loading is the difference in log rate between two states that differ by one unit of the coordinate.
    center_h = modality.loadings.center_h
    state_sh = torch.cat([center_h[None], center_h + torch.eye(len(center_h), device=center_h.device)[:n_latent]])
    first_f = torch.zeros(modality.decoder.rate_head.out_features, dtype=torch.int64, device=center_h.device)
    return torch.stack(
        [modality.loadings.variance_of_change(state_sh, first_f, first_f + 1 + z) for z in range(n_latent)]
    )


def _to_long_table(
    column: str,
    names: list[str],
    parts: Sequence[tuple[str, Mapping[str, Tensor], Tensor]],
    features: Mapping[str, np.ndarray],
    n_features: int | None,
) -> pd.DataFrame:
    """Return matrices of coordinates × features of all modalities as one table, by coordinate, modality and rank.

    Parameters
    ----------
    column
        Name of the column with the names of the coordinates.
    names
        Names of the coordinates.
    parts
        For each modality its name, matrices of values, and the scores that rank the features of a coordinate.
    features, n_features
        As in `topic_table`.
    """
    tables = []
    for z, name in enumerate(names):
        for modality, columns, score_zf in parts:
            order_f = np.argsort(ranks(score_zf[z].cpu().numpy()))[:n_features]
            values = {key: value_zf[z].cpu().numpy()[order_f] for key, value_zf in columns.items()}
            rank_f = np.arange(len(order_f))
            tables.append(
                pd.DataFrame(
                    {
                        column: name,
                        "modality": modality,
                        "feature": features[modality][order_f],
                        **values,
                        "rank": rank_f,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)
