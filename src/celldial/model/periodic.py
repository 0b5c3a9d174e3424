"""The periodic coordinate: a circle with dormancy, and Fourier features of its angle."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from celldial.model.distributions import ActivityGate, PowerSpherical


class Circle(nn.Module):
    r"""A coordinate that lives on a circle, and whether a cell is on it at all.

    A cell is *active* (it cycles) and has an angle, or it is at rest and has none. Its state is the point
    :math:`a (\cos\theta, \sin\theta)` in a plane, with a the activity: on the circle, or in its middle. There is no
    encoder for it: `celldial.model.angle_posterior` infers the posterior of each cell from the decoder, and this class
    gives it the form from which reparameterized samples are drawn.
    """

    log_density_j: Tensor
    active_logit: Tensor

    def __init__(self) -> None:
        super().__init__()
        # How common each angle is, and active cells: found with the cells' posteriors, not by gradients.
        self.register_buffer("log_density_j", torch.full((N_GRID,), -math.log(N_GRID)))
        self.register_buffer("active_logit", torch.tensor(ACTIVE_LOGIT))

    @property
    def n_features(self) -> int:
        """Number of features of a state that decoders read; see `harmonics`."""
        return 2 * N_HARMONICS + 1

    def prior(self, n_cells: int, like: Tensor) -> tuple[PowerSpherical, ActivityGate]:
        """Distributions of direction, which is uniform, and activity before any count is seen."""
        mean_cu = like.new_zeros(n_cells, 2)
        mean_cu[:, 0] = 1
        return PowerSpherical(mean_cu, like.new_zeros(n_cells)), ActivityGate(self.active_logit.expand(n_cells))

    def posterior(self, angle_params_cq: Tensor, relaxed: bool) -> tuple[PowerSpherical, ActivityGate]:
        """Distributions of direction and activity, of given cosine, sine, concentration and log odds of activity."""
        return PowerSpherical(angle_params_cq[:, :2], angle_params_cq[:, 2]), ActivityGate(
            angle_params_cq[:, 3], relaxed
        )


def angle_grid(like: Tensor) -> Tensor:
    """Angles that are evenly spaced on the circle, shape ``(j,)``, on the device and in the precision of ``like``."""
    return torch.arange(N_GRID, device=like.device, dtype=like.dtype) * (2 * math.pi / N_GRID)


def fourier_features(plane_cu: Tensor) -> Tensor:
    """Compute what decoders read of points on the disc: each harmonic times the activity, and 1 less the activity.

    Harmonic k is divided by k², so that, with one prior for all their loadings, curves are smooth. Without this the
    angle may run faster in one part of the circle than in another, and second harmonics make up for it.
    """
    activity_c = (plane_cu.square().sum(-1) + 1e-12).sqrt()
    x, y = (plane_cu / activity_c[:, None]).unbind(-1)
    parts = [(x, y)]
    for _ in range(1, N_HARMONICS):
        cos, sin = parts[-1]
        parts.append((cos * x - sin * y, sin * x + cos * y))
    turning_ck = torch.stack([part / n**2 for n, pair in enumerate(parts, 1) for part in pair], -1)
    return torch.cat([turning_ck * activity_c[:, None], 1 - activity_c[:, None]], -1)


N_HARMONICS = 2
# Standard deviation of a feature's coefficients under their prior, on the scale of log rates.
HARMONIC_SCALE = 0.3
N_GRID = 64
ACTIVE_LOGIT = 2.0
