"""The page with a slider: what is in it, and, where there is a Chromium, what it shows when it is turned."""

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from celldial import pl
from helpers.figures import PHASES, cycling, traversal

TWO = {"rna": 24, "atac": 16}
WICKED = '</script><img src=x onerror="window.wicked=1"><script>window.wicked=1</script>'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARGIN = 22  # of the map, in pixels


@pytest.fixture
def cells() -> AnnData:
    """Cells with a path, a named axis and a circle, of genes and peaks."""
    cells = cycling()
    stored = cells.uns["latent_traverse"]
    way_sz = stored["CD4 T to CD8 T"]["path"]
    for name, kind in (("CD4 T to CD8 T", "path"), ("interferon", "direction"), ("cell_cycle", "periodic")):
        stored[name] = traversal(kind, TWO) | {"path": way_sz}
    return cells


def payload_of(page: Path) -> dict[str, Any]:
    """Read what Python wrote into a page."""
    return json.loads(re.search(r'id="payload">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])


def names_in(payload: dict[str, Any]) -> list[str]:
    return [feature["name"] for modality in payload["modalities"] for feature in modality["features"]]


def unpacked(payload: dict[str, Any], what: str) -> np.ndarray:
    """Read values, steps × features."""
    flat = np.frombuffer(base64.b64decode(payload[what]), "<f4")
    return flat.reshape(len(payload["positions"]), -1)


def columns_of(cells: AnnData, name: str, payload: dict[str, Any]) -> list[int]:
    return [list(cells.uns["latent_traverse"][name]["feature_names"]).index(feature) for feature in names_in(payload)]


def shorts(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u2")


def drawn_cells(cells: AnnData, drawn: dict[str, Any]) -> list[int]:
    """Find out which cells were drawn, by their places."""
    map_c2 = cells.obsm["X_umap"]
    share_c2 = (map_c2 - map_c2.min(0)) / np.ptp(map_c2, axis=0)
    shown_c2 = np.column_stack([shorts(drawn["x"]), shorts(drawn["y"])]) / 65535
    distance_cc = np.abs(shown_c2[:, None] - share_c2[None]).max(2)
    assert distance_cc.min(1).max() < 1e-4
    return distance_cc.argmin(1).tolist()


# --- What is in the page ----------------------------------------------------------------------------------------------


def test_the_circle_is_a_map_of_its_own(cells, tmp_path):
    """A clock: angle 0 at the top, a quarter of a turn at the right; who is at rest or uncertain is near the center."""
    rng = np.random.default_rng(0)
    concentration_c, probability_c = rng.gamma(2, 5, cells.n_obs), rng.uniform(0, 1, cells.n_obs)
    cells.obs["cell_cycle_concentration"], cells.obs["cell_cycle_active_probability"] = concentration_c, probability_c
    drawn = payload_of(pl.dial(cells, "cell_cycle", "circle", path=tmp_path / "dial.html"))["map"]
    assert not drawn["mixed"]
    angle_s = cells.uns["latent_traverse"]["cell_cycle"]["position"]
    np.testing.assert_allclose(2 * np.array(drawn["path"]) - 1, np.c_[np.sin(angle_s), np.cos(angle_s)], atol=1e-4)
    angle_c = cells.obs["cell_cycle_angle"].to_numpy()
    x_c, y_c = (np.sort(shorts(drawn[name]) / 65535 * 2 - 1) for name in "xy")
    sure_c = concentration_c / (1 + concentration_c) * probability_c
    np.testing.assert_allclose(x_c, np.sort(sure_c * np.sin(angle_c)), atol=1e-4)
    np.testing.assert_allclose(y_c, np.sort(sure_c * np.cos(angle_c)), atol=1e-4)
    cells.obs["cell_cycle_active_probability"] = 0.0
    del cells.obs["cell_cycle_active"]
    drawn = payload_of(pl.dial(cells, "cell_cycle", "circle", path=tmp_path / "dial.html"))["map"]
    assert np.unique(shorts(drawn["x"])).size == 1
    with pytest.raises(ValueError, match="basis='circle' is the map of a periodic axis, and 'interferon' is none"):
        pl.dial(cells, "interferon", "circle", path=tmp_path / "dial.html")
    del cells.obsm["X_umap"]
    with pytest.raises(KeyError, match="or take basis='circle'"):
        pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html")


@pytest.mark.parametrize("name", ["CD4 T to CD8 T", "interferon", "cell_cycle"])
def test_values_are_those_of_the_traversal(cells, tmp_path, name):
    page = pl.dial(cells, name, path=tmp_path / "dial.html")
    assert page == tmp_path / "dial.html"
    payload, stored = payload_of(page), cells.uns["latent_traverse"][name]
    column_f = columns_of(cells, name, payload)
    assert len(column_f) == 20
    for what in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(unpacked(payload, what), stored[what][:, column_f].astype("f4"))
    modality_f = [modality["noun"] for modality in payload["modalities"] for _ in modality["features"]]
    assert modality_f == ["Gene"] * 10 + ["Peak"] * 10
    assert [modality["unit"] for modality in payload["modalities"]] == [
        "expected counts per 10,000",
        "probability open",
    ]
    assert payload["interval"] == "90%"
    sure_f = [feature["sure"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_array_equal(sure_f, stored["lfsr"][column_f] < 0.05)
    assert len(set(sure_f)) == 2


def test_change_is_against_the_start_of_a_path_and_the_average_of_a_circle(cells, tmp_path):
    payload = payload_of(pl.dial(cells, "interferon", path=tmp_path / "dial.html"))
    stored = cells.uns["latent_traverse"]["interferon"]
    column_f = columns_of(cells, "interferon", payload)
    log2_sf = stored["log2_fold_change"][:, column_f]
    np.testing.assert_allclose(unpacked(payload, "change"), log2_sf, rtol=1e-6)
    reference_f = [feature["reference"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_allclose(reference_f, stored["mean"][0, column_f])

    payload = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    log2_sf = np.log2(stored["mean"][:, columns_of(cells, "cell_cycle", payload)])
    average_f = log2_sf[:-1].mean(0)
    np.testing.assert_allclose(unpacked(payload, "change"), log2_sf - average_f, atol=1e-5)
    reference_f = [feature["reference"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_allclose(reference_f, 2**average_f)


def test_features_of_the_best_rank_are_in_the_order_in_which_they_peak(cells, tmp_path):
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    payload = payload_of(pl.dial(cells, "cell_cycle", n_features=4, path=tmp_path / "dial.html"))
    shown = names_in(payload)
    for modality, names in (("rna", shown[:4]), ("atac", shown[4:])):
        of_modality = np.flatnonzero(stored["modality"] == modality)
        best = of_modality[np.argsort(stored["rank"][of_modality])][:4]
        assert set(names) == set(stored["feature_names"][best])
        column_f = [list(stored["feature_names"]).index(name) for name in names]
        assert (np.diff(stored["peak_step"][column_f]) >= 0).all()


def test_named_features_keep_their_order(cells, tmp_path):
    wanted = ["GENE7", "chr1:300-350", "GENE2"]
    payload = payload_of(pl.dial(cells, "interferon", features=wanted, path=tmp_path / "dial.html"))
    assert names_in(payload) == ["GENE7", "GENE2", "chr1:300-350"]
    payload = payload_of(pl.dial(cells, "interferon", features="GENE3", path=tmp_path / "dial.html"))
    assert names_in(payload) == ["GENE3"]
    assert [modality["title"] for modality in payload["modalities"]] == ["Genes"]


def test_positions_are_words(cells, tmp_path):
    path = tmp_path / "dial.html"
    of_path = payload_of(pl.dial(cells, "CD4 T to CD8 T", path=path))
    assert of_path["label"] == "way from CD4 T to CD8 T"
    assert of_path["positions"][::12] == ["0% of the way", "50% of the way", "100% of the way"]
    assert of_path["ticks"] == [[0, "CD4 T"], [1, "CD8 T"]]
    of_axis = payload_of(pl.dial(cells, "interferon", path=path))
    assert of_axis["label"] == "interferon score"
    assert of_axis["positions"][0] == "−0.20"
    of_circle = payload_of(pl.dial(cells, "cell_cycle", path=path))
    assert of_circle["periodic"]
    assert of_circle["positions"][12] == "3.14 rad"
    assert of_circle["phases"]["names"] == list(PHASES)
    assert [of_circle["phases"]["ofStep"][step] for step in (0, 12, 20, 24)] == [0, 1, 2, 0]
    del cells.uns["latent_traverse"]["cell_cycle"]["phases"]
    assert payload_of(pl.dial(cells, "cell_cycle", path=path))["phases"] is None


def test_the_title_and_the_text_say_what_is_seen(cells, tmp_path):
    cells.uns["latent_traverse"]["interferon"]["covariates"] = {"batch": "b2"}
    page = pl.dial(cells, "interferon", path=tmp_path / "dial.html")
    assert "<h1>What changes along the axis interferon</h1>" in page.read_text(encoding="utf-8")
    notes = dict(payload_of(page)["notes"])
    assert "(500 of all cells)" in notes["Bar"]
    assert "as if all had batch: b2" in notes["Bar"]
    assert "with 90% probability, is the mean over all cells" in notes["Whisker: 90% interval"]
    assert "mean of the 30 cells" in notes["Map"]


def test_cells_are_where_the_map_has_them(cells, tmp_path):
    cells.obsm["X_umap"][3] = np.nan
    drawn = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]
    map_c2 = cells.obsm["X_umap"][np.isfinite(cells.obsm["X_umap"]).all(1)]
    low, high = map_c2.min(0), map_c2.max(0)
    shown = low + np.column_stack([shorts(drawn["x"]), shorts(drawn["y"])]) / 65535 * (high - low)
    assert len(shown) == 239
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(map_c2, axis=0), atol=1e-3)
    assert "Left out, without a place on this map: 1 cell. Ringed: cells whose angles are nearest" in drawn["caption"]
    assert not drawn["mixed"]
    panel = pl.traverse_path(cells, "cell_cycle", show=False)["map"]
    np.testing.assert_allclose(low + np.array(drawn["path"]) * (high - low), panel.lines[0].get_xydata(), atol=1e-3)


def test_the_nearest_cells_are_ringed(cells, tmp_path):
    drawn = payload_of(pl.dial(cells, "CD4 T to CD8 T", n_neighbors=7, path=tmp_path / "dial.html"))["map"]
    way_sz = cells.uns["latent_traverse"]["CD4 T to CD8 T"]["path"]
    distance_sc = np.linalg.norm(cells.obsm["X_celldial"] - way_sz[:, None], axis=2)
    cell_c = np.array(drawn_cells(cells, drawn))
    for step, near in enumerate(drawn["near"]):
        assert set(cell_c[near]) == set(np.argsort(distance_sc[step], kind="stable")[:7])
    fewer = payload_of(pl.dial(cells, "CD4 T to CD8 T", max_cells=50, path=tmp_path / "dial.html"))["map"]
    assert max(max(near, default=0) for near in fewer["near"]) < 50


def test_a_map_that_does_not_tell_the_path_says_so(cells, tmp_path):
    cells.obsm["X_umap"] = np.random.default_rng(0).normal(size=(240, 2))
    drawn = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]
    assert drawn["mixed"]
    assert re.search("the step explains [0-9]% of where its cells are. Go by the bars.", drawn["caption"])
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
    shade_c = pd.Series([drawn["palette"][code] for code in shorts(drawn["color"])])
    assert shade_c.value_counts().to_dict() == {"#ff0000": 80, "#0000ff": 79, "#00ff00": 80, "#d9d9d9": 1}
    assert shade_c[0] == "#d9d9d9"  # drawn first, below the others
    assert set(drawn["lineColors"]) == {"#000000"}
    # Each color is at the place of its cells.
    shade_of = {"B cell": "#ff0000", "T cell": "#00ff00", "monocyte": "#0000ff"}
    assert [shade_of.get(cells.obs["cell_type"].iloc[c], "#d9d9d9") for c in drawn_cells(cells, drawn)] == list(shade_c)


def test_cells_are_colored_by_number(cells, tmp_path):
    cells.obs.loc["cell_7", "score"] = np.nan
    drawn = payload_of(pl.dial(cells, "cell_cycle", color="score", path=tmp_path / "dial.html"))["map"]
    assert drawn["legend"] == {"title": "score", "low": "−1", "high": "1"}
    code_c = shorts(drawn["color"])
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


def test_the_same_cells_give_the_same_page(cells, tmp_path):
    options = {"color": "cell_type", "max_cells": 100}
    first = pl.dial(cells, "cell_cycle", path=tmp_path / "first.html", **options).read_bytes()
    np.random.default_rng().random()
    assert pl.dial(cells, "cell_cycle", path=tmp_path / "second.html", **options).read_bytes() == first
    del cells.uns["latent_traverse"]["CD4 T to CD8 T"]["axis"]  # not looked at
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = read_h5ad(tmp_path / "cells.h5ad")
    assert pl.dial(read, "cell_cycle", path=tmp_path / "third.html", **options).read_bytes() == first


def test_the_cells_stay_as_they_are(cells, tmp_path):
    kept = cells.copy()
    pl.dial(cells, "cell_cycle", color="cell_type", path=tmp_path / "dial.html")
    assert repr(cells.uns) == repr(kept.uns)
    assert cells.obs.equals(kept.obs)
    assert list(cells.obsm) == list(kept.obsm)


# --- How large it is --------------------------------------------------------------------------------------------------


def test_a_million_cells_make_a_small_page(tmp_path):
    n_cells = 1_000_000
    angle_c = np.random.default_rng(0).uniform(0, 2 * np.pi, n_cells)
    cells = AnnData(
        np.zeros((n_cells, 1), dtype=np.float32),
        obs=pd.DataFrame(
            {"type": pd.Categorical.from_codes(np.arange(n_cells) % 50, [f"type {k}" for k in range(50)])},
            index=np.arange(n_cells).astype(str),
        ),
        obsm={"X_umap": np.column_stack([np.cos(angle_c), np.sin(angle_c)])},
        uns={"latent_traverse": {"path": traversal("path", n_steps=9)}},
    )
    cells.obsm["X_celldial"] = np.column_stack([cells.obsm["X_umap"], np.zeros(n_cells)]).astype(np.float32)
    page = pl.dial(cells, color="type", path=tmp_path / "dial.html")
    assert page.stat().st_size < 300_000
    drawn = payload_of(page)["map"]
    assert len(shorts(drawn["x"])) == 20_000
    assert drawn["caption"].startswith("20,000 of 1,000,000 cells are drawn, chosen at random.")


def test_very_many_features(cells, tmp_path):
    stored = traversal("direction", {"rna": 30_000, "atac": 50_000}, n_steps=5)
    stored["path"] = cells.uns["latent_traverse"]["interferon"]["path"][:5]
    cells.uns["latent_traverse"]["wide"] = stored
    page = pl.dial(cells, "wide", path=tmp_path / "dial.html")
    assert page.stat().st_size < 100_000
    assert len(names_in(payload_of(page))) == 20
    kept = page.read_bytes()
    with pytest.raises(
        ValueError, match="would have .* MB, more than 5 MB, with 80,000 features, 5 steps and 240 cells: ask for fewer"
    ):
        pl.dial(cells, "wide", n_features=60_000, path=page)
    assert page.read_bytes() == kept
    assert os.listdir(tmp_path) == ["dial.html"]


# --- What names may be ------------------------------------------------------------------------------------------------


def wicked(cells: AnnData) -> AnnData:
    """Give everything that has a name one that is HTML, or that the template could take for its own."""
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored["axis"] = f"from {WICKED} to {{{{script}}}}"
    stored["position_label"] = f"way {WICKED}"
    stored["feature_names"][:] = [f"{WICKED}{index}" for index in range(40)]
    stored["feature_names"][np.argmin(stored["rank"])] = "{{payload}} \ud800 & <b>"
    stored["at"] = WICKED
    stored["covariates"] = {WICKED: WICKED}
    cells.obs[WICKED] = pd.Categorical([WICKED] * 120 + ["<b>bold</b>"] * 120)
    return cells


def test_names_are_data(cells, tmp_path):
    page = pl.dial(wicked(cells), "CD4 T to CD8 T", color=WICKED, path=tmp_path / "dial.html")
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Reader().feed(page.read_text(encoding="utf-8"))
    assert tags.count("script") == 2
    assert "img" not in tags
    assert f"{WICKED}7" in names_in(payload_of(pl.dial(cells, "CD4 T to CD8 T", n_features=40, path=page)))


def test_the_page_runs_nothing_but_its_own_script(cells, tmp_path):
    text = pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", text)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_named(cells, tmp_path):
    path = tmp_path / "dial.html"
    with pytest.raises(KeyError, match="no traversal 'cell_cyle' in .* \\(did you mean 'cell_cycle'\\?\\)"):
        pl.dial(cells, "cell_cyle", path=path)
    with pytest.raises(KeyError, match="no map 'X_tsne' in adata.obsm.*call sc.pp.neighbors.*sc.tl.umap"):
        pl.dial(cells, "cell_cycle", "X_tsne", path=path)
    with pytest.raises(KeyError, match="color 'celltype' is not among .*did you mean 'cell_type'"):
        pl.dial(cells, "cell_cycle", color="celltype", path=path)
    with pytest.raises(
        KeyError, match="the traversal 'cell_cycle' has no feature 'gene7' \\(did you mean 'GENE7'\\?\\)"
    ):
        pl.dial(cells, "cell_cycle", features=["gene7"], path=path)
    with pytest.raises(ValueError, match="name at least one feature, and none twice"):
        pl.dial(cells, "cell_cycle", features=["GENE7", "GENE7"], path=path)
    with pytest.raises(ValueError, match="n_features=0, max_cells=20000: at least 1"):
        pl.dial(cells, "cell_cycle", n_features=0, path=path)
    with pytest.raises(ValueError, match="max_cells=0"):
        pl.dial(cells, "cell_cycle", max_cells=0, path=path)
    with pytest.raises(ValueError, match="n_neighbors=0: at least 1 cell"):
        pl.dial(cells, "cell_cycle", n_neighbors=0, path=path)
    del cells.uns["latent_traverse"]
    with pytest.raises(KeyError, match="there is none: call model.latent_traverse"):
        pl.dial(cells, path=path)
    assert os.listdir(tmp_path) == []


def test_where_it_cannot_be_written(cells, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere.*: make it first"):
        pl.dial(cells, path=tmp_path / "nowhere" / "dial.html")
    with pytest.raises(IsADirectoryError, match="which is a folder: name a file in it, such as 'dial.html'"):
        pl.dial(cells, path=tmp_path)
    page = tmp_path / "dial.html"
    page.write_text("as it was")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        pl.dial(cells, path=page)
    assert os.listdir(tmp_path) == ["dial.html"]
    assert page.read_text() == "as it was"


def test_a_circle_stored_under_another_name(cells, tmp_path):
    stored = cells.uns["latent_traverse"]
    expected = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))["map"]["path"]
    stored["in_batch_2"] = stored["cell_cycle"]
    assert payload_of(pl.dial(cells, "in_batch_2", path=tmp_path / "dial.html"))["map"]["path"] == expected


# --- What the page shows ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the Chromium of the system; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Turned:
    """A page in the browser, which may load nothing but its own file, and what it complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, height: int = 800) -> None:
        self.file, self.payload = file, payload_of(file)
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", locale="en-US"
        )
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context.route("**/*", self._let_through)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#marker", state="attached")

    def _let_through(self, route: Any) -> None:
        self.requests.append(route.request.url)
        if route.request.url == self.file.as_uri():
            route.continue_()
        else:
            route.abort()

    def press(self, *keys: str) -> None:
        self.page.focus("#slider")
        for key in keys:
            self.page.keyboard.press(key)

    def set(self, step: int) -> None:
        """Move the slider as a mouse does."""
        self.page.eval_on_selector(
            "#slider",
            "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
            step,
        )

    def seen(self) -> dict[str, Any]:
        """Read what is shown."""
        return self.page.evaluate(
            """() => {
                const box = (node) => node.getBoundingClientRect();
                const middle = (node) => [box(node).x + box(node).width / 2, box(node).y + box(node).height / 2];
                const map = document.getElementById("map");
                const corner = [box(map).x + map.clientLeft, box(map).y + map.clientTop];
                const [slider, phase] = ["slider", "phase"].map((id) => document.getElementById(id));
                return {
                    step: Number(slider.value),
                    valuetext: slider.getAttribute("aria-valuetext"),
                    position: document.getElementById("position").textContent,
                    phase: phase.hidden ? null : phase.textContent,
                    marker: middle(document.querySelector("#marker .inner")).map((at, d) => at - corner[d]),
                    size: [map.clientWidth, map.clientHeight],
                    rows: [...document.querySelectorAll("tbody tr")].map((row) => {
                        const [track, fill, whisker] = [".track", ".fill", ".whisker"].map(
                            (at) => box(row.querySelector(at)),
                        );
                        return {
                            name: row.querySelector(".name").textContent,
                            width: track.width,
                            fill: fill.width / track.width,
                            lower: (whisker.left - track.left) / track.width,
                            upper: (whisker.right - track.left) / track.width,
                            value: row.querySelector(".value b").textContent,
                            interval: row.querySelector(".value small").textContent,
                            change: row.querySelector(".change").textContent,
                        };
                    }),
                };
            }"""
        )

    def check(self, step: int) -> dict[str, Any]:
        """Hold what is shown against what was stored."""
        seen, payload = self.seen(), self.payload
        assert seen["step"] == step
        assert seen["position"] == payload["positions"][step]
        assert seen["valuetext"].startswith(payload["positions"][step])
        x, y = payload["map"]["path"][step]
        width, height = (size - 2 * MARGIN for size in seen["size"])
        np.testing.assert_allclose(seen["marker"], [MARGIN + x * width, MARGIN + (1 - y) * height], atol=1)
        assert [row["name"] for row in seen["rows"]] == names_in(payload)
        mean_f, lower_f, upper_f, change_f = (
            unpacked(payload, what)[step] for what in ("mean", "lower", "upper", "change")
        )
        highest_f = np.maximum(unpacked(payload, "upper"), unpacked(payload, "mean")).max(0)
        # Rounded to a pixel; a whisker has a width of three at least.
        for name, value_f, pixels in (("fill", mean_f, 1), ("lower", lower_f, 1), ("upper", upper_f, 4)):
            shown_f = [row[name] for row in seen["rows"]]
            np.testing.assert_allclose(shown_f, value_f / highest_f, atol=pixels / seen["rows"][0]["width"])
        np.testing.assert_allclose([number(row["value"]) for row in seen["rows"]], mean_f, rtol=0.06)
        intervals = np.array([[number(end) for end in row["interval"].split("–")] for row in seen["rows"]])
        np.testing.assert_allclose(intervals, np.column_stack([lower_f, upper_f]), rtol=0.06)
        changes = [number(row["change"].split()[0]) for row in seen["rows"]]
        np.testing.assert_allclose(changes, change_f, atol=0.006)
        return seen

    def close(self) -> None:
        self.context.close()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@pytest.fixture
def turn(browser) -> Iterator[Any]:
    """Open pages; at the end, none of them may have complained, or asked for anything but its file."""
    opened: list[Turned] = []

    def open_page(file: Path, **options: int) -> Turned:
        opened.append(Turned(browser, file, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()
    for each in opened:
        assert each.complaints == []
        assert each.requests == [each.file.as_uri()]


def test_keys_and_slider_move_marker_and_bars(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "CD4 T to CD8 T", color="cell_type", path=tmp_path / "dial.html"))
    at_start = turned.check(0)
    assert at_start["valuetext"] == "0% of the way"
    turned.press("ArrowRight")
    after = turned.check(1)
    assert after["marker"] != at_start["marker"]
    assert [row["value"] for row in after["rows"]] != [row["value"] for row in at_start["rows"]]
    for keys, step in ((["End"], 24), (["ArrowRight"], 24), (["ArrowLeft", "PageDown"], 20), (["Home"], 0)):
        turned.press(*keys)
        turned.check(step)
    turned.press("ArrowDown")
    turned.check(0)
    turned.set(12)
    assert turned.check(12)["valuetext"] == "50% of the way"


def test_a_circle_goes_round(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    assert turned.check(0)["phase"] == "G1"
    turned.press("End")
    at_end = turned.check(24)
    turned.press("Home")
    at_start = turned.check(0)
    assert at_end["rows"] == at_start["rows"]  # the same place
    turned.press("ArrowLeft")
    turned.check(23)
    turned.press("ArrowRight", "ArrowRight")
    turned.check(1)
    turned.press("PageUp", "PageUp", "PageUp", "PageUp", "ArrowUp")
    seen = turned.check(14)
    assert seen["phase"] == "S"
    assert seen["valuetext"] == "3.67 rad, phase S"
    for _ in range(4):
        turned.press("PageUp")
    turned.check(2)


def test_a_click_on_the_path_moves_the_slider(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    width, height = turned.seen()["size"]
    x, y = turned.payload["map"]["path"][9]
    where = {"x": MARGIN + x * (width - 2 * MARGIN), "y": MARGIN + (1 - y) * (height - 2 * MARGIN)}
    turned.page.click("#map", position=where)
    turned.check(9)
    turned.page.click("#map", position={"x": 3, "y": 3})  # far from the path
    turned.check(9)


def test_play_goes_on_by_itself_and_stops(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    turned.page.clock.install()
    turned.page.clock.run_for(3000)
    turned.check(0)  # not before it is asked to
    turned.page.click("#play")
    assert turned.page.inner_text("#play") == "Stop"
    turned.page.clock.run_for(3500)
    turned.check(3)  # a step a second where motion is to be reduced
    turned.page.click("#play")
    turned.page.clock.run_for(3000)
    turned.check(3)
    assert turned.page.inner_text("#play") == "Play"
    assert turned.page.text_content("#announced") == "0.79 rad, phase G1"


def test_play_stops_at_the_end_of_a_path(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "interferon", path=tmp_path / "dial.html"))
    turned.page.clock.install()
    turned.set(22)
    turned.page.click("#play")
    turned.page.clock.run_for(10_000)
    turned.check(24)
    assert turned.page.inner_text("#play") == "Play"
    turned.page.click("#play")  # once more, from the start
    turned.page.clock.run_for(1500)
    turned.check(1)


@pytest.mark.parametrize("width", [320, 360, 700, 1000, 1280])
def test_nothing_sticks_out(cells, tmp_path, turn, width):
    cells.uns["latent_traverse"]["cell_cycle"]["feature_names"][:] = [
        f"a-very-long-name-{'x' * 60}{k}" for k in range(40)
    ]
    cells.obs["kind"] = [f"{'kind' * 20} {c % 12}" for c in range(240)]
    turned = turn(pl.dial(cells, "cell_cycle", color="kind", path=tmp_path / "dial.html"), width=width)
    assert turned.page.evaluate("document.documentElement.scrollWidth") <= width
    below = turned.page.evaluate(
        "document.getElementById('features').getBoundingClientRect().top"
        " >= document.getElementById('map').getBoundingClientRect().bottom"
    )
    assert below == (width < 860)
    turned.press("End")
    turned.check(24)


def test_wicked_names_are_shown_as_text(cells, tmp_path, turn):
    turned = turn(pl.dial(wicked(cells), "CD4 T to CD8 T", color=WICKED, path=tmp_path / "dial.html"))
    turned.press("End")
    assert turned.page.evaluate("window.wicked") is None
    assert turned.page.locator("img").count() == 0
    names = turned.page.locator("tbody .name").all_text_contents()
    assert len(names) == 20
    assert sum(name.startswith(WICKED) for name in names) == 19
    assert turned.page.text_content("h1") == f"What changes from {WICKED} to {{{{script}}}}"
    assert "<b>bold</b>" in turned.page.locator("#legend li").all_text_contents()


def test_the_policy_holds(cells, tmp_path, browser):
    """Were there an injected script or request, the browser would refuse it."""
    turned = Turned(browser, pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    turned.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.wicked = 1";
            document.body.append(script);
            const picture = document.createElement("img");
            picture.src = "https://example.org/picture.png";
            document.body.append(picture);
        }"""
    )
    turned.page.wait_for_timeout(100)
    assert turned.page.evaluate("window.wicked") is None
    assert len(turned.complaints) == 2
    assert turned.requests == [turned.file.as_uri()]
    turned.close()


def test_it_can_be_read_aloud(cells, tmp_path, turn):
    turned = turn(pl.dial(cells, "interferon", color="score", path=tmp_path / "dial.html"))
    assert turned.page.get_by_role("slider", name="interferon score").count() == 1
    assert turned.page.get_by_role("img", name=re.compile("Map of 240 cells .*UMAP.*from start")).count() == 1
    assert turned.page.get_by_role("table", name="Genes, expected counts per 10,000").count() == 1
    assert turned.page.get_by_role("rowheader").count() == 20
    assert turned.page.locator("html[lang=en]").count() == 1
