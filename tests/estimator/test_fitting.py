"""`fit` and `partial_fit`: options, continued training, interrupted training, and small or odd data."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from sklearn.base import clone

import celldial.data.cells
import celldial.inference.posterior
import celldial.tl.expression
import celldial.training.memory
from celldial import VAE
from celldial.model.fusion import FUSIONS
from celldial.model.module import default_modality_weights
from celldial.training import loop
from celldial.training.stages import choose_max_epochs
from celldial.utils.settings import settings
from helpers.assertions import assert_untouched, untouched, without_seconds
from helpers.fit import fit
from helpers.raises import logged, raises, warns
from helpers.simulate import (
    COVARIATES,
    MODALITY_SIZES,
    simulate,
    simulate_modalities,
    simulate_mosaic,
    with_counts,
    with_empty_cells,
)

# --- Options ----------------------------------------------------------------------------------------------------------


def test_defaults_choose_epochs_and_batches(adata: AnnData) -> None:
    model = VAE(2, 8).fit(adata, progress=False)
    assert 2 <= len(model.history_["elbo_train"]) <= choose_max_epochs(54)


def test_progress_is_shown_by_default_and_can_be_silenced(adata: AnnData, capsys: pytest.CaptureFixture[str]) -> None:
    fit(adata)
    assert capsys.readouterr() == ("", "")
    VAE(2, 8).fit(adata, max_epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "ELBO" in err


# --- Cells that are not trained on ------------------------------------------------------------------------------------


def test_cells_without_counts_are_not_trained_on(adata: AnnData) -> None:
    emptied, without = with_empty_cells(adata, 4, 9), adata[np.delete(np.arange(60), [4, 9])].copy()
    with warns(naming=[2, 60, "'c4'"]):
        model = fit(emptied)
    twin = fit(without)
    assert without_seconds(model.history_) == without_seconds(twin.history_)
    np.testing.assert_array_equal(emptied.obsm["X_celldial"][[4, 9]], 0)
    np.testing.assert_allclose(emptied[without.obs_names].obsm["X_celldial"], without.obsm["X_celldial"], atol=1e-5)


def test_validation_cells_are_given_by_name_or_mask(adata: AnnData) -> None:
    chosen = np.array([3, 14, 15, 59])
    mask = np.isin(np.arange(60), chosen)
    names = adata.obs_names[chosen]
    runs = [fit(simulate(), validation_cells=cells) for cells in (mask, list(mask), names, list(names[::-1]))]
    for run in runs[1:]:
        assert without_seconds(run.history_) == without_seconds(runs[0].history_)
    # Whatever their counts are, training takes the same course.
    x = adata.X.toarray()
    x[mask] = x[mask][:, ::-1]
    other = fit(with_counts(adata, x), validation_cells=mask)
    assert other.history_["elbo_train"] == runs[0].history_["elbo_train"]
    assert other.history_["elbo_validation"] != runs[0].history_["elbo_validation"]


# --- Continued training -----------------------------------------------------------------------------------------------


def test_partial_fit_continues_training(adata: AnnData) -> None:
    model = fit(adata)
    first, history = adata.obsm["X_celldial"].copy(), {name: list(v) for name, v in model.history_.items()}
    assert model.partial_fit(adata, max_epochs=3, progress=False) is model
    assert {len(values) for values in model.history_.values()} == {5}
    assert all(model.history_[name][:2] == values for name, values in history.items() if name != "kept")
    assert model.history_["kept"][:2] == [0, 0]
    assert sum(model.history_["kept"]) == 1
    assert np.abs(adata.obsm["X_celldial"] - first).max() > 1e-5
    np.testing.assert_array_equal(adata.obsm["X_celldial"], model.transform(adata))
    assert len(adata.uns["celldial"]["history"]["elbo_train"]) == 5
    assert set(model.history_["kl_weight"][2:]) == {1.0}


def test_partial_fit_starts_from_the_current_weights(adata: AnnData) -> None:
    model = fit(adata, max_epochs=30)
    before = model.history_["elbo_validation"][-1]
    model.partial_fit(adata, max_epochs=1, progress=False)
    scratch = fit(simulate(), max_epochs=1).history_["elbo_validation"][0]
    after = model.history_["elbo_validation"][-1]
    assert abs(after - before) < abs(after - scratch)


def test_partial_fit_of_an_unfitted_model_equals_fit() -> None:
    one, other = simulate(), simulate()
    VAE(2, 8).partial_fit(one, max_epochs=2, batch_size=16, key_added="X_mine", progress=False)
    fit(other, batch_size=16, key_added="X_mine")
    np.testing.assert_array_equal(one.obsm["X_mine"], other.obsm["X_mine"])


def test_partial_fit_on_new_cells_keeps_the_schema(adata: AnnData) -> None:
    model = fit(adata, VAE(2, 8, **COVARIATES))
    schema, new = model.schema_, simulate(n_cells=40, seed=1)[:, ::-1].copy()
    model.partial_fit(new, max_epochs=2, progress=False)
    assert model.schema_ == schema
    assert new.obsm["X_celldial"].shape == (40, 2)
    new.obs["batch"] = "b9"
    with raises(ValueError, naming=["'b9'"]):
        model.partial_fit(new, max_epochs=2, progress=False)


@pytest.mark.parametrize("sizes", [(0.1, 0.0), (0.0, 0.1)])
def test_history_stays_aligned_if_validation_cells_come_or_go(adata: AnnData, sizes: tuple[float, float]) -> None:
    model = fit(adata, validation_size=sizes[0])
    model.partial_fit(adata, max_epochs=3, validation_size=sizes[1], progress=False)
    assert {len(values) for values in model.history_.values()} == {5}
    missing = np.isnan(model.history_["elbo_validation"])
    assert missing.tolist() == [sizes[0] == 0] * 2 + [sizes[1] == 0] * 3


# --- Small and odd data -----------------------------------------------------------------------------------------------


def test_the_smallest_data(adata: AnnData) -> None:
    tiny = with_counts(adata[:2, :2], np.array([[3, 1], [0, 5]]))
    model = fit(tiny, VAE(2, 4))
    assert np.isfinite(tiny.obsm["X_celldial"]).all()
    assert model.sample(3).shape == (3, 2)


def test_as_many_coordinates_as_genes(adata: AnnData) -> None:
    fit(adata, VAE(20, 8))
    assert adata.obsm["X_celldial"].shape == (60, 20)


@pytest.mark.parametrize("batch_size", [1, 18, 53])
def test_a_last_minibatch_of_one_cell(adata: AnnData, batch_size: int) -> None:
    """54 cells are trained on: 18 leaves none over, 53 leaves one."""
    fit(adata, batch_size=batch_size)
    assert np.isfinite(adata.obsm["X_celldial"]).all()


def test_genes_without_counts_and_an_enormous_count(adata: AnnData) -> None:
    x = adata.X.toarray()
    x[:, 4] = 0
    x[5, 6] = 1e7
    other = with_counts(adata, x)
    fit(other)
    assert np.isfinite(other.obsm["X_celldial"]).all()


# --- Failures, interruptions and devices ------------------------------------------------------------------------------


def fail_with(error: BaseException, epoch: int) -> Callable[..., dict[str, float]]:
    evaluate, n_calls = loop.evaluate, 0

    def failing(*args: Any) -> dict[str, float]:
        nonlocal n_calls
        n_calls += 1
        if n_calls == epoch:
            raise error
        return evaluate(*args)

    return failing


@pytest.mark.parametrize("again", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("error", "epoch"), [(KeyboardInterrupt(), 1), (MemoryError(), 2), (FloatingPointError("NaN"), 2)]
)
def test_a_failure_in_training_leaves_the_fitted_model_unchanged(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, error: BaseException, epoch: int, again: str
) -> None:
    model = fit(adata, VAE(2, 8, batch_key="batch"))
    before, history = adata.copy(), {name: list(values) for name, values in model.history_.items()}
    schema, cells = model.schema_, model.sample(5, {"batch": "b0"}).X.toarray()
    other = simulate(seed=1)
    untouched = other.copy()
    monkeypatch.setattr(loop, "evaluate", fail_with(error, epoch))
    with pytest.raises(type(error)):
        getattr(model, again)(other, max_epochs=3, progress=False)
    assert_untouched(other, untouched)
    np.testing.assert_array_equal(model.transform(adata), before.obsm["X_celldial"])
    assert model.history_ == history
    assert model.schema_ is schema
    np.testing.assert_array_equal(model.sample(5, {"batch": "b0"}).X.toarray(), cells)


@pytest.mark.parametrize("validation_size", [0.1, 0.0])
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_no_embedding_is_nan(adata: AnnData, validation_size: float, max_epochs: int) -> None:
    model = fit(adata)
    adata.obsm.clear()
    before, expected = adata.copy(), model.transform(adata)
    model.set_params(learning_rate=1e30)
    with raises(FloatingPointError, naming=["learning_rate"]):
        model.fit(adata, max_epochs=max_epochs, batch_size=100, validation_size=validation_size, progress=False)
    assert_untouched(adata, before)
    np.testing.assert_array_equal(model.transform(adata), expected)


def test_ctrl_c_leaves_a_usable_model(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr(loop, "evaluate", fail_with(KeyboardInterrupt(), 3))
    with caplog.at_level(logging.WARNING, logger="celldial"):
        model = fit(adata, max_epochs=10)
    assert logged(caplog, naming=["epoch"])
    assert {len(values) for values in model.history_.values()} == {2}
    np.testing.assert_array_equal(adata.obsm["X_celldial"], model.transform(adata))
    assert len(adata.uns["celldial"]["history"]["elbo_train"]) == 2
    model.save(tmp_path / "model.celldial")
    np.testing.assert_array_equal(VAE.load(tmp_path / "model.celldial").transform(adata), adata.obsm["X_celldial"])


@pytest.mark.gpu
def test_gpu_and_cpu_agree(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers differ between devices, so models agree in their scores and not bit by bit."""
    scores = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(celldial.settings, "device", device)
        cells = adata.copy()
        fitted = fit(cells, VAE(2, 8, **COVARIATES), max_epochs=20)
        assert np.isfinite(cells.obsm["X_celldial"]).all()
        assert next(fitted.module_.parameters()).device.type == device
        scores.append(fitted.score(cells))
    assert scores[1] == pytest.approx(scores[0], rel=0.05)


