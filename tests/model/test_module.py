"""The generative model and its ELBO: gradients, Pyro against plain arithmetic, and missing modalities."""

import math
from collections.abc import Mapping
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from celldial.data.cells import Cells
from celldial.model.fusion import FUSIONS
from celldial.model.latents import LATENTS, LatentName
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import Module, default_modality_weights
from celldial.model.networks import DECODERS, DecoderName
from celldial.model.priors import PRIORS, PriorName
from celldial.ops.log_likelihoods import bernoulli_reference, negative_binomial_reference
from helpers.modules import build_module, sizes_of
from helpers.raises import raises
from helpers.simulate import simulate_cells, simulate_two_cells


def make_module(
    cells: Cells,
    likelihood: str = "negative_binomial",
    n_latent: int = 3,
    n_layers: int = 1,
    decoder: DecoderName = "network",
) -> Module:
    torch.manual_seed(0)
    options = {"n_latent": n_latent, "n_layers": n_layers, "dropout_rate": 0.2, "decoder": decoder}
    module = build_module(likelihood=likelihood, **sizes_of(cells), **options)
    module.initialize(cells)
    return module


ALL_LIKELIHOODS = pytest.mark.parametrize("likelihood", LIKELIHOODS)


@ALL_LIKELIHOODS
@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_parameter_gets_a_gradient(
    likelihood: str, covariates: bool, n_layers: int, decoder: DecoderName
) -> None:
    cells = simulate_cells(covariates=covariates)
    module = make_module(cells, likelihood, n_layers=n_layers, decoder=decoder).train()
    module(cells).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@ALL_LIKELIHOODS
@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_family_supports_every_likelihood_and_prior(
    likelihood: str, latent: LatentName, prior: PriorName
) -> None:
    cells = simulate_cells()
    options = {"n_latent": 2, "latent": latent, "prior": prior, "n_components": 3}
    module = build_module({"rna": 20}, likelihood, **options)
    module.initialize(cells)
    loss = module(cells)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


@ALL_LIKELIHOODS
@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_loss_is_the_weighted_elbo_per_cell(likelihood: str, kl_weight: float) -> None:
    """With the same noise, Pyro's loss equals the plain sum; the weight applies to the KL divergence only."""
    cells = simulate_cells(covariates=True)
    module = make_module(cells, likelihood).eval()
    torch.manual_seed(1)
    loss = module(cells, kl_weight)
    torch.manual_seed(1)
    log_likelihood, kl_c = module.elbo(cells)
    assert list(log_likelihood) == ["rna"]
    log_likelihood_c = log_likelihood["rna"]
    assert log_likelihood_c.shape == kl_c.shape == (60,)
    torch.testing.assert_close(loss, -(log_likelihood_c - kl_weight * kl_c).mean())
    assert kl_c.mean() > 0.01  # otherwise the weight would have no visible effect


def test_kl_divergence_equals_the_closed_form() -> None:
    cells = simulate_cells()
    module = make_module(cells).eval()
    posterior = module.posterior(cells)["z"]
    mu_cz, sigma_cz = posterior.mean, posterior.stddev
    expected_c = 0.5 * (mu_cz**2 + sigma_cz**2 - 1 - 2 * sigma_cz.log()).sum(-1)
    torch.testing.assert_close(module.elbo(cells)[1], expected_c)


def test_log_likelihood_is_evaluated_at_a_draw_from_the_posterior() -> None:
    cells = simulate_cells()
    module = make_module(cells).eval()
    torch.manual_seed(1)
    z_cz = module.posterior(cells)["z"].rsample()
    torch.manual_seed(1)
    log_likelihood, _ = module.elbo(cells)
    torch.testing.assert_close(log_likelihood["rna"], module.decode(z_cz, cells)["rna"].log_prob(cells.counts["rna"]))


