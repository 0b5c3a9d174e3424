"""`pl.axes`: the image, bars, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.figures import all_inside, coordinates, difference, overlapping, rows_of, shows
from helpers.raises import raises


def cells_with_coordinates(*arguments) -> AnnData:
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"celldial": {"coordinates": coordinates(*arguments)}})


def test_axes_look_as_before(tmp_path):
    figure = pl.axes(cells_with_coordinates(6, ("rna", "atac")), return_fig=True)
    assert difference(figure, "axes.png", tmp_path) is None


def test_a_missing_bar_is_seen(tmp_path):
    panel = pl.axes(cells_with_coordinates(6, ("rna", "atac")), show=False)["kl"]
    max(panel.patches, key=lambda bar: bar.get_width()).remove()
    assert "Error" in difference(plt.gcf(), "axes.png", tmp_path)


@pytest.mark.parametrize(
    ("n", "modalities"),
    [(3, ("rna",)), (11, ("rna", "atac")), (51, ("rna", "atac", "protein")), (51, ("atac",))],
    ids=str,
)
def test_bars_are_what_is_stored_in_order_of_rank(n, modalities):
    adata = cells_with_coordinates(n, modalities)
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
    adata = cells_with_coordinates(6)
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
    adata = cells_with_coordinates(6)
    table = adata.uns["celldial"]["coordinates"]
    table[["kl", "variance", "share", "share_rna"]], table["used"] = 0.0, False
    figure = pl.axes(adata, return_fig=True)
    assert shows(figure, "0 of 6")
    assert all_inside(figure)


def test_without_a_table_the_error_names_the_method():
    with raises(KeyError, naming=["model.axes(adata)"]):
        pl.axes(AnnData(np.zeros((2, 2))))
