"""Metrics of angles: circular correlation, angular error, cyclic order, explained variance. Arrays in, numbers out.

All angles are in radians. Multiples of 2π make no difference. Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["angular_error", "circular_mean", "cyclic_order", "fisher_lee", "fourier_r2"]

TWO_PI = 2 * np.pi
# A sum of squares below this share of its largest possible value is a rounding error: the angles do not vary.
RELATIVE_TOLERANCE = 1e-20


def circular_mean(angle_c: ArrayLike, weight_c: ArrayLike | None = None) -> float:
    """Return the mean direction: the angle of the sum of the unit vectors [1]_.

    Parameters
    ----------
    angle_c
        Angles in radians, length ``n_cells``.
    weight_c
        Weight of each angle, at least 0. By default all weights are 1.

    Returns
    -------
    float
        Mean angle in [0, 2π). NaN if the vectors cancel, as they do for evenly spread angles.

    Raises
    ------
    ValueError
        If there are no angles, if an angle is not finite, or if the weights have another length, are negative or are
        not finite.

    References
    ----------
    .. [1] Mardia and Jupp (2000), Directional Statistics, Wiley. doi:10.1002/9780470316979

    Examples
    --------
    >>> import celldial as cd
    >>> round(cd.metrics.circular_mean([-0.1, 0.3]), 6)
    0.1
    """
    angle_c = _validate_angles(angle_c, "angle_c")
    if len(angle_c) == 0:
        raise ValueError("`angle_c` is empty; at least 1 angle is needed.")
    weights_c = np.ones(len(angle_c)) if weight_c is None else np.asarray(weight_c, dtype=np.float64)
    if weights_c.shape != angle_c.shape or not (np.isfinite(weights_c) & (weights_c >= 0)).all():
        raise ValueError(
            f"`weight_c` must hold {len(angle_c)} finite numbers of at least 0, one for each angle in `angle_c`."
        )
    vector = complex((weights_c * np.exp(1j * angle_c)).sum())
    if abs(vector) <= 1e-12 * weights_c.sum():
        return float("nan")
    return float(_wrap_angle(np.angle(vector)))


def fisher_lee(a_c: ArrayLike, b_c: ArrayLike) -> float:
    r"""Return the circular correlation of two angles of the same cells: Fisher and Lee's T-linear association [1]_.

    .. math::
        \rho = \frac{\sum_{i<j} \sin(a_i - a_j) \sin(b_i - b_j)}
        {\sqrt{\sum_{i<j} \sin^2(a_i - a_j) \; \sum_{i<j} \sin^2(b_i - b_j)}}

    Rotating either angle does not change the result. Reflecting one of them changes its sign. The value behaves roughly
    like the square of a correlation. Unlike correlations about a mean direction, it is stable if cells are spread
    unevenly over the circle. The double sum is computed in time proportional to the number of cells.

    Parameters
    ----------
    a_c, b_c
        Angles in radians, length ``n_cells``.

    Returns
    -------
    float
        From −1 (``b_c`` is ``a_c`` reflected and rotated) to 1 (``b_c`` is ``a_c`` rotated). Unrelated angles score
        close to 0. NaN if one of the two does not vary, that is, if all its angles are equal or opposite.

    Raises
    ------
    ValueError
        If an angle is not finite, if the lengths differ, or if there are fewer than two cells.

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
    angles = [_validate_angles(a_c, "a_c"), _validate_angles(b_c, "b_c")]
    _check_same_length(angles, ("a_c", "b_c"))
    if len(angles[0]) < 2:
        raise ValueError(f"`a_c` has {len(angles[0])} angles; at least 2 are needed.")
    # Rotating the angles to their main axis makes the sines of concentrated angles small. The differences below then
    # lose few digits.
    (cos_a, sin_a), (cos_b, sin_b) = (_cos_sin(angle - np.angle(np.exp(2j * angle).sum()) / 2) for angle in angles)
    # Because sin(x − y) = sin x cos y − cos x sin y, each double sum is a difference of products of single sums.
    squared_a = (sin_a @ sin_a) * (cos_a @ cos_a) - (sin_a @ cos_a) ** 2
    squared_b = (sin_b @ sin_b) * (cos_b @ cos_b) - (sin_b @ cos_b) ** 2
    if min(squared_a, squared_b) <= RELATIVE_TOLERANCE * len(cos_a) ** 2:
        return float("nan")
    crossed = (cos_a @ cos_b) * (sin_a @ sin_b) - (cos_a @ sin_b) * (sin_a @ cos_b)
    return float(np.clip(crossed / np.sqrt(squared_a * squared_b), -1, 1))


