"""`pl.cell_cycle`: the images, the circle, the genes, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from celldial import pl
from helpers.figures import PHASES, TWO_PI, all_inside, bars_of, cycling, difference, overlapping, shows, texts
from helpers.raises import raises


@pytest.fixture
def cells():
    return cycling()


def points_of(panel) -> np.ndarray:
    """Return angles and radii of all dots."""
    return np.concatenate([np.asarray(dots.get_offsets()) for dots in panel.collections if len(dots.get_offsets()) > 1])


# --- Images -----------------------------------------------------------------------------------------------------------


def test_a_circle_without_phases_looks_as_before(tmp_path):
    figure = pl.cell_cycle(cycling(phases=False), features=["MCM5", "CDK1"], color="score", return_fig=True)
    assert difference(figure, "cell_cycle_without_phases.png", tmp_path) is None


def test_a_missing_density_is_seen(cells, tmp_path):
    pl.cell_cycle(cells, show=False)["circle"].collections[2].remove()
    assert "Error" in difference(plt.gcf(), "cell_cycle.png", tmp_path)


# --- The circle -------------------------------------------------------------------------------------------------------


def test_labels_and_titles(cells):
    figure = pl.cell_cycle(cells, return_fig=True)
    assert shows(figure, "cell cycle", "180 of 240 cells", "phase")
    assert shows(figure, "angle 0", "start of G1", "clockwise")
    assert {"MCM5 (S)", "TOP2A (G2M)", "counts per 10,000", "cell cycle angle (rad)", *PHASES} <= texts(figure)
    assert shows(figure, "observed", "standard error")
    assert shows(figure, "model", "90%", "interval")
    assert all_inside(figure)
    assert not overlapping(figure)


def test_shares_are_of_all_cells(cells):
    pl.cell_cycle(cells, features="MCM5", show=False)
    share = cells.obs["cell_cycle_phase"].value_counts() / 240
    assert {f"{phase}\n{share[phase]:.0%}" for phase in PHASES} | {"no phase\n25%"} <= texts(plt.gcf())
    assert share.sum() == 0.75


def test_active_cells_without_a_phase_are_not_counted(cells):
    cells = cells.copy()
    active = np.flatnonzero(cells.obs["cell_cycle_active"])[:24]
    cells.obs.iloc[active, cells.obs.columns.get_loc("cell_cycle_phase")] = np.nan
    pl.cell_cycle(cells, features="MCM5", show=False)
    assert shows(plt.gcf(), "156 of 240 cells")
    assert "no phase\n35%" in texts(plt.gcf())


def test_active_cells_are_at_their_angle_and_others_in_the_middle(cells):
    panel = pl.cell_cycle(cells, features="MCM5", show=False)["circle"]
    assert panel.get_theta_offset() == pytest.approx(np.pi / 2)
    assert panel.get_theta_direction() == -1
    inactive, around = (np.asarray(dots.get_offsets()) for dots in panel.collections[:2])
    active_c = cells.obs["cell_cycle_active"].to_numpy()
    np.testing.assert_allclose(around[:, 0], cells.obs["cell_cycle_angle"][active_c])
    assert len(inactive) == 60
    assert inactive[:, 1].max() < 0.4 < around[:, 1].min()
    assert around[:, 1].max() < 1


def test_the_density_is_highest_where_most_cells_are(cells):
    angle_c = np.random.default_rng(0).vonmises(2.0, 4, len(cells)) % TWO_PI
    cells.obs["cell_cycle_angle"] = angle_c
    panel = pl.cell_cycle(cells, features="MCM5", show=False)["circle"]
    theta, radius = panel.lines[0].get_data()
    assert theta[radius.argmax()] == pytest.approx(2, abs=0.3)
    assert radius[0] == radius[-1]
    assert radius.min() >= 1


def test_cells_are_colored_by_a_column(cells):
    drawn = pl.cell_cycle(cells, features="MCM5", color="cell_type", show=False)
    assert {"T cell", "B cell", "monocyte", "cell_type"} <= texts(plt.gcf())
    assert len(points_of(drawn["circle"])) == 240
    assert all_inside(plt.gcf())
    pl.cell_cycle(cells, features="MCM5", color="score", show=False)
    assert [bar.ax.get_xlabel() for bar in bars_of(plt.gcf())] == ["score"]


def test_cells_have_the_colors_that_scanpy_stored(cells):
    cells.uns["cell_type_colors"] = ["#111111", "#222222", "#333333"]
    panel = pl.cell_cycle(cells, features="MCM5", color="cell_type", show=False)["circle"]
    used = {round(float(255 * color[0])) for color in panel.collections[0].get_facecolors()}
    assert used == {0x11, 0x22, 0x33}


@pytest.mark.parametrize(("phases", "active"), [(True, 0), (True, 2), (True, 5), (True, 240), (False, 0), (False, 5)])
def test_any_number_of_active_cells(phases, active):
    cells = cycling(phases=phases)
    cells.obs["cell_cycle_active"] = np.arange(240) < active
    cells.obs = cells.obs.drop(columns="cell_cycle_phase", errors="ignore")  # it follows from the angles
    figure = pl.cell_cycle(cells, features="MCM5", return_fig=True)
    assert shows(figure, f"{active} of 240 cells")
    assert all_inside(figure)


def test_cells_without_an_angle_have_no_phase(cells):
    cells.obs.loc[cells.obs_names[:100], "cell_cycle_angle"] = np.nan
    assert shows(pl.cell_cycle(cells, features="MCM5", return_fig=True), "105 of 240 cells")


def test_phases_are_derived_from_angles_without_a_column(cells):
    before = texts(pl.cell_cycle(cells, features="MCM5", return_fig=True))
    del cells.obs["cell_cycle_phase"]
    assert texts(pl.cell_cycle(cells, features="MCM5", return_fig=True)) == before


def test_without_phases(tmp_path):
    cells = cycling(phases=False)
    figure = pl.cell_cycle(cells, features="MCM5", return_fig=True)
    assert not set(PHASES) & texts(figure)
    assert not shows(figure, "phase")
    assert shows(figure, "180 of 240 cells", "active")


def test_another_periodic_process(cells):
    cells.obs = cells.obs.rename(columns=lambda name: name.replace("cell_cycle", "clock"))
    cells.uns["celldial"]["periodic"] = {
        "name": "clock",
        "phases": np.array(["day", "night"]),
        "phase_start": np.array([0.5, 4.0]),
        "markers": {"day": np.array(["MCM5"]), "night": np.array(["TOP2A"])},
    }
    del cells.obs["clock_phase"]
    drawn = pl.cell_cycle(cells, show=False)
    assert list(drawn) == ["circle", "MCM5", "TOP2A"]
    assert shows(plt.gcf(), "clock", "180 of 240 cells")


# --- The genes --------------------------------------------------------------------------------------------------------


def test_the_default_genes_are_the_markers_that_change_most(cells):
    _, *genes = pl.cell_cycle(cells, show=False)
    assert set(genes[:3]) == {"MCM5", "MCM6", "PCNA"}  # GINS2 changes little
    assert set(genes[3:]) == {"TOP2A", "CDK1", "UBE2C"}


def test_without_markers_the_top_ranked_features_are_drawn():
    cells = cycling(phases=False)
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    stored["rank"] = np.arange(10)[::-1]
    assert set(pl.cell_cycle(cells, show=False)) == {"circle", *stored["feature_names"][4:]}
    del cells.uns["latent_traverse"]
    assert list(pl.cell_cycle(cells, show=False)) == ["circle"]


def test_bins_are_means_of_counts_per_10_000(cells):
    panel = pl.cell_cycle(cells, features="MCM5", show=False)["MCM5"]
    counts_cf = cells.X.toarray()
    value_c = counts_cf[:, 0] / counts_cf.sum(1) * 1e4
    active_c = cells.obs["cell_cycle_active"].to_numpy()
    angle_c = cells.obs["cell_cycle_angle"].to_numpy()
    container = panel.containers[0]
    middle, mean = container.lines[0].get_data()
    width = middle[1] - middle[0]
    ends = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    for at, expected, (low, high) in zip(middle, mean, ends, strict=True):
        within = value_c[active_c & (np.abs(angle_c - at) < width / 2)]
        assert expected == pytest.approx(within.mean())
        assert (high - low) / 2 == pytest.approx(within.std(ddof=1) / len(within) ** 0.5)


def test_the_curve_is_the_stored_one_in_the_same_units(cells):
    panel = pl.cell_cycle(cells, features="MCM5", show=False)["MCM5"]
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    (curve,) = (line for line in panel.lines if len(line.get_xdata()) == 25)
    np.testing.assert_allclose(curve.get_ydata(), stored["mean"][:, 0] * 1e4 / 60)
    assert panel.get_xlim() == (0, TWO_PI)
    del cells.uns["latent_traverse"]["cell_cycle"]
    panel = pl.cell_cycle(cells, features="MCM5", show=False)["MCM5"]
    assert not [line for line in panel.lines if len(line.get_xdata()) == 25]
    assert not shows(plt.gcf(), "model")


def test_counts_of_a_layer(cells):
    before = pl.cell_cycle(cells, features="MCM5", show=False)["MCM5"].containers[0].lines[0].get_ydata()
    cells.layers["counts"] = cells.X.toarray()
    cells.X = cells.X / 3
    with raises(ValueError, naming=["adata.X", "'MCM5'", "layer="]):
        pl.cell_cycle(cells, features="MCM5")
    after = pl.cell_cycle(cells, features="MCM5", layer="counts", show=False)["MCM5"].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(after, before)
    cells.uns["celldial"]["parameters"]["layer"] = "counts"
    after = pl.cell_cycle(cells, features="MCM5", show=False)["MCM5"].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(after, before)


def test_symbols_of_genes_in_a_column(cells):
    cells.var["symbol"] = cells.var_names
    ensembl = [f"ENSG{i:05}" for i in range(10)]
    cells.var_names = ensembl
    schema = cells.uns["celldial"]["schema"]
    schema["feature_names"]["rna"] = ensembl
    cells.uns["latent_traverse"]["cell_cycle"]["feature_names"] = np.array(ensembl, dtype=object)
    drawn = pl.cell_cycle(cells, gene_symbols="symbol", show=False)
    assert {"MCM5", "TOP2A"} < set(drawn)
    assert [line for line in drawn["MCM5"].lines if len(line.get_xdata()) == 25]
    with raises(KeyError, naming=["gene_symbols", "'symbols'", "adata.var", "'symbol'"]):
        pl.cell_cycle(cells, gene_symbols="symbols")


def test_peaks_are_fractions_of_cells(cells):
    schema = cells.uns["celldial"]["schema"]
    schema["modalities"] = ["rna", "atac"]
    schema["feature_names"] = {"rna": list(cells.var_names[:8]), "atac": list(cells.var_names[8:])}
    schema["likelihood"]["atac"] = "bernoulli"
    stored = cells.uns["latent_traverse"]["cell_cycle"]
    stored["modality"] = np.array(["rna"] * 8 + ["atac"] * 2, dtype=object)
    stored["likelihood"]["atac"], stored["library_size"]["atac"] = "bernoulli", 4.0
    for _ in range(2):
        panel = pl.cell_cycle(cells, features="ACTB", show=False)["ACTB"]
        assert "fraction of cells open" in texts(plt.gcf())
        assert (panel.containers[0].lines[0].get_ydata() == 1).all()
        (curve,) = (line for line in panel.lines if len(line.get_xdata()) == 25)
        np.testing.assert_allclose(curve.get_ydata(), stored["mean"][:, 8])
        # Stored with its unit, the name of the likelihood does not matter.
        stored["unit"] = {"rna": "counts", "atac": "probability"}
        stored["likelihood"]["atac"] = "another"


def test_20_000_cells_are_drawn():
    figure = pl.cell_cycle(cycling(20_000), features="MCM5", color="cell_type", return_fig=True)
    assert shows(figure, "15,000 of 20,000 cells")


def test_missing_names_are_reported(cells):
    with raises(KeyError, naming=["'clock_angle'", "VAE(periodic='clock')", "'cell_cycle'"]):
        pl.cell_cycle(cells, "clock")
    with raises(KeyError, naming=["'Mcm5'", "did you mean 'MCM5'"]):
        pl.cell_cycle(cells, features=["Mcm5"])
    with raises(ValueError, naming=["features", "[]"]):
        pl.cell_cycle(cells, features=[])
    with raises(KeyError, naming=["color", "'celltype'", "'cell_type'"]):
        pl.cell_cycle(cells, color="celltype")
    with raises(KeyError, naming=["layer", "'raw'"]):
        pl.cell_cycle(cells, layer="raw")
    cells.X = None
    with raises(ValueError, naming=["adata.X", "layer="]):
        pl.cell_cycle(cells)


def test_a_category_without_cells_and_missing_values(cells):
    cells.obs["cell_type"] = pd.Categorical([None, *["T cell"] * 239], ["T cell", "nobody"])
    written = texts(pl.cell_cycle(cells, features="MCM5", color="cell_type", return_fig=True))
    assert "T cell" in written
    assert "nobody" not in written