def test_the_loss_has_the_gradient_of_the_elbo() -> None:
    cells = simulate_cells(covariates=True)
    module = make_module(cells).eval()
    torch.manual_seed(1)
    found = torch.autograd.grad(module(cells), list(module.parameters()))
    torch.manual_seed(1)
    log_likelihood, kl_c = module.elbo(cells)
    expected = torch.autograd.grad((kl_c - log_likelihood["rna"]).mean(), list(module.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("covariate", ["batch", "donor", "age"])
def test_covariates_change_decoded_values(covariate: str) -> None:
    cells = simulate_cells(covariates=True)
    module = make_module(cells).eval()
    for embedding in (part for part in module.modules() if isinstance(part, torch.nn.Embedding)):
        torch.nn.init.normal_(embedding.weight)  # all categories have the same effect initially
    category_ck, continuous_ck = cells.category_ck.clone(), cells.continuous_ck.clone()
    if covariate == "age":
        continuous_ck += 1
    else:
        k = ["batch", "donor"].index(covariate)
        category_ck[:, k] = (category_ck[:, k] + 1) % 2
    other = Cells(cells.counts, cells.library_size, category_ck, continuous_ck)
    z_cz = torch.zeros(60, 3)
    with torch.no_grad():
        change_cf = module.decode(z_cz, other)["rna"].mean - module.decode(z_cz, cells)["rna"].mean
    assert (change_cf.abs().amax(-1) > 1e-4).all()


@ALL_LIKELIHOODS
def test_initialize_improves_the_likelihood(likelihood: str) -> None:
    """The decoder starts near each gene's share, and the dispersions near those of the data, so the fit is better."""
    cells = simulate_cells()
    started = make_module(cells, likelihood).eval()
    torch.manual_seed(0)
    raw = build_module({"rna": 20}, likelihood, n_latent=3).eval()
    with torch.no_grad():
        assert started.elbo(cells)[0]["rna"].mean() > raw.elbo(cells)[0]["rna"].mean() + 1


@ALL_LIKELIHOODS
def test_a_single_cell_has_a_finite_loss(likelihood: str) -> None:
    cells = simulate_cells(covariates=True)
    loss = make_module(cells, likelihood).train()(cells.slice(3, 4))
    assert loss.isfinite()
    loss.backward()


def test_counts_of_proteins_are_not_hidden_from_the_encoder() -> None:
    module = build_module({"rna": 5, "adt": 5}, "negative_binomial", dropout_rate=0.3, dense=["adt"])
    assert {name: part.encoder.dropout_rate for name, part in module.by_modality()} == {"rna": 0.3, "adt": 0.0}


def test_the_global_store_of_pyro_stays_empty() -> None:
    cells = simulate_cells()
    pyro.clear_param_store()
    make_module(cells)(cells).backward()
    assert not list(pyro.get_param_store().keys())


def test_validation_of_pyro_is_restored() -> None:
    cells = simulate_cells()
    module = make_module(cells)
    for enabled in (True, False):
        with pyro.validation_enabled(enabled):
            module(cells)
            module.elbo(cells)
            assert pyro.distributions.Normal(0.0, 1.0)._validate_args is enabled
            assert pyro.infer.util.is_validation_enabled() is enabled


# --- Several modalities -----------------------------------------------------------------------------------------------

EVERY_FUSION = pytest.mark.parametrize("fusion", FUSIONS)
# Fusions without random subsets outside of training: the only draw is that of the latent state.
DETERMINISTIC = pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "mixture"])
LACKING = {"atac": [0, 1, 2, 17], "rna": [5, 6]}
LIKELIHOOD_OF_TWO = {"rna": "negative_binomial", "atac": "bernoulli"}


def make_two(
    cells: Cells, fusion: Any = "product", n_layers: int = 1, order: Any = ("rna", "atac"), **of: Any
) -> Module:
    torch.manual_seed(0)
    sizes = sizes_of(cells) | {"n_features": {name: cells.counts[name].n_columns for name in order}}
    options = {"n_latent": 3, "n_layers": n_layers, "dropout_rate": 0.2, "fusion": fusion, **of}
    module = build_module(likelihood=LIKELIHOOD_OF_TWO, **sizes, **options)
    module.initialize(cells)
    return module


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> float:
    """Set the noise of every normal distribution to this number, so that no result depends on the order of draws."""
    noise = 0.7
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.full(shape, noise, dtype=dtype, device=device),
    )
    return noise


def patterns(cells: Cells) -> dict[str, Tensor]:
    """Return the indices of the cells that have both modalities, genes only, peaks only."""
    has_rna, has_atac = cells.mask_with("rna"), cells.mask_with("atac")
    masks = {"both": has_rna & has_atac, "rna": has_rna & ~has_atac, "atac": has_atac & ~has_rna}
    return {name: mask_c.nonzero().squeeze(1) for name, mask_c in masks.items()}


