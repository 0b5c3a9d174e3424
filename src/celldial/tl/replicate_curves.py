"""Curves of replicates along a path, such as donors: the cells of each, and how well the mean of their curves is known.

Axis suffixes: ``c`` cells, ``d`` replicates, ``f`` features, ``k`` contrasts, ``s`` steps.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from celldial.tl.flat_curves import TOLERANCE, contrasts
from celldial.tl.traversal import INTERVAL
from celldial.utils.messages import format_names, get_column

__all__ = ["MIN_REPLICATES", "choose_cells", "half_width", "summarize"]

MIN_REPLICATES = 3
# Added to variances, so that replicates without differences divide by no zero.
TINY = 1e-12


def choose_cells(
    obs: pd.DataFrame, column: str, position_c: np.ndarray, n_cells: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose cells of each replicate at random.

    Parameters
    ----------
    obs
        Table of all cells.
    column
        Column with the replicate of each cell. Cells without a value are left out.
    position_c
        Positions of the cells to choose from, ascending.
    n_cells
        Number of cells of each replicate; all of them if it has fewer.
    random
        Random number generator.

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        Positions of the chosen cells, by replicate, and the name of the replicate of each.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        The cells are of fewer than three replicates.
    """
    values_c = get_column(obs, column, "replicates").iloc[position_c]
    known_c = values_c.notna().to_numpy()
    name_c = values_c[known_c].astype(str).to_numpy(dtype=object)
    names = sorted(set(name_c))
    if len(names) < MIN_REPLICATES:
        raise ValueError(
            f"the cells are of {len(names)} values of {column!r} ({format_names(names)}): intervals over replicates "
            f"need at least {MIN_REPLICATES}. Leave replicates out for intervals over cells"
        )
    chosen = []
    for name in names:
        of_name_c = position_c[known_c][name_c == name]
        chosen.append(np.sort(random.choice(of_name_c, min(n_cells, len(of_name_c)), replace=False)))
    return np.concatenate(chosen), np.repeat(np.array(names, dtype=object), [len(part) for part in chosen])


def half_width(n_replicates: int) -> float:
    """Return half the width of the 90 % interval of a mean over replicates, in standard errors."""
    return float(student_t.ppf((1 + INTERVAL) / 2, n_replicates - 1))


def summarize(curve_dsf: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of the curves of replicates, its variance, and the p-value of a flat curve.

    Parameters
    ----------
    curve_dsf
        Mean expected values of each replicate, above 0.
    closed
        Whether the path is closed.

    Returns
    -------
    mean_sf
        Mean over replicates, weighted alike.
    variance_sf
        Squared standard error of this mean, relative to the mean.
    change_variance_f
        Squared standard error of the mean log change from the lowest to the highest step.
    flat_p_value_f
        Smallest p-value of the t-tests over replicates of the contrasts of the log curve, times the number of
        contrasts (Bonferroni), at most 1.
    """
    n = len(curve_dsf)
    curve_dsf = curve_dsf.astype(np.float64)
    mean_sf = curve_dsf.mean(0)
    variance_sf = curve_dsf.var(0, ddof=1) / n / mean_sf**2
    log_dsf, column_f = np.log(curve_dsf), np.arange(mean_sf.shape[1])
    change_df = log_dsf[:, mean_sf.argmax(0), column_f] - log_dsf[:, mean_sf.argmin(0), column_f]
    change_variance_f = change_df.var(0, ddof=1) / n
    flat_p_value_f = np.ones(mean_sf.shape[1])
    contrast_ks = contrasts(curve_dsf.shape[1], closed)
    if len(contrast_ks) > 0:
        value_dkf = np.einsum("ks,dsf->dkf", contrast_ks, log_dsf)
        tolerance = TOLERANCE**2 if closed else 0.0
        error_kf = np.sqrt(value_dkf.var(0, ddof=1) / n + tolerance + TINY)
        p_value_kf = 2 * student_t.sf(np.abs(value_dkf.mean(0)) / error_kf, n - 1)
        flat_p_value_f = np.minimum(1, len(contrast_ks) * p_value_kf.min(0))
    as_float32 = (part.astype(np.float32) for part in (mean_sf, variance_sf, change_variance_f))
    return (*as_float32, flat_p_value_f)
