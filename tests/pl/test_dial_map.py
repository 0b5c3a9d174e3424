"""The map of the dial page: cells and colors, the projected path, and the nearest cells."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from celldial import pl
from helpers.dial import decode_integers, dial_cells, payload_of
from helpers.raises import raises


@pytest.fixture
def cells() -> AnnData:
    return dial_cells()


def cells_drawn(cells: AnnData, drawn: dict[str, Any]) -> list[int]:
    """Return which cells were drawn, found by their positions."""
    map_c2 = cells.obsm["X_umap"]
    share_c2 = (map_c2 - map_c2.min(0)) / np.ptp(map_c2, axis=0)
    shown_c2 = np.column_stack([decode_integers(drawn["x"]), decode_integers(drawn["y"])]) / 65535
    distance_cc = np.abs(shown_c2[:, None] - share_c2[None]).max(2)
    assert distance_cc.min(1).max() < 1e-4
    return distance_cc.argmin(1).tolist()


def test_the_circle_is_a_map_of_its_own(cells, tmp_path):
    """Angle 0 is at the top, π/2 at the right; inactive cells and cells with uncertain angles are near the center."""
    rng = np.random.default_rng(0)
    concentration_c, probability_c = rng.gamma(2, 5, cells.n_obs), rng.uniform(0, 1, cells.n_obs)
    cells.obs["cell_cycle_concentration"], cells.obs["cell_cycle_active_probability"] = concentration_c, probability_c
    drawn = payload_of(pl.dial(cells, "cell_cycle", "circle", path=tmp_path / "dial.html"))["map"]
    assert not drawn["unreliable"]
    angle_s = cells.uns["latent_traverse"]["cell_cycle"]["position"]
    np.testing.assert_allclose(2 * np.array(drawn["path"]) - 1, np.c_[np.sin(angle_s), np.cos(angle_s)], atol=1e-4)
    angle_c = cells.obs["cell_cycle_angle"].to_numpy()
    x_c, y_c = (np.sort(decode_integers(drawn[name]) / 65535 * 2 - 1) for name in "xy")
    sure_c = concentration_c / (1 + concentration_c) * probability_c
    np.testing.assert_allclose(x_c, np.sort(sure_c * np.sin(angle_c)), atol=1e-4)
    np.testing.assert_allclose(y_c, np.sort(sure_c * np.cos(angle_c)), atol=1e-4)
    cells.obs["cell_cycle_active_probability"] = 0.0
    del cells.obs["cell_cycle_active"]
    drawn = payload_of(pl.dial(cells, "cell_cycle", "circle", path=tmp_path / "dial.html"))["map"]
    assert np.unique(decode_integers(drawn["x"])).size == 1
    with raises(ValueError, naming=["basis='circle'", "'interferon'"]):
        pl.dial(cells, "interferon", "circle", path=tmp_path / "dial.html")
    del cells.obsm["X_umap"]
    with raises(KeyError, naming=["'X_umap'", "basis='circle'"]):
        pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html")


def test_cells_are_where_the_map_has_them(cells, tmp_path):
    cells.obsm["X_umap"][3] = np.nan
    drawn = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]
    map_c2 = cells.obsm["X_umap"][np.isfinite(cells.obsm["X_umap"]).all(1)]
    low, high = map_c2.min(0), map_c2.max(0)
    shown = low + np.column_stack([decode_integers(drawn["x"]), decode_integers(drawn["y"])]) / 65535 * (high - low)
    assert len(shown) == 239
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(map_c2, axis=0), atol=1e-3)
    assert "1 cell without" in drawn["caption"]
    assert "angles nearest" in drawn["caption"]
    assert not drawn["unreliable"]
    panel = pl.traverse_path(cells, "cell_cycle", show=False)["map"]
    np.testing.assert_allclose(low + np.array(drawn["path"]) * (high - low), panel.lines[0].get_xydata(), atol=1e-3)


def test_the_nearest_cells_are_circled(cells, tmp_path):
    drawn = payload_of(pl.dial(cells, "CD4 T to CD8 T", n_neighbors=7, path=tmp_path / "dial.html"))["map"]
    path_sz = cells.uns["latent_traverse"]["CD4 T to CD8 T"]["path"]
    distance_sc = np.linalg.norm(cells.obsm["X_celldial"] - path_sz[:, None], axis=2)
    cell_c = np.array(cells_drawn(cells, drawn))
    for step, nearest in enumerate(drawn["nearest"]):
        assert set(cell_c[nearest]) == set(np.argsort(distance_sc[step], kind="stable")[:7])
    fewer = payload_of(pl.dial(cells, "CD4 T to CD8 T", max_cells=50, path=tmp_path / "dial.html"))["map"]
    assert max(max(nearest, default=0) for nearest in fewer["nearest"]) < 50


def test_a_map_that_does_not_show_the_path(cells, tmp_path):
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(240, 2))
    drawn = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]
    assert drawn["unreliable"]
    assert re.search("explains only [0-9]% .* bars", drawn["caption"])
    assert drawn["labels"] == []


def test_cells_are_colored_by_category(cells, tmp_path):
    kinds = cells.obs["cell_type"].cat.add_categories(["never seen"])
    cells.obs["cell_type"] = kinds.where(np.arange(240) != 5)
    cells.uns["cell_type_colors"] = ["#ff0000", "#00ff00", "blue", "#123456"]
    drawn = payload_of(pl.dial(cells, "cell_cycle", color="cell_type", path=tmp_path / "dial.html"))["map"]
    assert drawn["legend"]["entries"] == [
        ["B cell", "#ff0000"],
        ["T cell", "#00ff00"],
        ["monocyte", "#0000ff"],
        ["no value", "#d9d9d9"],
    ]
    shade_c = pd.Series([drawn["palette"][code] for code in decode_integers(drawn["color"])])
    assert shade_c.value_counts().to_dict() == {"#ff0000": 80, "#0000ff": 79, "#00ff00": 80, "#d9d9d9": 1}
    assert shade_c[0] == "#d9d9d9"  # drawn first, below the others
    assert set(drawn["lineColors"]) == {"#000000"}
    # Each color is at the position of its cells.
    shade_of = {"B cell": "#ff0000", "T cell": "#00ff00", "monocyte": "#0000ff"}
    assert [shade_of.get(cells.obs["cell_type"].iloc[c], "#d9d9d9") for c in cells_drawn(cells, drawn)] == list(shade_c)


def test_cells_are_colored_by_number(cells, tmp_path):
    cells.obs.loc["cell_7", "score"] = np.nan
    drawn = payload_of(pl.dial(cells, "cell_cycle", color="score", path=tmp_path / "dial.html"))["map"]
    assert drawn["legend"] == {"title": "score", "low": "−1", "high": "1"}
    code_c = decode_integers(drawn["color"])
    assert (code_c == 0).sum() == 1
    assert (code_c.max(), len(drawn["palette"])) == (256, 257)
    cells.obs["score"] = 2
    assert payload_of(pl.dial(cells, "cell_cycle", color="score", path=tmp_path / "dial.html"))["map"]["palette"]
    cells.obs["score"] = np.nan
    assert payload_of(pl.dial(cells, "cell_cycle", color="score", path=tmp_path / "dial.html"))["map"]["palette"]


def test_many_categories(cells, tmp_path):
    cells.obs["clone"] = [f"clone {c % 60}" for c in range(240)]
    legend = payload_of(pl.dial(cells, "cell_cycle", color="clone", path=tmp_path / "dial.html"))["map"]["legend"]
    assert len(legend["entries"]) == 40
    assert legend["more"] == "and 20 more"


def test_a_circle_stored_under_another_name(cells, tmp_path):
    stored = cells.uns["latent_traverse"]
    expected = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]["path"]
    stored["in_batch_2"] = stored["cell_cycle"]
    assert payload_of(pl.dial(cells, "in_batch_2", path=tmp_path / "dial.html"))["map"]["path"] == expected
