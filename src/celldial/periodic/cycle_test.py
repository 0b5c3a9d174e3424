"""Test of whether there is a periodic process, by the peaks of held-out genes.

Angles can be fit to any cells. Without the process, they follow noise or differences between cell types. The test
therefore infers angles from one half of the markers, and compares the peaks of all other genes with their reference.
Without the process, the references of these genes can be exchanged.

Arrays in, arrays out. Axis suffixes: ``c`` cells, ``f`` features, ``g`` genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from celldial.periodic.direction import GenePeaks, estimate_peaks
from celldial.periodic.initial_angles import MAX_FIT_CELLS, angles_from_markers
from celldial.periodic.markers import PeriodicProcess

__all__ = ["MAX_P_VALUE", "CycleTest", "assess_process", "permutation_test"]

Array = NDArray[np.floating]
Columns = NDArray[np.int64]

MAX_P_VALUE = 0.01
"""Above this p-value, there is no evidence for the process."""

N_PERMUTATIONS = 1_999

MIN_GENES = 20
"""With fewer genes in a half, exchanging references cannot give a small p-value, and there is no test."""

SATURATION = 10.0
"""Information about the angle, in nats, at which a gene has half of the largest weight."""


@dataclass(frozen=True)
class CycleTest:
    """Result of the test.

    Parameters
    ----------
    statistic
        Agreement of held-out genes with their reference, from 0 to 1.
    p_value
        Probability of at least this agreement without the process; NaN if there are too few genes to test.
    """

    statistic: float
    p_value: float

    @property
    def is_rejected(self) -> bool:
        """Whether there is no evidence for the process, although there are enough genes to test."""
        return self.p_value > MAX_P_VALUE


def assess_process(
    logged_cf: sparse.csr_matrix,
    group_c: NDArray[np.integer],
    markers: Mapping[str, Columns],
    reference: tuple[Columns, Array],
    process: PeriodicProcess,
) -> CycleTest:
    """Test whether the genes of a process follow a common angle in their known order.

    Parameters
    ----------
    logged_cf
        Log-normalized expression of the cells that have the modality.
    group_c
        Codes of groups of cells, such as batches, whose differences are removed.
    markers
        Phase to the columns of its markers.
    reference
        Columns of the genes whose peak is known, and the angles at which they should peak.
    process
        The periodic process.
    """
    sample_c = np.unique(np.linspace(0, logged_cf.shape[0] - 1, MAX_FIT_CELLS).astype(int))
    sample_cf = logged_cf[sample_c]
    code_c: NDArray[np.integer] = np.unique(group_c[sample_c], return_inverse=True)[1]
    parts = []
    for half in (0, 1):
        own = {phase: column_f[half::2] for phase, column_f in markers.items()}
        used_f = np.concatenate(list(own.values()))
        held_g = ~np.isin(reference[0], used_f)
        if held_g.sum() < MIN_GENES or any(len(column_f) < 2 for column_f in own.values()):
            return CycleTest(np.nan, np.nan)
        estimate = angles_from_markers(sample_cf[:, used_f], own, process)
        held_cg = sample_cf[:, reference[0][held_g]].toarray()
        parts.append(
            estimate_peaks(held_cg, reference[1][held_g], estimate.angle_c, estimate.resultant_length_c, code_c)
        )
    return permutation_test(parts)


def permutation_test(parts: list[GenePeaks], seed: int = 0) -> CycleTest:
    """Test by permutation whether peaks follow their references, up to rotation and reflection of each part."""
    random = np.random.default_rng(seed)
    observed, permuted_n = 0.0, np.zeros(N_PERMUTATIONS)
    for part in parts:
        weight_g = part.information_g / (part.information_g + SATURATION)
        reference_g = np.exp(-1j * part.reference_g)
        order_ng = np.argsort(random.random((N_PERMUTATIONS, len(weight_g))), axis=1)
        observed += float(_alignment(part.peak_g, weight_g, reference_g[None])[0]) / len(parts)
        permuted_n += _alignment(part.peak_g, weight_g, reference_g[order_ng]) / len(parts)
    return CycleTest(observed, float((1 + (permuted_n >= observed).sum()) / (1 + N_PERMUTATIONS)))


def _alignment(peak_g: Array, weight_g: Array, reference_ng: NDArray[np.complexfloating]) -> Array:
    """Return the mean resultant length of peaks minus references in the better direction, for each permutation.

    References are points on the unit circle, with the sign of the angle changed.
    """
    turned = (reference_ng @ (weight_g * np.exp(sign * 1j * peak_g)) for sign in (1, -1))
    length_n: Array = np.maximum(*map(np.abs, turned)) / max(weight_g.sum(), 1e-9)
    return length_n
