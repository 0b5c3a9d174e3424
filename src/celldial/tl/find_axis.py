"""Named axes: directions in latent space that predict a target, and the score of every cell on them.

Axis suffixes: ``b`` batches, ``c`` cells, ``f`` features, ``k`` columns of a table, ``z`` latent coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import cell_checks
from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import posterior
from celldial.inference.fitted_model import (
    FittedModel,
    get_modality,
    read_cells,
    read_from,
)
from celldial.io import results
from celldial.tl import axis_targets
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import feature_noun, get_column
from celldial.utils.validation import check_integer

__all__ = ["Axis", "check_axis_name", "fit_axis"]


# Added to the variance of each coordinate before the division. A coordinate with a smaller variance is inactive
# (Burda et al. 2016, arXiv:1509.00519), and the score must not depend on tiny differences.
RIDGE = 0.01
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


@validate_types
def find_axis(
    model: FittedModel,
    adata: AnnData,
    name: str,
    *,
    obs: str | None = None,
    groups: tuple[Any, Any] | None = None,
    features: Mapping[str, Sequence[str]] | None = None,
    modality: str | None = None,
    n_permutations: int = 999,
    layer: str | None = None,
) -> Axis:
    """Find a named axis: the direction in latent space along which a target changes, and a score for every cell.

    The direction is the regression of the latent state on the target. The score is the linear function of the latent
    state that predicts the target best. On average, it is 0 at the start of the axis and 1 at its end; see
    `celldial.tl.find_axis.fit_axis`. The target is given by one of `obs`, `groups` and `features`, or by `obs` and
    `groups` together.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.find_axis(adata, name, ...)``.
    adata
        Cells. Cells without any count, or with NaN in `obs`, are not used to find the axis, but get a score.
    name
        Name of the axis, and of the column of ``adata.obs`` with the score.
    obs
        Column of ``adata.obs``. If it has two categories, the axis runs from the first to the second (in the order of a
        categorical, otherwise alphabetically; from False to True). If it is an ordered categorical, the axis runs from
        the first to the last category, and the others are evenly spaced between them. If it has numbers, the axis runs
        from their 5 % to their 95 % quantile.
    groups
        Two values of `obs`, ``("ctrl", "stim")``, from which the axis runs and to which; other cells are not used.
        Without `obs`, the only column of text or categories that has both values is used.
    features
        ``{"up": [...], "down": [...]}``, either or both. The target is computed from the observed expression of these
        features, log-normalized and standardized: the mean of those in ``"up"`` minus the mean of those in ``"down"``.
        The axis runs from its 5 % to its 95 % quantile. Names are matched exactly, then without regard to case.
    modality
        Modality of `features`; by default ``"rna"``, or the first modality of a model without RNA.
    n_permutations
        Number of permutations of the target for the p-value, within batches if the model has a `batch_key`. The
        smallest possible p-value is 1 / (1 + `n_permutations`).
    layer
        As in `transform`.

    Returns
    -------
    Axis
        The axis: origin, direction, filter, ``strength`` (fraction of the target's variance that the score explains,
        adjusted R² within batches) and ``p_value``. The scores, float32, are written to ``adata.obs[name]``, and the
        axis to ``adata.uns["celldial"]["axes"][name]``.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError
        The name is taken; a column, group or feature does not exist; the target does not vary; or there are too few
        cells. The AnnData is left unchanged.

    Notes
    -----
    The p-value refers to cells: it is small if these cells differ by more than chance. Cells of one donor or culture
    are not independent replicates. A small p-value therefore does not show that other donors would behave in the same
    way. To test this, average the scores by donor and compare the averages.

    If the model has a `batch_key`, differences between batches are removed first, so a batch effect is not found as an
    axis.

    References
    ----------
    Haufe et al. (2014), On the interpretation of weight vectors of linear models in multivariate neuroimaging,
    doi:10.1016/j.neuroimage.2013.10.067.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=5, progress=False)
    >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
    >>> axis.description
    'bulk_labels: CD4+/CD25 T Reg → CD19+ B'
    >>> axis.strength > 0.5, axis.p_value
    (True, 0.001)
    >>> axis = model.find_axis(adata, "cytotoxicity", features={"up": ["NKG7", "GNLY", "PRF1"], "down": ["CD79A"]})
    """
    model = read_from(model, layer)
    check_integer("n_permutations", n_permutations)
    reserved = [] if model.periodic_ is None else [model.periodic_["name"]]
    check_axis_name(name, reserved)
    table, cells = read_cells(model, adata)
    results.check_axis_column(adata, name)
    cell_checks.check_has_counts(cells)
    nonempty_c = (~cells.empty_c).nonzero()[:, 0]
    obs_table = table.obs.iloc[nonempty_c.numpy()]
    if (features is None) == (obs is None and groups is None):
        raise ValueError("find_axis needs one of: obs (with groups or without), groups, or features")
    if features is None:
        target = _obs_target(obs_table, obs, groups, modality)
    else:
        target = _expression_target(model, cells.select(nonempty_c), features, modality)
    cell_checks.warn_empty_cells(
        table.obs_names.__getitem__,
        cells,
        "they do not define the axis, and get the score of the prior mean",
    )
    mean_cz = posterior.infer(model.module_, cells).mean
    axis = fit_axis(
        name,
        target.description,
        mean_cz[nonempty_c.numpy()],
        target.value_c,
        None if model.schema_.batch_key is None else cells.category_ck[nonempty_c, 0].numpy(),
        n_permutations,
        np.random.default_rng(model.seed),
    )
    axis = replace(axis, from_obs=features is None)
    results.write_axis(adata, model.fingerprint_, name, axis.score(mean_cz), axis.to_dict())
    return axis


@dataclass(frozen=True, eq=False)
class Axis:
    """A named axis of latent space: a direction to move cells along, and a score for the position of each cell.

    Parameters
    ----------
    name
        Name of the axis, and of the column of ``adata.obs`` with the scores.
    description
        Start and end of the axis in words.
    origin_z
        Point with score 0, shape ``(n_latent,)``.
    direction_z
        Change of the mean latent state while the score goes from 0 to 1.
    weight_z
        Weights of the score: ``score_c = (z_cz - origin_z) @ weight_z``.
    strength
        Fraction of the target's variance that the score explains.
    p_value
        P-value of a permutation test over the cells.
    n_permutations
        Number of permutations.
    quantiles
        Quantiles 0.01, 0.05, 0.5, 0.95 and 0.99 of the scores.
    from_obs
        Whether the target is a column of ``obs``. A traversal then goes by default from score 0, the first group or
        value, to score 1, the last.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=2, progress=False)
    >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
    >>> axis.name, axis.direction_z.shape
    ('B or T', (10,))
    >>> round(float(axis.weight_z @ axis.direction_z), 3)
    1.0
    """

    name: str
    description: str
    origin_z: np.ndarray = field(repr=False)
    direction_z: np.ndarray = field(repr=False)
    weight_z: np.ndarray = field(repr=False)
    strength: float
    p_value: float
    n_permutations: int
    quantiles: np.ndarray = field(repr=False)
    from_obs: bool = field(default=False, repr=False)

    def score(self, z_cz: np.ndarray) -> np.ndarray:
        """Return the position of cells on the axis.

        Parameters
        ----------
        z_cz
            Latent coordinates as `celldial.VAE.latent_posterior` returns them, shape ``(cells, n_latent)``. Further
            columns are ignored.

        Returns
        -------
        numpy.ndarray
            Score of each cell, 0 at the start of the axis and 1 at its end, float32, shape ``(cells,)``.

        Examples
        --------
        >>> import celldial
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=2, progress=False)
        >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
        >>> mean_cz, _ = model.latent_posterior(adata)
        >>> bool((axis.score(mean_cz) == adata.obs["B or T"]).all())
        True
        """
        score_c: np.ndarray = (z_cz[:, : len(self.origin_z)] - self.origin_z) @ self.weight_z
        return score_c.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the name as types that an h5ad file can hold; :meth:`from_dict` is the inverse.

        Returns
        -------
        dict[str, Any]
            The content of ``adata.uns["celldial"]["axes"][name]``.

        Examples
        --------
        >>> import numpy as np
        >>> from celldial.tl.find_axis import Axis
        >>> one_z = np.ones(1, dtype=np.float32)
        >>> axis = Axis("dose", "low → high", 0 * one_z, one_z, one_z, 0.5, 0.001, 999, np.zeros(5))
        >>> list(axis.to_dict())[:4]
        ['kind', 'description', 'origin', 'direction']
        """
        return {
            "kind": "direction",
            "description": self.description,
            "origin": self.origin_z.copy(),
            "direction": self.direction_z.copy(),
            "filter": self.weight_z.copy(),
            "strength": self.strength,
            "p_value": self.p_value,
            "n_permutations": self.n_permutations,
            "quantiles": self.quantiles.copy(),
            "from_obs": self.from_obs,
        }

    @classmethod
    def from_dict(cls, name: str, stored: Mapping[str, Any]) -> Axis:
        """Return the axis that :meth:`to_dict` describes, also after it was written to and read from an h5ad file.

        Parameters
        ----------
        name
            Name of the axis.
        stored
            Result of :meth:`to_dict`.

        Returns
        -------
        Axis
            The axis.

        Examples
        --------
        >>> import celldial
        >>> from celldial.tl.find_axis import Axis
        >>> adata = celldial.datasets.pbmc68k_reduced()
        >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
        >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
        >>> again = Axis.from_dict("B or T", adata.uns["celldial"]["axes"]["B or T"])
        >>> again.p_value == axis.p_value
        True
        """
        return cls(
            name,
            str(stored["description"]),
            origin_z=np.array(stored["origin"], dtype=np.float32),
            direction_z=np.array(stored["direction"], dtype=np.float32),
            weight_z=np.array(stored["filter"], dtype=np.float32),
            strength=float(stored["strength"]),
            p_value=float(stored["p_value"]),
            n_permutations=int(stored["n_permutations"]),
            quantiles=np.array(stored["quantiles"], dtype=np.float64),
            from_obs=bool(stored.get("from_obs", False)),
        )


