"""Parts of a surrogate: coordinates of parameters, density, normal posterior, calibration."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from celldial.surrogate.calibration import NormalPosterior, fit_calibration, uncalibrated
from celldial.surrogate.density import LatentDensity, fit_density
from celldial.surrogate.evidence import fit_normal
from celldial.surrogate.parameters import ParameterSpace

SPACE = ParameterSpace({"a": (1.0, 3.0), "b": (-10.0, 10.0)})


def test_coordinates_are_standard_normal_under_a_uniform_distribution() -> None:
    value_sk = torch.tensor([[1.2, -9.0], [2.0, 0.0], [2.9, 3.0]], dtype=torch.float64)
    coordinate_sk = SPACE.to_coordinate(value_sk)
    np.testing.assert_allclose(norm.cdf(coordinate_sk), (value_sk - torch.tensor([1, -10])) / torch.tensor([2, 20]))
    torch.testing.assert_close(SPACE.to_value(coordinate_sk), value_sk)
    assert SPACE.to_coordinate(torch.tensor([0.0, 10.0], dtype=torch.float64)).isfinite().all()
    assert SPACE.outside(torch.tensor([0.9, 10.0])) == ["a"]


def test_ranges_are_those_of_the_settings() -> None:
    space = ParameterSpace.of_table(pd.DataFrame({"a": [3, 1, 2], "b": [0.5, 0.1, 0.2]}))
    assert space.ranges == {"a": (1.0, 3.0), "b": (0.1, 0.5)}


def test_the_density_is_normalized() -> None:
    torch.manual_seed(0)
    density = LatentDensity(2, 3)
    density.eval()
    density.initialize(torch.randn(50, 2) * torch.tensor([1.0, 5.0]), torch.randn(50, 3))
    grid = torch.linspace(-60, 60, 1201)
    point_nd = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        p_n = density.log_prob(point_nd, torch.randn(3).expand(len(point_nd), -1)).exp()
    assert float(p_n.sum()) * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_the_density_is_that_of_the_draws() -> None:
    """The first column has two peaks whose weights depend on the parameter; the second column depends on the first."""

    def draw_given(at_c: Tensor) -> Tensor:
        noise_c2 = torch.randn(len(at_c), 2)
        peak_c = 2 * (torch.rand(len(at_c)) < 0.5 + 0.4 * at_c).float() - 1
        first_c = peak_c + 0.2 * noise_c2[:, 0]
        return torch.stack([first_c, 2 * first_c + at_c + 0.5 * noise_c2[:, 1]], 1)

    def draw() -> tuple[Tensor, Tensor]:
        at_c = 2 * torch.rand(6000) - 1
        return draw_given(at_c), at_c[:, None]

    torch.manual_seed(0)
    density = fit_density(draw)
    for at in (-0.5, 0.5):
        at_c1 = torch.full((4000, 1), at)
        known_cd, found_cd = draw_given(at_c1[:, 0]), density.sample(at_c1)
        torch.testing.assert_close(found_cd.mean(0), known_cd.mean(0), atol=0.15, rtol=0)
        torch.testing.assert_close(found_cd.std(0), known_cd.std(0), atol=0.15, rtol=0)
        share = 0.5 + 0.4 * at
        assert float((found_cd[:, 0] > 0).float().mean()) == pytest.approx(share, abs=0.06)
        # The entropy of the mixture of two peaks far from each other is known.
        choice = -share * np.log(share) - (1 - share) * np.log(1 - share)
        entropy = choice + float(norm.entropy(scale=0.2)) + float(norm.entropy(scale=0.5))
        assert -float(density.log_prob(known_cd, at_c1).mean()) == pytest.approx(entropy, abs=0.1)


class Quadratic:
    """A normal likelihood of the coordinates."""

    space = SimpleNamespace(ranges=dict.fromkeys("abc"))
    location_k = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    precision_kk = torch.tensor([[30.0, 5.0, 0.0], [5.0, 8.0, 1.0], [0.0, 1.0, 0.5]], dtype=torch.float64)

    def __call__(self, coordinate_k: Tensor) -> Tensor:
        error_k = coordinate_k - self.location_k
        return -0.5 * error_k @ self.precision_kk @ error_k


def test_the_normal_posterior_is_exact_for_a_normal_likelihood() -> None:
    evidence = Quadratic()
    found = fit_normal(evidence, 0)  # type: ignore[arg-type]
    precision_kk = evidence.precision_kk + torch.eye(3)
    np.testing.assert_allclose(found.covariance_kk, torch.linalg.inv(precision_kk), atol=0.01)
    expected_k = torch.linalg.solve(precision_kk, evidence.precision_kk @ evidence.location_k)
    np.testing.assert_allclose(found.mean_k, expected_k, atol=0.02)
    location_k, covariance_kk = NormalPosterior(expected_k.numpy(), torch.linalg.inv(precision_kk).numpy()).likelihood()
    np.testing.assert_allclose(location_k, evidence.location_k, atol=1e-8)
    np.testing.assert_allclose(covariance_kk, torch.linalg.inv(evidence.precision_kk), atol=1e-8)


def test_without_an_error_of_the_surrogate_draws_are_those_of_the_posterior() -> None:
    posterior = NormalPosterior(np.array([0.3, -0.5]), np.array([[0.2, 0.05], [0.05, 0.4]]))
    draws_nk = uncalibrated(2).draw(posterior, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(draws_nk.mean(0), posterior.mean_k, atol=0.02)
    np.testing.assert_allclose(np.cov(draws_nk.T), posterior.covariance_kk, atol=0.015)


@pytest.mark.parametrize(("bias", "error"), [(0.0, 0.0), (0.3, 0.0), (-0.2, 0.5)])
def test_calibrated_intervals_contain_the_truth(bias: float, error: float) -> None:
    """Locations of the likelihood are wrong by a bias and a random error, which the posterior does not know."""
    random, own = np.random.default_rng(1), 0.02

    def observe(true_k: np.ndarray) -> NormalPosterior:
        location_k = true_k + bias + np.sqrt(own + error**2) * random.standard_normal(2)
        return NormalPosterior(location_k / (1 + own), np.eye(2) * own / (1 + own))

    covered = []
    for _ in range(25):
        true_sk = random.standard_normal((16, 2))
        calibration = fit_calibration(true_sk, [observe(true_k) for true_k in true_sk])
        for true_k in random.standard_normal((20, 2)):
            draws_nk = calibration.draw(observe(true_k), 400, random)
            lower_k, upper_k = np.quantile(draws_nk, [0.05, 0.95], axis=0)
            covered.append((lower_k <= true_k) & (true_k <= upper_k))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_a_parameter_that_the_cells_do_not_inform_keeps_its_prior() -> None:
    posterior = NormalPosterior(np.zeros(1), np.eye(1))
    calibration = fit_calibration(np.random.default_rng(0).standard_normal((16, 1)), [posterior] * 16)
    draws_nk = calibration.draw(posterior, 5000, np.random.default_rng(0))
    assert draws_nk.std() == pytest.approx(1, abs=0.03)
