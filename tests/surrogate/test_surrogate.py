"""Surrogates of a small simulator: sampling, comparison, inference, bad input."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import celldial
from celldial import VAE
from celldial.surrogate import Surrogate, density
from helpers.raises import raises, warns

N_GENES = 20


def simulator(share: float, log_depth: float, n_cells: int = 60, seed: int | None = None) -> AnnData:
    """Draw Poisson counts of two types; genes of odd numbers are in X before those of even numbers."""
    random = np.random.default_rng(seed if seed is not None else int(1e6 * (share + log_depth)))
    type_c = (random.random(n_cells) < share).astype(int)
    rate_tf = np.random.default_rng(0).lognormal(0, 0.7, (2, N_GENES))
    rate_tf /= rate_tf.sum(1, keepdims=True)
    depth_c = 60 * np.exp(log_depth + 0.2 * random.standard_normal(n_cells))
    x_cf = random.poisson(rate_tf[type_c] * depth_c[:, None])
    names = [f"g{f}" for f in range(N_GENES)]
    return AnnData(
        sparse.csr_matrix(x_cf.astype(np.float32)),
        obs=pd.DataFrame({"type": type_c.astype(str)}, index=[f"c{cell}" for cell in range(n_cells)]),
        var=pd.DataFrame({"length": np.arange(N_GENES)}, index=names),
    )


def make_settings(n: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    share, log_depth = (random.permutation(np.linspace(0.0, 1, n)) for _ in range(2))
    return pd.DataFrame({"share": 0.1 + 0.8 * share, "log_depth": log_depth})


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    model = VAE(3, 16, seed=1)
    return celldial.surrogate.fit(simulator, make_settings(20), 40, model=model, max_epochs=5, progress=False)


def test_a_surrogate_returns_cells_like_the_simulator(surrogate: Surrogate) -> None:
    cells = surrogate.sample({"share": 0.5, "log_depth": 0.5}, 50, seed=3)
    assert cells.shape == (50, N_GENES)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.float32
    pd.testing.assert_frame_equal(cells.var, simulator(0.5, 0.5).var)
    assert (cells.obs[["share", "log_depth"]] == 0.5).all(axis=None)
    again = surrogate.sample({"log_depth": 0.5, "share": 0.5}, 50, seed=3)
    assert (again.X != cells.X).nnz == 0
    assert (surrogate.sample({"share": 0.5, "log_depth": 0.5}, 50, seed=4).X != cells.X).nnz > 0


def test_library_sizes_follow_the_parameters(surrogate: Surrogate) -> None:
    total = [surrogate.sample({"share": 0.5, "log_depth": at}, 500).X.sum() / 500 for at in (0.1, 0.9)]
    assert np.log(total[1] / total[0]) == pytest.approx(0.8, abs=0.1)
    assert total[0] == pytest.approx(60 * np.exp(0.1 + 0.02), rel=0.1)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train densities for a few steps."""
    for name in ("MIN_STEPS", "MAX_STEPS", "MIN_REFINED", "MAX_REFINED"):
        monkeypatch.setattr(density, name, 20)


@pytest.mark.usefixtures("few_steps")
def test_fitting_is_reproducible() -> None:
    options: dict[str, Any] = {"model": VAE(2, 8), "max_epochs": 1, "progress": False, "calibrate": False}
    cells = [
        celldial.surrogate.fit(simulator, make_settings(4), 30, seed=seed, **options).sample(
            {"share": 0.5, "log_depth": 0.5}, 20
        )
        for seed in (0, 0, 1)
    ]
    assert (cells[0].X != cells[1].X).nnz == 0
    assert (cells[0].X != cells[2].X).nnz > 0


