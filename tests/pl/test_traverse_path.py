"""A path on a map of the cells: the images, and what is drawn and written on them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from helpers.figures import PHASES, all_inside, bars_of, cycling, difference, texts


@pytest.fixture
def cells():
    return cycling()


def path_of(panel) -> np.ndarray:
    """The white line below the colors has the whole path."""
    return panel.lines[0].get_xydata()


def test_traverse_path_looks_as_before(cells, tmp_path):
    figure = pl.traverse_path(cells, "CD4 T to CD8 T", return_fig=True)
    assert difference(figure, "traverse_path.png", tmp_path) is None


def test_a_path_around_a_circle_looks_as_before(cells, tmp_path):
    figure = pl.traverse_path(cells, "cell_cycle", return_fig=True)
    assert difference(figure, "traverse_path_periodic.png", tmp_path) is None


def test_a_missing_path_is_seen(cells, tmp_path):
    pl.traverse_path(cells, "cell_cycle", show=False)["map"].collections[1].remove()
    assert "Error" in difference(plt.gcf(), "traverse_path_periodic.png", tmp_path)


def test_traverse_path_says_what_it_shows(cells):
    figure = pl.traverse_path(cells, "CD4 T to CD8 T", return_fig=True)
    written = texts(figure)
    assert {"The path from CD4 T to CD8 T on the map of the cells", "CD4 T", "CD8 T", "UMAP 1", "UMAP 2"} <= written
    assert any(
        text.startswith("A projection: each step (black dot) is drawn at the mean of the 30 cells") for text in written
    )
    assert [bar.ax.get_ylabel() for bar in bars_of(figure)] == ["way from CD4 T to CD8 T"]
    assert all_inside(figure)


def test_steps_are_drawn_at_the_mean_of_the_nearest_cells(cells):
    path_s2 = path_of(pl.traverse_path(cells, "CD4 T to CD8 T", n_neighbors=1, show=False)["map"])
    state_cz, path_sz = cells.obsm["X_celldial"], cells.uns["latent_traverse"]["CD4 T to CD8 T"]["path"]
    nearest = np.linalg.norm(state_cz - path_sz[:, None], axis=2).argmin(1)
    np.testing.assert_allclose(path_s2, cells.obsm["X_umap"][nearest])
    everywhere = path_of(pl.traverse_path(cells, "CD4 T to CD8 T", n_neighbors=240, show=False)["map"])
    low, high = cells.obsm["X_umap"].min(0), cells.obsm["X_umap"].max(0)
    assert ((low < everywhere) & (everywhere < high)).all()
    assert "mean of the 240 cells" in "".join(texts(plt.gcf()))
    pl.traverse_path(cells, "CD4 T to CD8 T", n_neighbors=10_000, show=False)
    assert "mean of the 240 cells" in "".join(texts(plt.gcf()))


def test_a_path_through_the_cells_themselves_goes_where_they_are(cells):
    """Where the map is the latent space, the projection is the path."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 20)), axis=-1).reshape(-1, 2)
    cells.obsm["X_umap"] = grid
    cells.obsm["X_celldial"] = np.column_stack([grid, np.zeros(240)]).astype(np.float32)
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored["path"] = np.linspace([0.3, 0.3, 0], [0.7, 0.6, 0], 25)
    path_s2 = path_of(pl.traverse_path(cells, "CD4 T to CD8 T", n_neighbors=20, show=False)["map"])
    np.testing.assert_allclose(path_s2, stored["path"][:, :2], atol=0.05)


def test_around_a_circle_steps_are_at_the_angles_of_active_cells(cells):
    path_s2 = path_of(pl.traverse_path(cells, "cell_cycle", show=False)["map"])
    angle_s = cells.uns["latent_traverse"]["cell_cycle"]["position"]
    np.testing.assert_allclose(path_s2[0], path_s2[-1])
    turned = np.arctan2(path_s2[:, 1], path_s2[:, 0]) - angle_s
    np.testing.assert_allclose(np.cos(turned), 1, atol=0.05)  # not drawn to the right, where the others are
    assert {"The cell cycle on the map of the cells", "angle 0", *PHASES} <= texts(plt.gcf())
    assert not bars_of(plt.gcf())


