"""Bases of continuous covariates: the columns through which the effect of a number is smooth.

Axis suffixes: ``c`` cells, ``k`` columns, ``j`` knots.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from celldial.utils.fourier import fourier_features
from celldial.utils.messages import did_you_mean, format_names
from celldial.utils.validation import check_integer

__all__ = ["Basis", "Fourier", "Spline", "basis_from_dict", "fit_basis", "parse_bases"]

# Knots of a spline: enough for one bend in either direction, and few enough that values between those of the training
# cells are interpolated.
N_KNOTS = 4
N_HARMONICS = 2


class Basis(Protocol):
    """Columns that replace a continuous covariate."""

    @property
    def n_columns(self) -> int:
        """Number of columns."""

    def columns(self, value_c: np.ndarray) -> np.ndarray:
        """Return the columns of values, shape ``(c, k)``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the basis in JSON types."""


@dataclass(frozen=True)
class Spline:
    """A natural cubic spline: cubic between knots, and a straight line beyond the first and the last knot.

    The first column is the standardized value. Each further column is standardized, too, and has no linear part over
    the values that the basis was fitted to.

    Parameters
    ----------
    mean, std
        Mean and standard deviation of the training values.
    knots
        Knots in units of standard deviations from the mean, in ascending order. With two, the spline is a line.
    weights
        For each further column, the weights of the curves of all knots but the last two, and of the constant and the
        value.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.data.basis import Spline
    >>> spline = Spline.fit(np.linspace(0, 10, 50), n_knots=4)
    >>> columns_ck = spline.columns(np.array([0.0, 5.0, 10.0]))
    >>> columns_ck.shape, columns_ck[:, 0].round(2)
    ((3, 3), array([-1.7,  0. ,  1.7]))
    """

    mean: float
    std: float
    knots: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def fit(cls, value_c: np.ndarray, n_knots: int = N_KNOTS) -> Spline:
        """Place the knots at quantiles of the distinct values, and standardize the columns."""
        mean, std = float(value_c.mean()), float(value_c.std())
        std = 1.0 if std == 0 or value_c.min() == value_c.max() else std
        x_c = (value_c - mean) / std
        # Quantiles of distinct values: most cells may have the same value, such as a dose of 0.
        knot_j = np.unique(np.quantile(np.unique(x_c), np.linspace(0, 1, n_knots)))
        curve_ck = _curves(x_c, knot_j)
        if curve_ck.shape[1] == 0:
            return cls(mean, std, tuple(map(float, knot_j)), ())
        line_c2 = np.column_stack([np.ones_like(x_c), x_c])
        # The columns become orthogonal to the line and to each other, so that all start with the same weight.
        all_ck = np.column_stack([curve_ck, line_c2])
        linear_2k = np.linalg.lstsq(line_c2, curve_ck, rcond=None)[0]
        residual_ck = curve_ck - line_c2 @ linear_2k
        _, scale_k, direction_kk = np.linalg.svd(residual_ck / np.sqrt(len(x_c)), full_matrices=False)
        used = scale_k > 1e-6 * max(1.0, float(np.abs(all_ck).max()))
        rotation_kk = (direction_kk[used] / scale_k[used, None]).T
        weight_kk = np.vstack([rotation_kk, -linear_2k @ rotation_kk])
        weight_kk *= np.sign(weight_kk[np.abs(weight_kk[: len(rotation_kk)]).argmax(0), np.arange(weight_kk.shape[1])])
        return cls(mean, std, tuple(map(float, knot_j)), tuple(tuple(map(float, row)) for row in weight_kk.T))

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return 1 + len(self.weights)

    def columns(self, value_c: np.ndarray) -> np.ndarray:
        """Return the columns of values, shape ``(c, k)``."""
        x_c = (value_c - self.mean) / self.std
        if not self.weights:
            return x_c[:, None]
        all_ck = np.column_stack([_curves(x_c, np.array(self.knots)), np.ones_like(x_c), x_c])
        return np.column_stack([x_c, all_ck @ np.array(self.weights).T])

    def to_dict(self) -> dict[str, Any]:
        """Return the basis in JSON types."""
        return {
            "kind": "spline",
            "mean": self.mean,
            "std": self.std,
            "knots": list(self.knots),
            "weights": [list(row) for row in self.weights],
        }


def _curves(x_c: np.ndarray, knot_j: np.ndarray) -> np.ndarray:
    """Return the nonlinear curves of a natural cubic spline, one for each knot but the last two, shape ``(c, k)``."""

    def truncated(first: float) -> np.ndarray:
        above_c = np.maximum(x_c - first, 0) ** 3 - np.maximum(x_c - knot_j[-1], 0) ** 3
        curve_c: np.ndarray = above_c / (knot_j[-1] - first)
        return curve_c

    if len(knot_j) < 3:
        return np.empty((len(x_c), 0))
    last_c = truncated(knot_j[-2])
    return np.column_stack([truncated(knot) - last_c for knot in knot_j[:-2]])


@dataclass(frozen=True)
class Fourier:
    """Cosine and sine of the value, and of its multiples, with a period.

    Parameters
    ----------
    period
        Period, in units of the covariate.
    n_harmonics
        Number of multiples.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.data.basis import Fourier
    >>> Fourier(24.0, 1).columns(np.array([0.0, 6.0, 24.0])).round(2) + 0
    array([[1., 0.],
           [0., 1.],
           [1., 0.]])
    """

    period: float
    n_harmonics: int = N_HARMONICS

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return 2 * self.n_harmonics

    def columns(self, value_c: np.ndarray) -> np.ndarray:
        """Return the columns of values, shape ``(c, k)``."""
        # The remainder first: the cosine of a huge number is not exact.
        return fourier_features(np.remainder(value_c, self.period) * (2 * np.pi / self.period), self.n_harmonics)

    def to_dict(self) -> dict[str, Any]:
        """Return the basis in JSON types."""
        return {"kind": "fourier", "period": self.period, "n_harmonics": self.n_harmonics}


def basis_from_dict(stored: Mapping[str, Any]) -> Basis:
    """Read the result of ``to_dict``, also after it was stored as JSON or in an h5ad file."""
    if stored["kind"] == "fourier":
        return Fourier(float(stored["period"]), int(stored["n_harmonics"]))
    weight_kk = np.asarray(stored["weights"], dtype=float)
    weights = tuple(tuple(map(float, row)) for row in weight_kk) if weight_kk.size else ()
    return Spline(float(stored["mean"]), float(stored["std"]), tuple(map(float, stored["knots"])), weights)


def parse_bases(basis: Any, keys: Collection[str]) -> dict[str, tuple[str, float]]:
    """Check the parameter `basis` of a model.

    Parameters
    ----------
    basis
        Continuous covariate to ``"spline"``, ``("spline", knots)`` or ``("fourier", period)``; None for none.
    keys
        The continuous covariates.

    Returns
    -------
    dict[str, tuple[str, float]]
        Covariate to the kind of the basis, and the number of knots or the period.

    Raises
    ------
    TypeError
        `basis` is not a dict.
    KeyError
        A key is not a continuous covariate.
    ValueError
        The basis of a covariate is invalid.
    """
    if basis is None:
        return {}
    if not isinstance(basis, Mapping):
        raise TypeError(f"basis is {basis!r}: it must be a dict of continuous covariates, such as {{'time': 'spline'}}")
    parsed: dict[str, tuple[str, float]] = {}
    for key, value in basis.items():
        if key not in keys:
            raise KeyError(
                f"basis has the key {key!r}, which is not in continuous_covariate_keys{did_you_mean(key, keys)}: "
                f"{format_names(keys)}"
            )
        kind, *numbers = [value] if isinstance(value, str) else list(value) if np.iterable(value) else [value]
        if kind == "spline" and len(numbers) < 2:
            n_knots = numbers[0] if numbers else N_KNOTS
            check_integer(f"the number of knots of {key!r}", n_knots, 2)
            parsed[key] = ("spline", int(n_knots))
        elif kind == "fourier" and len(numbers) == 1 and _is_positive(numbers[0]):
            parsed[key] = ("fourier", float(numbers[0]))
        else:
            raise ValueError(
                f"basis of {key!r} is {value!r}: choose 'spline', ('spline', number of knots), or ('fourier', period) "
                "with the period in units of the covariate, such as ('fourier', 24)"
            )
    return parsed


def _is_positive(value: Any) -> bool:
    return isinstance(value, float | int | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)


def fit_basis(kind: str, number: float, value_c: np.ndarray) -> Basis:
    """Return the basis that `parse_bases` describes, for the values of the training cells."""
    return Spline.fit(value_c, int(number)) if kind == "spline" else Fourier(number)
