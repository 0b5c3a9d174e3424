"""A module with a circle: gradients and loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from celldial.data.cells import Cells
from celldial.model.angle_posterior import pack_angle_posterior
from celldial.model.module import Module
from celldial.model.networks import DECODERS, DecoderName
from helpers.modules import build_module, sizes_of
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
def test_the_loss_is_at_least_minus_the_elbo(kl_weight: float) -> None:
    """It exceeds minus the ELBO by the penalty on the dependence of coordinates on the angle."""
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
