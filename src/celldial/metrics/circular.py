"""Numbers on the circle: how well angles agree, whether they keep an order, what they explain. Arrays in, numbers out.

All angles are in radians, and any multiple of 2π may be added to each. Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import issparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["angular_error", "circular_mean", "cyclic_order", "fisher_lee", "fourier_r2"]

TURN = 2 * np.pi
# Below this share of its largest possible value, a sum of squares is rounding and not variation.
ROUNDING = 1e-20


def circular_mean(angle_c: ArrayLike, weight_c: ArrayLike | None = None) -> float:
    """Mean direction: the angle of the sum of the unit vectors [1]_.

    Parameters
    ----------
    angle_c
        Angles in radians, length ``n_cells``.
    weight_c
        Weight of each, not negative; 1 by default.

    Returns
    -------
    float
        In [0, 2π); NaN where the vectors cancel, as those of angles spread evenly do.

    Raises
    ------
    ValueError
        If there are no angles, or some are not finite; if weights are of another length, negative or not finite.

    References
    ----------
    .. [1] Mardia and Jupp (2000), Directional Statistics, Wiley. doi:10.1002/9780470316979

    Examples
    --------
    >>> import celldial as cd
    >>> round(cd.metrics.circular_mean([-0.1, 0.3]), 6)
    0.1
    """
    angle_c = _checked(angle_c, "angle_c")
    if len(angle_c) == 0:
        raise ValueError("`angle_c` is empty: there is nothing to take the mean of.")
    weights_c = np.ones(len(angle_c)) if weight_c is None else np.asarray(weight_c, dtype=np.float64)
    if weights_c.shape != angle_c.shape or not (np.isfinite(weights_c) & (weights_c >= 0)).all():
        raise ValueError(
            f"`weight_c` must be {len(angle_c)} finite numbers, none below 0: one for each angle in `angle_c`."
        )
    vector = complex((weights_c * np.exp(1j * angle_c)).sum())
    if abs(vector) <= 1e-12 * weights_c.sum():
        return float("nan")
    return float(_within_turn(np.angle(vector)))


def fisher_lee(a_c: ArrayLike, b_c: ArrayLike) -> float:
    r"""Circular correlation of two angles of the same cells: the T-linear association of Fisher and Lee [1]_.

    .. math::
        \rho = \frac{\sum_{i<j} \sin(a_i - a_j) \sin(b_i - b_j)}
        {\sqrt{\sum_{i<j} \sin^2(a_i - a_j) \; \sum_{i<j} \sin^2(b_i - b_j)}}

    A rotation of either makes no difference, and a reflection of one turns the sign. It behaves roughly like the square
    of a correlation, and unlike correlations about a mean direction it is stable where cells are spread unevenly. The
    double sum is worked out in time proportional to the number of cells.

    Parameters
    ----------
    a_c, b_c
        Angles in radians, length ``n_cells``.

    Returns
    -------
    float
        Between −1 (``b_c`` is ``a_c`` turned backwards, but for a rotation) and 1 (but for a rotation they are the
        same); near 0 for angles that have nothing to do with each other. NaN where either does not vary (angles that
        are all the same, or opposite).

    Raises
    ------
    ValueError
        If the angles are not finite or not of one length, or if there are fewer than two.

    References
    ----------
    .. [1] Fisher and Lee (1983), A correlation coefficient for circular data, Biometrika 70, 327-332.
       doi:10.1093/biomet/70.2.327

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> angle_c = np.linspace(0, 6, 50)
    >>> round(cd.metrics.fisher_lee(angle_c, angle_c + 1), 6)
    1.0
    >>> round(cd.metrics.fisher_lee(angle_c, -angle_c), 6)
    -1.0
    """
    angles = [_checked(a_c, "a_c"), _checked(b_c, "b_c")]
    _check_same_length(angles, ("a_c", "b_c"))
    if len(angles[0]) < 2:
        raise ValueError(f"`a_c` has {len(angles[0])} angles; at least two are needed.")
    # Turned to where their axis is, the sines of concentrated angles are small, and little is lost by subtraction.
    (cos_a, sin_a), (cos_b, sin_b) = (_components(angle - np.angle(np.exp(2j * angle).sum()) / 2) for angle in angles)
    # sin(x − y) = sin x cos y − cos x sin y: each double sum is a difference of products of sums.
    squared_a = (sin_a @ sin_a) * (cos_a @ cos_a) - (sin_a @ cos_a) ** 2
    squared_b = (sin_b @ sin_b) * (cos_b @ cos_b) - (sin_b @ cos_b) ** 2
    if min(squared_a, squared_b) <= ROUNDING * len(cos_a) ** 2:
        return float("nan")
    crossed = (cos_a @ cos_b) * (sin_a @ sin_b) - (cos_a @ sin_b) * (sin_a @ cos_b)
    return float(np.clip(crossed / np.sqrt(squared_a * squared_b), -1, 1))


def angular_error(predicted_c: ArrayLike, truth_c: ArrayLike, align: bool | Literal["rotation"] = True) -> float:
    """Mean absolute angle between prediction and truth, by default after the best rotation and reflection.

    An angle that is learned without an anchor may start anywhere and turn either way. The rotation that makes the error
    smallest is exact: the error is piecewise linear in it, and smallest where it brings one cell to its true angle (the
    circular median of the differences [1]_).

    Parameters
    ----------
    predicted_c, truth_c
        Angles in radians, length ``n_cells``.
    align
        True: the prediction may be rotated and reflected. ``"rotation"``: only rotated. False: it is taken as it is.

    Returns
    -------
    float
        In radians, from 0 to π/2, or to π without alignment. A random angle is at π/2, or a little below with
        alignment.

    Raises
    ------
    ValueError
        If the angles are not finite or not of one length, if there are none, or if ``align`` is something else.

    References
    ----------
    .. [1] Mardia and Jupp (2000), Directional Statistics, Wiley. doi:10.1002/9780470316979

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> truth_c = np.linspace(0, 6, 50)
    >>> round(cd.metrics.angular_error(1 - truth_c, truth_c), 6)
    0.0
    >>> round(cd.metrics.angular_error(truth_c + 0.1, truth_c, align=False), 6)
    0.1
    """
    if align not in (True, False, "rotation"):
        raise ValueError(f"`align` is {align!r}: it must be True, False or 'rotation'.")
    angles = [_checked(predicted_c, "predicted_c"), _checked(truth_c, "truth_c")]
    _check_same_length(angles, ("predicted_c", "truth_c"))
    predicted, truth = angles
    if len(truth) == 0:
        raise ValueError("`truth_c` is empty: there is nothing to compare.")
    difference_c = predicted - truth
    if align is False:
        return float(np.abs(np.angle(np.exp(1j * difference_c))).mean())
    errors = [_smallest_deviation(difference_c)]
    if align is True:
        errors.append(_smallest_deviation(-predicted - truth))
    return min(errors)


def cyclic_order(
    angle_c: ArrayLike,
    label_c: ArrayLike | pd.Series | pd.Categorical,
    order: Sequence[Any] = ("G1", "S", "G2M"),
) -> float:
    """Whether three groups of cells follow each other round the circle: the share of triples in the right cyclic order.

    Of all triples with one cell of each label, the share whose angles, as they grow, meet the labels in the order
    given, wherever that starts: on the circle what the volume under a three-class ROC surface is on a line [1]_.
    Triples in which two angles are the same count half. All triples are counted, in time proportional to the number of
    cells times its logarithm.

    Parameters
    ----------
    angle_c
        Angles in radians, length ``n_cells``.
    label_c
        Label of each cell; cells of labels that are not in ``order``, or without one, take no part.
    order
        Three labels, in the order in which a growing angle should meet them.

    Returns
    -------
    float
        Between 0 (all triples turn the other way) and 1; .5 is chance. Of an angle whose direction means nothing, take
        the larger of this and 1 less this.

    Raises
    ------
    ValueError
        If the angles are not finite, labels are of another length, ``order`` is not three different labels, or there
        is no cell of one of them.

    References
    ----------
    .. [1] Mossman (1999), Three-way ROCs, Medical Decision Making 19, 78-89. doi:10.1177/0272989X9901900110

    Examples
    --------
    >>> import celldial as cd
    >>> cd.metrics.cyclic_order([6.2, 1.0, 3.0, 4.0], ["G1", "S", "S", "G2M"])
    1.0
    >>> cd.metrics.cyclic_order([6.2, 1.0, 3.0, 4.0], ["G2M", "S", "S", "G1"])
    0.0
    """
    within_c = _within_turn(_checked(angle_c, "angle_c"))
    label = pd.Series(np.asarray(label_c, dtype=object))
    if len(label) != len(within_c):
        raise ValueError(f"`label_c` has {len(label)} entries, `angle_c` has {len(within_c)}: one a cell.")
    if len(order) != 3 or len(set(order)) != 3:
        raise ValueError(f"`order` is {order!r}: it must be three different labels.")
    first, second, third = (np.sort(within_c[(label == name).to_numpy(dtype=bool)]) for name in order)
    for name, group in zip(order, (first, second, third), strict=True):
        if len(group) == 0:
            raise ValueError(
                f"no cell has the label {name!r}; there are: {', '.join(sorted(map(repr, label.dropna().unique())))}."
            )
    forward = _ascending(first, second, third) + _ascending(second, third, first) + _ascending(third, first, second)
    backward = _ascending(third, second, first) + _ascending(second, first, third) + _ascending(first, third, second)
    n_triples = len(first) * len(second) * len(third)
    return (forward + (n_triples - forward - backward) / 2) / n_triples


def fourier_r2(
    values_cf: ArrayLike, angle_c: ArrayLike, n_harmonics: int = 2, *, n_splits: int | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """How much of each feature an angle explains: R² of a least-squares fit of a Fourier series of the angle.

    The series is a constant and, for each harmonic k, cos kθ and sin kθ. It fits any smooth rhythm, wherever its peak,
    so that neither start nor direction of the angle matters [1]_. On features that took part in learning the angle this
    can be gamed: hold them out.

    Parameters
    ----------
    values_cf
        Values of features, shape ``(n_cells, n_features)``, dense or any scipy sparse matrix: log-normalized expression
        of marker genes, for example. One feature may be given as a vector.
    angle_c
        Angle of each cell in radians.
    n_harmonics
        Number of harmonics.
    n_splits
        Number of folds of a cross-validation: the series is fitted to the other folds, and the error of a feature is
        compared with that of its mean over the other folds. By default all cells are fitted, and R² is at least 0 and,
        for an angle that tells nothing, 2 · harmonics / (cells − 1) on average.
    seed
        Of the folds.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_features,)``, at most 1; NaN for features that do not vary.

    Raises
    ------
    ValueError
        If values or angles are not finite or not of one length, if ``n_harmonics`` is below 1, or if there are too few
        cells for the harmonics or folds.

    References
    ----------
    .. [1] Cornelissen (2014), Cosinor-based rhythmometry, Theoretical Biology and Medical Modelling 11, 16.
       doi:10.1186/1742-4682-11-16

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> angle_c = np.linspace(0, 6, 50)
    >>> values_cf = np.stack([np.cos(angle_c - 1), np.sin(3 * angle_c)], axis=1)
    >>> cd.metrics.fourier_r2(values_cf, angle_c, n_harmonics=1).round(2) + 0
    array([1., 0.])
    """
    angle_c = _checked(angle_c, "angle_c")
    n_cells = len(angle_c)
    matrix: Any = values_cf
    values = np.asarray(matrix.toarray() if issparse(matrix) else matrix, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != n_cells:
        raise ValueError(f"`values_cf` has shape {values.shape}, `angle_c` has {n_cells} angles: one row a cell.")
    if not np.isfinite(values).all():
        raise ValueError("`values_cf` has values that are NaN or infinite: leave these cells or features out.")
    if n_harmonics < 1:
        raise ValueError(f"`n_harmonics` is {n_harmonics}; at least 1 is needed.")
    if n_splits is not None and not 2 <= n_splits <= n_cells:
        raise ValueError(f"`n_splits` is {n_splits}; it must be from 2 to the number of cells, {n_cells}.")
    n_fitted = n_cells if n_splits is None else n_cells - -(-n_cells // n_splits)
    if n_fitted < 2 * n_harmonics + 2:
        raise ValueError(
            f"{n_fitted} cells to fit are too few for {n_harmonics} harmonics; {2 * n_harmonics + 2} are needed."
        )
    harmonic = np.arange(1, n_harmonics + 1) * angle_c[:, None]
    series = np.concatenate([np.ones((n_cells, 1)), np.cos(harmonic), np.sin(harmonic)], axis=1)
    every = np.arange(n_cells)
    if n_splits is None:
        folds = [every]
    else:
        folds = np.array_split(np.random.default_rng(seed).permutation(n_cells), n_splits)
    error_f, total_f = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for held in folds:
        fitted = every if n_splits is None else np.setdiff1d(every, held)
        mean_f = values[fitted].mean(axis=0)
        coefficients, *_ = np.linalg.lstsq(series[fitted], values[fitted] - mean_f)
        error_f += ((values[held] - mean_f - series[held] @ coefficients) ** 2).sum(axis=0)
        total_f += ((values[held] - mean_f) ** 2).sum(axis=0)
    varies_f = np.ptp(values, axis=0) > 0
    return np.where(varies_f, 1 - error_f / np.where(varies_f, total_f, 1), np.nan)


# --- Inside -----------------------------------------------------------------------------------------------------------


def _checked(angle: ArrayLike, name: str) -> NDArray[np.float64]:
    """Check angles, and give them as float64."""
    angle_c = np.asarray(angle)
    if angle_c.ndim != 1 or angle_c.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` has shape {angle_c.shape} and dtype {angle_c.dtype}: it must be angles, one a cell."
        )
    bad_c = ~np.isfinite(angle_c)
    if bad_c.any():
        raise ValueError(
            f"`{name}` has NaN or infinite values for {int(bad_c.sum())} of {len(bad_c)} cells, the first in row "
            f"{int(bad_c.argmax())}. Leave these cells out."
        )
    return angle_c.astype(np.float64)


def _check_same_length(angles: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
    if len(angles[0]) != len(angles[1]):
        raise ValueError(
            f"`{names[0]}` has {len(angles[0])} angles, `{names[1]}` has {len(angles[1])}: the same cells, in the same "
            "order."
        )


def _components(angle_c: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.cos(angle_c), np.sin(angle_c)


def _within_turn(angle: Any) -> Any:
    """Bring angles to [0, 2π)."""
    angle = np.mod(angle, TURN)
    return np.where(angle == TURN, 0.0, angle)  # what is just below 0 is rounded up to a whole turn


def _smallest_deviation(difference_c: NDArray[np.float64]) -> float:
    """Mean absolute angle to the direction for which that is smallest, which is one of the angles themselves."""
    sorted_c = np.sort(_within_turn(difference_c))
    n = len(sorted_c)
    twice = np.concatenate([sorted_c, sorted_c + TURN])
    sums = np.concatenate([[0.0], np.cumsum(twice)])
    start = np.arange(n)
    # From each angle on: those less than half a turn ahead, and the rest of the turn, which is nearer behind.
    half = np.searchsorted(twice, sorted_c + np.pi, side="right")
    ahead_c = sums[half] - sums[start] - (half - start) * sorted_c
    behind_c = (start + n - half) * (TURN + sorted_c) - (sums[start + n] - sums[half])
    return float(max(0.0, (ahead_c + behind_c).min() / n))


def _ascending(low: NDArray[np.float64], middle: NDArray[np.float64], high: NDArray[np.float64]) -> int:
    """Count triples, one of each, that ascend strictly; all are sorted."""
    below = np.searchsorted(low, middle, side="left")
    above = len(high) - np.searchsorted(high, middle, side="right")
    return int((below.astype(np.int64) * above).sum())