def check_axis_name(name: Any, reserved: Sequence[str] = ()) -> None:
    """Raise unless an axis can have this name.

    Parameters
    ----------
    name
        Name of the new axis.
    reserved
        Names that are not available, such as that of the periodic coordinate.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"name is {name!r}: it must be non-empty text without '/', such as 'interferon'")
    if name in reserved or re.fullmatch(r"(axis|topic)_\d+", name):
        raise ValueError(f"name is {name!r}, the name of a coordinate of the model: choose another")


def fit_axis(
    name: str,
    description: str,
    z_cz: np.ndarray,
    target_c: np.ndarray,
    batch_c: np.ndarray | None,
    n_permutations: int,
    random: np.random.Generator,
) -> Axis:
    """Fit the direction in which cells move with a target, and the score that predicts the target best.

    Direction and score differ [1]_. The direction (a pattern) is the regression of the states on the target: for two
    groups, the difference of their means. The score (a filter) is the ridge regression of the target on the states,
    which for two groups is the linear discriminant. It relies on coordinates with little noise, and is not a direction
    in which cells move. It is scaled so that a step along the direction that takes the target from 0 to 1 takes the
    score from 0 to 1, too.

    Parameters
    ----------
    name, description
        See `Axis`.
    z_cz
        Latent states of the cells.
    target_c
        Target of the axis, 0 at its start and 1 at its end; NaN for cells that are not used.
    batch_c
        Codes of the batches, or None. Differences between batches are removed from states and target.
    n_permutations
        Number of permutations of the target over the cells that are used, within batches.
    random
        Generator of the permutations.

    Returns
    -------
    Axis
        `strength` is R² adjusted for the number of coordinates, at least 0; for a target unrelated to the states it is
        about 0. `p_value` is the fraction of permutations, the observed data included [2]_, that explain as much.

    Raises
    ------
    ValueError
        The target is constant within every batch, or there are too few cells for the number of coordinates.

    References
    ----------
    .. [1] Haufe et al. (2014), On the interpretation of weight vectors of linear models in multivariate neuroimaging,
       NeuroImage 87, 96-110. doi:10.1016/j.neuroimage.2013.10.067
    .. [2] Phipson and Smyth (2010), Permutation p-values should never be zero, Statistical Applications in Genetics and
       Molecular Biology 9, 39. doi:10.2202/1544-6115.1585

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.tl.find_axis import fit_axis
    >>> random = np.random.default_rng(0)
    >>> group_c = np.repeat([0.0, 1.0], 500)
    >>> z_cz = random.normal(size=(1000, 2)) + np.outer(group_c, [3, 0])
    >>> axis = fit_axis("response", "A → B", z_cz, group_c, None, 999, random)
    >>> axis.direction_z.round() + 0, axis.p_value
    (array([3., 0.], dtype=float32), 0.001)
    >>> round(axis.strength, 1)
    0.7
    """
    used = np.flatnonzero(~np.isnan(target_c))
    code_c = np.zeros(len(used), dtype=np.int64) if batch_c is None else batch_c[used]
    order = np.argsort(code_c, kind="stable")  # batch by batch
    used, code_c = used[order], code_c[order]
    start_b = np.unique(code_c, return_index=True)[1]
    state_cz, value_c = z_cz[used].astype(np.float64), target_c[used].astype(np.float64)
    n_cells, n_latent = state_cz.shape
    n_free = n_cells - len(start_b)
    if n_free <= n_latent:
        raise ValueError(
            f"{n_cells} cells in {len(start_b)} batches are too few to find a direction among {n_latent} latent "
            f"coordinates: at least {n_latent + len(start_b) + 1} are needed"
        )
    mean_z, mean = state_cz.mean(0), value_c.mean()
    within_cz = _within_batches(state_cz, start_b)
    within_c = _within_batches(value_c[:, None], start_b)[:, 0]
    variance = within_c @ within_c / n_cells
    if variance <= 1e-12 * np.square(value_c).mean():
        where = "cells" if batch_c is None else "cells of each batch, and so confounded with the batch"
        raise ValueError(f"{description}: the target is the same for all {where}; there is no axis to find")
    covariance_zz = within_cz.T @ within_cz / n_cells + RIDGE * np.eye(n_latent)
    whitener_zz = np.linalg.inv(np.linalg.cholesky(covariance_zz))

    def explained(permuted_c: np.ndarray) -> float:
        """Return the fraction of the target's variance that ridge regression explains, minus the penalty."""
        return float(np.square(whitener_zz @ (permuted_c @ within_cz)).sum()) / (n_cells**2 * variance)

    observed = explained(within_c)
    batches = np.split(within_c, start_b[1:])
    permuted = (np.concatenate([random.permutation(part) for part in batches]) for _ in range(n_permutations))
    n_as_large = sum(bool(explained(permuted_c) >= observed * (1 - 1e-9)) for permuted_c in permuted)
    covariance_z = within_c @ within_cz / n_cells
    direction_z = covariance_z / variance
    weight_z = whitener_zz.T @ (whitener_zz @ covariance_z)
    score_c = within_cz @ weight_z
    squares = score_c @ score_c
    r_squared = (score_c @ within_c) ** 2 / (squares * variance * n_cells) if squares > 0 else 0.0
    if observed > 0:
        weight_z = weight_z / (weight_z @ direction_z)
    # Relative to the mean of all cells: batches with unequal group sizes must not shift it.
    origin_z = mean_z - direction_z * mean
    return Axis(
        name,
        description,
        origin_z.astype(np.float32),
        direction_z.astype(np.float32),
        weight_z.astype(np.float32),
        strength=float(max(0.0, 1 - (1 - r_squared) * n_free / (n_free - n_latent))),
        p_value=(1 + n_as_large) / (1 + n_permutations),
        n_permutations=n_permutations,
        quantiles=np.quantile((z_cz - origin_z) @ weight_z, QUANTILES),
    )