@EVERY_FUSION
@pytest.mark.parametrize("covariates", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_every_parameter_of_every_modality_gets_a_gradient(fusion: str, covariates: bool, n_layers: int) -> None:
    cells = simulate_two_cells(covariates=covariates)
    module = make_two(cells, fusion, n_layers).train()
    module(cells).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@EVERY_FUSION
@pytest.mark.parametrize("only", ["rna", "atac"])
def test_a_minibatch_in_which_no_cell_has_a_modality(fusion: str, only: str) -> None:
    """The parameters of the missing modality get a gradient of 0, which training on several devices requires."""
    cells = simulate_two_cells(covariates=True)
    module = make_two(cells, fusion).train()
    loss = module(cells.keep_modalities(only))
    assert loss.isfinite()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.any()) == name.startswith(f"modalities.{only}."), name


@EVERY_FUSION
def test_a_single_cell_with_a_missing_modality_has_a_finite_loss(fusion: str) -> None:
    cells = simulate_two_cells(lacking=LACKING)
    module = make_two(cells, fusion).train()
    for c in (0, 3, 5):
        loss = module(cells.slice(c, c + 1))
        assert loss.isfinite()
        loss.backward()


def test_a_missing_modality_contributes_nothing(fixed_noise: float) -> None:
    """The log-likelihood is exactly 0; that of the other modality is as if no other cells were in the minibatch."""
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells).eval()
    log_likelihood, kl_c = module.elbo(cells)
    for missing, present in (("atac", "rna"), ("rna", "atac")):
        index_c = torch.tensor(LACKING[missing])
        assert torch.equal(log_likelihood[missing][index_c], torch.zeros(len(index_c)))
        assert log_likelihood[missing].count_nonzero() == 60 - len(index_c)
        alone, alone_kl_c = module.elbo(cells.select(index_c).keep_modalities(present))
        torch.testing.assert_close(alone[present], log_likelihood[present][index_c])
        torch.testing.assert_close(alone_kl_c, kl_c[index_c])
        assert not alone[missing].any()


