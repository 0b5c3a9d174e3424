"""`pl.history`: the images, curves, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.figures import all_inside, difference, shows, texts


def without_validation(adata: AnnData) -> None:
    history = adata.uns["celldial"]["history"]
    for name in [name for name in history if name.endswith("validation")]:
        del history[name]
    history["kept"] = np.eye(30)[-1]


def test_history_without_validation_looks_as_before(adata, tmp_path):
    without_validation(adata)
    assert difference(pl.history(adata, return_fig=True), "history_without_validation.png", tmp_path) is None


@pytest.mark.parametrize("panel", ["elbo", "kl"])
def test_a_missing_curve_is_seen(adata, tmp_path, panel):
    pl.history(adata, show=False)[panel].lines[-2].remove()  # the last one marks the epoch
    assert "Error" in difference(plt.gcf(), "history.png", tmp_path)


def test_labels_and_titles(adata):
    figure = pl.history(adata, return_fig=True)
    assert {"training cells", "validation cells", "epoch"} <= texts(figure)
    assert shows(figure, "ELBO", "nats per cell", "higher is better")
    assert shows(figure, "KL divergence", "nats per cell")
    assert shows(figure, "KL warm-up")
    assert shows(figure, "↓ 3 epochs")
    best = np.argmax(adata.uns["celldial"]["history"]["elbo_validation"]) + 1
    assert shows(figure, f"best epoch, {best}: −6")
    assert all_inside(figure)


def test_the_steep_start_is_left_out_of_the_axis(adata):
    low, high = pl.history(adata, show=False)["elbo"].get_ylim()
    values = adata.uns["celldial"]["history"]["elbo_validation"]
    assert values.min() < -3000
    assert -800 < low < values[5] < values.max() < high


def test_the_axis_shows_all_epochs_without_a_steep_start(adata):
    history = adata.uns["celldial"]["history"]
    for name in ("elbo_train", "elbo_validation"):
        history[name] = np.linspace(-700, -650, 30)
    axes = pl.history(adata, show=False)
    assert axes["elbo"].get_ylim()[0] < -700
    assert not shows(plt.gcf(), "↓")


def test_history_without_validation_has_one_panel(adata):
    without_validation(adata)
    assert list(pl.history(adata, show=False)) == ["elbo"]
    assert not shows(plt.gcf(), "validation cells")
    assert shows(plt.gcf(), "last epoch, 30: −645")


def test_history_of_one_epoch(adata):
    history = adata.uns["celldial"]["history"]
    adata.uns["celldial"]["history"] = {name: values[:1] for name, values in history.items()} | {"kept": np.ones(1)}
    figure = pl.history(adata, return_fig=True)
    assert shows(figure, "best epoch, 1:")


def test_history_after_partial_fit_marks_the_epoch_of_the_last_call(adata):
    history = adata.uns["celldial"]["history"]
    for name, values in history.items():
        history[name] = np.concatenate([values, values[:5]])
    history["kept"] = np.eye(35)[33]
    pl.history(adata, show=False)
    assert shows(plt.gcf(), "best epoch, 34:")

    history["elbo_validation"][-5:] = history["kl_validation"][-5:] = np.nan
    history["kept"] = np.eye(35)[34]
    pl.history(adata, show=False)
    assert shows(plt.gcf(), "last epoch, 35:")


def test_history_of_several_modalities_has_an_axis_for_weights(adata):
    history = adata.uns["celldial"]["history"]
    for name in ("log_likelihood", "log_likelihood_rna", "log_likelihood_atac"):
        history[f"{name}_validation"] = history["elbo_validation"] / 2
    history["elbo_train"] = history["elbo_train"] / 3
    axes = pl.history(adata, show=False)
    assert list(axes) == ["elbo", "kl", "elbo_train"]
    assert axes["elbo"].get_ylim()[1] < -600
    assert axes["elbo_train"].get_ylim()[0] > -300
    assert shows(plt.gcf(), "training cells", "weighted", "right")
    assert "weighted ELBO" in texts(plt.gcf())
    assert all_inside(plt.gcf())

    history["kept"] = np.eye(30)[-1]
    history["elbo_validation"][-3:] = np.nan
    assert pl.history(adata, show=False)["elbo_train"].lines[1].get_ydata() == history["elbo_train"][-1]
