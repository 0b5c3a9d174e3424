"""Directions in latent space and what happens along them: numbers in, numbers out.

Axis suffixes: ``c`` cells, ``f`` features, ``s`` steps, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Traversal", "coordinate_path", "traverse"]

BAND = (0.05, 0.95)


@dataclass(frozen=True)
class Traversal:
    """Expected expression along a path: the mean over cells, and the band that 90 % of the cells are in."""

    position_s: np.ndarray
    mean_sf: np.ndarray
    lower_sf: np.ndarray
    upper_sf: np.ndarray

    @property
    def log2_fold_change_sf(self) -> np.ndarray:
        """Mean against that of the first step."""
        change_sf: np.ndarray = np.log2(self.mean_sf / self.mean_sf[0])
        return change_sf

    @property
    def effect_size_f(self) -> np.ndarray:
        """Largest less smallest log2 fold change of each feature."""
        return np.ptp(self.log2_fold_change_sf, axis=0)


def coordinate_path(mu_cz: np.ndarray, coordinate: int, span: tuple[float, float], n_steps: int) -> np.ndarray:
    """Space the steps evenly between two quantiles of the cells on one coordinate, shape ``(s,)``."""
    low, high = np.quantile(mu_cz[:, coordinate], span)
    return np.linspace(low, high, n_steps)


def traverse(
    z_cz: np.ndarray, coordinate: int, position_s: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]
) -> Traversal:
    """Set one coordinate of every cell to each position in turn, and decode.

    Parameters
    ----------
    z_cz
        Latent states: draws from the posterior of the cells, so that the band shows both how cells differ and how
        sure the model is of each.
    coordinate
        The one to turn.
    position_s
        Its values.
    decode
        From latent states ``(c, z)`` to expected expression ``(c, f)``.
    """
    steps = []
    for position in position_s:
        turned_cz = z_cz.copy()
        turned_cz[:, coordinate] = position
        expression_cf = decode(turned_cz)
        steps.append((expression_cf.mean(0), *np.quantile(expression_cf, BAND, axis=0)))
    mean_sf, lower_sf, upper_sf = (np.stack(part) for part in zip(*steps, strict=True))
    return Traversal(position_s, mean_sf, lower_sf, upper_sf)
