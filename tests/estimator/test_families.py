"""Latent families, priors, posteriors and decoders: closed forms, and tests that every model passes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import kl_divergence

from celldial import VAE, pl
from celldial.model.latents import LATENTS, LINEAR_FROM, TOPIC_SCALE, Latent, LogisticNormal, LogNormal
from celldial.model.likelihoods import LIKELIHOODS
from celldial.model.module import kl_at_draw
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

COORDINATES = st.lists(st.floats(-50, 50), min_size=1, max_size=6)
ON_LINE = torch.linspace(-60, 60, 400_001, dtype=torch.float64)


def in_double(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# --- Densities --------------------------------------------------------------------------------------------------------

# Of mean μ and standard deviation σ.
DENSITIES: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "gaussian": stats.norm.logpdf,
    "log_normal": stats.norm.logpdf,
    "logistic_normal": stats.norm.logpdf,
    "laplace": lambda u, mu, sigma: -np.abs(u - mu) * math.sqrt(2) / sigma - math.log(sigma * math.sqrt(2)),
    "logistic": lambda u, mu, sigma: stats.logistic.logpdf(u, mu, sigma * math.sqrt(3) / math.pi),
}


def divergence(name: str, mu: float, sigma: float) -> float:
    """KL divergence of a posterior from the standard prior, by quadrature."""
    log_q, log_p = (DENSITIES[name](ON_LINE.numpy(), *moments) for moments in ((mu, sigma), (0.0, 1.0)))
    return float(integrate.trapezoid(np.exp(log_q) * (log_q - log_p), ON_LINE.numpy()))


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.0), (0.1, 0.05)])
def test_posteriors_have_their_moments_and_densities(name: str, mu: float, sigma: float) -> None:
    posterior = LATENTS[name](1).posterior(in_double([mu]), in_double([sigma]))
    torch.testing.assert_close(posterior.mean, in_double([mu]))
    torch.testing.assert_close(posterior.stddev, in_double([sigma]))
    log_q = posterior.log_prob(ON_LINE[:, None, None])[:, 0]
    np.testing.assert_allclose(log_q, DENSITIES[name](ON_LINE.numpy(), mu, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(LATENTS) - {"logistic"}))
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.0)])
def test_closed_form_divergences_equal_their_integrals(name: str, mu: float, sigma: float) -> None:
    family = LATENTS[name](1)
    found = kl_divergence(family.posterior(in_double([mu]), in_double([sigma])), family.prior(1, ON_LINE)).item()
    assert found == pytest.approx(divergence(name, mu, sigma), abs=1e-6)
    if name == "laplace":  # |μ| and the scale b, in units of the prior's scale
        b, distance = sigma, abs(mu) * math.sqrt(2)
        assert found == pytest.approx(-math.log(b) + distance + b * math.exp(-distance / b) - 1, abs=1e-9)


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.0)])
def test_the_divergence_of_logistic_posteriors_is_estimated_without_bias(mu: float, sigma: float) -> None:
    family = LATENTS["logistic"](2)
    assert not family.analytic_kl
    torch.manual_seed(0)
    posterior = family.posterior(torch.full((100_000, 2), mu), torch.full((100_000, 2), sigma))
    kl_c = kl_at_draw(posterior, family.prior(100_000, torch.zeros(1)), posterior.rsample(), analytic=False)
    error = float(kl_c.std()) / math.sqrt(len(kl_c))
    assert float(kl_c.mean()) == pytest.approx(2 * divergence("logistic", mu, sigma), abs=4 * error + 1e-6)


# --- Links ------------------------------------------------------------------------------------------------------------


@given(COORDINATES)
def test_positive_coordinates_round_trip(values: list[float]) -> None:
    family, u_cz = LogNormal(len(values)), in_double(values)
    z_cz = family.link(u_cz)
    assert (z_cz > 0).all()
    torch.testing.assert_close(family.inverse_link(z_cz), u_cz)


@given(COORDINATES)
def test_positive_coordinates_increase_with_a_bounded_slope(values: list[float]) -> None:
    u_cz = in_double(sorted(values)).requires_grad_()
    z_cz = LogNormal(len(values)).link(u_cz)
    assert (z_cz.diff() >= 0).all()
    (slope_cz,) = torch.autograd.grad(z_cz.sum(), u_cz)
    assert (slope_cz > 0).all()
    assert (slope_cz <= LINEAR_FROM * (1 + 1e-9)).all()
    # As long as it is an exponential, the slope is the value.
    inside_cz = u_cz < math.log(LINEAR_FROM)
    torch.testing.assert_close(slope_cz[inside_cz], z_cz[inside_cz])


@given(COORDINATES, st.floats(-5, 5))
def test_shares_sum_to_one_and_round_trip_centered(values: list[float], shift: float) -> None:
    family, u_cz = LogisticNormal(len(values)), in_double(values)
    z_cz = family.link(u_cz)
    assert (z_cz >= 0).all()
    torch.testing.assert_close(z_cz.sum(1), torch.ones(1, dtype=torch.float64))
    # A constant added to all coordinates does not change the shares.
    torch.testing.assert_close(family.link(u_cz + shift), z_cz)
    back_cz = family.inverse_link(z_cz)
    torch.testing.assert_close(back_cz, u_cz - u_cz.mean(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(family.link(back_cz), z_cz)


@given(COORDINATES, st.floats(-3, 3), st.data())
def test_a_topic_grows_at_the_expense_of_the_others_in_proportion(
    values: list[float], step: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(values) - 1))
    family, u_cz = LogisticNormal(len(values)), in_double(values)
    moved_cz = u_cz.clone()
    moved_cz[0, k] += step
    before_z, after_z = family.link(u_cz)[0], family.link(moved_cz)[0]
    assert (after_z[k] - before_z[k]) * step >= 0
    # The odds of topic k grow by a factor; the ratios of the other topics do not change.
    left, of_others = 1 - before_z[k], torch.arange(len(values)) != k
    if left > 1e-6 and after_z[k] < 1 - 1e-6:
        odds = (after_z[k] / (1 - after_z[k])) / (before_z[k] / left)
        torch.testing.assert_close(odds.log(), torch.tensor(TOPIC_SCALE * step, dtype=torch.float64), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            after_z[of_others] / (1 - after_z[k]), before_z[of_others] / left, atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("name", ["gaussian", "laplace", "logistic"])
def test_other_families_have_the_identity_as_link(name: str) -> None:
    family: Latent = LATENTS[name](3)
    u_cz = torch.randn(4, 3)
    assert torch.equal(family.link(u_cz), u_cz)
    assert torch.equal(family.inverse_link(u_cz), u_cz)


# --- Models -----------------------------------------------------------------------------------------------------------

BATCH = {"batch_key": "batch"}
# One at least of every choice, and those together that may disturb each other.
MODELS: dict[str, dict[str, Any]] = {
    "laplace": {"latent": "laplace"},
    "logistic": {"latent": "logistic", "decoder": "additive"},
    "log_normal": {"latent": "log_normal", "decoder": "linear", "bayesian_loadings": True},
    "topics": {"latent": "logistic_normal"},
    "linear topics": {"latent": "logistic_normal", "decoder": "linear", "prior": "mixture"},
    "mixture": {"prior": "mixture", "n_components": 3},
    "logistic mixture": {"latent": "logistic", "prior": "mixture"},
    "flow": {"prior": "flow", "latent": "log_normal"},
    "posterior flow": {"posterior": "flow", "latent": "logistic_normal"},
    "both flows": {"posterior": "flow", "prior": "flow", "latent": "laplace"},
    "clusters": {"n_clusters": 3},
    "clusters of topics": {"n_clusters": 3, "latent": "logistic_normal", "gradient": "gumbel_softmax"},
    "flow in clusters": {"n_clusters": 2, "posterior": "flow", "latent": "logistic"},
    "linear": {"decoder": "linear", "bayesian_loadings": True},
    "score function": {"gradient": "score_function", "latent": "logistic"},
}
# One fit of each, of RNA or of RNA and ATAC; all tests below use it.
MULTIMODAL = list(MODELS)[::2]


def cells_of(multimodal: bool) -> AnnData:
    """Return cells of one modality, or of two that some cells lack."""
    if not multimodal:
        return simulate()
    return simulate_two(lacking={"atac": range(0, 10), "rna": range(10, 20)})


@pytest.fixture(scope="module", params=MODELS)
def fitted(request: pytest.FixtureRequest) -> tuple[VAE, AnnData]:
    adata = cells_of(request.param in MULTIMODAL)
    model = VAE(3, 8, **BATCH, **MODELS[request.param])
    return model.fit(adata, max_epochs=4, batch_size=32, progress=False), adata


def in_range(z_cz: np.ndarray, latent: str) -> bool:
    """Return whether latent states are in the support of their family."""
    if latent == "logistic_normal":
        return bool((z_cz >= 0).all() and np.allclose(z_cz.sum(1), 1, atol=1e-5))
    return bool(np.isfinite(z_cz).all() and (latent != "log_normal" or (z_cz > 0).all()))


def test_latent_states_lie_in_the_support_of_the_family(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    z_cz = model.transform(adata)
    assert (z_cz.shape, z_cz.dtype) == ((60, 3), np.float32)
    assert in_range(z_cz, model.latent)
    np.testing.assert_array_equal(z_cz, adata.obsm["X_celldial"])
    mean_cz, deviation_cz = model.latent_posterior(adata)
    assert (deviation_cz > 0).all()
    np.testing.assert_allclose(model.module_.constrained(torch.from_numpy(mean_cz)), z_cz, rtol=1e-6)


def test_decoding_the_latent_states_equals_denoising(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    for modality in model.schema_.modalities:
        decoded_cf = model.decode(model.transform(adata), adata.obs, modality=modality)
        np.testing.assert_allclose(decoded_cf, model.denoise(adata, modality=modality), rtol=1e-3)


def test_a_saved_model_gives_identical_results(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = fitted
    model.save(tmp_path / "model.celldial")
    back = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_array_equal(back.transform(adata), model.transform(adata))
    assert back.score(adata) == model.score(adata)
    np.testing.assert_array_equal(back.sample(5, {"batch": "b0"}).obsm["z"], model.sample(5, {"batch": "b0"}).obsm["z"])


def test_sampled_cells_resemble_the_data(fitted: tuple[VAE, AnnData]) -> None:
    model, _ = fitted
    drawn = model.sample(40, {"batch": ["b0", "b1"] * 20})
    assert in_range(drawn.obsm["z"], model.latent)
    assert drawn.X.min() >= 0
    assert in_range(model.transform(drawn), model.latent)
    np.testing.assert_array_equal(drawn.X.toarray(), model.sample(40, drawn.obs).X.toarray())


def test_more_samples_tighten_the_bound(fitted: tuple[VAE, AnnData]) -> None:
    """That is so on average over draws; of one ELBO of each of 60 cells the noise is about a nat."""
    model, adata = fitted
    assert model.score(adata, n_samples=20) > model.score(adata) - 1.5


def test_partial_fit_continues(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = fitted
    model.save(tmp_path / "model.celldial")
    more = VAE.load(tmp_path / "model.celldial").partial_fit(adata.copy(), max_epochs=1, progress=False)
    assert len(more.history_["elbo_validation"]) == 5
    assert in_range(more.transform(adata), model.latent)
    assert not np.array_equal(more.transform(adata), model.transform(adata))


@pytest.mark.filterwarnings("ignore::UserWarning")  # sixty cells are too few to predict the age
def test_axes_can_be_traversed_and_plotted(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    adata = adata.copy()
    table = model.axes(adata)
    assert np.isfinite(table.drop(columns="used").to_numpy(dtype=float)).all()
    what = "topic" if model.latent == "logistic_normal" else "axis"
    assert set(table.index) == {f"{what}_{k}" for k in range(3)}
    axis = model.find_axis(adata, "ageing", obs="age")
    assert np.isfinite([*axis.direction_z, *axis.filter_z, *adata.obs["ageing"]]).all()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2))
    pl.axes(adata, show=False)
    for dial in (1, "ageing", ("A", "B")):
        path = model.latent_traverse(adata, dial, n_steps=4, n_cells=5, groupby="type" if dial == ("A", "B") else None)
        assert np.isfinite(path.X).all()
        assert (path.X > 0).all()
        assert np.isfinite(path.var.drop(columns="modality").to_numpy(dtype=float)).all()
        assert (path.layers["lower"] <= path.X).all()
        assert (path.X <= path.layers["upper"]).all()
        assert (np.diff(path.obs["position"]) > 0).all()
        assert in_range(path.uns["path"], model.latent)
        assert in_range(adata.uns["latent_traverse"][list(adata.uns["latent_traverse"])[-1]]["path"], model.latent)
        pl.latent_traverse(adata, n_features=2, show=False)
        pl.axis_features(adata, n_features=2, show=False)
        pl.traverse_path(adata, show=False)
    plt.close("all")


def test_a_cell_without_a_modality_is_embedded_by_the_other(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    if len(model.schema_.modalities) == 1:
        pytest.skip("a model of one modality")
    heard = {modality: model.transform(adata[20:], modality=modality) for modality in ("rna", "atac")}
    assert all(in_range(z_cz, model.latent) for z_cz in heard.values())
    assert not np.allclose(heard["rna"], heard["atac"])
    np.testing.assert_allclose(
        model.transform(adata[:10], modality="rna"), model.transform(adata[:10]), rtol=1e-3, atol=1e-6
    )
    assert np.isfinite(model.impute(adata[:10].copy(), "atac", features=["p0", "p1"])).all(None)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("latent", LATENTS)
def test_every_family_supports_every_likelihood(latent: str, likelihood: str) -> None:
    model = VAE(2, 4, latent=latent, likelihood=likelihood, **BATCH)
    z_cz = model.fit_transform(simulate(40, 12), max_epochs=2, validation_size=0, batch_size=32, progress=False)
    assert in_range(z_cz, latent)
    assert np.isfinite(model.history_["elbo_train"]).all()


# --- Traversals -------------------------------------------------------------------------------------------------------


def traversed(latent: str) -> tuple[VAE, AnnData, AnnData]:
    """Fit, and traverse coordinate 1 of all cells."""
    adata = simulate()
    model = VAE(3, 8, latent=latent, decoder="linear").fit(adata, max_epochs=8, progress=False)
    return model, adata, model.latent_traverse(adata, 1, n_steps=5, span=(0.1, 0.9), n_cells=60, n_samples=2)


def test_the_position_on_a_topic_is_its_share() -> None:
    model, adata, path = traversed("logistic_normal")
    assert path.uns["position_label"] == "share of topic 1"
    assert (path.uns["axis"], list(adata.uns["latent_traverse"])) == ("topic 1", ["topic_1"])
    np.testing.assert_allclose(path.obs["position"], path.uns["path"][:, 1], rtol=1e-5)
    np.testing.assert_array_equal(adata.uns["latent_traverse"]["topic_1"]["position"], path.obs["position"])
    # Evenly spaced in the unconstrained coordinate, from quantile to quantile.
    mean_cz, _ = model.latent_posterior(adata)
    low, high = np.quantile(mean_cz[:, 1], [0.1, 0.9])
    assert path.obs["position"].iloc[0] < adata.obsm["X_celldial"][:, 1].mean() < path.obs["position"].iloc[-1]
    state_cz = np.repeat(mean_cz[None], 5, axis=0)
    state_cz[:, :, 1] = np.linspace(low, high, 5)[:, None]
    share_s = torch.softmax(TOPIC_SCALE * torch.from_numpy(state_cz), -1)[:, :, 1].mean(1)
    np.testing.assert_allclose(path.obs["position"], share_s, rtol=1e-5)
    for name in ("topic_1", "axis_1"):
        again = model.latent_traverse(adata, name, n_steps=5, span=(0.1, 0.9), n_cells=60, n_samples=2)
        np.testing.assert_array_equal(again.X, path.X)
    assert list(adata.uns["latent_traverse"]) == ["topic_1"]


def test_the_position_on_a_positive_coordinate_is_its_value() -> None:
    _, adata, path = traversed("log_normal")
    assert path.uns["position_label"] == "latent coordinate 1"
    low, high = np.quantile(adata.obsm["X_celldial"][:, 1], [0.1, 0.9], method="linear")
    np.testing.assert_allclose(path.obs["position"].iloc[[0, -1]], [low, high], rtol=1e-2)
    np.testing.assert_allclose(path.obs["position"], path.uns["path"][:, 1], rtol=1e-5)
    # Evenly spaced in the unconstrained coordinate, the logarithm.
    np.testing.assert_allclose(np.diff(np.log(path.obs["position"]), 2), 0, atol=1e-4)


def test_only_topics_are_called_topics() -> None:
    adata = simulate()
    of_topics = VAE(3, 4, latent="logistic_normal").fit(adata, max_epochs=1, progress=False)
    model = VAE(3, 4).fit(adata, max_epochs=1, progress=False)
    with raises(KeyError, naming=["'topic_1'"]):
        model.latent_traverse(adata, "topic_1", n_steps=2)
    one, other = (of_topics.latent_traverse(adata, name, n_steps=2) for name in ("axis_1", 1))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.uns["axis"] == other.uns["axis"] == "topic 1"
    with raises(ValueError, naming=["axis", 7, 0, 2]):
        of_topics.latent_traverse(adata, "topic_7", n_steps=2)
    with raises(ValueError, naming=["name", "'topic_1'"]):
        model.find_axis(adata, "topic_1", obs="type")
