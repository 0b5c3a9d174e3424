"""`pl.axes`: the image, bars, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from helpers.figures import all_inside, difference, overlapping, ranked, rows_of, shows


def test_a_missing_bar_is_seen(tmp_path):
    panel = pl.axes(ranked(6, ("rna", "atac")), show=False)["kl"]
    max(panel.patches, key=lambda bar: bar.get_width()).remove()
    assert "Error" in difference(plt.gcf(), "axes.png", tmp_path)


@pytest.mark.parametrize(
    ("n", "modalities"),
    [(3, ("rna",)), (11, ("rna", "atac")), (51, ("rna", "atac", "protein")), (24, ("atac",))],
    ids=str,
)
def test_bars_show_stored_values_in_order_of_rank(n, modalities):
    adata = ranked(n, modalities)
    axes = pl.axes(adata, show=False)
    several = [f"share_{name}" for name in modalities] if len(modalities) > 1 else []
    assert list(axes) == ["share", *several, "kl"]
    table = adata.uns["celldial"]["coordinates"].sort_values("rank")
    for name, panel in axes.items():
        np.testing.assert_allclose([bar.get_width() for bar in panel.patches], table[name])
    written = [name.replace("axis_", "coordinate ").replace("_", " ") for name in table.index]
    assert rows_of(axes["share"]) == written
    assert axes["share"].get_ylim() == (n - 0.5, -0.5)
    assert all_inside(plt.gcf())
    assert not overlapping(plt.gcf())


def test_unused_coordinates_are_pale_and_labeled():
    adata = ranked(6)
    axes = pl.axes(adata, show=False)
    used = adata.uns["celldial"]["coordinates"].sort_values("rank")["used"].to_numpy()
    for panel in axes.values():
        colors = {bar.get_facecolor() for bar, is_used in zip(panel.patches, used, strict=True) if not is_used}
        assert len(colors) == 1
        assert min(colors.pop()[:3]) > 0.7
    assert sum(text.get_text() == "unused" for text in axes["share"].texts) == (~used).sum() > 0
    assert shows(plt.gcf(), f"{used.sum()} of 6")
    assert shows(plt.gcf(), "KL divergence", "nats per cell")


def test_no_coordinate_is_used():
    adata = ranked(6)
    table = adata.uns["celldial"]["coordinates"]
    table[["kl", "variance", "share", "share_rna"]], table["used"] = 0.0, False
    figure = pl.axes(adata, return_fig=True)
    assert shows(figure, "0 of 6")
    assert all_inside(figure)
