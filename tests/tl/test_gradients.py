"""`compare_gradients` and `sweep_gradients`: their tables, and the gradients behind them."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.exceptions import NotFittedError
from torch import Tensor

from celldial import VAE, tl
from celldial.data.cells import Cells
from celldial.model.elbo import Gradient, MeanFieldELBO
from celldial.model.module import EncoderOutput
from celldial.tl.gradients import EstimatorConfig, Moments, available_estimators, configure_module, draws
from celldial.utils.random import isolate_rng
from helpers.raises import raises
from helpers.simulate import simulate

gradients = importlib.import_module("celldial.tl.gradients")


# --- The comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_in_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute without checks by Pyro, and train baselines for a short time."""
    monkeypatch.setattr(gradients, "N_BASELINE_STEPS", 60)
    with pyro.validation_enabled(False):
        yield


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate(60, 20)


@pytest.fixture(scope="module")
def model(adata: AnnData) -> VAE:
    return VAE(n_latent=3, n_hidden=8).fit(adata, max_epochs=15, progress=False)


@pytest.fixture(scope="module")
def clustered(adata: AnnData) -> VAE:
    return VAE(n_latent=3, n_hidden=8, n_clusters=4).fit(adata.copy(), max_epochs=15, progress=False)


FEW: dict[str, Any] = {"n_samples": 200, "n_cells": 10, "n_reference": 400}


def test_the_table_has_a_row_for_each_parameter_and_estimator(model: VAE, adata: AnnData) -> None:
    table = tl.compare_gradients(model, adata, **FEW)
    assert list(table.columns) == ["mean", "bias", "standard_error", "variance", "microseconds"]
    assert list(table.index.names) == ["parameter", "estimator"]
    assert list(table.index.unique("parameter")) == ["mu", "sigma"]
    assert list(table.loc["mu"].index) == list(available_estimators(model.module_))
    assert np.isfinite(table).all(axis=None)
    assert (table > 0).all(axis=None)
    of_mu = table.loc["mu", "variance"]
    assert of_mu["score_function"] > of_mu["score_function + moving_average"] > of_mu["reparameterized"]
    # No estimator is biased, so the measured bias is chance; the root mean square is over 30 parameters.
    assert (table["bias"] < 2 * table["standard_error"]).all()


def test_the_reference_uses_draws_of_its_own(model: VAE, adata: AnnData) -> None:
    row = tl.compare_gradients(model, adata, "reparameterized", **FEW).loc[("sigma", "reparameterized")]
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 10, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3)
    drawn = []
    for seed, n in ((0, 400), (1, 200)):
        with isolate_rng(seed):
            drawn.append(torch.cat([block["sigma"] for block in draws(module, cells, encoded, 0.3, n)]).double())
    reference_ncp, drawn_ncp = drawn
    expected = {
        "mean": drawn_ncp.mean(0).square().mean().sqrt(),
        "bias": (drawn_ncp.mean(0) - reference_ncp.mean(0)).square().mean().sqrt(),
        "standard_error": (drawn_ncp.var(0) / 200 + reference_ncp.var(0) / 400).mean().sqrt(),
        "variance": drawn_ncp.var(0).mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-9)


def test_the_table_of_a_model_with_clusters(clustered: VAE, adata: AnnData) -> None:
    names = ["score_function", "enumerate", "gumbel_softmax", "straight_through"]
    table = tl.compare_gradients(clustered, adata, names, **FEW)
    assert list(table.index.unique("parameter")) == ["mu", "sigma", "cluster"]
    assert list(table.loc["cluster"].index) == names
    warm = tl.compare_gradients(clustered, adata, ["gumbel_softmax"], temperature=5.0, **FEW)
    assert (
        warm.loc[("cluster", "gumbel_softmax"), "bias"] > 3 * warm.loc[("cluster", "gumbel_softmax"), "standard_error"]
    )