def angular_error(predicted_c: ArrayLike, truth_c: ArrayLike, align: bool = True, reflect: bool = False) -> float:
    """Return the mean absolute angular error, by default after the best rotation.

    Angles that are inferred without markers have an arbitrary origin, so the prediction is aligned to the truth first.
    Their direction is arbitrary, too, but a mirrored circle is wrong unless `reflect` allows it. The best rotation is
    exact: the error is piecewise linear in the rotation, and its minimum brings one cell to its true angle (the
    circular median of the differences [1]_).

    Parameters
    ----------
    predicted_c, truth_c
        Angles in radians, length ``n_cells``.
    align
        Whether to rotate the prediction first.
    reflect
        Whether to reflect the prediction if that makes the error smaller. Needs `align`.

    Returns
    -------
    float
        Mean error in radians, from 0 to π/2, or from 0 to π without alignment. Random angles score π/2, or slightly
        less with alignment.

    Raises
    ------
    ValueError
        If an angle is not finite, if the lengths differ, if there are no angles, or if ``reflect`` is True and
        ``align`` is False.
    TypeError
        If ``align`` or ``reflect`` is not a bool.

    References
    ----------
    .. [1] Mardia and Jupp (2000), Directional Statistics, Wiley. doi:10.1002/9780470316979

    Examples
    --------
    >>> import numpy as np
    >>> import celldial as cd
    >>> truth_c = np.linspace(0, 6, 50)
    >>> round(cd.metrics.angular_error(1 + truth_c, truth_c), 6)
    0.0
    >>> round(cd.metrics.angular_error(1 - truth_c, truth_c, reflect=True), 6)
    0.0
    >>> round(cd.metrics.angular_error(truth_c + 0.1, truth_c, align=False), 6)
    0.1
    """
    for name, value in {"align": align, "reflect": reflect}.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"`{name}` is {value!r}: it must be True or False.")
    if reflect and not align:
        raise ValueError("`reflect` is True, but `align` is False: reflection needs a rotation as well.")
    angles = [_validate_angles(predicted_c, "predicted_c"), _validate_angles(truth_c, "truth_c")]
    _check_same_length(angles, ("predicted_c", "truth_c"))
    predicted, truth = angles
    if len(truth) == 0:
        raise ValueError("`truth_c` is empty; at least 1 angle is needed.")
    difference_c = predicted - truth
    if not align:
        return float(np.abs(np.angle(np.exp(1j * difference_c))).mean())
    errors = [_smallest_mean_deviation(difference_c)]
    if reflect:
        errors.append(_smallest_mean_deviation(-predicted - truth))
    return min(errors)