def test_a_circle_without_phases_has_a_bar_of_angles():
    pl.traverse_path(cycling(phases=False), "cell_cycle", show=False)
    (bar,) = bars_of(plt.gcf())
    assert [label.get_text() for label in bar.ax.get_yticklabels()] == ["0", "π/2", "π", "3π/2", "2π"]


def test_states_with_the_two_columns_that_turn(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    before = path_of(pl.traverse_path(cells, "CD4 T to CD8 T", show=False)["map"])
    stored["path"] = np.column_stack([stored["path"], np.ones((25, 2))])
    np.testing.assert_allclose(path_of(pl.traverse_path(cells, "CD4 T to CD8 T", show=False)["map"]), before)


@pytest.mark.parametrize("color", ["cell_type", "score"])
def test_colored_cells_have_a_black_path(cells, color):
    panel = pl.traverse_path(cells, "CD4 T to CD8 T", color=color, show=False)["map"]
    assert color in "".join(texts(plt.gcf()))
    assert len(bars_of(plt.gcf())) == (color == "score")
    np.testing.assert_array_equal(panel.collections[-1].get_color(), [[0, 0, 0, 1]])
    assert all_inside(plt.gcf())


def test_many_categories(cells):
    cells.obs["clone"] = [f"a rather long name of clone {c % 60}" for c in range(240)]
    figure = pl.traverse_path(cells, "cell_cycle", color="clone", return_fig=True)
    assert "and 20 more" in texts(figure)
    assert all_inside(figure)


def test_any_map_will_do(cells):
    cells.obsm["X_pca"] = np.column_stack([cells.obsm["X_umap"]] * 3)
    drawn = pl.traverse_path(cells, "cell_cycle", "pca", show=False)
    assert drawn["map"].get_xlabel() == "PC 1"
    cells.obsm["X_umap"][3] = np.nan
    assert np.isfinite(path_of(pl.traverse_path(cells, "cell_cycle", show=False)["map"])).all()


def test_coordinates_say_where_they_start(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored |= {"kind": "coordinate", "axis": "latent coordinate 3", "position": np.linspace(-2, 2, 25)}
    pl.traverse_path(cells, "CD4 T to CD8 T", show=False)
    assert {"Latent coordinate 3 on the map of the cells", "start (−2)", "end (2)"} <= texts(plt.gcf())


def test_a_path_that_stays_at_one_place(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored["path"] = np.zeros((25, 3))
    assert all_inside(pl.traverse_path(cells, "CD4 T to CD8 T", return_fig=True))


def test_what_is_not_there_is_named(cells):
    with pytest.raises(
        KeyError, match="no map 'X_tsne' in adata.obsm.*there are .*'X_umap'.*sc.tl.umap\\(adata\\) first"
    ):
        pl.traverse_path(cells, "cell_cycle", "X_tsne")
    with pytest.raises(KeyError, match="color 'celltype' is not among .*did you mean 'cell_type'"):
        pl.traverse_path(cells, "cell_cycle", color="celltype")
    with pytest.raises(ValueError, match="n_neighbors=0: at least 1 cell"):
        pl.traverse_path(cells, "cell_cycle", n_neighbors=0)
    cells.obsm["X_one"] = np.zeros((240, 1))
    with pytest.raises(ValueError, match="has the shape \\(240, 1\\): a map needs two columns"):
        pl.traverse_path(cells, "cell_cycle", "X_one")
    cells.obsm["X_celldial"] = np.zeros((240, 8))
    with pytest.raises(
        ValueError, match="the path has 3 latent coordinates and .* has 8: they are of different models"
    ):
        pl.traverse_path(cells, "CD4 T to CD8 T")
    del cells.obsm["X_celldial"]
    with pytest.raises(KeyError, match="no latent states 'X_celldial' in adata.obsm"):
        pl.traverse_path(cells, "CD4 T to CD8 T")
    cells.obs["cell_cycle_active"] = False
    with pytest.raises(ValueError, match="no cell has both"):
        pl.traverse_path(cells, "cell_cycle")
    del cells.obs["cell_cycle_angle"]
    with pytest.raises(KeyError, match="no column 'cell_cycle_angle' in adata.obs"):
        pl.traverse_path(cells, "cell_cycle")