def test_features_of_several_modalities_keep_the_order_of_the_simulator() -> None:
    def two(share: float) -> AnnData:
        adata = simulator(share, 0.5)
        adata.var["feature_types"] = ["Peaks", "Gene Expression"] * (N_GENES // 2)
        return adata

    settings = pd.DataFrame({"share": [0.1, 0.4, 0.6, 0.9]})
    found = celldial.surrogate.fit(two, settings, max_epochs=1, calibrate=False, progress=False)
    # Counts above 1 are counts of fragments.
    assert found.model.likelihood == {"rna": "negative_binomial", "atac": "poisson"}
    cells = found.sample({"share": 0.5}, 200)
    assert list(cells.var_names) == [f"g{f}" for f in range(N_GENES)]
    known_f, found_f = (np.asarray(each.X.mean(0)).ravel() for each in (two(0.5), cells))
    assert np.corrcoef(known_f, found_f)[0, 1] > 0.8


def test_comparison_with_the_simulator(surrogate: Surrogate) -> None:
    table = celldial.surrogate.compare(surrogate, simulator, pd.DataFrame({"share": [0.4], "log_depth": [0.6]}))
    assert len(table) == 1
    assert table["mean_correlation"].item() > 0.9
    assert 0.3 < table["auc"].item() < 0.9
    assert table["speed_ratio"].item() == pytest.approx(
        table["simulator_seconds"].item() / table["surrogate_seconds"].item()
    )


def test_other_cells_are_told_apart(surrogate: Surrogate) -> None:
    """A simulator of other cells has a high AUC, and a lower correlation of means."""

    def other(share: float, log_depth: float) -> AnnData:
        adata = simulator(share, log_depth)
        adata.X = adata.X[:, ::-1].copy()
        return adata

    settings = pd.DataFrame({"share": [0.4], "log_depth": [0.6]})
    same, different = (celldial.surrogate.compare(surrogate, each, settings) for each in (simulator, other))
    assert different["auc"].item() > max(0.9, same["auc"].item())
    assert different["mean_correlation"].item() < same["mean_correlation"].item()


def test_inference_finds_the_depth(surrogate: Surrogate) -> None:
    cells = simulator(0.5, 0.7, n_cells=200, seed=1)
    posterior = celldial.surrogate.infer(surrogate, cells, n_draws=500)
    assert posterior.draws.shape == (500, 2)
    depth = posterior.table.loc["log_depth"]
    assert depth["lower"] < 0.7 < depth["upper"]
    assert depth["upper"] - depth["lower"] < 0.3
    assert depth["information"] > 0.9
    again = celldial.surrogate.infer(surrogate, cells, n_draws=500)
    pd.testing.assert_frame_equal(again.draws, posterior.draws)
    assert posterior.draws["share"].between(0.1, 0.9).all()


def test_a_parameter_beyond_the_range_is_named(surrogate: Surrogate) -> None:
    with warns(naming=["'log_depth'"]):
        celldial.surrogate.infer(surrogate, simulator(0.5, 1.5, n_cells=200, seed=1), n_draws=500)
    with warns(naming=["'share'", 0.1, 0.9]):
        surrogate.sample({"share": 1.0, "log_depth": 0.5}, 5)


@pytest.mark.usefixtures("few_steps")
def test_a_surrogate_without_calibration_says_so() -> None:
    options: dict[str, Any] = {"model": VAE(2, 8), "max_epochs": 1, "progress": False}
    few = celldial.surrogate.fit(simulator, make_settings(5), **options)  # too few settings
    none = celldial.surrogate.fit(simulator, make_settings(20), 20, calibrate=False, **options)
    for found in (few, none):
        assert found.calibration is None
        with warns(naming=["calibrated"]):
            celldial.surrogate.infer(found, simulator(0.5, 0.5), n_draws=100)


def test_bad_simulators_are_named() -> None:
    settings = make_settings(4)

    def fit(function: Any, table: Any = settings, n_cells: Any = None, **options: Any) -> Surrogate:
        return celldial.surrogate.fit(function, table, n_cells, **{"max_epochs": 1, "progress": False, **options})

    def renamed(share: float, log_depth: float) -> AnnData:
        adata = simulator(share, log_depth)
        if share > 0.2:
            adata.var_names = ["new", *adata.var_names[1:]]
        return adata

    with raises(TypeError, naming=["simulator", "str"]):
        fit("simulator")
    with raises(TypeError, naming=["ndarray", f"{settings['share'][0]:g}"]):
        fit(lambda share, log_depth: np.ones((3, 3)))
    with raises(ValueError, naming=["'new'", "'g0'"]):
        fit(renamed)
    with raises(ValueError, naming=["n_cells", 100, 60]):
        fit(simulator, n_cells=100)
    with raises(ValueError, naming=["n_cells", 0]):
        fit(simulator, n_cells=0)
    with raises(ValueError, naming=["batch_key", "'batch'"]):
        fit(simulator, model=VAE(batch_key="batch"))


def test_bad_settings_are_named(surrogate: Surrogate) -> None:
    settings = make_settings(4)
    with raises(TypeError, naming=["parameters", "dict"]):
        celldial.surrogate.fit(simulator, {"share": [0.1]})
    with raises(ValueError, naming=["'share'", 0.5]):
        celldial.surrogate.fit(simulator, settings.assign(share=0.5))
    with raises(ValueError, naming=["'share'"]):
        celldial.surrogate.fit(simulator, settings.assign(share=[0.1, np.nan, 0.2, 0.3]))
    with raises(TypeError, naming=["'share'"]):
        celldial.surrogate.fit(simulator, settings.assign(share=list("abcd")))
    with raises(ValueError, naming=["parameters", 1]):
        celldial.surrogate.fit(simulator, settings[:1])
    with raises(KeyError, naming=["'shre'", "'share'", "'log_depth'"]):
        surrogate.sample({"shre": 0.5, "log_depth": 0.5}, 5)
    with raises(KeyError, naming=["'log_depth'"]):
        surrogate.sample({"share": 0.5}, 5)
    with raises(ValueError, naming=["'share'", "nan"]):
        surrogate.sample({"share": np.nan, "log_depth": 0.5}, 5)
    with raises(ValueError, naming=["n", 0]):
        surrogate.sample({"share": 0.5, "log_depth": 0.5}, 0)
    with raises(ValueError, naming=["n_draws", 5]):
        celldial.surrogate.infer(surrogate, simulator(0.5, 0.5), n_draws=5)
    with raises(KeyError, naming=["'log_depth'"]):
        celldial.surrogate.compare(surrogate, simulator, pd.DataFrame({"share": [0.5]}))


@pytest.mark.slow
def test_intervals_contain_the_parameters() -> None:
    """With 40 data sets and two parameters, 90 % intervals miss more than 18 or fewer than 2 once in 500 times."""
    model = VAE(3, 32)
    found = celldial.surrogate.fit(simulator, make_settings(48), model=model, max_epochs=20, progress=False)
    covered = []
    for number, (_, setting) in enumerate(make_settings(40, seed=5).iterrows()):
        cells = simulator(**setting, n_cells=100, seed=1000 + number)
        table = celldial.surrogate.infer(found, cells).table
        covered += [table["lower"] <= setting, setting <= table["upper"]]
    inside = np.mean([(low & high).to_numpy() for low, high in zip(covered[::2], covered[1::2], strict=True)])
    assert 1 - 18 / 80 <= inside <= 1 - 2 / 80
