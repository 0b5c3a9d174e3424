"""Clusters of a fitted VAE: results, new cells, minibatches, histories and bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from torch.distributions import kl_divergence

from celldial import VAE
from celldial.data.cells import Cells
from helpers.assertions import assert_untouched
from helpers.fit import fit_clusters as fit
from helpers.raises import raises, warns
from helpers.simulate import simulate, simulate_groups, simulate_two, with_counts

CLUSTER, PROBABILITY = "celldial_cluster", "celldial_cluster_probability"


def agreement(adata: AnnData) -> float:
    return adjusted_rand_score(adata.obs["group"], adata.obs[CLUSTER].astype(str))


# --- Results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> tuple[VAE, AnnData]:
    """Return a model of three groups, and the cells that it was fitted to."""
    adata = simulate_groups()
    return fit(adata, max_epochs=60, n_clusters=4), adata


@pytest.fixture(scope="module")
def model(fitted: tuple[VAE, AnnData]) -> VAE:
    return fitted[0]


@pytest.fixture
def adata() -> AnnData:
    return simulate_groups()


def assert_written(adata: AnnData, table: pd.DataFrame) -> None:
    names = list(table.columns)
    assert isinstance(adata.obsm[PROBABILITY], pd.DataFrame)
    pd.testing.assert_frame_equal(adata.obsm[PROBABILITY], table)
    assert list(adata.obs[CLUSTER].cat.categories) == names
    assert not adata.obs[CLUSTER].cat.ordered
    assert adata.obs[CLUSTER].astype(str).tolist() == table.idxmax(axis=1).tolist()
    assert (table.to_numpy() >= 0).all()
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert list(table.index) == list(adata.obs_names)


def test_fit_and_clusters_write_the_same(fitted: tuple[VAE, AnnData], adata: AnnData) -> None:
    model, _ = fitted
    before = adata.copy()
    table = model.clusters(adata)
    assert table.shape == (180, 4)
    assert list(table.columns) == ["0", "1", "2", "3"]
    assert_written(adata, table)
    assert (set(adata.obs) - set(before.obs), set(adata.obsm)) == ({CLUSTER}, {PROBABILITY})
    assert_untouched(adata, before, but=("obs", "obsm", "uns"))
    by_fit = fitted[1]
    pd.testing.assert_frame_equal(by_fit.obsm[PROBABILITY], table)
    pd.testing.assert_series_equal(by_fit.obs[CLUSTER], adata.obs[CLUSTER])
    table.iloc[:] = 7.0  # is the caller's
    assert (adata.obsm[PROBABILITY].to_numpy() <= 1).all()


def test_clusters_of_other_cells(model: VAE) -> None:
    new = simulate_groups((10, 50, 5))
    some = new[new.obs["group"] != "B"]
    with warns(UserWarning, naming=["view", ".copy()"]):
        table = model.clusters(some)
    assert_written(some, table)
    assert CLUSTER not in new.obs
    np.testing.assert_allclose(model.clusters(new).loc[table.index], table, atol=1e-5)


def test_fitting_on_writes_them_again(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    more = VAE.load(tmp_path / "model.celldial").partial_fit(adata, max_epochs=3, progress=False)
    assert_written(adata, more.clusters(adata.copy()))
    assert agreement(adata) > 0.9
    assert np.abs(adata.obsm[PROBABILITY] - model.clusters(adata.copy())).to_numpy().max() > 0


def test_results_survive_a_file(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    fit(adata, max_epochs=2, n_clusters=4, gradient={"cluster": "gumbel_softmax"})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(back.obsm[PROBABILITY], adata.obsm[PROBABILITY])
    assert back.obs[CLUSTER].astype(str).tolist() == adata.obs[CLUSTER].astype(str).tolist()
    assert list(back.obs[CLUSTER].cat.categories) == list("0123")
    assert back.uns["celldial"]["parameters"]["gradient"] == {"cluster": "gumbel_softmax"}
    np.testing.assert_array_equal(model.clusters(back), model.clusters(adata))


@pytest.mark.parametrize("gradient", ["enumerate", "gumbel_softmax", "score_function"])
def test_a_file_of_the_model_keeps_clusters(gradient: str, adata: AnnData, tmp_path: Path) -> None:
    model = fit(adata, max_epochs=2, n_clusters=3, gradient=gradient, baseline="moving_average")
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    pd.testing.assert_frame_equal(loaded.clusters(adata.copy()), model.clusters(adata.copy()))
    assert loaded.score(adata, n_samples=3) == model.score(adata, n_samples=3)
    assert loaded.clusters_ == model.clusters_ == {"names": ["0", "1", "2"]}
    for one in (model, loaded):
        one.partial_fit(adata, max_epochs=1, progress=False)
    pd.testing.assert_frame_equal(loaded.clusters(adata.copy()), model.clusters(adata.copy()))


def test_another_seed_is_another_result(model: VAE, adata: AnnData) -> None:
    other = fit(adata.copy(), seed=1, n_clusters=4)
    assert not np.allclose(other.clusters(adata), model.clusters(adata))


def test_a_seed_may_be_large(adata: AnnData) -> None:
    fit(adata, max_epochs=2, seed=2**40, n_clusters=3)
    assert adata.obsm[PROBABILITY].shape == (180, 3)


def test_empty_cells_are_in_clusters_as_these_are_common(model: VAE, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[[3, 7]] = 0
    empty = with_counts(adata, sparse.csr_matrix(x))
    with warns(naming=[2, 180, "'c3'"]):
        table = model.clusters(empty)
    weight_k = model.module_.clusters.log_weight_k.exp().detach().numpy()
    np.testing.assert_allclose(table.iloc[[3, 7]], np.tile(weight_k, (2, 1)), rtol=1e-5)
    others = [c for c in range(180) if c not in (3, 7)]
    np.testing.assert_allclose(table.iloc[others], model.clusters(adata).iloc[others], atol=1e-5)
    with warns(naming=[2, 180]):
        fitted = fit(empty, max_epochs=2, n_clusters=2)
    weight_k = fitted.module_.clusters.log_weight_k.exp().detach().numpy()
    np.testing.assert_allclose(empty.obsm[PROBABILITY].iloc[[3, 7]], np.tile(weight_k, (2, 1)), rtol=1e-5)


def test_results_are_written_into_a_mudata() -> None:
    mudata = pytest.importorskip("mudata")
    cells = simulate_two()
    parts = {name: cells[:, cells.var["feature_types"] == kind].copy() for name, kind in KINDS.items()}
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.MuData(parts)
    model = fit(mdata, max_epochs=1, n_clusters=2)
    assert_written(mdata, model.clusters(mdata))


KINDS = {"rna": "Gene Expression", "atac": "Peaks"}

# --- The model of clusters --------------------------------------------------------------------------------------------


def test_cells_that_are_drawn_are_of_the_groups(model: VAE, adata: AnnData) -> None:
    drawn = model.sample(600, seed=1)
    share_gf = np.stack([shares(adata[adata.obs["group"] == group]) for group in "ABC"])
    share_cf = drawn.X.toarray() / np.asarray(drawn.X.sum(1))
    distance_cg = ((share_cf[:, None] - share_gf) ** 2).sum(-1)
    # Groups differ by far more than cells of one group do.
    between = min(((share_gf[i] - share_gf[j]) ** 2).sum() for i in range(3) for j in range(i))
    assert (distance_cg.min(1) < between / 4).mean() > 0.8
    np.testing.assert_allclose(np.bincount(distance_cg.argmin(1)) / 600, 1 / 3, atol=0.15)
    # They are assigned to the cluster from which they were sampled.
    u_cz = model.module_.unconstrained(torch.from_numpy(drawn.obsm["z"]))
    with torch.no_grad():
        of = model.module_.clusters
        truth_c = (of.log_weight_k + of.components.log_prob_ck(u_cz)).argmax(-1).numpy()
    assert adjusted_rand_score(truth_c, model.clusters(drawn).to_numpy().argmax(1)) > 0.7


def shares(adata: AnnData) -> np.ndarray:
    total_f = np.asarray(adata.X.sum(0)).ravel()
    return total_f / total_f.sum()


def test_more_samples_are_a_closer_bound(model: VAE, adata: AnnData) -> None:
    bounds = [model.score(adata, n_samples=n) for n in (1, 5, 50)]
    assert np.isfinite(bounds).all()
    assert bounds[0] - 0.3 < bounds[1] < bounds[2]
    assert model.score(adata, n_samples=5) == bounds[1]


def test_the_elbo_sums_clusters_out(model: VAE, adata: AnnData) -> None:
    """With q(z) and q(cluster) independent, the divergence is that of the clusters and of z from each."""
    module = model.module_
    cells = Cells.from_anndata(adata, model.schema_)
    with torch.no_grad():
        encoded = module.encode(cells)
        _, kl_c = module.elbo(cells)
        q_ck, of = encoded.logits_ck.softmax(-1), module.clusters
        expected_c = torch.zeros(180)
        for k in range(of.n_clusters):
            p = torch.distributions.Normal(of.components.mean_kz[k], of.components.scale_kz[k])
            kl = kl_divergence(torch.distributions.Normal(encoded.mu_cz, encoded.sigma_cz), p).sum(1)
            log_odds_c = torch.nan_to_num(q_ck[:, k].log() - of.log_weight_k[k], neginf=0)
            expected_c += q_ck[:, k] * (log_odds_c + kl)
    torch.testing.assert_close(kl_c, expected_c, rtol=1e-3, atol=1e-3)


def test_one_epoch_is_enough_for_a_model(adata: AnnData) -> None:
    """Clusters are then initialized, but not trained."""
    model = fit(adata, max_epochs=1, n_clusters=3)
    assert model.history_["kept"] == [1.0]
    assert np.isfinite(adata.obsm[PROBABILITY].to_numpy()).all()


def test_the_history_has_both_stages_of_training(adata: AnnData) -> None:
    model = fit(adata, max_epochs=8, n_clusters=3)
    assert {len(values) for values in model.history_.values()} == {8}
    assert sum(model.history_["kept"]) == 1
    assert max(model.history_["kept"][:2]) == 0
    assert (np.diff(model.history_["seconds"]) > 0).all()


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_there_may_be_as_many_clusters_as_cells_and_no_more() -> None:
    adata = simulate(n_cells=20)
    before = adata.copy()
    with raises(ValueError, naming=["n_clusters", 21, 20]):
        fit(adata, n_clusters=21)
    assert_untouched(adata, before)
    fit(adata, max_epochs=2, n_clusters=20)
    assert adata.obsm[PROBABILITY].shape == (20, 20)


@pytest.mark.parametrize("n", [1, 0, 2.0, True])
def test_two_clusters_are_the_least(n: Any, adata: AnnData) -> None:
    before = adata.copy()
    with raises(ValueError, naming=["n_clusters", 2]):
        fit(adata, n_clusters=n)
    assert_untouched(adata, before)


def test_a_model_without_clusters_is_an_error(adata: AnnData) -> None:
    model = fit(adata, max_epochs=1)
    before = adata.copy()
    assert CLUSTER not in adata.obs
    with raises(ValueError, naming=["n_clusters", "labels_key"]):
        model.clusters(adata)
    assert_untouched(adata, before)