@DETERMINISTIC
def test_the_loss_of_a_mosaic_is_the_sum_of_its_parts(fusion: str, fixed_noise: float) -> None:
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells, fusion).eval()
    parts = [cells.select(index_c) for index_c in patterns(cells).values()]
    assert sorted(map(len, parts)) == [2, 4, 54]
    losses = [module(cells) * 60, sum(module(part) * len(part) for part in parts)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(module.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    # The same without masks that are entirely true or false.
    without_masks = [
        parts[0].drop_full_masks(torch.arange(len(parts[0]))),
        parts[1].keep_modalities("rna").drop_full_masks(torch.arange(len(parts[1]))),
        parts[2].keep_modalities("atac").drop_full_masks(torch.arange(len(parts[2]))),
    ]
    assert [list(part.present) for part in without_masks] == [[], ["atac"], ["rna"]]
    torch.testing.assert_close(losses[0], sum(module(part) * len(part) for part in without_masks))


@EVERY_FUSION
def test_the_loss_has_the_gradient_of_the_weighted_elbo(fusion: str) -> None:
    """The weight of a modality applies to its log-likelihood in training only; `elbo` does not use it."""
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells, fusion, modality_weights={"atac": 0.3}).eval()
    torch.manual_seed(1)
    found = torch.autograd.grad(module(cells, 0.25), list(module.parameters()))
    torch.manual_seed(1)
    log_likelihood, kl_c = module.elbo(cells)
    loss = (0.25 * kl_c - log_likelihood["rna"] - 0.3 * log_likelihood["atac"]).mean()
    torch.testing.assert_close(found, torch.autograd.grad(loss, list(module.parameters())), rtol=1e-4, atol=1e-6)


def test_the_loss_in_training_includes_the_alignment_of_modalities(fixed_noise: float) -> None:
    """With the weight of the KL divergence. The ELBO does not include it."""
    cells = simulate_two_cells(lacking=LACKING)
    aligned, plain = (make_two(cells, fusion, dropout_rate=0.0) for fusion in ("aligned_product", "product"))
    for ours, theirs in zip(aligned.elbo(cells)[0].values(), plain.elbo(cells)[0].values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    outputs = [
        modality.encoder(cells.counts[name], cells.library_size[name], cells.category_ck, cells.continuous_ck)
        for name, modality in aligned.by_modality()
    ]
    mu_mcz, sigma_mcz = (torch.stack(each) for each in zip(*map(aligned.latent.parameters, outputs), strict=True))
    present_mc = torch.stack([cells.mask_with(name) for name in ("rna", "atac")])
    alignment_c = aligned.fusion.alignment(mu_mcz, sigma_mcz, present_mc)
    assert (alignment_c > 0).tolist() == present_mc.all(0).tolist()
    complete = cells.select(present_mc.all(0).nonzero()[:, 0])
    complete = complete.drop_full_masks(torch.arange(len(complete)))
    torch.testing.assert_close(*(module.train()(complete) for module in (aligned, plain)))
    for kl_weight in (0.25, 1.0):
        losses = [module.train()(cells, kl_weight) for module in (aligned, plain)]
        torch.testing.assert_close(losses[0] - losses[1], kl_weight * alignment_c.mean(), rtol=1e-3, atol=1e-3)


def test_the_loss_equals_the_elbo_in_plain_torch(fixed_noise: float) -> None:
    """Product of experts, reparameterized sample, KL divergence in closed form, dense log-likelihoods."""
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells, modality_weights={"rna": 0.9, "atac": 0.3}).eval()
    parameters = list(module.parameters())
    rna, atac = module.modalities["rna"], module.modalities["atac"]
    covariates = (cells.category_ck, cells.continuous_ck)

    precision_cz, weighted_cz = torch.ones(60, 3), torch.zeros(60, 3)
    for name, modality in (("rna", rna), ("atac", atac)):
        output_cp = modality.encoder(cells.counts[name], cells.library_size[name], *covariates)
        sigma_cz = softplus(output_cp[:, 3:] + math.log(math.e - 1)) + 1e-4
        has_c1 = cells.mask_with(name)[:, None]
        precision_cz = precision_cz + torch.where(has_c1, sigma_cz**-2, 0)
        weighted_cz = weighted_cz + torch.where(has_c1, output_cp[:, :3] * sigma_cz**-2, 0)
    mu_cz, sigma_cz = weighted_cz / precision_cz, precision_cz**-0.5
    kl_c = 0.5 * (mu_cz**2 + sigma_cz**2 - 1 - 2 * sigma_cz.log()).sum(-1)
    z_cz = mu_cz + fixed_noise * sigma_cz
    log_p_rna_c = negative_binomial_reference(
        rna.decoder(z_cz, *covariates)[0],
        rna.likelihood.log_inverse_dispersion_f,
        cells.library_size["rna"].clamp_min(1),
        cells.counts["rna"],
    )
    log_p_atac_c = bernoulli_reference(
        atac.decoder(z_cz, *covariates)[0],
        atac.likelihood.log_exposure(cells.library_size["atac"]),
        cells.counts["atac"],
    )
    by_hand_c = (
        0.25 * kl_c
        - 0.9 * torch.where(cells.mask_with("rna"), log_p_rna_c, 0)
        - 0.3 * torch.where(cells.mask_with("atac"), log_p_atac_c, 0)
    )
    loss = module(cells, 0.25)
    torch.testing.assert_close(loss, by_hand_c.mean())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(by_hand_c.mean(), parameters),
        rtol=1e-3,
        atol=1e-5,
    )


@EVERY_FUSION
def test_the_posterior_of_a_cell_uses_its_own_modalities(fusion: str) -> None:
    """A missing modality is not the same as a modality with zeros."""
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells, fusion).eval()
    with torch.no_grad():
        posterior = module.posterior(cells)["z"]
        for missing, present in (("atac", "rna"), ("rna", "atac")):
            index_c = torch.tensor(LACKING[missing])
            for alone in (
                cells.select(index_c),
                cells.select(index_c).keep_modalities(present),
                cells.keep_modalities(present),
            ):
                found = module.posterior(alone)["z"]
                rows = index_c if len(alone) == 60 else slice(None)
                torch.testing.assert_close(found.mean[rows], posterior.mean[index_c])
                torch.testing.assert_close(found.stddev[rows], posterior.stddev[index_c])
        zeros = Cells(cells.counts, cells.library_size, cells.category_ck, cells.continuous_ck)  # no masks
        change_c = (module.posterior(zeros)["z"].mean - posterior.mean).abs().amax(-1)
    assert (change_c[LACKING["atac"]] > 1e-3).all()
    assert not change_c[patterns(cells)["both"]].any()


@EVERY_FUSION
def test_the_posterior_of_an_empty_cell_is_the_prior(fusion: str) -> None:
    cells = simulate_two_cells(lacking={"rna": [4], "atac": [4]})
    module = make_two(cells.select(torch.arange(5, 60)), fusion).eval()
    posterior = module.posterior(cells)["z"]
    assert torch.equal(posterior.mean[4], torch.zeros(3))
    assert torch.equal(posterior.stddev[4], torch.ones(3))
    with torch.no_grad():
        log_likelihood, kl_c = module.elbo(cells)
    assert [float(log_likelihood_c[4]) for log_likelihood_c in log_likelihood.values()] == [0, 0]
    assert kl_c[4] == 0


