"""Models of every latent family, likelihood and prior, and of some combinations: tests that all of them pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from matplotlib import pyplot as plt

from celldial import VAE, pl
from celldial.model.latents import TOPIC_SCALE, LatentName
from helpers.cases import LATENT_CASES, LIKELIHOOD_CASES, PRIOR_CASES
from helpers.raises import raises, warns
from helpers.simulate import simulate, simulate_two, with_empty_cells

# --- Models -----------------------------------------------------------------------------------------------------------

BATCH = {"batch_key": "batch"}


def every_row() -> dict[str, dict[str, Any]]:
    """Return parameters with each row of the tables of latent families, likelihoods and priors once at least."""
    rows = {}
    for k in range(max(map(len, (LATENT_CASES, LIKELIHOOD_CASES, PRIOR_CASES)))):
        names = [list(table)[k % len(table)] for table in (LATENT_CASES, LIKELIHOOD_CASES, PRIOR_CASES)]
        options = dict(zip(("latent", "likelihood", "prior"), names, strict=True))
        rows[", ".join(names)] = options | PRIOR_CASES[names[2]]
    return rows


# Those together that may disturb each other.
MODELS: dict[str, dict[str, Any]] = {
    **every_row(),
    "additive": {"latent": "logistic", "decoder": "additive"},
    "loadings": {"latent": "log_normal", "decoder": "linear", "bayesian_loadings": True},
    "linear topics": {"latent": "logistic_normal", "decoder": "linear", "prior": "mixture"},
    "posterior flow": {"posterior": "flow", "latent": "logistic_normal"},
    "both flows": {"posterior": "flow", "prior": "flow", "latent": "laplace"},
    "clusters": {"n_clusters": 3},
    "clusters of topics": {"n_clusters": 3, "latent": "logistic_normal", "gradient": "gumbel_softmax"},
    "flow in clusters": {"n_clusters": 2, "posterior": "flow", "latent": "logistic"},
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


def first_of(latent: str) -> dict[str, Any]:
    """Return the parameters of the first model with a latent family."""
    parameters = next(options for options in MODELS.values() if options.get("latent", "gaussian") == latent)
    return VAE(3, 8, **BATCH, **parameters).get_params()


def in_range(z_cz: np.ndarray, latent: LatentName) -> bool:
    """Return whether latent states are in the range of their family."""
    return bool(np.isfinite(z_cz).all()) and LATENT_CASES[latent].contains(z_cz)


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


def test_values_outside_of_the_range_are_not_decoded(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    modality, inside_cz = model.schema_.modalities[0], model.transform(adata[:1])
    for outside_z in LATENT_CASES[model.latent].outside:
        with raises(ValueError, naming=["z"]):
            model.decode(np.array([inside_cz[0], outside_z]), adata.obs[:2], modality=modality)


def test_sparse_and_dense_counts_have_the_same_embedding(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    dense = AnnData(adata.X.toarray(), adata.obs, adata.var)
    np.testing.assert_array_equal(model.transform(dense), model.transform(adata))


def test_a_cell_without_counts_is_embedded(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    with warns(naming=["'c30'"]):
        assert in_range(model.transform(with_empty_cells(adata, 30)), model.latent)


def test_a_saved_model_gives_identical_results(fitted: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = fitted
    model.save(tmp_path / "model.celldial")
    back = VAE.load(tmp_path / "model.celldial")
    for found, expected in zip(back.latent_posterior(adata), model.latent_posterior(adata), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back.transform(adata), model.transform(adata))
    modality = model.schema_.modalities[0]
    np.testing.assert_array_equal(back.denoise(adata, modality=modality), model.denoise(adata, modality=modality))
    assert back.score(adata) == model.score(adata)
    drawn, expected = (one.sample(5, {"batch": "b0"}) for one in (back, model))
    np.testing.assert_array_equal(drawn.obsm["z"], expected.obsm["z"])
    assert (drawn.X != expected.X).nnz == 0


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
    assert np.isfinite([*axis.direction_z, *axis.weight_z, *adata.obs["ageing"]]).all()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(60, 2))
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
    # Plots read what is stored, so one model of each family is enough.
    if model.get_params() == first_of(model.latent):
        pl.axes(adata, show=False)
        pl.latent_traverse(adata, n_features=2, show=False)
        pl.axis_features(adata, n_features=2, show=False)
        pl.traverse_path(adata, show=False)
        plt.close("all")


def test_a_cell_without_a_modality_is_embedded_by_the_other(fitted: tuple[VAE, AnnData]) -> None:
    model, adata = fitted
    if len(model.schema_.modalities) == 1:
        pytest.skip("a model of one modality")
    by_modality = {modality: model.transform(adata[20:], modality=modality) for modality in ("rna", "atac")}
    assert all(in_range(z_cz, model.latent) for z_cz in by_modality.values())
    assert not np.allclose(by_modality["rna"], by_modality["atac"])
    np.testing.assert_allclose(
        model.transform(adata[:10], modality="rna"), model.transform(adata[:10]), rtol=1e-3, atol=1e-6
    )
    assert np.isfinite(model.impute(adata[:10].copy(), "atac", features=["p0", "p1"])).all(None)


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
