"""`latent_traverse`: its results, its intervals and their coverage."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse, stats

from celldial import VAE, pl
from celldial.tl import moved_cells
from helpers.axes import AXIS, with_axis
from helpers.fit import fit, without_loadings
from helpers.raises import raises, warns
from helpers.simulate import simulate, simulate_mosaic, simulate_two

# --- Several modalities -----------------------------------------------------------------------------------------------


def test_a_traversal_shows_all_modalities(trimodal: VAE, tmp_path: Path) -> None:
    adata = simulate_mosaic()
    path = trimodal.latent_traverse(adata, 1, n_steps=7)
    assert path.shape == (7, 56)
    assert list(path.var["modality"]) == ["rna"] * 20 + ["atac"] * 30 + ["protein"] * 6
    assert path.X[:, 20:50].max() < 1
    np.testing.assert_allclose(path.X[:, :20].sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(path.X[:, 50:].sum(1), 1e4, rtol=1e-4)
    # A library size scales counts, and does not affect probabilities.
    other = trimodal.latent_traverse(adata.copy(), 1, n_steps=7, library_size=10)
    np.testing.assert_array_equal(other.X[:, 20:50], path.X[:, 20:50])
    np.testing.assert_allclose(other.X[:, :20] * 1e3, path.X[:, :20], rtol=1e-4)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    path.write_h5ad(tmp_path / "path.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    stored = back.uns["latent_traverse"]["axis_1"]
    assert list(stored["modality"]) == list(path.var["modality"])
    assert list(stored["feature_names"]) == list(path.var_names)
    np.testing.assert_array_equal(stored["mean"], path.X)
    drawn = pl.latent_traverse(back, "axis_1", features=["g1", "p2", "a3"], show=False)
    assert list(drawn)[:3] == ["g1", "p2", "a3"]
    plt.close("all")


def test_a_traversal_combines_those_of_each_modality(bimodal: VAE, multiome: AnnData) -> None:
    """The decoded means equal those of `decode`; samples of latent states do not depend on the modality."""
    adata = multiome.copy()
    path = bimodal.latent_traverse(adata, 0, n_steps=3, at=multiome.obs_names[0], n_samples=2000)
    for name in ("rna", "atac"):
        found_f = path.X[:, path.var["modality"] == name].mean(0)
        decoded_f = bimodal.decode(path.uns["path"], multiome.obs.iloc[[0] * 3], modality=name).mean(0)
        assert np.corrcoef(np.log(found_f), np.log(decoded_f))[0, 1] > 0.99
    ratio = np.log2(path.X / path.X[0])
    np.testing.assert_allclose(path.layers["log2_fold_change"], ratio, atol=1e-5)


# --- Returned and stored results --------------------------------------------------------------------------------------


def test_a_coordinate_has_two_names(model_3d: VAE, adata: AnnData) -> None:
    by_number = model_3d.latent_traverse(adata, 1, n_steps=4)
    by_name = model_3d.latent_traverse(adata, "axis_1", n_steps=4)
    np.testing.assert_array_equal(by_number.X, by_name.X)
    assert list(adata.uns["latent_traverse"]) == ["axis_1"]
    low, high = np.quantile(model_3d.transform(adata)[:, 1], [0.01, 0.99])
    np.testing.assert_allclose(by_name.obs["position"].iloc[[0, -1]], [low, high], rtol=1e-5)
    assert (by_name.uns["n_cells"], by_name.uns["n_samples"], by_name.uns["at"]) == (32, 2, "32 of all cells")


def test_a_traversal_has_a_row_a_step_and_a_column_a_feature(model_3d: VAE, adata: AnnData) -> None:
    before = adata.copy()
    adata.uns["latent_traverse"] = {"mine": {"note": "kept"}}
    path = model_3d.latent_traverse(adata, 0, n_steps=7)
    assert path.shape == (7, 20)
    assert list(path.var_names) == list(adata.var_names)
    assert (np.diff(path.obs["position"]) > 0).all()
    np.testing.assert_allclose(path.X.sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(path.layers["log2_fold_change"], np.log2(path.X / path.X[0]), atol=1e-5)
    # Other traversals are kept, and nothing else is changed.
    assert adata.uns["latent_traverse"]["mine"] == {"note": "kept"}
    assert list(adata.uns) == ["latent_traverse", "celldial"]
    assert adata.uns["celldial"] == {"written": {"latent_traverse": {"axis_0": model_3d.fingerprint_}}}
    assert not adata.obsm
    assert not adata.layers
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert (adata.X != before.X).nnz == 0


def test_a_named_axis_moves_the_score(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(with_axis(adata), "response", n_steps=5, span=(0.1, 0.9))
    score_c = (model_3d.transform(adata) - AXIS["origin"]) @ AXIS["filter"]
    np.testing.assert_allclose(path.obs["position"].iloc[[0, -1]], np.quantile(score_c, [0.1, 0.9]), rtol=1e-4)
    np.testing.assert_allclose(
        (path.uns["path"] - AXIS["origin"]) @ AXIS["filter"], path.obs["position"], rtol=1e-3, atol=1e-4
    )
    assert (path.uns["kind"], path.uns["axis"]) == ("direction", "response")


def test_an_axis_no_better_than_chance_is_a_warning(model_3d: VAE, adata: AnnData) -> None:
    cells = with_axis(adata)
    cells.uns["celldial"]["axes"]["response"] = {**AXIS, "p_value": 0.3}
    with warns(naming=["'response'", "p = 0.3"]) as records:
        model_3d.latent_traverse(cells, "response", n_steps=3)
    assert records[0].filename == __file__
    cells.uns["celldial"]["axes"]["response"]["p_value"] = 0.001
    model_3d.latent_traverse(cells, "response", n_steps=3)


def test_a_path_starts_in_one_group_and_ends_in_the_other(model_3d: VAE, adata: AnnData) -> None:
    n_cells = int(adata.obs["type"].value_counts().min())
    smaller = adata.obs["type"].value_counts().idxmin()
    other = "AB".replace(smaller, "")
    path = model_3d.latent_traverse(adata, (smaller, other), n_steps=3, n_cells=1000, n_samples=100)
    assert path.uns["n_cells"] == n_cells
    of_group = model_3d.transform(adata)[adata.obs["type"] == smaller]
    np.testing.assert_allclose(path.uns["path"][0], of_group.mean(0), atol=0.1)
    np.testing.assert_allclose(path.uns["path"][1], path.uns["path"][[0, 2]].mean(0), atol=1e-5)
    assert list(path.obs["position"]) == [0, 0.5, 1]
    assert path.uns["axis"] == f"from {smaller} to {other}"
    expected = model_3d.latent_traverse(adata, (smaller, other), groupby="type", n_steps=3, n_cells=1000, n_samples=100)
    np.testing.assert_array_equal(path.X, expected.X)


def test_a_path_between_two_cells_has_their_expression_at_its_ends(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, ("c0", "c6"), n_steps=2, n_samples=4000)
    at_0 = model_3d.denoise(adata).loc["c0"]
    assert np.corrcoef(np.log(path.X[0]), np.log(at_0))[0, 1] > 0.98
    assert (path.uns["n_cells"], path.uns["at"], path.uns["kind"]) == (1, "from c0 to c6", "path")
    assert list(adata.uns["latent_traverse"]) == ["c0 to c6"]


def test_one_cell_is_sampled_repeatedly(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, 0, at="c3", n_steps=3)
    assert (path.uns["at"], path.uns["n_cells"], path.uns["n_samples"]) == ("cell c3", 1, 64)
    others = [1, 2]
    np.testing.assert_allclose(path.uns["path"][0, others], model_3d.transform(adata)[3, others], atol=0.5)


def test_a_group_is_traversed_alone(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, 0, at={"type": "B"}, n_steps=3, n_cells=1000)
    n_cells = int((adata.obs["type"] == "B").sum())
    assert path.uns["at"] == f"{n_cells} of type: B"
    # The span is still that of all cells.
    everything = model_3d.latent_traverse(adata, 0, n_steps=3)
    np.testing.assert_array_equal(path.obs["position"], everything.obs["position"])


def test_covariates_are_set_by_transform_batch(model_3d: VAE, adata: AnnData) -> None:
    asked = model_3d.latent_traverse(adata, 0, at="c3", n_steps=3, transform_batch={"batch": "b0", "donor": "x"})
    own = model_3d.latent_traverse(adata, 0, at="c3", n_steps=3)
    assert not np.allclose(asked.X, own.X, rtol=1e-3)
    # The encoder still uses the covariates of the cells.
    np.testing.assert_array_equal(asked.uns["path"], own.uns["path"])
    same = model_3d.latent_traverse(adata, 0, at="c3", n_steps=3, transform_batch={"batch": adata.obs["batch"]["c3"]})
    np.testing.assert_array_equal(same.X, own.X)
    assert same.uns["covariates"] == {"batch": adata.obs["batch"]["c3"]}


def test_the_band_contains_the_mean_and_grows_with_uncertainty(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, 0, n_steps=5, n_cells=60)
    assert ((path.layers["lower"] < path.X) & (path.X < path.layers["upper"])).all()
    of_one = model_3d.latent_traverse(adata, 0, n_steps=5, at="c3")
    widths = [np.log(p.layers["upper"] / p.layers["lower"]).mean() for p in (path, of_one)]
    assert widths[0] < widths[1]
    # A rare gene is less known than a common one.
    width_f = np.log(path.layers["upper"] / path.layers["lower"]).mean(0)
    assert stats.spearmanr(width_f, path.X.mean(0)).statistic < -0.5


def test_features_have_effects_false_sign_rates_and_ranks(bimodal_3d: VAE) -> None:
    path = bimodal_3d.latent_traverse(simulate_two(), 0, n_steps=6)
    var = path.var
    assert list(var["modality"].unique()) == ["rna", "atac"]
    assert sorted(var["rank"]) == list(range(50))
    assert var["lfsr"].between(0, 0.5).all()
    assert var["fdr"].is_monotonic_increasing or (var.sort_values("lfsr")["fdr"].diff().dropna() >= 0).all()
    np.testing.assert_allclose(var["change"], path.layers["log2_fold_change"][-1], rtol=1e-6)
    np.testing.assert_array_equal(path.layers["mean"], path.X)
    np.testing.assert_array_equal(var["peak_step"], path.X.argmax(0))
    assert path.layers["upper"][:, 20:].max() <= 1


def test_traversals_are_reproducible_by_seed(model_3d: VAE, adata: AnnData) -> None:
    paths = [model_3d.latent_traverse(adata, 0, n_steps=3, n_cells=10, seed=seed) for seed in (0, 0, 1)]
    for layer in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(paths[0].layers[layer], paths[1].layers[layer])
    assert not np.array_equal(paths[0].X, paths[2].X)
    pd.testing.assert_frame_equal(paths[0].var, paths[1].var)
    assert paths[0].uns["n_cells"] == 10


def test_cells_are_read_block_by_block(model_3d: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same, and no block is larger."""
    expected = model_3d.latent_traverse(adata, 0, n_steps=3)
    monkeypatch.setattr(moved_cells, "BLOCK_CELLS", 7)
    sizes = []
    rows = moved_cells.subset

    def noted(table: AnnData, position_c: np.ndarray) -> AnnData:
        sizes.append(len(position_c))
        return rows(table, position_c)

    monkeypatch.setattr(moved_cells, "subset", noted)
    np.testing.assert_allclose(model_3d.latent_traverse(adata, 0, n_steps=3).X, expected.X, rtol=1e-3)
    assert sorted(sizes) == [4, *[7] * 8, 32]
    # Of many cells, some are read.
    sizes.clear()
    monkeypatch.setattr(moved_cells, "MAX_SPAN_CELLS", 20)
    model_3d.latent_traverse(adata, 0, n_steps=3)
    assert sorted(sizes) == [6, 7, 7, 20]