def cyclic_order(
    angle_c: ArrayLike,
    label_c: ArrayLike | pd.Series | pd.Categorical,
    order: Sequence[Any] = ("G1", "S", "G2M"),
) -> float:
    """Return the share of cell triples whose three labels are in the expected cyclic order.

    A triple has one cell of each label. It counts as correct if increasing angles pass the labels in the given order,
    from any starting point. On a line, the corresponding measure is the volume under a three-class ROC surface [1]_.
    Triples with two equal angles count half. All triples are counted, in O(n log n) time for n cells.

    Parameters
    ----------
    angle_c
        Angles in radians, length ``n_cells``.
    label_c
        Label of each cell. Cells with other labels, or without a label, are ignored.
    order
        Three labels, in the order in which increasing angles should pass them.

    Returns
    -------
    float
        From 0 (all triples are in the reverse order) to 1 (all are in the given order). Chance is 0.5. If the
        direction of the angle is arbitrary, use ``max(share, 1 - share)``.

    Raises
    ------
    ValueError
        If an angle is not finite, if the labels have another length, if ``order`` is not three different labels, or if
        no cell has one of them.

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
    wrapped_c = _wrap_angle(_validate_angles(angle_c, "angle_c"))
    label = pd.Series(np.asarray(label_c, dtype=object))
    if len(label) != len(wrapped_c):
        raise ValueError(f"`label_c` has {len(label)} entries, but `angle_c` has {len(wrapped_c)}: one for each cell.")
    if len(order) != 3 or len(set(order)) != 3:
        raise ValueError(f"`order` is {order!r}; it must hold three different labels.")
    first, second, third = (np.sort(wrapped_c[(label == name).to_numpy(dtype=bool)]) for name in order)
    for name, group in zip(order, (first, second, third), strict=True):
        if len(group) == 0:
            raise ValueError(
                f"No cell has the label {name!r}. Labels of the cells: "
                f"{', '.join(sorted(map(repr, label.dropna().unique())))}."
            )
    forward = (
        _count_ascending_triples(first, second, third)
        + _count_ascending_triples(second, third, first)
        + _count_ascending_triples(third, first, second)
    )
    backward = (
        _count_ascending_triples(third, second, first)
        + _count_ascending_triples(second, first, third)
        + _count_ascending_triples(first, third, second)
    )
    n_triples = len(first) * len(second) * len(third)
    return (forward + (n_triples - forward - backward) / 2) / n_triples


def fourier_r2(
    values_cf: ArrayLike, angle_c: ArrayLike, n_harmonics: int = 2, *, n_splits: int | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Return how much variance of each feature an angle explains: R² of a least-squares Fourier series of the angle.

    The series consists of a constant and, for each harmonic k, cos kθ and sin kθ. It fits any smooth periodic curve,
    wherever it peaks, so the origin and direction of the angle do not matter [1]_. Features that were used to infer the
    angle score too high. Evaluate held-out features.

    Parameters
    ----------
    values_cf
        Values of the features, shape ``(n_cells, n_features)``, dense or any scipy sparse matrix. For example,
        log-normalized expression of marker genes. A single feature may be a vector.
    angle_c
        Angle of each cell in radians.
    n_harmonics
        Number of harmonics.
    n_splits
        Number of cross-validation folds. The series is fitted to the other folds, and its squared error is compared
        with that of the feature's mean over the other folds. By default the series is fitted to all cells; R² is then
        at least 0, and 2 · harmonics / (cells − 1) on average for an uninformative angle.
    seed
        Random seed of the folds.

    Returns
    -------
    numpy.ndarray
        R² of each feature, shape ``(n_features,)``, at most 1. NaN for constant features.

    Raises
    ------
    ValueError
        If a value or an angle is not finite, if their numbers of cells differ, if ``n_harmonics`` is below 1, or if
        there are too few cells for the harmonics or folds.

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
    angle_c = _validate_angles(angle_c, "angle_c")
    n_cells = len(angle_c)
    matrix: Any = values_cf
    values = np.asarray(matrix.toarray() if issparse(matrix) else matrix, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != n_cells:
        raise ValueError(f"`values_cf` has shape {values.shape}, but `angle_c` has {n_cells} angles: one for each row.")
    if not np.isfinite(values).all():
        raise ValueError("`values_cf` contains NaN or infinite values. Remove these cells or features.")
    if n_harmonics < 1:
        raise ValueError(f"`n_harmonics` is {n_harmonics}; at least 1 is needed.")
    if n_splits is not None and not 2 <= n_splits <= n_cells:
        raise ValueError(f"`n_splits` is {n_splits}; it must be from 2 to the number of cells, {n_cells}.")
    n_fitted = n_cells if n_splits is None else n_cells - -(-n_cells // n_splits)
    if n_fitted < 2 * n_harmonics + 2:
        raise ValueError(
            f"Only {n_fitted} cells are left to fit {n_harmonics} harmonics; {2 * n_harmonics + 2} are needed."
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


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _validate_angles(angle: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return angles as float64, or raise if they are not a vector of finite numbers."""
    angle_c = np.asarray(angle)
    if angle_c.ndim != 1 or angle_c.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` has shape {angle_c.shape} and dtype {angle_c.dtype}; it must hold one angle for each cell."
        )
    bad_c = ~np.isfinite(angle_c)
    if bad_c.any():
        raise ValueError(
            f"`{name}` has NaN or infinite values for {int(bad_c.sum())} of {len(bad_c)} cells, the first in row "
            f"{int(bad_c.argmax())}. Remove these cells."
        )
    return angle_c.astype(np.float64)


def _check_same_length(angles: Sequence[NDArray[np.float64]], names: Sequence[str]) -> None:
    if len(angles[0]) != len(angles[1]):
        raise ValueError(
            f"`{names[0]}` has {len(angles[0])} angles, but `{names[1]}` has {len(angles[1])}: both must hold the same "
            "cells in the same order."
        )


def _cos_sin(angle_c: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.cos(angle_c), np.sin(angle_c)


def _wrap_angle(angle: Any) -> Any:
    """Return angles wrapped to [0, 2π)."""
    angle = np.mod(angle, TWO_PI)
    return np.where(angle == TWO_PI, 0.0, angle)  # np.mod rounds tiny negative angles up to 2π


def _smallest_mean_deviation(difference_c: NDArray[np.float64]) -> float:
    """Return the mean absolute angle to the circular median, which is one of the angles."""
    sorted_c = np.sort(_wrap_angle(difference_c))
    n = len(sorted_c)
    two_turns = np.concatenate([sorted_c, sorted_c + TWO_PI])
    sums = np.concatenate([[0.0], np.cumsum(two_turns)])
    start = np.arange(n)
    # Seen from each angle, the angles up to half a turn ahead are closer forward, and the others are closer backward.
    half = np.searchsorted(two_turns, sorted_c + np.pi, side="right")
    forward_c = sums[half] - sums[start] - (half - start) * sorted_c
    backward_c = (start + n - half) * (TWO_PI + sorted_c) - (sums[start + n] - sums[half])
    return float(max(0.0, (forward_c + backward_c).min() / n))


def _count_ascending_triples(low: NDArray[np.float64], middle: NDArray[np.float64], high: NDArray[np.float64]) -> int:
    """Return the number of strictly ascending triples with one element of each sorted array."""
    below = np.searchsorted(low, middle, side="left")
    above = len(high) - np.searchsorted(high, middle, side="right")
    return int((below.astype(np.int64) * above).sum())
