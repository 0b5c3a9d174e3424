"""Which latent coordinates matter, and named directions among them: numbers in, numbers out.

Axis suffixes: ``b`` batches, ``c`` cells, ``f`` features, ``k`` coordinates by name, ``z`` latent coordinates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data import checks
from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import posterior
from celldial.inference.anndata import (
    FittedModel,
    check_fitted,
    get_modality,
    read_cells,
)
from celldial.io import results
from celldial.tl import axis_targets
from celldial.utils.messages import feature_noun, get_column
from celldial.utils.validation import check_integer

__all__ = ["Axis", "check_axis_name", "fit_axis"]


# --- Named directions -------------------------------------------------------------------------------------------------

# Added to the variance of each coordinate before it is divided by: where it is below that a coordinate is inactive
# (Burda et al. 2016, arXiv:1509.00519), and the score is not to be made of tiny differences.
RIDGE = 0.01
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


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
) -> Axis:
    """Find the direction in latent space along which something changes, name it, and score every cell on it.

    The direction is the way in which the mean latent state moves; the score is the linear function of the latent
    state that tells best how far a cell is, on average 0 where the axis starts and 1 where it ends; see
    `celldial.tl.find_axis.fit_axis`. Give one of `obs`, `groups` and `features`, or `obs` and `groups`.

    Parameters
    ----------
    model
        A fitted `VAE`; left out in a call as a method, ``model.find_axis(adata)``.
    adata
        Cells to find it in. Those without any count, or with NaN in `obs`, take no part, but get a score.
    name
        What to call it: the column of ``adata.obs`` with the score.
    obs
        Column of ``adata.obs``. Of two categories, the axis goes from the first to the second (that is, of a
        categorical their order, else the order of the alphabet; of booleans from False to True); of an ordered
        categorical from the first to the last, with the others evenly between; of numbers from their 5 % quantile
        to their 95 % quantile.
    groups
        From which value of `obs` to which, ``("ctrl", "stim")``; other cells take no part. Without `obs`, the one
        column of text or categories that has both is looked for.
    features
        ``{"up": [...], "down": [...]}``, either or both. The axis is that of the observed expression of these
        genes, log-normalized and standardized, mean of those up less mean of those down, from its 5 % quantile to
        its 95 % quantile. Names that are not found are looked for without regard to case.
    modality
        Modality of `features`; ``"rna"`` by default, or the model's first.
    n_permutations
        For the p-value: how many times to shuffle the target over the cells, within batches where the model has a
        `batch_key`. It cannot come out below 1 / (1 + `n_permutations`).

    Returns
    -------
    Axis
        The axis: origin, direction, filter, ``strength`` (share of the target's variance that the score explains,
        R² adjusted for the number of coordinates, within batches) and ``p_value``. Written: the scores, float32, to
        ``adata.obs[name]``, and the axis to ``adata.uns["celldial"]["axes"][name]``.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError, TypeError, KeyError
        The name is taken; a column, group or gene is not there; there is nothing to tell apart, or too few cells.
        The AnnData is then as it was.

    Notes
    -----
    The p-value is over cells: it is small where these cells differ beyond chance. Cells of one donor or culture are
    no independent repeats, so that it does not say that other donors would show the same. For that, compare the
    scores averaged by donor.

    Where the model has a `batch_key`, differences of the means between batches are taken out first, so that a
    difference between batches is no axis.

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
    check_fitted(model)
    check_integer("n_permutations", n_permutations)
    reserved = [] if model.periodic_ is None else [model.periodic_["name"]]
    check_axis_name(name, adata.obs.columns, results.read_axes(adata), model.module_.latent.n_latent, reserved)
    table, cells = read_cells(model, adata)
    checks.check_has_counts(cells)
    nonempty_c = (~cells.empty_c).nonzero()[:, 0]
    obs_table = table.obs.iloc[nonempty_c.numpy()]
    if (features is None) == (obs is None and groups is None):
        raise ValueError("find_axis needs one of: obs (with groups or without), groups, or features")
    if features is None:
        target = _obs_target(obs_table, obs, groups, modality)
    else:
        target = _expression_target(model, cells.select(nonempty_c), features, modality)
    checks.warn_empty_cells(
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
    results.write_axis(adata, model.fingerprint_, name, axis.score(mean_cz), axis.to_dict())
    return axis


@dataclass(frozen=True, eq=False)
class Axis:
    """A named direction in latent space: which way cells move, and how far along each cell is.

    Parameters
    ----------
    name
        The axis, and the column of ``adata.obs`` with the scores.
    description
        What it goes from and to.
    origin_z
        Where the score is 0, shape ``(n_latent,)``.
    direction_z
        The way the mean state moves as the score goes from 0 to 1.
    filter_z
        What the score is made of: ``score_c = (z_cz - origin_z) @ filter_z``.
    strength
        Share of the target's variance that the score explains.
    p_value
        By permutation of the target over the cells.
    n_permutations
        How many there were.
    quantiles
        The scores' quantiles 0.01, 0.05, 0.5, 0.95 and 0.99.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=2, progress=False)
    >>> axis = model.find_axis(adata, "B or T", groups=("CD4+/CD25 T Reg", "CD19+ B"))
    >>> axis.name, axis.direction_z.shape
    ('B or T', (10,))
    >>> round(float(axis.filter_z @ axis.direction_z), 3)
    1.0
    """

    name: str
    description: str
    origin_z: np.ndarray = field(repr=False)
    direction_z: np.ndarray = field(repr=False)
    filter_z: np.ndarray = field(repr=False)
    strength: float
    p_value: float
    n_permutations: int
    quantiles: np.ndarray = field(repr=False)

    def score(self, z_cz: np.ndarray) -> np.ndarray:
        """Tell how far along latent states are.

        Parameters
        ----------
        z_cz
            Latent coordinates as `celldial.VAE.latent_posterior` gives them, shape ``(cells, n_latent)``. Further
            columns are not looked at.

        Returns
        -------
        numpy.ndarray
            The score of each cell, 0 where the axis starts and 1 where it ends, float32, shape ``(cells,)``.

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
        score_c: np.ndarray = (z_cz[:, : len(self.origin_z)] - self.origin_z) @ self.filter_z
        return score_c.astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Give all but the name in types that an h5ad file holds; :meth:`from_dict` gives it back.

        Returns
        -------
        dict[str, Any]
            What is stored in ``adata.uns["celldial"]["axes"][name]``.

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
            "filter": self.filter_z.copy(),
            "strength": self.strength,
            "p_value": self.p_value,
            "n_permutations": self.n_permutations,
            "quantiles": self.quantiles.copy(),
        }

    @classmethod
    def from_dict(cls, name: str, stored: Mapping[str, Any]) -> Axis:
        """Read what :meth:`to_dict` gave, also after a way through an h5ad file.

        Parameters
        ----------
        name
            What the axis is called.
        stored
            What :meth:`to_dict` gave.

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
            filter_z=np.array(stored["filter"], dtype=np.float32),
            strength=float(stored["strength"]),
            p_value=float(stored["p_value"]),
            n_permutations=int(stored["n_permutations"]),
            quantiles=np.array(stored["quantiles"], dtype=np.float64),
        )