def test_a_warning_about_features_is_given_once(model_3d: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved_cells, "BLOCK_CELLS", 7)
    with warns(naming=[19, 20]) as caught:
        model_3d.latent_traverse(adata[:, :19].copy(), 0, n_steps=2)
    assert len(caught) == 1


def test_stored_traversals_survive_a_file(bimodal_3d: VAE, tmp_path: Path) -> None:
    adata = with_axis(simulate_two())
    returned = {
        "axis_0": bimodal_3d.latent_traverse(adata, 0, n_steps=3),
        "response": bimodal_3d.latent_traverse(adata, "response", n_steps=3),
        "A to B": bimodal_3d.latent_traverse(adata, ("A", "B"), n_steps=3),
        "mine": bimodal_3d.latent_traverse(adata, 1, n_steps=3, key_added="mine", library_size=100),
    }
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad").uns["latent_traverse"]
    assert set(back) == set(returned)
    for name, path in returned.items():
        path.write_h5ad(tmp_path / "path.h5ad")
        path = read_h5ad(tmp_path / "path.h5ad")
        stored = back[name]
        for layer in ("mean", "lower", "upper", "log2_fold_change"):
            assert stored[layer].dtype == np.float32
            np.testing.assert_array_equal(stored[layer], path.layers[layer])
        for column in ("effect_size", "change", "peak_step", "lfsr", "fdr", "rank", "modality"):
            np.testing.assert_array_equal(stored[column], path.var[column])
        np.testing.assert_array_equal(stored["position"], path.obs["position"])
        assert list(stored["feature_names"]) == list(path.var_names)
        assert stored["path"].shape == (3, 3)
        assert stored["path"].dtype == np.float32
        assert stored["likelihood"] == {"rna": "negative_binomial", "atac": "bernoulli"}
        assert stored["interval"] == 0.9
        for key in ("axis", "kind", "position_label", "at"):
            assert stored[key] == path.uns[key]
    assert back["mine"]["library_size"]["rna"] == 100
    assert back["mine"]["library_size"]["atac"] == back["axis_0"]["library_size"]["atac"] != 100
    assert [back[name]["kind"] for name in returned] == ["coordinate", "direction", "path", "coordinate"]


