"""`pl.gradient_variance`: the image, curves, labels and titles."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from celldial.pl.gradient_variance import ESTIMATOR_STYLES
from celldial.tl import gradients
from helpers.figures import all_inside, difference, overlapping, shows, sweep
from helpers.raises import raises


def labels(figure: plt.Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("panel", ["width", "n_averaged"])
def test_a_missing_curve_is_seen(tmp_path, panel):
    pl.gradient_variance(sweep(), show=False)[panel].lines[0].remove()
    assert "Error" in difference(plt.gcf(), "gradient_variance.png", tmp_path)


@pytest.mark.parametrize("parameters", [("mu", "sigma"), ("mu", "sigma", "cluster")], ids=str)
def test_curves_show_the_measurements(parameters):
    table = sweep(parameters)
    for parameter in (None, *parameters):
        panels = pl.gradient_variance(table, parameter=parameter, show=False)
        assert list(panels) == ["width", "n_averaged"]
        shown = table[table["parameter"] == (parameter or ("cluster" if "cluster" in parameters else "mu"))]
        names = [name for name in ESTIMATOR_STYLES if name in set(shown["estimator"])]
        assert labels(plt.gcf()) == [ESTIMATOR_STYLES[name][0] for name in names]
        for panel, kept in (("width", shown["n_averaged"] == 1), ("n_averaged", shown["width"] == 1)):
            assert panels[panel].get_xscale() == panels[panel].get_yscale() == "log"
            measured = [line for line in panels[panel].lines if not line.get_label().startswith("_")]
            for name, line in zip(names, measured, strict=True):
                row = shown[kept & (shown["estimator"] == name)].sort_values(panel)
                np.testing.assert_array_equal(line.get_xydata(), row[[panel, "variance"]])
        first = shown[(shown["estimator"] == names[0]) & (shown["width"] == 1) & (shown["n_averaged"] == 1)]
        np.testing.assert_allclose(
            panels["n_averaged"].lines[1].get_ydata(), first["variance"].item() / np.array([1, 4, 16])
        )
        assert all_inside(plt.gcf())
        assert not overlapping(plt.gcf())


def test_labels_and_titles():
    figure = pl.gradient_variance(sweep(), return_fig=True)
    for facts in (
        ["variance", "means"],
        ["width", "posterior"],
        ["number", "draws"],
        ["variance", "lower"],
        ["fitted"],
    ):
        assert shows(figure, *facts)


def test_an_estimator_of_another_name_is_drawn_too():
    table = sweep()
    table["estimator"] = table["estimator"].replace("reparameterized", "mine")
    assert "mine" in labels(pl.gradient_variance(table, return_fig=True))


def test_estimators_that_coincide_are_both_visible():
    panels = pl.gradient_variance(sweep(("cluster",)), show=False)
    rounded, relaxed = (
        next(line for line in panels["width"].lines if line.get_label() == ESTIMATOR_STYLES[name][0])
        for name in ("straight_through", "gumbel_softmax")
    )
    assert rounded.get_markersize() > relaxed.get_markersize() + 3
    assert rounded.get_markerfacecolor() == "none"
    assert panels["width"].lines.index(rounded) < panels["width"].lines.index(relaxed)


def test_all_estimators_have_a_style():
    coordinates = SimpleNamespace(posterior_flow=None)
    clustered, plain = (SimpleNamespace(clusters=clusters, coordinates=coordinates) for clusters in ("some", None))
    assert set(gradients.available_estimators(clustered)) | set(gradients.available_estimators(plain)) == set(
        ESTIMATOR_STYLES
    )


def test_another_table_is_rejected():
    with raises(KeyError, naming=["'width'", "celldial.tl.sweep_gradients"]):
        pl.gradient_variance(sweep().drop(columns="width"))
    with raises(ValueError, naming=["'cluster'", "'mu', 'sigma'"]):
        pl.gradient_variance(sweep(), parameter="cluster")
