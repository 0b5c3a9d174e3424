"""The data of the dial page: features and their values, and the positions of the slider."""

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.dial import decode_floats, dial_cells, names_in, payload_of
from helpers.figures import PHASES


@pytest.fixture
def cells() -> AnnData:
    return dial_cells()


def columns_of(cells: AnnData, name: str, payload: dict[str, Any]) -> list[int]:
    return [list(cells.uns["latent_traverse"][name]["feature_names"]).index(feature) for feature in names_in(payload)]


@pytest.mark.parametrize("name", ["CD4 T to CD8 T", "interferon", "cell_cycle"])
def test_values_are_those_of_the_traversal(cells, tmp_path, name):
    page = pl.dial(cells, name, path=tmp_path / "dial.html")
    assert page == tmp_path / "dial.html"
    payload, stored = payload_of(page), cells.uns["latent_traverse"][name]
    column_f = columns_of(cells, name, payload)
    assert len(column_f) == 20
    for what in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(decode_floats(payload, what), stored[what][:, column_f].astype("f4"))
    modality_f = [modality["noun"] for modality in payload["modalities"] for _ in modality["features"]]
    assert modality_f == ["Gene"] * 10 + ["Peak"] * 10
    assert [modality["unit"] for modality in payload["modalities"]] == [
        "expected counts per 10,000",
        "probability open",
    ]
    assert payload["interval"] == "90%"
    certain_f = [feature["certain"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_array_equal(certain_f, stored["lfsr"][column_f] < 0.05)
    assert len(set(certain_f)) == 2


def test_changes_are_relative_to_the_start_of_a_path_and_the_average_of_a_circle(cells, tmp_path):
    payload = payload_of(pl.dial(cells, "interferon", path=tmp_path / "dial.html"))
    stored = cells.uns["latent_traverse"]["interferon"]
    column_f = columns_of(cells, "interferon", payload)
    log2_sf = stored["log2_fold_change"][:, column_f]
    np.testing.assert_allclose(decode_floats(payload, "change"), log2_sf, rtol=1e-6)
    reference_f = [feature["reference"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_allclose(reference_f, stored["mean"][0, column_f])

    payload = payload_of(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    log2_sf = np.log2(stored["mean"][:, columns_of(cells, "cell_cycle", payload)])
    average_f = log2_sf[:-1].mean(0)
    np.testing.assert_allclose(decode_floats(payload, "change"), log2_sf - average_f, atol=1e-5)
    reference_f = [feature["reference"] for modality in payload["modalities"] for feature in modality["features"]]
    np.testing.assert_allclose(reference_f, 2**average_f)


def test_top_ranked_features_are_sorted_by_peak(cells, tmp_path):
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    payload = payload_of(pl.dial(cells, "cell_cycle", n_features=4, path=tmp_path / "dial.html"))
    shown = names_in(payload)
    for modality, names in (("rna", shown[:4]), ("atac", shown[4:])):
        of_modality = np.flatnonzero(stored["modality"] == modality)
        best = of_modality[np.argsort(stored["rank"][of_modality])][:4]
        assert set(names) == set(stored["feature_names"][best])
        column_f = [list(stored["feature_names"]).index(name) for name in names]
        assert (np.diff(stored["peak_step"][column_f]) >= 0).all()


def test_requested_features_keep_their_order(cells, tmp_path):
    wanted = ["GENE7", "chr1:300-350", "GENE2"]
    payload = payload_of(pl.dial(cells, "interferon", features=wanted, path=tmp_path / "dial.html"))
    assert names_in(payload) == ["GENE7", "GENE2", "chr1:300-350"]
    payload = payload_of(pl.dial(cells, "interferon", features="GENE3", path=tmp_path / "dial.html"))
    assert names_in(payload) == ["GENE3"]
    assert [modality["title"] for modality in payload["modalities"]] == ["Genes"]


def test_positions_are_text(cells, tmp_path):
    path = tmp_path / "dial.html"
    of_path = payload_of(pl.dial(cells, "CD4 T to CD8 T", path=path))
    assert of_path["label"] == "way from CD4 T to CD8 T"
    assert of_path["positions"][::12] == ["0% of the path", "50% of the path", "100% of the path"]
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


def test_the_title_and_the_notes(cells, tmp_path):
    cells.uns["latent_traverse"]["interferon"]["covariates"] = {"batch": "b2"}
    page = pl.dial(cells, "interferon", path=tmp_path / "dial.html")
    assert "interferon" in page.read_text(encoding="utf-8").partition("<h1>")[2].partition("</h1>")[0]
    notes = dict(payload_of(page)["notes"])
    assert "(500 of all cells)" in notes["Bar"]
    assert "batch: b2" in notes["Bar"]
    assert "90% credible interval" in notes["Whisker"]
    assert "5%" in notes["lfsr"]
    assert "30 cells" in notes["Map"]
