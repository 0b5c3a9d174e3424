"""Ranking of the latent coordinates by their use: KL divergence, and share of the variance of the decoded output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import cell_checks
from celldial.data.cells import Cells, decode_block_size
from celldial.inference import posterior
from celldial.inference.fitted_model import (
    FittedModel,
    coordinate_names,
    library_size_to_decode,
    read_cells,
    read_from,
)
from celldial.inference.posterior import Covariates
from celldial.io import results
from celldial.model.module import Module
from celldial.tl.name_axes import name_axes, nearest_sets
from celldial.utils.argument_types import validate_types
from celldial.utils.validation import check_integer

__all__ = ["coordinate_table", "kl_divergence", "rank_coordinates", "total_effects"]


@validate_types
def axes(
    model: FittedModel,
    adata: AnnData,
    *,
    n_cells: int = 500,
    gene_sets: Mapping[str, Sequence[str]] | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Rank the latent coordinates by their effect on the decoded output, and mark those that the model does not use.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.axes(adata)``.
    adata
        Cells; those without any count are not used.
    n_cells
        Number of cells, drawn at random, to decode for the variance, `n_latent` + 1 times each.
    gene_sets
        Name to genes, ``{"S": ["MCM5", ...], "G2M": [...]}``: known programs to name the coordinates by, as in
        `name_axes`.
    layer
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        One row per coordinate, ``"axis_0"`` and so on (``"topic_0"`` in a topic model), and one for the periodic
        coordinate under its name, in the order of their rank. The same table, in the order of the coordinates, is
        written to ``adata.uns["celldial"]["coordinates"]``.

        - ``kl``: KL divergence of the posterior from the prior, mean over all cells, in nats: the information in the
          counts about the coordinate.
        - ``variance``: effect of the coordinate on the decoded output. It is half the mean squared change of the
          natural logarithm of the expected value if the coordinate alone is replaced by that of a random cell. Features
          are weighted by their share of the expected counts; see `celldial.tl.rank_axes.total_effects`. The value is
          the mean over modalities.
        - ``share``: the variance as a fraction of the sum over coordinates, computed for each modality (``share_rna``,
          ...) and averaged over them.
        - ``used``: whether `kl` is at least 0.1 nats and `share` at least 0.05 %.
        - ``rank``: 0 is the largest share.
        - with `gene_sets`, ``gene_set``, ``correlation`` and ``p_value`` of the nearest set: the one with the smallest
          p-value, and among equal ones with the largest correlation. See `name_axes` for what they mean.

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
    model = read_from(model, layer)
    check_integer("n_cells", n_cells, 2)
    _, cells = read_cells(model, adata)
    cell_checks.check_has_counts(cells)
    periodic = None if model.periodic_ is None else model.periodic_["name"]
    depth = {modality: library_size_to_decode(model, modality, None) for modality in model.schema_.modalities}
    table = rank_coordinates(model.module_, cells, depth, periodic, n_cells, model.seed)
    if gene_sets is not None:
        table = table.join(nearest_sets(name_axes(model, adata, gene_sets)))
    results.write_coordinates(adata, model.fingerprint_, table)
    return table.sort_values("rank")


def rank_coordinates(
    module: Module, cells: Cells, library_size: Mapping[str, float], periodic: str | None, n_cells: int, seed: int
) -> pd.DataFrame:
    """Measure the KL divergence of each latent coordinate and its effect on the decoded output.

    Parameters
    ----------
    module
        A trained module.
    cells
        Cells to measure on.
    library_size
        Modality to the library size to decode with.
    periodic
        Name of the periodic coordinate, if there is one.
    n_cells
        Number of cells to decode.
    seed
        Seed of the choice of cells and of the replacement values.

    Returns
    -------
    pandas.DataFrame
        One row per coordinate in their order; see `celldial.tl.axes`.

    Raises
    ------
    ValueError
        Fewer than two cells have counts.
    """
    nonempty = np.flatnonzero(~cells.empty_c.numpy())
    if len(nonempty) < 2:
        raise ValueError(f"only {len(nonempty)} of {len(cells)} cells has counts: ranking the axes needs at least two")
    latent_state = posterior.infer(module, cells)
    n_latent = module.latent.n_latent
    names, columns = coordinate_names(module), [[k] for k in range(n_latent)]
    kl_k = kl_divergence(latent_state.mean[nonempty], latent_state.standard_deviation[nonempty])
    if latent_state.circle is not None and periodic is not None:
        names.append(periodic)
        columns.append([n_latent, n_latent + 1])
        kl_k = np.append(kl_k, latent_state.circle.kl[nonempty].mean())
    chosen = np.sort(np.random.default_rng(seed).choice(nonempty, min(n_cells, len(nonempty)), replace=False))
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


# A coordinate is used if the counts inform it and the decoder depends on it. At 0.1 nats the counts reduce the variance
# of the coordinate to exp(-0.2), four fifths of the prior. Among 30 coordinates for blood cells that need about 10, the
# unused ones had up to 0.13 nats, since an encoder overfits slightly, and up to 0.03 % of the variance; the next had
# 0.1 %.
USED_KL, USED_SHARE = 0.1, 5e-4


def kl_divergence(mean_cz: np.ndarray, deviation_cz: np.ndarray) -> np.ndarray:
    """Return the KL divergence of normal posteriors from N(0, 1), mean over cells in nats, float64, shape ``(z,)``."""
    mean_cz, deviation_cz = mean_cz.astype(np.float64), deviation_cz.astype(np.float64)
    return ((mean_cz**2 + deviation_cz**2 - 1) / 2 - np.log(deviation_cz)).mean(0)


def total_effects(
    z_cz: np.ndarray,
    columns: Sequence[Sequence[int]],
    decode: Callable[[np.ndarray, slice], np.ndarray],
    n_block: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the effect of each coordinate on the decoded output, with all other coordinates unchanged.

    In every cell the coordinate is replaced by that of another random cell. Half the mean squared change of the log
    expected value is the variance that the coordinate causes, including its interactions with the others: the total
    effect of Sobol, by the estimator of Jansen [1]_ [2]_. It is summed over features, each weighted by its share of the
    expected counts. To second order this is the Kullback-Leibler divergence, in nats per count, between the expected
    profiles of a cell with and without the change, which makes modalities with different numbers of features
    comparable. The coordinates of cells are not independent, so that the sum over coordinates differs from the total
    variance.

    Parameters
    ----------
    z_cz
        Latent states of a sample of cells, at least two.
    columns
        Columns of `z_cz` of each coordinate: one, or two for a coordinate on the circle.
    decode
        Function of latent states and the slice of cells that they belong to, which returns expected values ``(c, f)``.
    n_block
        Number of cells to decode at once.
    random
        Generator of the replacements.

    Returns
    -------
    numpy.ndarray
        Variance by coordinate, in squared natural logarithms, float64, shape ``(len(columns),)``.

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
    """Return the table of coordinates with shares, ranks and use.

    Parameters
    ----------
    names
        Names of the coordinates.
    kl_k
        Result of `kl_divergence`.
    variance
        Modality to the result of `total_effects`.

    Returns
    -------
    pandas.DataFrame
        One row per coordinate in their order; see `celldial.tl.axes`.
    """
    share = {f"share_{modality}": variance_k / (variance_k.sum() or 1) for modality, variance_k in variance.items()}
    # Modalities have equal weight: the variance of accessibility is a small fraction of that of expression.
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
    """Assign another cell to each cell, each exactly once: the next one in a random cyclic order."""
    order_c = random.permutation(n_cells)
    donor_c = np.empty_like(order_c)
    donor_c[order_c] = np.roll(order_c, 1)
    return donor_c


def _log(expected_cf: np.ndarray) -> np.ndarray:
    """Return the logarithm; a softmax that underflowed to 0 counts as the smallest positive number."""
    return np.log(np.maximum(expected_cf, np.finfo(np.float32).tiny))
