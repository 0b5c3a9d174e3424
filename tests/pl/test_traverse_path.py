"""`pl.traverse_path`: the images, the projection, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from helpers.figures import PHASES, all_inside, bars_of, cycling, difference, shows, texts
from helpers.raises import raises


@pytest.fixture
def cells():
    return cycling()


def path_of(panel) -> np.ndarray:
    """Return the path; the white line below the colors has all of it."""
    return panel.lines[0].get_xydata()


def test_a_path_around_a_circle_looks_as_before(cells, tmp_path):
    figure = pl.traverse_path(cells, "cell_cycle", return_fig=True)
    assert difference(figure, "traverse_path_periodic.png", tmp_path) is None


def test_a_missing_path_is_seen(cells, tmp_path):
    pl.traverse_path(cells, "cell_cycle", show=False)["map"].collections[1].remove()
    assert "Error" in difference(plt.gcf(), "traverse_path_periodic.png", tmp_path)


def test_labels_and_titles(cells):
    figure = pl.traverse_path(cells, "CD4 T to CD8 T", return_fig=True)
    assert {"CD4 T", "CD8 T", "UMAP 1", "UMAP 2"} <= texts(figure)
    assert shows(figure, "path", "from CD4 T to CD8 T")
    assert shows(figure, "projection", "30 cells")
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
    assert shows(plt.gcf(), "240 cells")
    pl.traverse_path(cells, "CD4 T to CD8 T", n_neighbors=10_000, show=False)
    assert shows(plt.gcf(), "240 cells")


def test_on_a_map_of_the_latent_space_the_projection_is_the_path(cells):
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
    np.testing.assert_allclose(np.cos(turned), 1, atol=0.05)  # not toward the inactive cells on the right
    assert {"angle 0", *PHASES} <= texts(plt.gcf())
    assert shows(plt.gcf(), "cell cycle on the map")
    assert not bars_of(plt.gcf())


def test_a_circle_without_phases_has_a_bar_of_angles():
    pl.traverse_path(cycling(phases=False), "cell_cycle", show=False)
    (bar,) = bars_of(plt.gcf())
    assert [label.get_text() for label in bar.ax.get_yticklabels()] == ["0", "π/2", "π", "3π/2", "2π"]


def test_states_with_two_columns_for_the_angle(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    before = path_of(pl.traverse_path(cells, "CD4 T to CD8 T", show=False)["map"])
    stored["path"] = np.column_stack([stored["path"], np.ones((25, 2))])
    np.testing.assert_allclose(path_of(pl.traverse_path(cells, "CD4 T to CD8 T", show=False)["map"]), before)


@pytest.mark.parametrize("color", ["cell_type", "score"])
def test_colored_cells_have_a_black_path(cells, color):
    panel = pl.traverse_path(cells, "CD4 T to CD8 T", color=color, show=False)["map"]
    assert shows(plt.gcf(), color)
    assert len(bars_of(plt.gcf())) == (color == "score")
    np.testing.assert_array_equal(panel.collections[-1].get_color(), [[0, 0, 0, 1]])
    assert all_inside(plt.gcf())


def test_many_categories(cells):
    cells.obs["clone"] = [f"a rather long name of clone {c % 60}" for c in range(240)]
    figure = pl.traverse_path(cells, "cell_cycle", color="clone", return_fig=True)
    assert "and 20 more" in texts(figure)
    assert all_inside(figure)


def test_any_matrix_can_be_the_map(cells):
    cells.obsm["X_pca"] = np.column_stack([cells.obsm["X_umap"]] * 3)
    drawn = pl.traverse_path(cells, "cell_cycle", "pca", show=False)
    assert drawn["map"].get_xlabel() == "PC 1"
    cells.obsm["X_umap"][3] = np.nan
    assert np.isfinite(path_of(pl.traverse_path(cells, "cell_cycle", show=False)["map"])).all()


def test_coordinates_have_the_values_of_their_ends(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored |= {"kind": "coordinate", "axis": "latent coordinate 3", "position": np.linspace(-2, 2, 25)}
    pl.traverse_path(cells, "CD4 T to CD8 T", show=False)
    assert {"start (−2)", "end (2)"} <= texts(plt.gcf())
    assert shows(plt.gcf(), "latent coordinate 3")


def test_a_path_without_length(cells):
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored["path"] = np.zeros((25, 3))
    assert all_inside(pl.traverse_path(cells, "CD4 T to CD8 T", return_fig=True))


def test_missing_names_are_reported(cells):
    with raises(KeyError, naming=["'X_tsne'", "adata.obsm", "'X_umap'", "sc.tl.umap(adata)"]):
        pl.traverse_path(cells, "cell_cycle", "X_tsne")
    with raises(KeyError, naming=["color", "'celltype'", "'cell_type'"]):
        pl.traverse_path(cells, "cell_cycle", color="celltype")
    with raises(ValueError, naming=["n_neighbors=0"]):
        pl.traverse_path(cells, "cell_cycle", n_neighbors=0)
    cells.obsm["X_one"] = np.zeros((240, 1))
    with raises(ValueError, naming=["'X_one'", "(240, 1)"]):
        pl.traverse_path(cells, "cell_cycle", "X_one")
    cells.obsm["X_celldial"] = np.zeros((240, 8))
    with raises(ValueError, naming=["'X_celldial'", "3", "8", "model.latent_traverse"]):
        pl.traverse_path(cells, "CD4 T to CD8 T")
    del cells.obsm["X_celldial"]
    with raises(KeyError, naming=["'X_celldial'", "adata.obsm"]):
        pl.traverse_path(cells, "CD4 T to CD8 T")
    cells.obs["cell_cycle_active"] = False
    with raises(ValueError, naming=["latent state", "map"]):
        pl.traverse_path(cells, "cell_cycle")
    del cells.obs["cell_cycle_angle"]
    with raises(KeyError, naming=["'cell_cycle_angle'", "adata.obs"]):
        pl.traverse_path(cells, "cell_cycle")
