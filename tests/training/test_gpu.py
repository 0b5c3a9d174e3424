"""Results on a GPU equal those on a CPU. Run with ``pytest -m gpu``, which also runs the Triton kernels on the GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch.distributions import kl_divergence

import celldial
from celldial import VAE
from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.estimator.prepare import build_module
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module
from celldial.ops import log_likelihoods
from celldial.training.optimizer import make_optimizer
from celldial.training.torch_compile import compiled_networks
from helpers.simulate import COVARIATES, simulate

pytestmark = pytest.mark.gpu

EVERY_LIKELIHOOD = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@pytest.fixture
def adata() -> AnnData:
    return simulate(n_cells=300, n_genes=70)


def built(adata: AnnData, likelihood: str, device: str) -> tuple[Module, Cells]:
    """Return a module with the same weights on any device, and the cells."""
    schema = Schema.from_anndata(adata, likelihood=likelihood, **COVARIATES)
    cells = Cells.from_anndata(adata, schema)
    torch.manual_seed(0)
    module = build_module(VAE(4, 32, dropout_rate=0.0, **COVARIATES), schema, None)
    module.initialize(cells)
    return module.to(device), cells.to(device)


def fit(adata: AnnData, device: str, **options: object) -> VAE:
    model = VAE(3, 16, **COVARIATES)
    return model.fit(adata, **{"max_epochs": 20, "progress": False, "device": device, **options})


def without_noise(module: Module, cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-likelihood at the posterior mean and KL divergence of each cell, which are not random."""
    encoded = module.encode(cells)
    decoded = module.decode(encoded.mu_cz, cells)
    log_p_c = sum(observation.log_prob(cells.observed_counts(name)) for name, observation in decoded.items())
    return log_p_c, kl_divergence(module.posterior(cells)["z"], module.coordinates.prior.distribution(cells))


@EVERY_LIKELIHOOD
def test_log_likelihood_divergence_and_gradients_are_those_of_the_cpu(adata: AnnData, likelihood: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        module, cells = built(adata, likelihood, device)
        log_p_c, kl_c = without_noise(module, cells)
        gradients = torch.autograd.grad((kl_c - log_p_c).mean(), list(module.parameters()))
        found.append([t.detach().cpu() for t in (log_p_c, kl_c, *gradients)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4 * float(1 + on_cpu.abs().max()))


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "negative_binomial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_are_used_in_single_precision(adata: AnnData, likelihood: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    module, cells = built(adata, likelihood, "cuda")
    ((name, part),) = module.by_modality()
    rows, library_c = cells.counts[name], cells.library_size[name].to(dtype)
    logits_cf = torch.zeros(rows.n_rows, rows.n_columns, dtype=dtype, device="cuda", requires_grad=True)
    counts = rows.with_values(rows.value_n.to(dtype))
    log_p_c = part.likelihood.to(dtype).log_prob([logits_cf], library_c, counts)
    weight_fh = torch.zeros(rows.n_columns, 8, dtype=dtype, device="cuda", requires_grad=True)
    product_ch = log_likelihoods.sparse_linear(counts, weight_fh)
    from celldial.ops import triton_backend

    by_kernels = dtype == torch.float32
    assert isinstance(log_p_c.grad_fn, triton_backend._LogLikelihood._backward_cls) == by_kernels
    assert isinstance(product_ch.grad_fn, triton_backend._SparseLinear._backward_cls) == by_kernels


@EVERY_LIKELIHOOD
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainings_agree_on_held_out_cells(adata: AnnData, likelihood: str, precision: str) -> None:
    """The noise differs between devices, so models agree in their scores, but are not identical."""
    scores = []
    for device, chosen in (("cpu", "32-true"), ("cuda", precision)):
        model = VAE(3, 16, likelihood=likelihood, **COVARIATES)
        model.fit(adata, max_epochs=20, progress=False, device=device, precision=chosen)
        scores.append(model.score(adata))
    assert scores[1] == pytest.approx(scores[0], rel=0.05)


def test_half_precision_is_close_for_one_step(adata: AnnData) -> None:
    """Weights are the same, and so is the noise, on one device."""
    losses = []
    for enabled in (False, True):
        module, cells = built(adata, "negative_binomial", "cuda")
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            losses.append(float(module(cells).detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_compiled_networks_train_as_plain_ones(adata: AnnData) -> None:
    """Losses with the same noise agree up to rounding; the last step has fewer cells."""
    losses = []
    for compile_ in (False, True):
        module, cells = built(adata, "negative_binomial", "cuda")
        optimizer = make_optimizer(module, 1e-3, 0.3, len(cells))
        module.train()
        torch.manual_seed(1)
        steps = []
        with compiled_networks(module) if compile_ else torch.enable_grad():
            for start in (0, 64, 128, 192, 256):
                loss = module(cells.slice(start, min(start + 64, len(cells))))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                steps.append(float(loss.detach()))
        losses.append(steps)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_step_does_not_wait_for_the_gpu(adata: AnnData) -> None:
    """Python queues kernels ahead of the GPU, which never idles."""
    module, cells = built(adata, "negative_binomial", "cuda")
    optimizer = make_optimizer(module, 1e-3, 0.3, len(cells))
    minibatches = [cells.slice(0, 64), cells.slice(64, 128)]
    for synchronizes in ("default", "error"):  # the first round compiles kernels and allocates memory
        torch.cuda.set_sync_debug_mode(synchronizes)
        try:
            for minibatch in minibatches:
                module(minibatch, 0.5).backward()
                optimizer.step()
                optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_model_can_change_its_device(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    monkeypatch.setattr(celldial.settings, "device", first)
    model = fit(adata, first)
    embedding_cz = model.transform(adata)
    score = model.score(adata)
    model.save(tmp_path / "model.celldial")
    monkeypatch.setattr(celldial.settings, "device", then)
    loaded = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_allclose(loaded.transform(adata), embedding_cz, rtol=1e-3, atol=1e-3)
    assert loaded.score(adata) == pytest.approx(score, rel=0.02)
    assert next(loaded.module_.parameters()).device.type == then