def test_the_table_of_an_estimator_does_not_depend_on_the_others(model: VAE, adata: AnnData) -> None:
    weights = {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}
    state = torch.get_rng_state()
    names = ["score_function + learned", "reparameterized"]
    all_estimators = tl.compare_gradients(model, adata, names, seed=3, **FEW).drop(columns="microseconds")
    alone = tl.compare_gradients(model, adata, names[1:], seed=3, **FEW).drop(columns="microseconds")
    pd.testing.assert_frame_equal(all_estimators.loc[alone.index], alone)
    other = tl.compare_gradients(model, adata, names[1:], seed=4, **FEW)
    assert (other["mean"] != alone["mean"]).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model.module_.elbo_estimator, MeanFieldELBO)
    assert not model.module_.baselines
    for name, tensor in model.module_.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert all(parameter.requires_grad for parameter in model.module_.parameters())


def test_gradients_are_those_of_the_elbo(model: VAE, adata: AnnData) -> None:
    """By finite differences of the mean ELBO, with the same noise."""
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 5, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3).double()
    cells = cells_in_double(cells)
    encoded = EncoderOutput(encoded.mu_cz.double(), encoded.sigma_cz.double())
    torch.manual_seed(0)
    drawn = next(draws(module, cells, encoded, 0.3, 1))

    def value(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)
        return gradients.estimate(module, cells, parameters, 0.3)

    step = 1e-5
    for name, start_cp in gradients.posterior_of(encoded).items():
        for cell, place in ((0, 0), (3, 2)):
            shift_cp = torch.zeros_like(start_cp)
            shift_cp[cell, place] = step
            up, down = (value(gradients.posterior_of(encoded) | {name: start_cp + sign * shift_cp}) for sign in (1, -1))
            assert float(drawn[name][0, cell, place]) == pytest.approx(
                float(up - down) / (2 * step), rel=1e-4, abs=1e-5
            )


def cells_in_double(cells: Cells) -> Cells:
    counts = {name: rows.with_values(rows.value_n.double()) for name, rows in cells.counts.items()}
    sizes = {name: total_c.double() for name, total_c in cells.library_size.items()}
    return Cells(counts, sizes, cells.category_ck, cells.continuous_ck.double())


def test_draws_are_made_in_blocks(model: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "decode_block_size", lambda n_features: 40)
    _, cells, encoded = gradients.prepare_inputs(model, adata, None, 7, 0.3, 0)
    module = configure_module(model.module_, EstimatorConfig(Gradient()), cells, encoded, 0.3)
    assert [drawn["mu"].shape for drawn in draws(module, cells, encoded, 0.3, 12)] == [(5, 7, 3), (5, 7, 3), (2, 7, 3)]
    monkeypatch.setattr(gradients, "decode_block_size", lambda n_features: 1)
    assert [len(drawn["mu"]) for drawn in draws(module, cells, encoded, 0.3, 2)] == [1, 1]


def test_moments_are_those_of_averages() -> None:
    drawn_ncp = 5 + torch.randn(50, 2, 3, dtype=torch.float64)
    moments, averages = Moments(), Moments(4)
    for part in drawn_ncp.split([7, 1, 30, 12]):
        moments.add(part)
        averages.add(part)
    assert (moments.n, averages.n) == (50, 12)
    torch.testing.assert_close(moments.mean_cp, drawn_ncp.mean(0))
    torch.testing.assert_close(moments.variance_cp, drawn_ncp.var(0))
    torch.testing.assert_close(averages.variance_cp, drawn_ncp[:48].unflatten(0, (12, 4)).mean(1).var(0))


