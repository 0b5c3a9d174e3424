"""All plots of `pl.__all__`: arguments as in scanpy, and no side effects."""

import inspect
from collections.abc import Callable

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from celldial import pl
from helpers.figures import all_inside, coordinates, cycling, sweep
from helpers.raises import raises


def of_cells(name: str) -> Callable:
    """Return a plot as a function of cells; a plot of a table gets the one in ``uns["sweep"]``."""
    plot = getattr(pl, name)
    if "adata" in inspect.signature(plot).parameters:
        return plot
    return lambda cells, **options: plot(cells.uns["sweep"], **options)


# All but pages, which are written to a file.
FIGURES = [name for name in pl.__all__ if "return_fig" in inspect.signature(getattr(pl, name)).parameters]
PLOTS = pytest.mark.parametrize("plot", [of_cells(name) for name in FIGURES], ids=FIGURES)


@pytest.fixture
def cells(adata) -> AnnData:
    """Return cells with all results that plots read."""
    cells = cycling()
    cells.uns["sweep"] = sweep()
    cells.uns["celldial"] |= {"history": adata.uns["celldial"]["history"], "coordinates": coordinates()}
    return cells


@PLOTS
def test_show_and_return_fig(cells, monkeypatch, plot):
    import scanpy as sc

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert plot(cells) is None
    assert plot(cells, show=True) is None
    assert len(shown) == 2
    drawn = plot(cells, show=False)
    assert drawn
    assert all(isinstance(panel, Axes) for panel in drawn.values())
    assert isinstance(plot(cells, return_fig=True), Figure)
    assert isinstance(plot(cells, ax=plt.subplots()[1]), dict)
    sc.settings.autoshow = False
    try:
        assert isinstance(plot(cells), dict)
    finally:
        sc.settings.autoshow = True
    assert len(shown) == 2


@PLOTS
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_drawing_into_given_axes(cells, plot, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(18, 7), layout=layout)
    assert plot(cells, ax=right, return_fig=True) is figure
    assert all_inside(figure)
    assert left in figure.axes
    assert right not in figure.axes
    drawn = [panel for panel in figure.findobj(Axes) if panel is not left]
    assert drawn
    assert all(panel.figure is not figure for panel in drawn)
    edge = left.get_window_extent().x1
    assert all(panel.get_window_extent().x0 > edge for panel in drawn)


@PLOTS
def test_axes_without_a_grid_are_rejected(cells, plot):
    with raises(ValueError, naming=["ax", "plt.subplots()"]):
        plot(cells, ax=plt.figure().add_axes((0, 0, 1, 1)))


@PLOTS
def test_settings_of_matplotlib_and_cells_are_unchanged(cells, plot):
    import scanpy as sc

    sc.set_figure_params(fontsize=14)
    before = dict(mpl.rcParams)
    kept = cells.copy()
    assert all_inside(plot(cells, return_fig=True))
    assert dict(mpl.rcParams) == before
    assert repr(cells.uns) == repr(kept.uns)
    assert cells.obs.equals(kept.obs)
    assert list(cells.obsm) == list(kept.obsm)


@PLOTS
def test_cells_read_from_a_file_have_the_same_panels(cells, plot, tmp_path):
    """Cells read from an h5ad file have dicts in another order, and arrays instead of lists."""
    import anndata as ad

    del cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    first, second = (list(plot(each, show=False)) for each in (cells, read))
    assert first == second