def test_device_and_precision_apply_to_one_call(adata: AnnData) -> None:
    """Half precision is for matrix products alone, and settings are as they were."""
    before = dataclasses.replace(settings)
    full, half = (fit(adata.copy(), VAE(2, 8), device="cpu", precision=kind) for kind in ("32-true", "bf16-mixed"))
    assert settings == before
    found, expected = half.history_["elbo_validation"], full.history_["elbo_validation"]
    assert found == pytest.approx(expected, rel=0.01)
    assert found != expected
    assert {tensor.dtype for tensor in half.module_.state_dict().values()} == {torch.float32}


# --- Parameters of several modalities ---------------------------------------------------------------------------------


def embedding(adata: AnnData, **parameters: Any) -> np.ndarray:
    return fit(adata, VAE(2, 8, **parameters)).transform(adata)


def test_weights_of_modalities_change_the_fit() -> None:
    default = embedding(simulate_modalities())
    names = default_modality_weights(MODALITY_SIZES)
    assert names == {"rna": 1, "atac": pytest.approx((20 / 30) ** 0.5), "protein": 1}
    np.testing.assert_array_equal(embedding(simulate_modalities(), modality_weights=names), default)
    np.testing.assert_array_equal(embedding(simulate_modalities(), modality_weights={"rna": 1}), default)
    assert np.abs(embedding(simulate_modalities(), modality_weights={"atac": 0.1}) - default).max() > 1e-3


