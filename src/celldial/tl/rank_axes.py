"""Which latent coordinates matter: a table of them, from cells and a trained module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import checks
from celldial.data.cells import Cells, decode_block_size
from celldial.inference import posterior
from celldial.inference.anndata import (
    FittedModel,
    check_fitted,
    library_size_to_decode,
    read_cells,
)
from celldial.inference.posterior import Covariates
from celldial.io import results
from celldial.model.module import Module
from celldial.utils.validation import check_integer

__all__ = ["coordinate_names", "coordinate_table", "kl_divergence", "rank_coordinates", "total_effects"]


def axes(model: FittedModel, adata: AnnData, *, n_cells: int = 500) -> pd.DataFrame:
    """Rank the latent coordinates by how much they matter, and mark those that the model does not use.

    Parameters
    ----------
    model
        A fitted `VAE`; left out in a call as a method, ``model.axes(adata)``.
    adata
        Cells to judge by; those without any count take no part.
    n_cells
        Number of cells, drawn at random, whose output is decoded for the variance, `n_latent` + 1 times each.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate, ``"axis_0"`` and so on (``"topic_0"`` where they are topics) and the periodic one by
        its name, what matters most first. Written: the same, in the order of the coordinates, to
        ``adata.uns["celldial"]["coordinates"]``.

        - ``kl``: KL divergence of the cells' posteriors from the prior, mean over all cells, in nats: how much the
          counts tell of the coordinate.
        - ``variance``: how much the decoded output hangs on it. Half the mean squared change of the natural
          logarithm of what is expected when the coordinate alone is replaced by that of a random cell, features
          weighted by their share of what is expected; see `celldial.tl.rank_axes.total_effects`. Mean over
          modalities.
        - ``share``: the variance as a share of the sum over coordinates, taken in each modality (``share_rna``,
          ...) and averaged over them.
        - ``used``: whether `kl` is 0.1 nats or more, and `share` 0.05 % or more.
        - ``rank``: 0 is the largest share.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        Fewer than two cells have counts.
    ValueError, TypeError, KeyError, FloatingPointError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(n_latent=3).fit(adata, max_epochs=1, progress=False)
    >>> list(model.axes(adata).columns)
    ['kl', 'variance', 'share', 'share_rna', 'used', 'rank']
    """
    check_fitted(model)
    check_integer("n_cells", n_cells, 2)
    _, cells = read_cells(model, adata)
    checks.check_has_counts(cells)
    periodic = None if model.periodic_ is None else model.periodic_["name"]
    depth = {modality: library_size_to_decode(model, modality, None) for modality in model.schema_.modalities}
    table = rank_coordinates(model.module_, cells, depth, periodic, n_cells, model.seed)
    results.write_coordinates(adata, table)
    return table.sort_values("rank")


def rank_coordinates(
    module: Module, cells: Cells, library_size: Mapping[str, float], periodic: str | None, n_cells: int, seed: int
) -> pd.DataFrame:
    """Judge each latent coordinate by what the counts tell of it, and by how much the decoded output hangs on it.

    Parameters
    ----------
    module
        Trained.
    cells
        To judge by.
    library_size
        Modality to the library size to decode with.
    periodic
        What the circle is called, if there is one.
    n_cells
        Number of cells whose output is decoded.
    seed
        Of their choice, and of the values that replace theirs.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate, in their order; see `celldial.VAE.axes`.

    Raises
    ------
    ValueError
        Fewer than two cells have counts.
    """
    filled = np.flatnonzero(~cells.empty_c.numpy())
    if len(filled) < 2:
        raise ValueError(f"only {len(filled)} of {len(cells)} cells has counts: axes are judged by two at least")
    latent_state = posterior.infer(module, cells)
    n_latent = module.latent.n_latent
    names, columns = coordinate_names(module), [[k] for k in range(n_latent)]
    kl_k = kl_divergence(latent_state.mean[filled], latent_state.standard_deviation[filled])
    if latent_state.circle is not None and periodic is not None:
        names.append(periodic)
        columns.append([n_latent, n_latent + 1])
        kl_k = np.append(kl_k, latent_state.circle.kl[filled].mean())
    chosen = np.sort(np.random.default_rng(seed).choice(filled, min(n_cells, len(filled)), replace=False))
    category_ck, continuous_ck = cells.category_ck[chosen].numpy(), cells.continuous_ck[chosen].numpy()
    variance = {}
    for modality in module.modalities:

        def expected(z_cz: np.ndarray, part: slice, modality: str = modality) -> np.ndarray:
            covariates = Covariates(category_ck[part], continuous_ck[part])
            return np.concatenate(
                list(posterior.decode_mean(module, modality, z_cz, covariates, library_size[modality]))
            )

        n_block = decode_block_size(module.n_features[modality])
        random = np.random.default_rng(seed)  # the same replacements in all modalities
        variance[modality] = total_effects(latent_state.state_cz[chosen], columns, expected, n_block, random)
    return coordinate_table(names, kl_k, variance)


def coordinate_names(module: Module) -> list[str]:
    """Name the latent coordinates: ``"axis_0"`` and so on, or ``"topic_0"`` where they are topics."""
    return [f"{module.latent.coordinate_noun}_{k}" for k in range(module.latent.n_latent)]


# A coordinate is used if cells tell it and the decoder listens. At 0.1 nats the counts of a cell narrow the variance of
# the coordinate to exp(-0.2), four fifths of the prior's. Of 30 coordinates on blood cells that need about 10, the rest
# had up to 0.13 nats, for an encoder overfits a little, and up to 0.03 % of the variance; the next ones had 0.1 %.
USED_KL, USED_SHARE = 0.1, 5e-4


def kl_divergence(mean_cz: np.ndarray, deviation_cz: np.ndarray) -> np.ndarray:
    """KL divergence of normal posteriors from N(0, 1), mean over the cells in nats, float64, shape ``(z,)``."""
    mean_cz, deviation_cz = mean_cz.astype(np.float64), deviation_cz.astype(np.float64)
    return ((mean_cz**2 + deviation_cz**2 - 1) / 2 - np.log(deviation_cz)).mean(0)


def total_effects(
    z_cz: np.ndarray,
    columns: Sequence[Sequence[int]],
    decode: Callable[[np.ndarray, slice], np.ndarray],
    n_block: int,
    random: np.random.Generator,
) -> np.ndarray:
    r"""Measure how much of the decoded output hangs on each coordinate, all else being equal.

    In every cell the coordinate is replaced by that of another cell, drawn at random. Half the mean squared change of
    the log expected value is the variance that the coordinate makes, its interactions with the others included: the
    total effect of Sobol, by the estimator of Jansen [1]_ [2]_. It is summed over features, each weighted by its share
    of what is expected in all. To second order that is the Kullback-Leibler divergence, in nats per count, between what
    is expected of a cell with and without the change, which makes modalities of any number of features comparable. As
    the coordinates of cells are not independent of each other, the sum over coordinates is not the whole variance.

    Parameters
    ----------
    z_cz
        Latent states of a sample of cells, at least two.
    columns
        The columns of `z_cz` that each coordinate has: one, or the two of a coordinate on the circle.
    decode
        From latent states, and the slice of the cells that they stand for, to expected values ``(c, f)``.
    n_block
        How many cells to decode at once.
    random
        Draws the replacements.

    Returns
    -------
    numpy.ndarray
        The variance by coordinate, in squared natural logarithms, float64, shape ``(len(columns),)``.

    References
    ----------
    .. [1] Jansen (1999), Analysis of variance designs for model output, Computer Physics Communications 117, 35-43.
       doi:10.1016/S0010-4655(98)00154-4
    .. [2] Saltelli et al. (2010), Variance based sensitivity analysis of model output, Computer Physics Communications
       181, 259-270. doi:10.1016/j.cpc.2009.09.018

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.tl.rank_axes import total_effects
    >>> random = np.random.default_rng(0)
    >>> z_cz = random.normal(size=(10_000, 2))
    >>> def decode(z_cz, cells):  # one feature, whose logarithm is 2 z_0
    ...     return np.exp(2 * z_cz[:, :1])
    >>> total_effects(z_cz, [[0], [1]], decode, 1000, random).round()
    array([4., 0.])
    """
    n_cells = len(z_cz)
    donors_c = [_derange(n_cells, random) for _ in columns]
    squared_kf: np.ndarray | float = 0.0
    expected_f: np.ndarray | float = 0.0
    for start in range(0, n_cells, n_block):
        part = slice(start, start + n_block)
        expected_cf = decode(z_cz[part], part)
        expected_f = expected_f + expected_cf.sum(0, dtype=np.float64)
        log_cf = _log(expected_cf)
        squares = []
        for column, donor_c in zip(columns, donors_c, strict=True):
            replaced_cz = z_cz[part].copy()
            replaced_cz[:, column] = z_cz[donor_c[part]][:, column]
            change_cf = _log(decode(replaced_cz, part)) - log_cf
            squares.append(np.einsum("cf,cf->f", change_cf, change_cf))
        squared_kf = squared_kf + np.stack(squares).astype(np.float64)
    variance_k: np.ndarray = squared_kf @ (expected_f / np.sum(expected_f)) / (2 * n_cells)
    return variance_k


def coordinate_table(names: Sequence[str], kl_k: np.ndarray, variance: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Say of each coordinate how much it matters.

    Parameters
    ----------
    names
        Of the coordinates.
    kl_k
        What `kl_divergence` gave.
    variance
        Modality to what `total_effects` gave.

    Returns
    -------
    pandas.DataFrame
        One row a coordinate, in their order; see `celldial.VAE.axes`.
    """
    share = {f"share_{modality}": variance_k / (variance_k.sum() or 1) for modality, variance_k in variance.items()}
    # Each modality counts alike: the variance of chromatin is a small fraction of that of expression.
    share_k = np.mean(list(share.values()), axis=0)
    rank_k = np.empty(len(names), dtype=np.int64)
    rank_k[np.lexsort((-kl_k, -share_k))] = np.arange(len(names))
    return pd.DataFrame(
        {
            "kl": kl_k,
            "variance": np.mean(list(variance.values()), axis=0),
            "share": share_k,
            **share,
            "used": (kl_k >= USED_KL) & (share_k >= USED_SHARE),
            "rank": rank_k,
        },
        index=list(names),
    )


def _derange(n_cells: int, random: np.random.Generator) -> np.ndarray:
    """Give each cell another one, and each is given once: round a circle in random order."""
    order_c = random.permutation(n_cells)
    donor_c = np.empty_like(order_c)
    donor_c[order_c] = np.roll(order_c, 1)
    return donor_c


def _log(expected_cf: np.ndarray) -> np.ndarray:
    """Logarithm, of the smallest positive number where a softmax has come to 0."""
    return np.log(np.maximum(expected_cf, np.finfo(np.float32).tiny))
