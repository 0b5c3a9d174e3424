"""Paths through latent space, and summaries of the curves along them: arrays in, arrays out.

Axis suffixes: ``c`` cells (or posterior samples of them), ``f`` features, ``s`` steps, ``z`` columns of the latent
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import false_discovery_control

__all__ = [
    "INTERVAL",
    "Traversal",
    "along_coordinate",
    "along_direction",
    "around_circle",
    "between",
    "evenly_spaced",
    "optimal_pairs",
]

INTERVAL = 0.9
# Half the width of a normal distribution's central 90 %, in standard deviations.
HALF_WIDTH = 1.6448536


# --- Paths ------------------------------------------------------------------------------------------------------------


def evenly_spaced(value_c: np.ndarray, span: tuple[float, float], n_steps: int) -> np.ndarray:
    """Return evenly spaced steps between two quantiles of the cells, shape ``(s,)``."""
    low, high = np.quantile(value_c, span)
    return np.linspace(low, high, n_steps)


def along_coordinate(state_cz: np.ndarray, coordinate: int, position_s: np.ndarray) -> np.ndarray:
    """Set one coordinate of every cell to each position, shape ``(s, c, z)``."""
    state_scz = np.repeat(state_cz[None], len(position_s), axis=0)
    state_scz[:, :, coordinate] = position_s[:, None]
    return state_scz


def along_direction(
    state_cz: np.ndarray, origin_z: np.ndarray, weight_z: np.ndarray, direction_z: np.ndarray, position_s: np.ndarray
) -> np.ndarray:
    """Move every cell along a direction until its score equals each position, shape ``(s, c, z)``.

    Parameters
    ----------
    state_cz
        Latent states. Columns beyond those of the direction stay unchanged.
    origin_z, weight_z
        The score of a cell is (state − origin) · weight.
    direction_z
        Direction of the movement.
    position_s
        Target scores.
    """
    n_columns = len(direction_z)
    score_c = (state_cz[:, :n_columns] - origin_z) @ weight_z
    shift_sc = (position_s[:, None] - score_c) / (weight_z @ direction_z)
    state_scz = np.repeat(state_cz[None], len(position_s), axis=0)
    state_scz[:, :, :n_columns] += (shift_sc[:, :, None] * direction_z).astype(state_cz.dtype)
    return state_scz


def around_circle(state_cz: np.ndarray, angle_s: np.ndarray) -> np.ndarray:
    """Set every cell, fully active, to each angle: its last two columns become cosine and sine; ``(s, c, z)``."""
    state_scz = np.repeat(state_cz[None], len(angle_s), axis=0)
    state_scz[:, :, -2:] = np.stack([np.cos(angle_s), np.sin(angle_s)], -1)[:, None]
    return state_scz


def between(from_cz: np.ndarray, to_cz: np.ndarray, position_s: np.ndarray) -> np.ndarray:
    """Move every cell in a straight line from one state, at 0, to another, at 1; shape ``(s, c, z)``."""
    position_s11 = position_s[:, None, None].astype(from_cz.dtype)
    return (1 - position_s11) * from_cz + position_s11 * to_cz


def optimal_pairs(from_cz: np.ndarray, to_cz: np.ndarray) -> np.ndarray:
    """Pair the cells of two groups of equal size so that the sum of squared distances is minimal.

    Straight movement between such pairs is the displacement interpolation between the two distributions [1]_. On the
    way the cells stay as different from each other as the cells of a group are, unlike a path between group means.

    Returns
    -------
    numpy.ndarray
        Position of the partner in the second group for each cell of the first.

    References
    ----------
    .. [1] McCann (1997), A convexity principle for interacting gases, doi:10.1006/aima.1997.1634.
    """
    distance_cc = ((from_cz[:, None] - to_cz[None]) ** 2).sum(-1)
    partner_c: np.ndarray = linear_sum_assignment(distance_cc)[1]
    return partner_c


# --- Curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traversal:
    """Population means along a path, with their posterior variance.

    Parameters
    ----------
    mean_sf
        Mean expected values, above 0.
    variance_sf
        Posterior variance of their natural logarithms.
    change_variance_f
        Posterior variance of the log change from the lowest to the highest step.
    upper_bound_f
        Largest possible expected value: 1 for probabilities, otherwise infinite.
    flat_p_value_f
        P-value of the hypothesis that the curve is flat; see `celldial.tl.flat_curves`.
    closed
        Whether the path ends where it starts.
    half_width
        Half the width of the interval, in standard deviations.
    """

    mean_sf: np.ndarray
    variance_sf: np.ndarray
    change_variance_f: np.ndarray
    upper_bound_f: np.ndarray
    flat_p_value_f: np.ndarray
    closed: bool = False
    half_width: float = HALF_WIDTH

    @property
    def lower_sf(self) -> np.ndarray:
        """Lower end of the 90 % credible interval."""
        return self.mean_sf * np.exp(-self.half_width * np.sqrt(self.variance_sf))

    @property
    def upper_sf(self) -> np.ndarray:
        """Upper end of the 90 % credible interval."""
        return np.minimum(self.mean_sf * np.exp(self.half_width * np.sqrt(self.variance_sf)), self.upper_bound_f)

    @property
    def log2_fold_change_sf(self) -> np.ndarray:
        """Log2 fold change of the mean against the first step."""
        change_sf: np.ndarray = np.log2(self.mean_sf / self.mean_sf[0])
        return change_sf

    @property
    def change_f(self) -> np.ndarray:
        """Log2 fold change of the last step against the first; 0 on a closed path."""
        return np.zeros_like(self.mean_sf[0]) if self.closed else self.log2_fold_change_sf[-1]

    @property
    def effect_size_f(self) -> np.ndarray:
        """Log2 fold change of the highest step against the lowest."""
        effect_f: np.ndarray = np.log2(self.mean_sf.max(0) / self.mean_sf.min(0))
        return effect_f

    @property
    def peak_step_f(self) -> np.ndarray:
        """Step with the highest mean."""
        return self.mean_sf.argmax(0)

    @property
    def lfsr_f(self) -> np.ndarray:
        """Local false sign rate [1]_: half the p-value of a flat curve.

        For a path of two steps, this is the posterior probability that the change has the other sign.

        References
        ----------
        .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
        """
        return self.flat_p_value_f / 2

    @property
    def fdr_f(self) -> np.ndarray:
        """False discovery rate among this feature and all features with a smaller lfsr.

        On an open path, it is the mean lfsr of these features: the expected share of false signs [1]_. A closed path
        has no sign, and most features do not change along it, so flat curves are counted as false [2]_.

        References
        ----------
        .. [1] Stephens (2017), False discovery rates: a new deal, doi:10.1093/biostatistics/kxw041.
        .. [2] Benjamini and Hochberg (1995), Controlling the false discovery rate,
           doi:10.1111/j.2517-6161.1995.tb02031.x.
        """
        fdr_f: np.ndarray = false_discovery_control(self.flat_p_value_f) if self.closed else s_value(self.lfsr_f)
        return fdr_f

    def score_f(self, modality_f: np.ndarray) -> np.ndarray:
        """Return the smallest credible change of each feature, to rank the features by.

        This is the lower end of the 90 % credible interval of log2((highest + a) / (lowest + a)), where a is the mean
        over all features of the modality. The constant keeps rare features with a large fold change from ranking high.
        """
        low_f, high_f = (end.astype(float) for end in (self.mean_sf.min(0), self.mean_sf.max(0)))
        score_f = np.empty_like(low_f)
        for modality in np.unique(modality_f):
            here = modality_f == modality
            a = self.mean_sf[:, here].mean(dtype=float)
            low, high = low_f[here], high_f[here]
            # Upper bound of the derivative of the moderated change by the log change.
            share = high / (high + a)
            width = self.half_width * np.sqrt(self.change_variance_f[here]) * share / np.log(2)
            score_f[here] = np.log2((high + a) / (low + a)) - width
        return score_f


def s_value(lfsr_f: np.ndarray) -> np.ndarray:
    """Return the mean local false sign rate of each feature and all features with a smaller one."""
    order_f = np.argsort(lfsr_f, kind="stable")
    s_value_f = np.empty_like(lfsr_f, dtype=float)
    s_value_f[order_f] = np.cumsum(lfsr_f[order_f]) / np.arange(1, len(lfsr_f) + 1)
    return s_value_f


def ranks(score_f: np.ndarray) -> np.ndarray:
    """Return the rank of each score: 0 is the highest; among equal scores the first."""
    rank_f = np.empty(len(score_f), dtype=np.int64)
    rank_f[np.argsort(-score_f, kind="stable")] = np.arange(len(score_f))
    return rank_f


def concat_modalities(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Concatenate arrays of several modalities along the features, their last axis."""
    return [np.concatenate(arrays, -1) for arrays in zip(*parts, strict=True)]