def test_a_weight_improves_the_fit_of_its_modality() -> None:
    def explained(modality: str, weights: dict[str, float]) -> float:
        model = fit(
            simulate_modalities("rna", "atac"), VAE(2, 8, modality_weights=weights), max_epochs=20, early_stopping=False
        )
        return max(model.history_[f"log_likelihood_{modality}_validation"])

    for modality in ("rna", "atac"):
        assert explained(modality, {modality: 5}) > explained(modality, {modality: 0.01})


@pytest.fixture(scope="module")
def fused() -> dict[str, np.ndarray]:
    """Return embeddings of the same cells with each fusion."""
    return {fusion: embedding(simulate_mosaic(), fusion=fusion, seed=3) for fusion in FUSIONS}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_runs_and_is_reproducible(fusion: Any, fused: dict[str, np.ndarray]) -> None:
    adata = simulate_mosaic()
    model = fit(adata, VAE(2, 8, fusion=fusion, seed=3))
    np.testing.assert_array_equal(adata.obsm["X_celldial"], fused[fusion])
    assert model.score(adata) == model.score(adata)
    assert np.abs(embedding(simulate_mosaic(), fusion=fusion, seed=4) - fused[fusion]).max() > 1e-3
    for other in set(FUSIONS) - {fusion}:
        assert np.abs(fused[other] - fused[fusion]).max() > 1e-4


def test_parameters_may_be_dicts() -> None:
    given = {
        "likelihood": {"atac": "poisson"},
        "modalities": {"rna": "Gene Expression", "atac": "Peaks"},
        "presence_keys": {"atac": "has_atac"},
        "modality_weights": {"atac": 0.5},
    }
    model = VAE(2, 8, **given)
    assert all(model.get_params()[name] is value for name, value in given.items())
    twin = clone(model)
    assert {name: twin.get_params()[name] for name in given} == given
    adata = simulate_mosaic("rna", "atac")
    fit(adata, model)
    fit(other := simulate_mosaic("rna", "atac"), twin)
    np.testing.assert_array_equal(adata.obsm["X_celldial"], other.obsm["X_celldial"])
    # Later changes of the dict affect the next fit only.
    given["modality_weights"]["atac"] = 7.0
    assert model.parameters_["modality_weights"] == {"atac": 0.5}
    assert adata.uns["celldial"]["parameters"]["modality_weights"] == {"atac": 0.5}


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_too_little_memory_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate_modalities()
    check = untouched(adata)
    monkeypatch.setattr(celldial.training.memory, "available_memory", lambda device: 10_000)
    with raises(MemoryError, naming=[60, 20, "rna", 30, "atac", 6, "protein", "cpu", "n_hidden", "batch_size"]):
        fit(adata)
    check()
    assert not adata.obsm