def test_returned_and_stored_traversals_are_separate(model_3d: VAE, adata: AnnData) -> None:
    path = model_3d.latent_traverse(adata, 0, n_steps=3)
    stored = adata.uns["latent_traverse"]["axis_0"]
    before = {key: stored[key].copy() for key in ("mean", "lower", "path", "rank", "position")}
    path.X[:] = 0
    for layer in ("mean", "lower", "log2_fold_change"):
        path.layers[layer][:] = -1
    path.uns["path"][:] = 7
    path.var["rank"] = 0
    path.obs["position"] = 0.0
    for key, values in before.items():
        np.testing.assert_array_equal(stored[key], values)


def test_cells_without_counts_are_not_traversed(model_3d: VAE, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[[0, 3]] = 0
    adata.X = sparse.csr_matrix(x)
    with raises(ValueError, naming=["1 cells"]):
        model_3d.latent_traverse(adata, 0, at="c3")
    found = model_3d.latent_traverse(adata, 0, n_steps=2, n_cells=100)
    assert found.uns["n_cells"] == 58
    filled = simulate()[[cell for cell in range(60) if cell not in (0, 3)]].copy()
    np.testing.assert_allclose(found.X, model_3d.latent_traverse(filled, 0, n_steps=2, n_cells=100).X, rtol=1e-3)


# --- Loadings in a model's file ---------------------------------------------------------------------------------------


def test_the_posterior_of_loadings_is_saved(model_3d: VAE, adata: AnnData, tmp_path: Path) -> None:
    model_3d.save(tmp_path / "model.celldial")
    expected = model_3d.latent_traverse(adata, 0, n_steps=3)
    found = VAE.load(tmp_path / "model.celldial").latent_traverse(adata, 0, n_steps=3)
    for layer in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(found.layers[layer], expected.layers[layer])


def test_without_a_posterior_of_loadings_intervals_are_narrower(model_3d: VAE, adata: AnnData) -> None:
    expected = model_3d.latent_traverse(adata, 0, n_steps=3)
    with (
        without_loadings(model_3d),
        warns(naming=["loadings", "partial_fit"]),
    ):
        found = model_3d.latent_traverse(adata, 0, n_steps=3)
    np.testing.assert_array_equal(found.X, expected.X)
    assert (found.layers["upper"] < expected.layers["upper"]).all()
    assert (found.layers["upper"] > found.X).all()


def test_partial_fit_updates_the_posterior_of_loadings(adata: AnnData) -> None:
    model = fit(adata, VAE(3, 8))
    before = model.module_.modalities["rna"].loadings.covariance_fq.clone()
    model.partial_fit(adata, max_epochs=1, progress=False)
    assert not torch.equal(model.module_.modalities["rna"].loadings.covariance_fq, before)


# --- Coverage ---------------------------------------------------------------------------------------------------------


def test_nine_in_ten_true_means_are_in_the_band() -> None:
    """Two cell types with known shares; the band is that of the mean over the cells of a type."""
    random = np.random.default_rng(0)
    n_cells, n_genes = 300, 60
    type_c = random.integers(2, size=n_cells)
    share_kf = np.exp(random.normal(0, 1, n_genes) + np.array([[0], [1]]) * random.normal(0, 0.8, n_genes))
    share_kf /= share_kf.sum(1, keepdims=True)
    x_cf = random.poisson(150 * share_kf[type_c])
    obs = pd.DataFrame({"type": np.array(["A", "B"])[type_c]}, [f"c{cell}" for cell in range(n_cells)])
    adata = AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), obs)
    model = VAE(2, 32, likelihood="poisson").fit(adata, max_epochs=60, batch_size=100, progress=False)
    path = model.latent_traverse(adata, ("A", "B"), n_steps=2, n_cells=150)
    inside = (path.layers["lower"] <= 1e4 * share_kf) & (1e4 * share_kf <= path.layers["upper"])
    assert 0.8 <= inside.mean() <= 0.99