def _within_batches(value_ck: np.ndarray, start_b: np.ndarray) -> np.ndarray:
    """Subtract the mean of its batch from each row; batches are contiguous and begin at `start_b`."""
    size_b = np.diff([*start_b, len(value_ck)])
    mean_bk = np.add.reduceat(value_ck, start_b, axis=0) / size_b[:, None]
    return value_ck - np.repeat(mean_bk, size_b, axis=0)


def _obs_target(obs_table: pd.DataFrame, obs: str | None, groups: Any, modality: str | None) -> axis_targets.Target:
    """Return the target of an axis from a column of ``adata.obs``, one number per cell."""
    if modality is not None:
        raise ValueError(f"modality is {modality!r}, but no features are given: modality is the modality of features")
    key = axis_targets.find_groups(obs_table, groups) if obs is None else obs
    return axis_targets.obs_target(get_column(obs_table, key, "obs column"), key, groups)


def _expression_target(
    model: FittedModel, cells: Cells, features: Mapping[str, Sequence[str]], modality: str | None
) -> axis_targets.Target:
    """Return the target of an axis from the expression of features, one number per cell."""
    modality = get_modality(model, "rna" if modality is None and "rna" in model.schema_.modalities else modality)
    names = model.schema_.feature_names[modality]
    positions = axis_targets.resolve_feature_lists(features, names, f"{feature_noun(modality)}s")
    counts = to_csr_matrix(cells.counts[modality])
    return axis_targets.expression_target(counts, cells.library_size[modality].numpy(), positions, names)
