r"""The periodic solution of the kinetic equations around the circle, in closed form and by a numerical solver.

Transcription α is a function of the angle θ, and the angle moves at the speed ω(θ):

.. math:: \omega(\theta) \frac{du}{d\theta} = \alpha(\theta) - \beta u, \qquad
          \omega(\theta) \frac{ds}{d\theta} = \beta u - \gamma s.

Axis suffixes: ``f`` genes, ``j`` angles on a grid, ``k`` harmonics of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = [
    "N_ANGLES",
    "TimeBasis",
    "angle_grid",
    "elapsed_time",
    "positive",
    "solve_in_time",
    "solve_numerically",
]

N_ANGLES = 128
"""Number of angles at which the equations are solved."""

N_HARMONICS = 32
"""Number of harmonics of time in the closed form. The relative error is below 1e-5 if the speed varies threefold."""

# Smallest amount relative to the mean over the circle. Truncation of the series can lead to values near 0.
MIN_SHARE = 1e-6


def angle_grid(n_angles: int = N_ANGLES) -> Tensor:
    """Return evenly spaced angles, from 0, in float64."""
    return torch.arange(n_angles, dtype=torch.float64) * (2 * math.pi / n_angles)


@cache
def _integral(n_angles: int) -> Tensor:
    """Return the matrix of the integral from 0 to each angle of a periodic function, by its Fourier series."""
    angle_j = angle_grid(n_angles)
    order_k = torch.arange(1, (n_angles + 1) // 2, dtype=torch.float64)
    phase_jk = angle_j[:, None] * order_k
    cos_jk, sin_jk = phase_jk.cos() * 2 / n_angles, phase_jk.sin() * 2 / n_angles
    # cos kθ integrates to sin(kθ) / k, and sin kθ to (1 - cos kθ) / k.
    integral_jj = (phase_jk.sin() / order_k) @ cos_jk.T + ((1 - phase_jk.cos()) / order_k) @ sin_jk.T
    return integral_jj + angle_j[:, None] / n_angles


def elapsed_time(speed_j: Tensor) -> tuple[Tensor, Tensor]:
    """Return the time from angle 0 to each angle, and the duration of the cycle.

    Parameters
    ----------
    speed_j
        Angular speed on the grid; leading axes are allowed.
    """
    n_angles = speed_j.shape[-1]
    slowness_j = speed_j.reciprocal()
    return slowness_j @ _integral(n_angles).T, slowness_j.mean(-1) * 2 * math.pi


@dataclass(frozen=True)
class TimeBasis:
    r"""Fourier series in time over a cycle, at angles that are reached at uneven times.

    In time, the equations are linear with constant coefficients. The speed only determines when each angle is reached,
    :math:`t(\theta) = \int_0^\theta d\theta' / \omega(\theta')`. A function of the angle has the coefficients
    :math:`\hat a_k = \frac{1}{T} \int a(\theta) e^{-i k \Omega t(\theta)} d\theta / \omega(\theta)` over a cycle of
    duration T, with :math:`\Omega = 2\pi / T`.

    Parameters
    ----------
    wave_jk
        Waves :math:`e^{i k \Omega t}` at each angle.
    weight_j
        Share of the duration at each angle.
    frequency_k
        Angular frequencies kΩ in time.
    """

    wave_jk: Tensor
    weight_j: Tensor
    frequency_k: Tensor

    @staticmethod
    def of_speed(speed_j: Tensor) -> TimeBasis:
        """Return the series for an angular speed on the grid."""
        time_j, duration = elapsed_time(speed_j)
        frequency_k = torch.arange(N_HARMONICS + 1, dtype=speed_j.dtype) * (2 * math.pi / duration)
        phase_jk = time_j[:, None] * frequency_k
        weight_j = 2 * math.pi / len(speed_j) / (speed_j * duration)
        return TimeBasis(torch.complex(phase_jk.cos(), phase_jk.sin()), weight_j, frequency_k)

    def relax(self, rate_f: Tensor, source_jf: Tensor) -> Tensor:
        r"""Return the periodic solution y of :math:`\omega \, dy/d\theta = q(\theta) - r y`.

        In time, :math:`\hat y_k = \hat q_k / (r + i k \Omega)`.

        Parameters
        ----------
        rate_f
            Rates r; leading axes are allowed.
        source_jf
            Sources q; leading axes are allowed.
        """
        source_kf = self.wave_jk.conj().T @ (source_jf * self.weight_j[:, None]).to(self.wave_jk.dtype)
        value_kf = source_kf / torch.complex(*torch.broadcast_tensors(rate_f[..., None, :], self.frequency_k[:, None]))
        return value_kf[..., :1, :].real + 2 * (self.wave_jk[:, 1:] @ value_kf[..., 1:, :]).real


def solve_in_time(speed_j: Tensor, alpha_jf: Tensor, beta_f: Tensor, gamma_f: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the kinetic equations in closed form, by Fourier series in time; see `TimeBasis`.

    Parameters
    ----------
    speed_j
        Angular speed on the grid of angles.
    alpha_jf
        Rate of transcription at each angle.
    beta_f, gamma_f
        Rates of splicing and of degradation.

    Returns
    -------
    tuple[Tensor, Tensor]
        Unspliced and spliced amounts at each angle, shape ``(j, f)``.
    """
    basis = TimeBasis.of_speed(speed_j)
    unspliced_jf = positive(basis.relax(beta_f, alpha_jf))
    return unspliced_jf, positive(basis.relax(gamma_f, beta_f * unspliced_jf))


