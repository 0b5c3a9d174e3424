"""`pl.latent_traverse`: the images, curves, heatmaps, labels and titles."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.figures import (
    PHASES,
    TWO_PI,
    all_inside,
    difference,
    overlapping,
    rows_of,
    shows,
    stored_in,
    texts,
    traversal,
)
from helpers.raises import raises

TWO = {"rna": 24, "atac": 16}
THREE = {"rna": 200, "atac": 300, "protein": 30}


@pytest.fixture
def multiome() -> AnnData:
    """Return cells with a traversal of genes and peaks; the means of peaks are probabilities."""
    return stored_in(axis_3=traversal(n_features=TWO))


# --- Images -----------------------------------------------------------------------------------------------------------


def test_a_traversal_of_a_circle_looks_as_before(tmp_path):
    figure = pl.latent_traverse(stored_in(cell_cycle=traversal("periodic", TWO)), return_fig=True)
    assert difference(figure, "latent_traverse_periodic.png", tmp_path) is None


@pytest.mark.parametrize("missing", ["mean_curve", "band"])
def test_a_missing_curve_is_seen(adata, tmp_path, missing):
    panel = next(iter(pl.latent_traverse(adata, "axis_3", show=False).values()))
    (panel.lines if missing == "mean_curve" else panel.collections)[0].remove()
    assert "Error" in difference(plt.gcf(), "latent_traverse.png", tmp_path)


# --- Content ----------------------------------------------------------------------------------------------------------


def test_labels_and_titles(adata):
    figure = pl.latent_traverse(adata, "axis_3", return_fig=True)
    assert {"latent coordinate 3", "expression (counts per 10,000)"} <= texts(figure)
    assert shows(figure, "changes", "latent coordinate 3")
    assert shows(figure, "30 genes")
    assert shows(figure, "mean", "90%", "interval")
    assert all_inside(figure)
    assert not overlapping(figure)


def test_the_legend_has_the_stored_interval(adata):
    adata.uns["latent_traverse"]["axis_3"]["interval"] = 0.5
    pl.latent_traverse(adata, n_features=1, show=False)
    assert shows(plt.gcf(), "50%", "interval")


def test_curves_of_requested_genes(adata):
    axes = pl.latent_traverse(adata, "axis_3", ["GENE7", "GENE30", "GENE2"], show=False)
    assert list(axes) == ["GENE7", "GENE30", "GENE2", "heatmap"]
    stored = adata.uns["latent_traverse"]["axis_3"]
    np.testing.assert_array_equal(axes["GENE30"].lines[0].get_xdata(), stored["position"])
    np.testing.assert_array_equal(axes["GENE30"].lines[0].get_ydata(), stored["mean"][:, 30])
    band = axes["GENE30"].collections[0].get_datalim(axes["GENE30"].transData)
    np.testing.assert_allclose([band.y0, band.y1], [stored["lower"][:, 30].min(), stored["upper"][:, 30].max()])
    assert axes["GENE30"].get_ylim()[1] > stored["upper"][:, 30].max()
    assert axes["GENE30"].get_title() == "GENE30"


def test_top_ranked_features_are_sorted_by_peak(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    by_rank = stored["feature_names"][np.argsort(stored["rank"])]
    *curves, _ = axes = pl.latent_traverse(adata, "axis_3", n_features=3, n_heatmap=12, show=False)
    assert curves == list(by_rank[:3])
    rows = rows_of(axes["heatmap"])
    assert set(rows) == set(by_rank[:12])
    assert rows == sorted(rows, key=lambda gene: int(gene[4:]))  # GENE0 peaks first
    column = [list(stored["feature_names"]).index(gene) for gene in rows]
    assert (np.diff(stored["peak_step"][column]) >= 0).all()
    log2_fs = np.log2(stored["mean"][:, column]).T
    values = axes["heatmap"].collections[0].get_array().reshape(12, 25)
    np.testing.assert_allclose(values, log2_fs - log2_fs.mean(1, keepdims=True), atol=1e-6)


def test_an_axis_without_effect_looks_pale(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    stored["mean"] = 10 + 0.01 * stored["position"][:, None] * np.ones(40)
    stored["log2_fold_change"] = np.log2(stored["mean"] / stored["mean"][0])
    mesh = pl.latent_traverse(adata, "axis_3", n_features=1, show=False)["heatmap"].collections[0]
    assert np.abs(mesh.get_array()).max() < 0.01 * mesh.get_clim()[1]


def test_constant_and_absent_genes_can_be_drawn(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    for name in ("mean", "lower", "upper"):
        stored[name][:, 5], stored[name][:, 6] = 2, 0
    stored["log2_fold_change"][:, 5], stored["log2_fold_change"][:, 6] = 0, np.nan
    stored["log2_fold_change"][3, 7] = -np.inf
    axes = pl.latent_traverse(adata, "axis_3", ["GENE5", "GENE6"], n_heatmap=40, show=False)
    plt.gcf().draw_without_rendering()
    assert np.isfinite(axes["heatmap"].collections[0].get_array()).all()
    assert axes["GENE6"].get_ylim()[1] > 0


@pytest.mark.parametrize("kind", ["coordinate", "periodic", "path"])
def test_two_steps_are_enough(kind):
    figure = pl.latent_traverse(stored_in(short=traversal(kind, n_steps=2)), n_features=2, return_fig=True)
    assert all_inside(figure)


def test_all_peak_at_one_step():
    stored = traversal()
    stored["log2_fold_change"] = np.outer(np.eye(25)[11], np.linspace(1, 6, 40))
    stored["peak_step"] = np.full(40, 11)
    figure = pl.latent_traverse(stored_in(spike=stored), n_features=2, return_fig=True)
    assert all_inside(figure)


@pytest.mark.parametrize("n", [1, 7, pytest.param(20, marks=pytest.mark.slow)])
def test_any_number_of_features(adata, n):
    axes = pl.latent_traverse(adata, "axis_3", n_features=n, n_heatmap=3 * n, show=False)
    assert len(axes) == min(n, 40) + 1
    assert len(axes["heatmap"].get_yticks()) == min(3 * n, 40)
    assert all_inside(plt.gcf())
    assert not overlapping(plt.gcf())


def test_long_names_leave_room_for_the_plot(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    stored["feature_names"] = np.array([f"chr{i}:{i}00000000-{i}00001000-of-the-first-assembly" for i in range(40)])
    axes = pl.latent_traverse(adata, n_features=3, show=False)
    assert all(len(label) <= 28 for label in rows_of(axes["heatmap"]))
    assert rows_of(axes["heatmap"])[0].startswith("chr")
    assert axes["heatmap"].get_window_extent().width > 150
    assert all_inside(plt.gcf())


# --- Which traversal --------------------------------------------------------------------------------------------------


def test_without_a_name_the_last_traversal_is_drawn():
    adata = stored_in(interferon=traversal("direction"), axis_3=traversal())
    pl.latent_traverse(adata, n_features=1, show=False)
    assert shows(plt.gcf(), "changes", "latent coordinate 3")
    del adata.uns["latent_traverse"]["axis_3"]
    pl.latent_traverse(adata, n_features=1, show=False)
    assert shows(plt.gcf(), "changes", "interferon")
    assert "interferon score" in texts(plt.gcf())


def test_a_path_has_the_names_of_its_ends():
    stored = traversal("path")
    figure = pl.latent_traverse(stored_in(path=stored), n_features=2, return_fig=True)
    assert not overlapping(figure)
    assert shows(figure, "changes", "from CD4 T to CD8 T")
    assert {"CD4 T", "\nCD8 T"} <= texts(figure)
    stored["axis"] = "from CD4+ naive T cells of the blood to CD8+ effector memory T cells"
    figure = pl.latent_traverse(stored_in(path=stored), n_features=2, return_fig=True)
    assert not overlapping(figure)
    assert all_inside(figure)
    stored["axis"] = "from A to B to C"  # it is unknown which "to" separates the names
    panel = pl.latent_traverse(stored_in(path=stored), n_features=1, show=False)["heatmap"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["start", "\nend"]


def test_around_a_circle_phases_are_named_and_curves_close():
    stored = traversal("periodic")
    axes = pl.latent_traverse(stored_in(cell_cycle=stored), features="GENE7", show=False)
    assert list(axes) == ["GENE7", "phases", "heatmap"]
    assert shows(plt.gcf(), "changes", "cell cycle")
    assert {"cell cycle angle (rad)", *PHASES} <= texts(plt.gcf())
    for panel in (axes["GENE7"], axes["heatmap"]):
        assert panel.get_xlim() == (0, TWO_PI)
        assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "π/2", "π", "3π/2", "2π"]
    curve_s = axes["GENE7"].lines[0].get_ydata()
    assert curve_s[0] == pytest.approx(curve_s[-1])
    shades = [patch.get_extents().transformed(axes["GENE7"].transData.inverted()) for patch in axes["GENE7"].patches]
    np.testing.assert_allclose([shade.x0 for shade in shades], stored["phases"]["start"], atol=1e-12)
    np.testing.assert_allclose([shade.x1 for shade in shades], [2.6, 4.3, TWO_PI])


def test_a_phase_may_contain_angle_0():
    stored = traversal("periodic")
    stored["phases"] = {"names": np.array(["night", "day"]), "start": np.array([4.0, 1.0])}
    panel = pl.latent_traverse(stored_in(clock=stored), features="GENE7", show=False)["GENE7"]
    edges = [patch.get_extents().transformed(panel.transData.inverted()) for patch in panel.patches]
    np.testing.assert_allclose([[edge.x0, edge.x1] for edge in edges], [[1, 4], [4, TWO_PI], [0, 1]], atol=1e-12)
    assert panel.patches[1].get_facecolor() == panel.patches[2].get_facecolor()


def test_a_circle_without_phases_has_no_strip():
    stored = traversal("periodic")
    del stored["phases"]
    assert "phases" not in pl.latent_traverse(stored_in(circle=stored), n_features=1, show=False)


# --- Several modalities -----------------------------------------------------------------------------------------------


def test_each_modality_has_a_column_of_curves_and_a_heatmap(multiome):
    figure = pl.latent_traverse(multiome, "axis_3", return_fig=True)
    assert {"counts per 10,000", "probability open", "genes", "peaks"} <= texts(figure)
    assert shows(figure, "15 genes")
    assert shows(figure, "15 peaks")
    assert shows(figure, "mean", "90%", "interval")
    assert not shows(figure, "expression")
    assert all_inside(figure)
    *curves, rna, atac = axes = pl.latent_traverse(multiome, "axis_3", show=False)
    assert (rna, atac) == ("heatmap_rna", "heatmap_atac")
    assert [name.startswith("GENE") for name in curves] == [True, False] * 3
    for name in curves:
        expected = "counts per 10,000" if name.startswith("GENE") else "probability open"
        assert axes[name].get_ylabel() == expected
        assert axes[name].title.get_fontstyle() == ("italic" if name.startswith("GENE") else "normal")
    assert axes[curves[0]].lines[0].get_color() != axes[curves[1]].lines[0].get_color()
    assert len(axes["heatmap_atac"].get_yticks()) == 15
    assert all(label.startswith("chr1:") for label in rows_of(axes["heatmap_atac"]))


def test_modalities_get_equal_numbers_of_features(multiome):
    *curves, _, _ = axes = pl.latent_traverse(multiome, "axis_3", n_features=5, n_heatmap=40, show=False)
    assert [name.startswith("GENE") for name in curves] == [True, False, True, False, True]
    assert len(axes["heatmap_rna"].get_yticks()) == 20
    assert len(axes["heatmap_atac"].get_yticks()) == 16
    assert len(pl.latent_traverse(multiome, "axis_3", n_features=1, n_heatmap=1, show=False)) == 4


@pytest.mark.parametrize("kind", ["periodic", pytest.param("path", marks=pytest.mark.slow)])
def test_three_modalities_fit(kind):
    axes = pl.latent_traverse(stored_in(it=traversal(kind, THREE)), show=False)
    assert [name for name in axes if name.startswith("heatmap")] == ["heatmap_rna", "heatmap_atac", "heatmap_protein"]
    assert "counts per 500" in texts(plt.gcf())
    assert all_inside(plt.gcf())
    assert not overlapping(plt.gcf())


def test_a_modality_with_another_name():
    axes = pl.latent_traverse(
        stored_in(it=traversal(n_features={"rna": 10, "methylation": 10})), n_features=2, show=False
    )
    assert "heatmap_methylation" in axes
    assert "features" in texts(plt.gcf())
    assert shows(plt.gcf(), "10 features")


@pytest.mark.parametrize(
    "stored", [{"likelihood": {"rna": "poisson", "atac": "poisson"}}, {"unit": {"atac": "counts"}}], ids=str
)
def test_peaks_with_a_count_likelihood_have_counts(multiome, stored):
    multiome.uns["latent_traverse"]["axis_3"] |= stored
    pl.latent_traverse(multiome, "axis_3", n_features=2, show=False)
    assert {"counts per 10,000", "counts per 900"} <= texts(plt.gcf())
    assert not shows(plt.gcf(), "probability")


def test_the_unit_is_stored_with_the_traversal(multiome):
    multiome.uns["latent_traverse"]["axis_3"] |= {
        "likelihood": {"rna": "another", "atac": "another"},
        "unit": {"rna": "counts", "atac": "probability"},
    }
    pl.latent_traverse(multiome, "axis_3", n_features=2, show=False)
    assert {"counts per 10,000", "probability open"} <= texts(plt.gcf())


def test_peaks_alone():
    axes = pl.latent_traverse(stored_in(axis_3=traversal(n_features={"atac": 16})), show=False)
    assert list(axes)[-1] == "heatmap"
    assert "probability open" in texts(plt.gcf())
    assert shows(plt.gcf(), "16 peaks")


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_an_unknown_traversal_is_named(adata):
    with raises(KeyError, naming=["'axis_4'", "did you mean 'axis_3'", "model.latent_traverse"]):
        pl.latent_traverse(adata, "axis_4")


@pytest.mark.parametrize("features", ["gene12", ["GENE1", "gene12"]])
def test_an_unknown_feature_is_named(adata, features):
    with raises(KeyError, naming=["'gene12'", "did you mean 'GENE12'", "'GENE0', 'GENE1'"]):
        pl.latent_traverse(adata, "axis_3", features)


def test_an_unknown_peak_is_named(multiome):
    assert "chr1:300-350" in pl.latent_traverse(multiome, "axis_3", ["chr1:300-350", "GENE2"], show=False)
    with raises(KeyError, naming=["'chr1-300-350'", "did you mean 'chr1:300-350'"]):
        pl.latent_traverse(multiome, "axis_3", "chr1-300-350")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"features": []}, ["features", "[]"]),
        ({"features": ["GENE1", "GENE1"]}, ["features", "'GENE1', 'GENE1'"]),
        ({"n_features": 0}, ["n_features=0"]),
        ({"n_heatmap": 0}, ["n_heatmap=0"]),
    ],
    ids=str,
)
def test_bad_features_are_named(adata, options, facts):
    with raises(ValueError, naming=facts):
        pl.latent_traverse(adata, "axis_3", **options)
