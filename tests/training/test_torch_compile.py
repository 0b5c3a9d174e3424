"""Compiled networks have the same losses and gradients as others, and are removed afterwards."""

import shutil

import anndata as ad
import numpy as np
import pytest
import torch

from celldial import VAE
from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.estimator.prepare import build_module
from celldial.training.torch_compile import compiled_networks


@pytest.fixture
def cells():
    generator = np.random.default_rng(0)
    return ad.AnnData(
        generator.poisson(1.0, (24, 15)).astype(np.float32), obs={"batch": [f"batch {i % 2}" for i in range(24)]}
    )


def built(cells):
    schema = Schema.from_anndata(cells, categorical_covariate_keys=["batch"])
    torch.manual_seed(0)
    module = build_module(VAE(n_latent=3, n_hidden=8, categorical_covariate_keys=["batch"]), schema, None)
    return module, Cells.from_anndata(cells, schema)


def loss_and_gradients(module, cells):
    torch.manual_seed(1)
    loss = module(cells, 0.5)
    return loss.detach(), torch.autograd.grad(loss, list(module.parameters()))


def test_validation_is_not_compiled_and_modules_are_restored(cells, monkeypatch):
    def compile_nothing(function, **_):
        def forbid(*_):
            raise AssertionError("torch.compile was called")

        return forbid

    monkeypatch.setattr(torch, "compile", compile_nothing)
    module, minibatch = built(cells)
    before = {name: set(part.__dict__) for name, part in module.named_modules()}
    plain = module.eval().elbo(minibatch)[1]
    with compiled_networks(module):
        assert module.elbo(minibatch)[1].shape == plain.shape
        with pytest.raises(AssertionError, match="compile"):
            module.train()(minibatch)
    assert {name: set(part.__dict__) for name, part in module.named_modules()} == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # from the compiler itself
def test_compiled_networks_equal_others_for_any_size_of_minibatch(cells):
    module, everything = built(cells)
    module.train()
    minibatches = [everything.slice(0, n) for n in (16, 16, 24, 5, 16)]
    plain = [loss_and_gradients(module, minibatch) for minibatch in minibatches]
    with compiled_networks(module):
        by_compiled = [loss_and_gradients(module, minibatch) for minibatch in minibatches]
    torch.testing.assert_close(by_compiled, plain, rtol=1e-4, atol=1e-5)