def check_axis_name(
    name: Any, columns: Iterable[str], found: Mapping[str, Any], n_latent: int, reserved: Sequence[str] = ()
) -> None:
    """Raise unless an axis can be called `name`.

    Parameters
    ----------
    name
        What it shall be called.
    columns
        Those of ``adata.obs``.
    found
        The axes that ``adata`` has, which may be replaced.
    n_latent
        Number of latent coordinates; the axes there are must be of a model that has as many.
    reserved
        Names of what is no direction, such as that of the periodic axis.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"name is {name!r}: it must be text, not empty and without '/', such as 'interferon'")
    if name in reserved or re.fullmatch(r"(axis|topic)_\d+", name):
        raise ValueError(f"name is {name!r}, which is what a coordinate of the model is called: choose another")
    if name in columns and name not in found:
        raise ValueError(
            f"adata.obs has a column {name!r} that find_axis did not write: choose another name, or remove the column "
            f"with del adata.obs[{name!r}]"
        )
    for other, stored in found.items():
        n_stored = len(stored["direction"])
        if n_stored != n_latent:
            raise ValueError(
                f"adata.uns['celldial']['axes'] has {other!r}, of a model with {n_stored} latent coordinates, and this "
                f"one has {n_latent}: remove it with del adata.uns['celldial']['axes']"
            )


def fit_axis(
    name: str,
    description: str,
    z_cz: np.ndarray,
    target_c: np.ndarray,
    batch_c: np.ndarray | None,
    n_permutations: int,
    random: np.random.Generator,
) -> Axis:
    r"""Find the direction in which cells move with a target, and the score that tells the target best.

    These are two things [1]_. The direction (a pattern) is the regression of the states on the target: of two groups,
    the difference of their means. The score (a filter) is the ridge regression of the target on the states, which for
    two groups is the linear discriminant; it leans on what tells the target without noise, and is no way that cells
    go. It is scaled so that the step along the direction that takes the target from 0 to 1 does so to the score.

    Parameters
    ----------
    name, description
        See `Axis`.
    z_cz
        Latent states of the cells.
    target_c
        What the axis is to tell, 0 where it starts and 1 where it ends; NaN for cells that take no part in finding it.
    batch_c
        Codes of the batches, or None. Differences between batches are taken out, of states and target.
    n_permutations
        How many times to permute the target over the cells that take part, within batches.
    random
        Draws the permutations.

    Returns
    -------
    Axis
        `strength` is R² adjusted for the number of coordinates, so that it is about 0 for a target that has nothing to
        do with the states; at least 0. `p_value` is the share of permutations, the data themselves included [2]_, that
        explain as much.

    Raises
    ------
    ValueError
        The target is the same for all cells of each batch; or there are too few cells for so many coordinates.

    References
    ----------
    .. [1] Haufe et al. (2014), On the interpretation of weight vectors of linear models in multivariate neuroimaging,
       NeuroImage 87, 96-110. doi:10.1016/j.neuroimage.2013.10.067
    .. [2] Phipson and Smyth (2010), Permutation p-values should never be zero, Statistical Applications in Genetics and
       Molecular Biology 9, 39. doi:10.2202/1544-6115.1585

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.tl.find_axis import find_direction
    >>> random = np.random.default_rng(0)
    >>> group_c = np.repeat([0.0, 1.0], 500)
    >>> z_cz = random.normal(size=(1000, 2)) + np.outer(group_c, [3, 0])
    >>> axis = find_direction("response", "A → B", z_cz, group_c, None, 999, random)
    >>> axis.direction_z.round() + 0, axis.p_value
    (array([3., 0.], dtype=float32), 0.001)
    >>> round(axis.strength, 1)
    0.7
    """
    taking_part = np.flatnonzero(~np.isnan(target_c))
    code_c = np.zeros(len(taking_part), dtype=np.int64) if batch_c is None else batch_c[taking_part]
    order = np.argsort(code_c, kind="stable")  # batch by batch
    taking_part, code_c = taking_part[order], code_c[order]
    start_b = np.unique(code_c, return_index=True)[1]
    state_cz, value_c = z_cz[taking_part].astype(np.float64), target_c[taking_part].astype(np.float64)
    n_cells, n_latent = state_cz.shape
    n_free = n_cells - len(start_b)
    if n_free <= n_latent:
        raise ValueError(
            f"{n_cells} cells, of {len(start_b)} batches, are too few to find a direction among {n_latent} latent "
            f"coordinates: {n_latent + len(start_b) + 1} are needed at least"
        )
    mean_z, mean = state_cz.mean(0), value_c.mean()
    within_cz = _within_batches(state_cz, start_b)
    within_c = _within_batches(value_c[:, None], start_b)[:, 0]
    variance = within_c @ within_c / n_cells
    if variance <= 1e-12 * np.square(value_c).mean():
        where = "cells" if batch_c is None else "cells of each batch, so that it cannot be told from the batch"
        raise ValueError(f"{description}: this is the same for all {where}; there is no axis to be found")
    covariance_zz = within_cz.T @ within_cz / n_cells + RIDGE * np.eye(n_latent)
    whitener_zz = np.linalg.inv(np.linalg.cholesky(covariance_zz))

    def explained(permuted_c: np.ndarray) -> float:
        """Share of the target's variance that ridge regression takes up, the penalty subtracted."""
        return float(np.square(whitener_zz @ (permuted_c @ within_cz)).sum()) / (n_cells**2 * variance)

    observed = explained(within_c)
    batches = np.split(within_c, start_b[1:])
    permuted = (np.concatenate([random.permutation(part) for part in batches]) for _ in range(n_permutations))
    n_as_large = sum(bool(explained(permuted_c) >= observed * (1 - 1e-9)) for permuted_c in permuted)
    together_z = within_c @ within_cz / n_cells
    direction_z = together_z / variance
    filter_z = whitener_zz.T @ (whitener_zz @ together_z)
    score_c = within_cz @ filter_z
    squares = score_c @ score_c
    r_squared = (score_c @ within_c) ** 2 / (squares * variance * n_cells) if squares > 0 else 0.0
    if observed > 0:
        filter_z = filter_z / (filter_z @ direction_z)
    # From the mean of all cells: batches that have more of one group than others must not shift it.
    origin_z = mean_z - direction_z * mean
    return Axis(
        name,
        description,
        origin_z.astype(np.float32),
        direction_z.astype(np.float32),
        filter_z.astype(np.float32),
        strength=float(max(0.0, 1 - (1 - r_squared) * n_free / (n_free - n_latent))),
        p_value=(1 + n_as_large) / (1 + n_permutations),
        n_permutations=n_permutations,
        quantiles=np.quantile((z_cz - origin_z) @ filter_z, QUANTILES),
    )


def _within_batches(value_ck: np.ndarray, start_b: np.ndarray) -> np.ndarray:
    """Subtract from each row the mean of its batch; batches come one after the other, from `start_b` on."""
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
