"""Fourier features of angles, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fourier_features"]


def fourier_features(angle: NDArray[np.floating], n_harmonics: int) -> NDArray[np.floating[Any]]:
    """Return cosine and sine of each harmonic of angles, shape ``(..., 2 * n_harmonics)``.

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.utils.fourier import fourier_features
    >>> fourier_features(np.array([0.0, np.pi]), 2).round(9) + 0
    array([[ 1.,  0.,  1.,  0.],
           [-1.,  0.,  1.,  0.]])
    """
    harmonics = range(1, n_harmonics + 1)
    return np.stack([wave(harmonic * angle) for harmonic in harmonics for wave in (np.cos, np.sin)], axis=-1)
