"""The periodic coordinate: the angle of a cell on a circle and its activity, and Fourier features of the angle.

Axis suffixes: ``c`` cells, ``j`` angles of a grid, ``k`` Fourier features, ``q`` parameters of the angle posterior,
``u`` the two coordinates of the plane in which the circle lies, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from celldial.model.distributions import ActivityGate, PowerSpherical
from celldial.model.latent_parts import EncoderOutput

if TYPE_CHECKING:
    from celldial.data.cells import Cells

__all__ = [
    "HARMONIC_SCALE",
    "N_FOURIER",
    "N_GRID",
    "N_HARMONICS",
    "Circle",
    "angle_grid",
    "dependence",
    "fourier_features",
]

N_HARMONICS = 2
# Cosine and sine of each harmonic, and inactivity.
N_FOURIER = 2 * N_HARMONICS + 1
# Prior standard deviation of the coefficients of a feature, on the scale of log rates.
HARMONIC_SCALE = 0.3
# Number of angles of the grid.
N_GRID = 64
# Prior log odds of being active before they are learned.
ACTIVE_LOGIT = 2.0


class Circle(nn.Module):
    r"""The variables ``"direction"`` and ``"active"``: the angle of a cell on a circle, and whether the cell has one.

    An *active* cell, which cycles, has an angle. An inactive cell, which is quiescent, has none. The state of a cell is
    the point :math:`a (\cos\theta, \sin\theta)` in a plane, with the activity a: on the circle, or at its center. The
    posterior of the angle does not come from an encoder: `celldial.model.angle_posterior` infers it from the decoder.
    """

    analytic_kl: ClassVar[bool] = True
    log_density_j: Tensor
    active_logit: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Density of active cells along the circle, and log odds of being active. Both are learned from the
        # posteriors of the cells, not by gradients.
        self.register_buffer("log_density_j", torch.full((N_GRID,), -math.log(N_GRID)))
        self.register_buffer("active_logit", torch.tensor(ACTIVE_LOGIT))

    @property
    def density_j(self) -> np.ndarray:
        """Density of active cells along the circle; sums to 1."""
        density_j: np.ndarray = self.log_density_j.double().softmax(0).cpu().numpy()
        return density_j

    def prior_distributions(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, TorchDistribution]:
        """Return the prior of the direction, which is uniform, and of the activity."""
        mean_cu = cells.continuous_ck.new_zeros(len(cells), 2)
        mean_cu[:, 0] = 1
        direction = PowerSpherical(mean_cu, cells.continuous_ck.new_zeros(len(cells)))
        return {"direction": direction, "active": ActivityGate(self.active_logit.expand(len(cells)))}

    def posterior_distributions(self, encoded: EncoderOutput, cells: Cells) -> dict[str, TorchDistribution]:
        """Return the posterior of direction and activity.

        The parameters of the angle posterior are the cosine and the sine of the mean angle, the concentration, and the
        log odds of being active.
        """
        assert encoded.angle_params_cq is not None
        params_cq = encoded.angle_params_cq
        return {
            "direction": PowerSpherical(params_cq[:, :2], params_cq[:, 2]),
            "active": ActivityGate(params_cq[:, 3], relaxed=self.training),
        }

    def sample_prior(self, cells: Cells, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sample direction and activity of new cells; angles follow their density among the training cells."""
        n_cells, like = len(cells), cells.continuous_ck
        index_c = torch.multinomial(self.log_density_j.exp().cpu(), n_cells, replacement=True)
        jitter_c = (torch.rand(n_cells) - 0.5) * (2 * math.pi / N_GRID)
        angle_c = angle_grid(like)[index_c.to(like.device)] + jitter_c.to(like.device)
        active = ActivityGate(self.active_logit.expand(n_cells))
        return {"direction": torch.stack([angle_c.cos(), angle_c.sin()], 1), "active": active.sample()}

    def state_columns(self, drawn: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the point of each cell in the plane."""
        return [drawn["direction"] * drawn["active"][:, None]]


def angle_grid(like: Tensor) -> Tensor:
    """Return evenly spaced angles, shape ``(j,)``, on the device and in the precision of `like`."""
    return torch.arange(N_GRID, device=like.device, dtype=like.dtype) * (2 * math.pi / N_GRID)


def fourier_features(point_cu: Tensor) -> Tensor:
    """Return the features of points that decoders read: each harmonic times the activity, and 1 minus the activity.

    Harmonic k is divided by k², so that the same prior on all loadings makes curves smooth. Without the division, the
    angle could increase faster in one part of the circle than in another, and second harmonics would compensate for it.
    """
    activity_c = (point_cu.square().sum(-1) + 1e-12).sqrt()
    x, y = (point_cu / activity_c[:, None]).unbind(-1)
    harmonics = [(x, y)]
    for _ in range(1, N_HARMONICS):
        cos, sin = harmonics[-1]
        harmonics.append((cos * x - sin * y, sin * x + cos * y))
    harmonic_ck = torch.stack([part / n**2 for n, pair in enumerate(harmonics, 1) for part in pair], -1)
    return torch.cat([harmonic_ck * activity_c[:, None], 1 - activity_c[:, None]], -1)


def dependence(z_cz: Tensor, point_cu: Tensor) -> Tensor:
    """Return the sum of the squared covariances of the other coordinates with the harmonics of the angle."""
    harmonic_ck = fourier_features(point_cu)[:, :-1]
    covariance_zk = (z_cz - z_cz.mean(0)).T @ (harmonic_ck - harmonic_ck.mean(0)) / len(z_cz)
    return covariance_zk.square().sum()