@EVERY_FUSION
def test_modalities_are_sampled_on_request_only(fusion: str) -> None:
    cells = simulate_two_cells()
    module = make_two(cells, fusion).eval()
    assert torch.equal(module.posterior(cells)["z"].mean, module.posterior(cells)["z"].mean)
    drawn = [module.posterior(cells, sample_modalities=True)["z"].mean for _ in range(2)]
    assert torch.equal(*drawn) == (fusion != "mixture")


@DETERMINISTIC
def test_order_of_modalities_does_not_matter(fusion: str, fixed_noise: float) -> None:
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells, fusion).eval()
    other = make_two(cells, fusion, order=("atac", "rna")).eval()
    assert other.modality_weights == {"atac": 1, "rna": 1}
    other.load_state_dict(module.state_dict())
    assert list(other.modalities) == ["atac", "rna"]
    (found, found_kl_c), (expected, expected_kl_c) = other.elbo(cells), module.elbo(cells)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_kl_c, expected_kl_c)


def test_a_modality_is_decoded_for_the_cells_that_have_it() -> None:
    cells = simulate_two_cells(lacking=LACKING, covariates=True)
    module = make_two(cells).eval()
    z_cz = torch.randn(60, 3)
    decoded = module.decode(z_cz, cells)
    assert {name: observation.batch_shape for name, observation in decoded.items()} == {"rna": (58,), "atac": (56,)}
    has_c = cells.mask_with("atac")
    alone = module.decode_modality("atac", z_cz[has_c], cells.select(has_c.nonzero().squeeze(1)))
    torch.testing.assert_close(decoded["atac"].mean, alone.mean)


@pytest.mark.parametrize("name", ["rna", "atac"])
def test_each_modality_is_initialized_from_the_cells_that_have_it(name: str) -> None:
    cells = simulate_two_cells(lacking={"atac": range(20), "rna": range(30, 45)})
    index_c = cells.indices_with(name)
    assert index_c is not None
    started, expected = make_two(cells).modalities[name], make_two(cells.select(index_c)).modalities[name]
    for key, tensor in expected.state_dict().items():
        assert tensor.isfinite().all(), key
        assert torch.equal(started.state_dict()[key], tensor), key
    median = cells.library_size[name][index_c].median()
    assert started.encoder.median_library_size == median > cells.library_size[name].median()


def test_default_modality_weights() -> None:
    assert default_modality_weights({"rna": 20}) == {"rna": 1}
    assert default_modality_weights({"rna": 100, "atac": 400}) == {"rna": 1, "atac": 0.5}
    assert default_modality_weights({"rna": 100, "protein": 10, "atac": 900}) == pytest.approx(
        {"rna": 1, "protein": 1, "atac": 1 / 3}
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"rna": 1, "atac": 0.5}),
        ({}, {"rna": 1, "atac": 0.5}),
        ({"atac": 3.0}, {"rna": 1, "atac": 3}),
        ({"rna": 0.0}, {"rna": 0, "atac": 0.5}),
    ],
)
def test_modality_weights_override_the_defaults(given: Mapping[str, float] | None, expected: dict[str, float]) -> None:
    module = make_two(simulate_two_cells(n_genes=10, n_peaks=40), modality_weights=given)
    assert module.modality_weights == pytest.approx(expected)


@pytest.mark.parametrize("name", ["z", "cells", "cells_rna", "counts_rna", "Antibody Capture"])
def test_a_modality_may_have_any_name(name: str) -> None:
    two = simulate_two_cells()
    cells = Cells(
        {"rna": two.counts["rna"], name: two.counts["atac"]},
        {"rna": two.library_size["rna"], name: two.library_size["atac"]},
        two.category_ck,
        two.continuous_ck,
    )
    module = build_module({"rna": 20, name: 30}, {"rna": "poisson", name: "bernoulli"}, n_latent=3)
    module.initialize(cells)
    assert module(cells).isfinite()


@pytest.mark.parametrize("name", ["keys", "type"])
def test_names_that_torch_reserves_are_rejected(name: str) -> None:
    with raises(ValueError, naming=[repr(name)]):
        build_module({"rna": 20, name: 30}, {"rna": "poisson", name: "bernoulli"}, n_latent=3)
