"""The periodic coordinate: Fourier features, and the gradients and the loss of a module with a circle."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from celldial.data.cells import Cells
from celldial.model.angle_posterior import pack_angle_posterior
from celldial.model.latent_parts import EncoderOutput
from celldial.model.module import Module
from celldial.model.networks import DECODERS, DecoderName
from celldial.model.periodic import N_FOURIER, N_GRID, Circle, angle_grid, fourier_features
from helpers.modules import bare_cells, build_module, sizes_of
from helpers.simulate import simulate_two_cells


def make_module(cells: Cells, decoder: DecoderName = "network") -> Module:
    torch.manual_seed(0)
    likelihood = {"rna": "negative_binomial", "atac": "bernoulli"}
    options = {"n_latent": 3, "dropout_rate": 0.2, "periodic": True, "decoder": decoder}
    module = build_module(likelihood=likelihood, **sizes_of(cells), **options)
    module.initialize(cells)
    return module


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(decoder: DecoderName) -> None:
    cells = simulate_two_cells(covariates=True)
    module = make_module(cells, decoder).train()
    cells = replace(cells, angle_params_cq=pack_angle_posterior(torch.rand(60) * 6, torch.rand(60), torch.rand(60)))
    module(cells).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_the_loss_is_at_least_the_negative_elbo(kl_weight: float) -> None:
    """It exceeds the negative ELBO by the penalty on the dependence of coordinates on the angle."""
    cells = simulate_two_cells(covariates=True)
    cells = replace(cells, angle_params_cq=pack_angle_posterior(torch.rand(60) * 6, torch.rand(60), torch.rand(60)))
    module = make_module(cells).eval()
    losses = []
    for _ in range(100):
        with torch.no_grad():
            losses.append(float(module(cells, kl_weight)))
    parts = []
    for _ in range(100):
        with torch.no_grad():
            log_likelihood, kl_c = module.elbo(cells)
            weighted_c = sum(module.modality_weights[name] * part_c for name, part_c in log_likelihood.items())
            parts.append(float((kl_weight * kl_c - weighted_c).mean()))
    assert np.mean(losses) >= np.mean(parts) - 4 * np.std(parts) / 10
    torch.testing.assert_close(module.elbo(cells)[1], kl_c)


@given(angle=st.floats(-10, 10), activity=st.floats(0.01, 1), turns=st.integers(-2, 2))
def test_fourier_features_of_a_point(angle: float, activity: float, turns: int) -> None:
    angle_c = torch.tensor([angle + 2 * math.pi * turns], dtype=torch.float64)
    point_cu = activity * torch.stack([angle_c.cos(), angle_c.sin()], -1)
    expected = [*(activity * f(n * angle) / n**2 for n in (1, 2) for f in (math.cos, math.sin)), 1 - activity]
    torch.testing.assert_close(
        fourier_features(point_cu), torch.tensor([expected], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_fourier_features_of_the_center_have_no_angle() -> None:
    center_cu = torch.zeros(1, 2, requires_grad=True)
    torch.testing.assert_close(fourier_features(center_cu), torch.tensor([[0.0, 0, 0, 0, 1]]), atol=1e-5, rtol=0)
    (gradient_cu,) = torch.autograd.grad(fourier_features(center_cu).sum(), center_cu)
    assert gradient_cu.isfinite().all()


def test_prior_and_posterior_of_a_new_circle() -> None:
    circle = Circle()
    assert fourier_features(torch.zeros(1, 2)).shape[1] == N_FOURIER
    assert not list(circle.parameters())
    angle_j = angle_grid(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(angle_j.diff(), torch.full((N_GRID - 1,), 2 * math.pi / N_GRID, dtype=torch.float64))
    torch.testing.assert_close(circle.log_density_j.exp().sum(), torch.tensor(1.0))
    direction, active = circle.prior_distributions(bare_cells(3), {}).values()
    assert torch.equal(direction.concentration_c, torch.zeros(3))
    torch.testing.assert_close(active.mean, circle.active_logit.sigmoid().expand(3))
    encoded = EncoderOutput(torch.zeros(1, 2), torch.ones(1, 2), angle_params_cq=torch.tensor([[0.0, 1.0, 7.0, -2.0]]))
    direction, active = circle.posterior_distributions(encoded, bare_cells(1)).values()
    torch.testing.assert_close(direction.mean, torch.tensor([[0.0, 7 / 8]]))
    assert (float(active.logit_c), active.relaxed) == (-2, True)