def test_the_sweep_measures_widths_and_averages(model: VAE, adata: AnnData) -> None:
    names = ["reparameterized", "score_function"]
    table = tl.sweep_gradients(model, adata, names, widths=[0.1, 10], n_averaged=[4, 16], n_samples=320, n_cells=20)
    assert list(table.columns) == ["parameter", "estimator", "width", "n_averaged", "variance"]
    cases = table[["width", "n_averaged"]].drop_duplicates().sort_values(["width", "n_averaged"])
    assert cases.to_numpy().tolist() == [[0.1, 1], [1, 1], [1, 4], [1, 16], [10, 1]]
    assert len(table) == 2 * 2 * 5
    variance = table.set_index(["parameter", "estimator", "width", "n_averaged"])["variance"]
    for parameter in ("mu", "sigma"):
        assert variance[parameter, "reparameterized", 0.1, 1] < 0.1 * variance[parameter, "reparameterized", 1, 1]
    assert variance["mu", "score_function", 0.1, 1] > 10 * variance["mu", "score_function", 1, 1]
    for name in names:
        assert variance["mu", name, 1, 16] == pytest.approx(variance["mu", name, 1, 1] / 16, rel=0.5)
    again = tl.sweep_gradients(model, adata, names[0], widths=[0.1, 10], n_averaged=[4, 16], n_samples=320, n_cells=20)
    pd.testing.assert_frame_equal(table[table["estimator"] == names[0]].reset_index(drop=True), again)


def test_a_posterior_that_is_a_flow_is_only_reparameterized(adata: AnnData) -> None:
    model = VAE(n_latent=3, n_hidden=8, posterior="flow").fit(adata.copy(), max_epochs=2, progress=False)
    assert list(tl.compare_gradients(model, adata, **FEW).loc["mu"].index) == ["reparameterized"]
    with raises(ValueError, naming=["'score_function'", "'reparameterized'"]):
        tl.compare_gradients(model, adata, ["score_function"])


def test_bayesian_loadings_and_empty_cells(adata: AnnData) -> None:
    """Latent loadings are at their means; cells without counts are left out."""
    model = VAE(
        n_latent=3, decoder="linear", bayesian_loadings=True, latent="laplace", prior="mixture", batch_key="batch"
    )
    model.fit(adata.copy(), max_epochs=2, progress=False)
    cells = adata.copy()
    cells.X = sparse.diags((np.arange(60) >= 50).astype(np.float32)) @ adata.X
    table = tl.compare_gradients(model, cells, n_samples=50, n_cells=100, n_reference=50)
    assert np.isfinite(table).all(axis=None)
    _, chosen, _ = gradients.prepare_inputs(model, cells, None, 100, 0.3, 0)
    assert len(chosen) == 10


def test_one_cell_is_enough(model: VAE, adata: AnnData) -> None:
    table = tl.compare_gradients(model, adata[:1], n_samples=50, n_reference=50)
    assert np.isfinite(table).all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"estimators": ["enumerate"]}, ["'enumerate'", "'reparameterized'"]),
        ({"estimators": "score"}, ["'score'"]),
        ({"n_samples": 1}, ["n_samples", 1, 2]),
        ({"n_reference": 0}, ["n_reference", 0, 2]),
        ({"n_cells": 0}, ["n_cells", 0, 1]),
        ({"temperature": 0}, ["temperature", 0]),
    ],
)
def test_invalid_arguments_of_compare_gradients(
    model: VAE, adata: AnnData, arguments: dict[str, Any], facts: list[Any]
) -> None:
    with raises(ValueError, naming=facts):
        tl.compare_gradients(model, adata, **arguments)


def test_invalid_arguments_of_sweep_gradients(model: VAE, adata: AnnData) -> None:
    with raises(ValueError, naming=["n_samples", 20, 32]):
        tl.sweep_gradients(model, adata, n_averaged=[16], n_samples=20)
    with raises(ValueError, naming=["n_averaged", 0.5]):
        tl.sweep_gradients(model, adata, n_averaged=[0.5])
    with raises(ValueError, naming=["widths", "[0, 1]"]):
        tl.sweep_gradients(model, adata, widths=[0, 1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # no gene follows the process
def test_unfitted_and_periodic_models_are_errors(adata: AnnData) -> None:
    with raises(NotFittedError, naming=["fit"]):
        tl.compare_gradients(VAE(), adata)
    clock = {"name": "clock", "phases": {"first": list(adata.var_names[:5]), "second": list(adata.var_names[5:10])}}
    periodic = VAE(n_latent=3, n_hidden=8, periodic=clock).fit(adata.copy(), max_epochs=1, progress=False)
    with raises(ValueError, naming=["periodic"]):
        tl.compare_gradients(periodic, adata)
