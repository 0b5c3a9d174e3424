"""All plots of matplotlib: each in `PLOT_CASES`, its image, arguments as in scanpy, errors, and no side effects."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from celldial import pl
from helpers.assertions import untouched
from helpers.cases import PLOT_CASES
from helpers.figures import all_inside, difference
from helpers.raises import raises

EVERY_PLOT = pytest.mark.parametrize("name", PLOT_CASES)


def plot_of(name: str) -> Callable[..., Any]:
    """Return a plot as a function of its data."""
    return lambda data, **options: getattr(pl, name)(data, **PLOT_CASES[name].options, **options)


def test_every_plot_has_a_case():
    """Pages are written to a file and are tested elsewhere."""
    assert set(PLOT_CASES) == {
        name for name in pl.__all__ if "return_fig" in inspect.signature(getattr(pl, name)).parameters
    }


@EVERY_PLOT
def test_a_plot_looks_as_before(name: str, tmp_path: Path) -> None:
    """And the image shows whether the first panel has any content."""
    panels = plot_of(name)(PLOT_CASES[name].data(), show=False)
    assert difference(plt.gcf(), f"{name}.png", tmp_path) is None
    panel = next(iter(panels.values()))
    for artist in [*panel.lines, *panel.collections, *panel.patches, *panel.images]:
        artist.remove()
    assert "Error" in difference(plt.gcf(), f"{name}.png", tmp_path)


@EVERY_PLOT
def test_panels_and_figures_are_returned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, plot, shown = PLOT_CASES[name].data(), plot_of(name), []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    panels = plot(data, show=False)
    assert list(panels) == PLOT_CASES[name].panels
    for panel in panels.values():
        assert isinstance(panel, Axes)
        assert panel.get_title() or (panel.get_xlabel() and panel.get_ylabel())
    assert isinstance(plot(data, return_fig=True), Figure)
    assert not shown
    assert plot(data) is None
    assert len(shown) == 1
    assert len(plt.get_fignums()) == 3  # one each


def test_the_setting_of_scanpy_decides_what_is_shown(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    import scanpy as sc

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    sc.settings.autoshow = False
    try:
        assert isinstance(pl.history(adata), dict)
        assert not shown
        assert pl.history(adata, show=True) is None
    finally:
        sc.settings.autoshow = True
    assert len(shown) == 1


@pytest.mark.parametrize(("name", "layout"), [*((name, None) for name in PLOT_CASES), ("axes", "constrained")])
def test_drawing_into_given_axes(name: str, layout: str | None) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(18, 7), layout=layout)
    drawn_in = plot_of(name)(PLOT_CASES[name].data(), ax=right)
    assert list(drawn_in) == PLOT_CASES[name].panels
    assert plt.get_fignums() == [figure.number]
    assert all_inside(figure)
    assert left in figure.axes
    assert right not in figure.axes
    drawn = [panel for panel in figure.findobj(Axes) if panel is not left]
    assert set(drawn_in.values()) <= set(drawn)
    edge = left.get_window_extent().x1
    assert all(panel.get_window_extent().x0 > edge for panel in drawn)


@EVERY_PLOT
def test_axes_without_a_grid_are_rejected(name: str) -> None:
    with raises(ValueError, naming=["ax", "plt.subplots()"]):
        plot_of(name)(PLOT_CASES[name].data(), ax=plt.figure().add_axes((0, 0, 1, 1)))


@EVERY_PLOT
def test_settings_of_matplotlib_and_data_are_unchanged(name: str) -> None:
    """With another font size and another resolution, at which nothing is cut off."""
    import scanpy as sc

    sc.set_figure_params(fontsize=14, dpi=170)
    before, data = dict(mpl.rcParams), PLOT_CASES[name].data()
    assert_unchanged = untouched(as_cells(data))
    kept = repr(as_cells(data).uns)
    figure = plot_of(name)(data, return_fig=True)
    assert figure.dpi == 170
    assert all_inside(figure)
    assert dict(mpl.rcParams) == before
    assert_unchanged()
    assert repr(as_cells(data).uns) == kept


@EVERY_PLOT
def test_data_read_from_a_file_have_the_same_panels(name: str, tmp_path: Path) -> None:
    """Cells read from an h5ad file have dicts in another order, and arrays instead of lists."""
    data = PLOT_CASES[name].data()
    as_cells(data).write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert list(plot_of(name)(read.uns.get("table", read), show=False)) == PLOT_CASES[name].panels


@EVERY_PLOT
def test_missing_results_are_named(name: str) -> None:
    data = PLOT_CASES[name].data()
    bare = AnnData(np.zeros((2, 2), dtype=np.float32)) if isinstance(data, AnnData) else pd.DataFrame()
    with raises(KeyError, naming=PLOT_CASES[name].missing):
        plot_of(name)(bare)
    assert plt.get_fignums() == []


def as_cells(data: Any) -> AnnData:
    """Return cells, or cells with a table."""
    return data if isinstance(data, AnnData) else AnnData(np.zeros((2, 1), dtype=np.float32), uns={"table": data})
