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

from celldial.data.cells import decode_block_size
from celldial.inference.anndata import (
    FittedModel,
    check_fitted,
    features_by_modality,
)
from celldial.inference.posterior import Covariates, to_eval
from celldial.model.module import Modality, Module
from celldial.tl.rank_axes import coordinate_names
from celldial.tl.traversal import HALF_WIDTH, ranks
from celldial.utils.validation import check_integer

__all__ = ["balanced_combinations", "check_covariates", "loading_table", "topic_table"]

# Combinations of covariates to average over, at most.
MAX_COMBINATIONS = 1000


def topics(
    model: FittedModel, n_features: int | None = None, *, covariates: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Say which genes and peaks each topic is made of, for ``latent="logistic_normal"``.

    Each topic is shown pure: a cell with a share of 1 of it is decoded.

    Parameters
    ----------
    model
        A fitted `VAE`; left out in a call as a method, ``model.topics(...)``.
    n_features
        How many features of each topic and modality to list, those of the best rank; all by default.
    covariates
        Covariate to one value, ``{"batch": "b2"}``. Shares are averaged over the categories of those that are not
        given, and numbers are taken at their mean over the cells of `fit`.

    Returns
    -------
    pandas.DataFrame
        One row a topic and feature, ordered by topic, modality and rank.

        - ``topic``: ``"topic_0"`` and so on, in the order of the embedding's columns; and the ``feature``, with its
          ``modality``.
        - ``share``: the share of the feature in what is counted of its modality in a pure cell. The shares of all
          features of a topic and modality sum to 1.
        - ``log2_lift``: log2 of that share against the average of the topics' shares.
        - ``rank``: 0 is the feature that sets the topic apart most, by share × log2 lift. The sum of these is the
          Kullback-Leibler divergence of the topic from the average of all, in bits per count.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The coordinates are not topics.
    TypeError
        `covariates` is no dict.
    KeyError
        The model has no such covariate.

    Notes
    -----
    How common the topics are is the mean of the embedding: ``adata.obsm["X_celldial"].mean(0)``. Few cells are near
    to pure. What a linear decoder says of pure ones follows from mixed ones; what a neural network says need not.

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
            "VAE(latent='logistic_normal') for topics; latent_traverse shows what a coordinate changes"
        )
    if n_features is not None:
        check_integer("n_features", n_features)
    given = check_covariates(covariates)
    others = balanced_combinations({key: names for key, names in model.schema_.categories.items() if key not in given})
    means = {key: mean for key, (mean, _) in model.schema_.continuous.items() if key not in given}
    n_cells = max([1, *map(len, others.values())])
    encoded = Covariates(*model.schema_.encode_covariates(others | means, given, n_cells=n_cells))
    return topic_table(model.module_, encoded, features_by_modality(model.schema_), n_features)


def loadings(model: FittedModel, n_features: int | None = None) -> pd.DataFrame:
    """Say by how much each coordinate changes each gene and peak, for ``decoder="linear"``.

    Parameters
    ----------
    model
        A fitted `VAE`; left out in a call as a method, ``model.loadings(...)``.
    n_features
        How many features of each coordinate and modality to list, those of the best rank; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate and feature, ordered by coordinate, modality and rank.

        - ``coordinate``: ``"axis_0"`` and so on (``"topic_0"`` where they are topics); and the ``feature``, with
          its ``modality``.
        - ``loading``: the change of the natural logarithm of the feature's share per unit of the coordinate, as it
          stands in the embedding, against the mean of the modality's features: those of a coordinate sum to 0. A
          constant added to all would change nothing, since shares sum to 1.
        - ``standard_deviation``, and the 90 % credible interval from ``lower`` to ``upper``.
        - ``lfsr``: local false sign rate, how probable it is that the loading has the other sign [1]_.
        - ``rank``: 0 is the feature with the loading that is surely large: by its absolute value less half the
          width of the interval.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The decoder is not linear.

    Notes
    -----
    With `bayesian_loadings` the intervals are those of the posterior that was learned together with the loadings.
    Without it they are from a Laplace approximation, see `latent_traverse`, that tells ten directions of the
    coordinates and covariates apart: beyond these the intervals are those of the prior. Both take the cells'
    states as independent of the loadings, and how the coordinates are turned against each other as given.

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
            f"decoder is {model.parameters_['decoder']!r}, which has no loadings of coordinates: fit "
            "VAE(decoder='linear') for them; latent_traverse shows what a coordinate changes"
        )
    if n_features is not None:
        check_integer("n_features", n_features)
    return loading_table(model.module_, features_by_modality(model.schema_), n_features)


def check_covariates(covariates: Any) -> Mapping[str, Any]:
    """Give covariates as a mapping, or raise."""
    if not isinstance(covariates, Mapping | None):
        raise TypeError(f'covariates is {covariates!r}: it must be a dict from covariate to value, {{"batch": "b2"}}')
    return {} if covariates is None else covariates


def balanced_combinations(categories: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
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
    device = to_eval(module)
    pure_zz = module.latent.inverse_link(torch.eye(module.latent.n_latent, device=device))
    category_ck, continuous_ck = (torch.from_numpy(part).to(device) for part in covariates)
    parts = []
    for name, modality in module.by_modality():
        share_zf = torch.stack([_mean_share(modality, pure_z, category_ck, continuous_ck) for pure_z in pure_zz])
        share_zf = share_zf.clamp_min(torch.finfo(share_zf.dtype).tiny)
        lift_zf = (share_zf / share_zf.mean(0)).log2()
        # What a feature adds to the divergence of the topic from the average one, in bits per count.
        parts.append((name, {"share": share_zf, "log2_lift": lift_zf}, share_zf * lift_zf))
    return _to_long_table("topic", coordinate_names(module), parts, features, n_features)


def _mean_share(modality: Modality, state_z: Tensor, category_ck: Tensor, continuous_ck: Tensor) -> Tensor:
    """Average the share of each feature in one state over covariates, shape ``(f,)``, float64."""
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
        weight_zf = modality.decoder.rate_head.weight[:, : module.latent.n_latent].T.double()
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
    return _to_long_table("coordinate", coordinate_names(module), parts, features, n_features)


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
    first_f = torch.zeros(modality.decoder.rate_head.out_features, dtype=torch.int64, device=centre_h.device)
    return torch.stack(
        [modality.loadings.variance_of_change(state_sh, first_f, first_f + 1 + z) for z in range(n_latent)]
    )


def _to_long_table(
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
