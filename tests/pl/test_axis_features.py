"""`pl.axis_features`: the images, rows, intervals, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from helpers.figures import (
    PHASES,
    TWO_PI,
    all_inside,
    difference,
    overlapping,
    rows_of,
    shows,
    stored_in,
    texts,
    traversal,
)
from helpers.raises import raises

TWO = {"rna": 40, "atac": 30}


def test_axis_features_of_a_circle_look_as_before(tmp_path):
    figure = pl.axis_features(stored_in(cell_cycle=traversal("periodic")), return_fig=True)
    assert difference(figure, "axis_features_periodic.png", tmp_path) is None


def test_missing_intervals_are_seen(tmp_path):
    pl.axis_features(stored_in(axis_3=traversal(n_features=TWO)), show=False)["rna"].collections[0].remove()
    assert "Error" in difference(plt.gcf(), "axis_features.png", tmp_path)


def test_features_are_selected_by_rank_and_sorted_by_change():
    stored = traversal()
    panel = pl.axis_features(stored_in(axis_3=stored), n_features=5, show=False)["rna"]
    names, change_f = stored["feature_names"], stored["change"]
    by_rank = np.argsort(stored["rank"])
    lasting = [f for f in by_rank if abs(change_f[f]) >= stored["effect_size"][f] / 2]
    chosen = [f for f in lasting if change_f[f] > 0][:5] + [f for f in lasting if change_f[f] < 0][:5]
    chosen = sorted(chosen, key=lambda f: -change_f[f])
    assert rows_of(panel) == list(names[chosen])
    dots = sorted(
        (float(y), float(x)) for line in panel.lines for x, y in line.get_xydata() if line.get_marker() == "o"
    )
    np.testing.assert_allclose([x for _, x in dots], change_f[chosen])
    assert shows(plt.gcf(), "latent coordinate 3")
    assert shows(plt.gcf(), "gene", "5 increase", "5 decrease")
    assert shows(plt.gcf(), "log2 fold change", "end", "start")
    assert shows(plt.gcf(), "90%", "interval")


def test_features_that_return_are_left_out():
    stored = traversal()
    middle = list(stored["feature_names"][15:25])  # these peak halfway
    rows = rows_of(pl.axis_features(stored_in(axis_3=stored), n_features=40, show=False)["rna"])
    assert not set(rows) & set(middle[3:7])


def test_intervals_are_those_of_a_ratio_of_two_log_normal_means():
    stored = traversal(n_features={"rna": 2})
    stored["mean"] = np.ones((25, 2)) * [1, 8]
    stored["mean"][-1] = [8, 1]
    stored["lower"], stored["upper"] = stored["mean"] / 2**0.3, stored["mean"] * 2**0.4
    stored["change"] = stored["effect_size"] = np.array([3.0, -3.0])
    stored["effect_size"] = np.abs(stored["change"])
    lines = pl.axis_features(stored_in(axis_3=stored), show=False)["rna"].collections[0]
    ends = np.array([segment[:, 0] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, [[2.5, 3.5], [-3.5, -2.5]])


def test_uncertain_directions_are_hollow():
    stored = traversal()
    panel = pl.axis_features(stored_in(axis_3=stored), show=False)["rna"]
    certain, uncertain = (line for line in panel.lines if line.get_marker() == "o")
    assert uncertain.get_markerfacecolor() == "white" != certain.get_markerfacecolor()
    rows = rows_of(panel)
    lfsr = dict(zip(stored["feature_names"], stored["lfsr"], strict=True))
    assert {rows[int(y)] for y in uncertain.get_ydata()} == {name for name in rows if lfsr[name] >= 0.05}
    assert all(shows(plt.gcf(), "local false sign rate", limit) for limit in ("< 5%", "≥ 5%"))


def test_no_feature_changes():
    stored = traversal()
    stored["change"] = np.zeros(40)
    figure = pl.axis_features(stored_in(axis_3=stored), return_fig=True)
    assert shows(figure, "no gene")
    assert all_inside(figure)


def test_around_a_circle_features_are_sorted_by_peak():
    stored = traversal("periodic")
    axes = pl.axis_features(stored_in(cell_cycle=stored), n_features=12, show=False)
    assert list(axes) == ["rna", "rna_amplitude"]
    by_rank = stored["feature_names"][np.argsort(stored["rank"])]
    rows = rows_of(axes["rna"])
    assert set(rows) == set(by_rank[:12])
    column = [list(stored["feature_names"]).index(name) for name in rows]
    angle_f = stored["position"][stored["peak_step"][column]]
    assert (np.diff(angle_f) >= 0).all()
    (dots,) = (line for line in axes["rna"].lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xdata(), angle_f)
    np.testing.assert_allclose(
        [bar.get_width() for bar in axes["rna_amplitude"].patches], stored["effect_size"][column]
    )
    assert shows(plt.gcf(), "cell cycle")
    assert shows(plt.gcf(), "12 genes")
    assert set(PHASES) <= texts(plt.gcf())


def test_a_span_around_angle_0_is_in_two_pieces():
    stored = traversal("periodic", {"rna": 1})
    stored["log2_fold_change"] = np.cos(stored["position"])[:, None] - 0.01 * np.eye(25)[[6, 18]].sum(0)[:, None]
    stored["peak_step"] = np.array([0])
    panel = pl.axis_features(stored_in(cell_cycle=stored), show=False)["rna"]
    spans = [line.get_xdata() for line in panel.lines if line.get_marker() != "o"]
    step = TWO_PI / 24
    np.testing.assert_allclose(spans, [[0, TWO_PI / 4 - step / 2], [3 * TWO_PI / 4 + step / 2, TWO_PI]])


@pytest.mark.parametrize("kind", ["coordinate", "periodic"])
def test_three_modalities_with_long_names_fit(kind):
    stored = traversal(kind, {"rna": 100, "atac": 200, "protein": 12})
    stored["feature_names"][100:300] = [f"chr{i}:{1000000 + i}00-{1000000 + i}99" for i in range(200)]
    figure = pl.axis_features(stored_in(it=stored), return_fig=True)
    assert all_inside(figure)
    assert not overlapping(figure)


def test_bad_arguments():
    adata = stored_in(axis_3=traversal())
    with raises(ValueError, naming=["n_features=0"]):
        pl.axis_features(adata, "axis_3", 0)
    with raises(KeyError, naming=["'axis3'", "did you mean 'axis_3'"]):
        pl.axis_features(adata, "axis3")