def positive(value_jf: Tensor) -> Tensor:
    """Return amounts bounded from below by a small share of their mean over the angles."""
    return torch.maximum(value_jf, MIN_SHARE * value_jf.mean(-2, keepdim=True).abs())


def solve_numerically(
    speed_j: Tensor, alpha_jf: Tensor, beta_f: Tensor, gamma_f: Tensor, tolerance: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Solve the kinetic equations by the numerical solver of ``torchdiffeq``, with gradients through the solver.

    The equations are linear. The solution that starts at 0 and the solutions without transcription that start at
    (1, 0) and at (0, 1) determine the initial values for which the solution is periodic.

    Parameters
    ----------
    speed_j, alpha_jf, beta_f, gamma_f
        As in `solve_in_time`. Between the angles of the grid, the logarithms of speed and transcription are
        interpolated by their Fourier series.
    tolerance
        Relative and absolute tolerance of the solver.

    Returns
    -------
    tuple[Tensor, Tensor]
        Unspliced and spliced amounts at each angle, shape ``(j, f)``.

    Raises
    ------
    ImportError
        ``torchdiffeq`` is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "solver='numerical' needs the package torchdiffeq: pip install 'celldial[kinetics]'"
        ) from error
    n_angles = len(speed_j)
    log_speed_k, log_alpha_kf = torch.fft.rfft(speed_j.log()), torch.fft.rfft(alpha_jf.log(), dim=0)
    order_k = torch.arange(n_angles // 2 + 1, dtype=speed_j.dtype)
    # Each harmonic but the first and the last stands for two of the full series.
    weight_k = torch.full_like(order_k, 2.0)
    weight_k[0] = 1.0
    if n_angles % 2 == 0:
        weight_k[-1] = 1.0

    def derivative(angle: Tensor, state_5f: Tensor) -> Tensor:
        """Return the derivatives in the angle: u and s from 0, then u and s from (1, 0), then s from (0, 1)."""
        wave_k = torch.polar(weight_k / n_angles, order_k * angle)
        speed = (log_speed_k * wave_k).sum().real.exp()
        alpha_f = (log_alpha_kf * wave_k[:, None]).sum(0).real.exp()
        u_f, s_f, u1_f, s1_f, s2_f = state_5f
        terms = [
            alpha_f - beta_f * u_f,
            beta_f * u_f - gamma_f * s_f,
            -beta_f * u1_f,
            beta_f * u1_f - gamma_f * s1_f,
            -gamma_f * s2_f,
        ]
        return torch.stack(terms) / speed

    zero_f, one_f = torch.zeros_like(beta_f), torch.ones_like(beta_f)
    start_5f = torch.stack([zero_f, zero_f, one_f, zero_f, one_f])
    angle_i = torch.cat([angle_grid(n_angles), torch.tensor([2 * math.pi], dtype=torch.float64)]).to(speed_j)
    state_i5f = odeint(derivative, start_5f, angle_i, rtol=tolerance, atol=tolerance, method="dopri5")
    u_f, s_f, u1_f, s1_f, s2_f = state_i5f[-1]
    u0_f = u_f / (1 - u1_f)
    s0_f = (s_f + u0_f * s1_f) / (1 - s2_f)
    u_jf, s_jf, u1_jf, s1_jf, s2_jf = state_i5f[:-1].unbind(1)
    return u_jf + u0_f * u1_jf, s_jf + u0_f * s1_jf + s0_f * s2_jf
