"""The periodic solution of the kinetic equations: closed form, numerical solver, gradients, special cases."""

import math

import numpy as np
import pytest
import torch

from celldial.inference.kinetics.equations import (
    N_ANGLES,
    TimeBasis,
    angle_grid,
    elapsed_time,
    solve_in_time,
    solve_numerically,
)
from celldial.utils.fourier import fourier_features
from helpers.raises import raises


def series(coefficient_h: torch.Tensor, n_angles: int = N_ANGLES) -> torch.Tensor:
    n_harmonics = len(coefficient_h) // 2
    return torch.from_numpy(fourier_features(angle_grid(n_angles).numpy(), n_harmonics)) @ coefficient_h


@pytest.fixture
def system() -> tuple[torch.Tensor, ...]:
    """Speed that varies about twofold, transcription and rates of four genes."""
    random = torch.Generator().manual_seed(0)
    speed_h = torch.randn(4, dtype=torch.float64, generator=random) * 0.15
    alpha_hf = torch.randn(6, 4, dtype=torch.float64, generator=random) * 0.4
    beta_f, gamma_f = torch.randn(2, 4, dtype=torch.float64, generator=random).mul(0.5).exp()
    return series(speed_h).exp(), series(alpha_hf).exp(), 3 * beta_f, gamma_f


def derivative(value_jf: torch.Tensor) -> torch.Tensor:
    """Return the derivative in the angle of a periodic function, by its Fourier series."""
    order_k = 1j * torch.arange(N_ANGLES // 2 + 1, dtype=torch.float64)
    return torch.fft.irfft(torch.fft.rfft(value_jf, dim=0) * order_k[:, None], N_ANGLES, dim=0)


def test_the_closed_form_satisfies_the_equations(system):
    speed_j, alpha_jf, beta_f, gamma_f = system
    u_jf, s_jf = solve_in_time(*system)
    torch.testing.assert_close(speed_j[:, None] * derivative(u_jf), alpha_jf - beta_f * u_jf, atol=2e-4, rtol=0)
    torch.testing.assert_close(speed_j[:, None] * derivative(s_jf), beta_f * u_jf - gamma_f * s_jf, atol=2e-4, rtol=0)


def test_a_single_wave_has_a_known_lag_and_amplitude():
    speed, beta, gamma = 0.7, 2.0, 0.5
    alpha_j1 = (1 + 0.5 * angle_grid(N_ANGLES).cos())[:, None]
    rates = (torch.tensor([beta], dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64))
    u_jf, s_jf = solve_in_time(torch.full((N_ANGLES,), speed, dtype=torch.float64), alpha_j1, *rates)
    for value_jf, expected in (
        (u_jf, 1 / (beta + 1j * speed)),
        (s_jf, beta / (beta + 1j * speed) / (gamma + 1j * speed)),
    ):
        first = torch.fft.rfft(value_jf[:, 0])[1] * 2 / N_ANGLES
        assert complex(first) == pytest.approx(0.5 * expected)


def test_constant_transcription_gives_constant_amounts(system):
    speed_j, _, beta_f, gamma_f = system
    u_jf, s_jf = solve_in_time(speed_j, torch.ones(N_ANGLES, 4, dtype=torch.float64), beta_f, gamma_f)
    torch.testing.assert_close(u_jf, (1 / beta_f).expand_as(u_jf))
    torch.testing.assert_close(s_jf, (1 / gamma_f).expand_as(s_jf))


def test_elapsed_time_is_the_integral_of_the_reciprocal_speed(system):
    time_j, duration = elapsed_time(system[0])
    fine = 1 / torch.exp(torch.fft.irfft(torch.fft.rfft(system[0].log()) * 16, N_ANGLES * 16))
    expected = torch.cumulative_trapezoid(torch.cat([fine, fine[:1]])) * (2 * math.pi / len(fine))
    torch.testing.assert_close(duration, expected[-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(time_j[1:], expected[15:-1:16], rtol=1e-4, atol=1e-5)


def test_only_ratios_of_rates_matter(system):
    for one, two in zip(solve_in_time(*system), solve_in_time(*(3 * part for part in system)), strict=True):
        torch.testing.assert_close(one, two)


def test_closed_form_and_numerical_solver_agree(system):
    pytest.importorskip("torchdiffeq")
    for closed_jf, numerical_jf in zip(solve_in_time(*system), solve_numerically(*system), strict=True):
        torch.testing.assert_close(closed_jf, numerical_jf, rtol=1e-5, atol=0)


def test_equal_rates_of_splicing_and_degradation(system):
    speed_j, alpha_jf, beta_f, _ = system
    u_jf, s_jf = solve_in_time(speed_j, alpha_jf, beta_f, beta_f)
    assert torch.isfinite(u_jf).all()
    torch.testing.assert_close(speed_j[:, None] * derivative(s_jf), beta_f * (u_jf - s_jf), atol=5e-4, rtol=0)


def test_gradients_of_the_closed_form(system):
    _, alpha_jf, beta_f, gamma_f = system
    speed_h = torch.tensor([0.1, -0.1], dtype=torch.float64, requires_grad=True)

    def loss(speed_h, beta_f, gamma_f):
        u_jf, s_jf = solve_in_time(series(speed_h).exp(), alpha_jf, beta_f, gamma_f)
        return u_jf[::16].log().sum(), s_jf[::16].log().sum()

    assert torch.autograd.gradcheck(loss, (speed_h, beta_f.requires_grad_(), gamma_f.requires_grad_()))


def test_gradients_through_the_numerical_solver_agree(system):
    pytest.importorskip("torchdiffeq")
    system = (*(part[:, :1] if part.ndim == 2 else part for part in system[:2]), system[2][:1], system[3][:1])
    gradients = []
    for solver in (solve_in_time, solve_numerically):
        parts = [part.clone().requires_grad_() for part in system]
        u_jf, s_jf = solver(*parts)
        loss = u_jf[::16].log().sum() + s_jf[::16].log().square().sum()
        gradients.append(torch.autograd.grad(loss, parts[2:]))
    for closed, numerical in zip(*gradients, strict=True):
        torch.testing.assert_close(closed, numerical, rtol=1e-5, atol=1e-6)


def test_the_numerical_solver_names_its_package(system, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    with raises(ImportError, naming=["torchdiffeq", "celldial[kinetics]"]):
        solve_numerically(*system)


def test_relaxation_of_several_sources_at_once(system):
    speed_j, alpha_jf, beta_f, _ = system
    basis = TimeBasis.of_speed(speed_j)
    both = basis.relax(beta_f, torch.stack([alpha_jf, 2 * alpha_jf]))
    np.testing.assert_allclose(both[1], 2 * both[0])
    np.testing.assert_allclose(both[0], basis.relax(beta_f, alpha_jf))
