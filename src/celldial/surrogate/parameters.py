r"""The parameters of a simulator: their ranges, and coordinates in which they are normally distributed.

A value is :math:`a + (b - a) \Phi(u)`, with the range from a to b and the standard normal distribution function Φ. A
uniform distribution over the range is a standard normal distribution of the coordinate u.

Axis suffixes: ``k`` parameters, ``s`` settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from celldial.data.covariates import to_float
from celldial.utils.messages import did_you_mean, format_names

__all__ = ["ParameterSpace"]

# Values at the ends of a range are infinite as normal coordinates.
MAX_COORDINATE = 4.0


@dataclass(frozen=True)
class ParameterSpace:
    """The parameters with their ranges.

    Parameters
    ----------
    ranges
        Parameter to its lowest and highest value.
    """

    ranges: dict[str, tuple[float, float]]

    @classmethod
    def of_table(cls, settings: Any) -> ParameterSpace:
        """Return the parameters of a table of settings, with the ranges of its columns."""
        if not isinstance(settings, pd.DataFrame):
            raise TypeError(
                f"parameters must be a DataFrame with a row for each setting, not {type(settings).__name__}"
            )
        if settings.shape[1] == 0 or len(settings) < 2:
            raise ValueError(
                f"parameters has {len(settings)} rows and {settings.shape[1]} columns: pass a column for each "
                "parameter, and two settings or more"
            )
        ranges = {}
        for key in settings.columns:
            value_s = to_float(settings[key], str(key))
            ranges[str(key)] = float(value_s.min()), float(value_s.max())
            if value_s.min() == value_s.max():
                raise ValueError(
                    f"parameter {key!r} is {value_s.min():g} in all {len(value_s)} settings: vary it, or make it a "
                    "constant of the simulator"
                )
        return cls(ranges)

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return list(self.ranges)

    def read(self, parameters: Mapping[str, Any]) -> Tensor:
        """Return the values of a setting in the order of the names; raise if one is missing or unknown."""
        if not isinstance(parameters, Mapping):
            raise TypeError(
                f"parameters is {type(parameters).__name__}: it must be a dict with a value for each of "
                f"{format_names(self.ranges)}"
            )
        known = format_names(self.ranges)
        for key in parameters:
            if key not in self.ranges:
                raise KeyError(f"there is no parameter {key!r}{did_you_mean(key, self.ranges)}: {known}")
        for key in self.ranges:
            if key not in parameters:
                raise KeyError(f"parameter {key!r} is missing: pass a value for each of {known}")
            if not math.isfinite(float(parameters[key])):
                raise ValueError(f"parameter {key!r} is {parameters[key]}: it must be a finite number")
        return torch.tensor([float(parameters[key]) for key in self.ranges], dtype=torch.float64)

    def read_table(self, settings: pd.DataFrame) -> Tensor:
        """Return the values of several settings, shape ``(s, k)``."""
        return torch.stack(
            [self.read({str(key): value for key, value in row.items()}) for _, row in settings.iterrows()]
        )

    def outside(self, value_k: Tensor) -> list[str]:
        """Return the parameters whose value is outside their range."""
        pairs = zip(self.ranges.items(), value_k.tolist(), strict=True)
        return [key for (key, (low, high)), value in pairs if not low <= value <= high]

    def to_value(self, coordinate: Tensor) -> Tensor:
        """Return values from normal coordinates, shape ``(..., k)``."""
        low_k, high_k = self._bounds()
        return low_k + (high_k - low_k) * 0.5 * (1 + torch.erf(coordinate / math.sqrt(2)))

    def to_coordinate(self, value: Tensor) -> Tensor:
        """Return normal coordinates of values, shape ``(..., k)``."""
        coordinate: Tensor = torch.erfinv(self.scaled(value).clamp(-1, 1)) * math.sqrt(2)
        return coordinate.clamp(-MAX_COORDINATE, MAX_COORDINATE)

    def scaled(self, value: Tensor) -> Tensor:
        """Return values scaled to the range from -1 to 1, shape ``(..., k)``."""
        low_k, high_k = self._bounds()
        return 2 * (value - low_k) / (high_k - low_k) - 1

    def _bounds(self) -> tuple[Tensor, Tensor]:
        low_k, high_k = torch.from_numpy(np.array(list(self.ranges.values()))).T
        return low_k, high_k
