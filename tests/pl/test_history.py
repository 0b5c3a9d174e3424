"""How training went: the image, and what is written on it."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.figures import all_inside, difference, texts


def without_validation(adata: AnnData) -> None:
    history = adata.uns["celldial"]["history"]
    for name in [name for name in history if name.endswith("validation")]:
        del history[name]
    history["kept"] = np.eye(30)[-1]


def test_history_looks_as_before(adata, tmp_path):
    assert difference(pl.history(adata, return_fig=True), "history.png", tmp_path) is None


def test_history_without_validation_looks_as_before(adata, tmp_path):
    without_validation(adata)
    assert difference(pl.history(adata, return_fig=True), "history_without_validation.png", tmp_path) is None


@pytest.mark.parametrize("panel", ["elbo", "kl"])
def test_a_missing_curve_is_seen(adata, tmp_path, panel):
    pl.history(adata, show=False)[panel].lines[-2].remove()  # the last one marks the epoch
    assert "Error" in difference(plt.gcf(), "history.png", tmp_path)


def test_history_says_what_it_shows(adata):
    figure = pl.history(adata, return_fig=True)
    written = texts(figure)
    assert {"training cells", "validation cells", "epoch", "KL divergence\n(nats per cell)"} <= written
    assert {
        "ELBO (nats per cell)\nhigher is better",
        "weight of KL term still rises",
        "↓ 3 epochs are below",
    } <= written
    best = np.argmax(adata.uns["celldial"]["history"]["elbo_validation"]) + 1
    assert any(text.startswith(f"best epoch, {best}: −6") for text in written)
    assert all_inside(figure)


def test_history_does_not_let_the_start_squash_the_rest(adata):
    low, high = pl.history(adata, show=False)["elbo"].get_ylim()
    values = adata.uns["celldial"]["history"]["elbo_validation"]
    assert values.min() < -3000
    assert -800 < low < values[5] < values.max() < high


def test_history_shows_all_where_nothing_is_squashed(adata):
    history = adata.uns["celldial"]["history"]
    for name in ("elbo_train", "elbo_validation"):
        history[name] = np.linspace(-700, -650, 30)
    axes = pl.history(adata, show=False)
    assert axes["elbo"].get_ylim()[0] < -700
    assert not any("below" in text for text in texts(plt.gcf()))


def test_history_without_validation_has_one_panel(adata):
    without_validation(adata)
    assert list(pl.history(adata, show=False)) == ["elbo"]
    written = texts(plt.gcf())
    assert "validation cells" not in written
    assert any(text.startswith("last epoch, 30: −645") for text in written)


def test_history_of_one_epoch(adata):
    history = adata.uns["celldial"]["history"]
    adata.uns["celldial"]["history"] = {name: values[:1] for name, values in history.items()} | {"kept": np.ones(1)}
    figure = pl.history(adata, return_fig=True)
    assert any(text.startswith("best epoch, 1:") for text in texts(figure))


def test_history_after_partial_fit_marks_the_epoch_of_the_last_call(adata):
    history = adata.uns["celldial"]["history"]
    for name, values in history.items():
        history[name] = np.concatenate([values, values[:5]])
    history["kept"] = np.eye(35)[33]
    pl.history(adata, show=False)
    assert any(text.startswith("best epoch, 34:") for text in texts(plt.gcf()))

    history["elbo_validation"][-5:] = history["kl_validation"][-5:] = np.nan
    history["kept"] = np.eye(35)[34]
    pl.history(adata, show=False)
    assert any(text.startswith("last epoch, 35:") for text in texts(plt.gcf()))


def test_history_of_several_modalities_has_an_axis_for_weights(adata):
    history = adata.uns["celldial"]["history"]
    for name in ("log_likelihood", "log_likelihood_rna", "log_likelihood_atac"):
        history[f"{name}_validation"] = history["elbo_validation"] / 2
    history["elbo_train"] = history["elbo_train"] / 3
    axes = pl.history(adata, show=False)
    assert list(axes) == ["elbo", "kl", "elbo_train"]
    assert axes["elbo"].get_ylim()[1] < -600
    assert axes["elbo_train"].get_ylim()[0] > -300
    assert "training cells, modalities weighted\n(axis on the right)" in texts(plt.gcf())
    assert "ELBO with weights" in texts(plt.gcf())
    assert all_inside(plt.gcf())

    history["kept"] = np.eye(30)[-1]
    history["elbo_validation"][-3:] = np.nan
    assert pl.history(adata, show=False)["elbo_train"].lines[1].get_ydata() == history["elbo_train"][-1]


def test_history_of_cells_without_a_model():
    with pytest.raises(KeyError, match="call model.fit\\(adata\\) first"):
        pl.history(AnnData(np.zeros((2, 2))))
