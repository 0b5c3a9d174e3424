"""The plots: images against those in tests/figures, and what is written on them."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text

from celldial import pl

FIGURES = Path(__file__).parent / "figures"
# Root mean square of the difference, of 255. Without text, other versions of matplotlib stay far below it, and one
# missing curve is far above it: see `test_a_missing_curve_is_seen`.
TOLERANCE = 1.5


@pytest.fixture(autouse=True)
def _figures_in_default_style():
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
    plt.close("all")


@pytest.fixture
def adata() -> AnnData:
    """Cells as after `fit` and `latent_traverse`, with numbers made by hand: no model can change these figures."""
    epoch_e = np.arange(30)
    elbo_e = -650 - 3000 * np.exp(-1.5 * epoch_e) - 60 * np.exp(-0.2 * epoch_e)
    history = {
        "elbo_train": elbo_e + 5,
        "elbo_validation": elbo_e - 0.03 * np.maximum(epoch_e - 20, 0) ** 2,
        "kl_validation": 12 - 8 * np.exp(-0.3 * epoch_e),
        "kl_weight": np.minimum(1, (epoch_e + 1) / 5),
        "seconds": 0.5 * (epoch_e + 1),
    }
    history["kept"] = (epoch_e == history["elbo_validation"].argmax()).astype(float)
    position_s = np.linspace(-2, 2, 25)[:, None]
    peak_f, height_f = np.linspace(-2.5, 2.5, 40), 5 + np.arange(40) * 7 % 40
    mean_sf = height_f * np.exp(-((position_s - peak_f) ** 2))
    traversal = {
        "axis": "latent coordinate 3",
        "library_size": 1e4,
        "position": position_s[:, 0],
        "feature_names": np.array([f"GENE{i}" for i in range(40)], dtype=object),
        "mean": mean_sf,
        "lower": 0.5 * mean_sf,
        "upper": 1.8 * mean_sf + 1,
    }
    return AnnData(
        np.zeros((2, 40), dtype=np.float32),
        uns={"celldial": {"history": history}, "latent_traverse": {"axis_3": traversal}},
    )


def without_validation(adata: AnnData) -> None:
    history = adata.uns["celldial"]["history"]
    for name in [name for name in history if name.endswith("validation")]:
        del history[name]
    history["kept"] = np.eye(30)[-1]


def difference(figure: Figure, name: str, folder: Path) -> str | None:
    """Compare a figure without its text, whose shape depends on the fonts, with the one that is kept."""
    for legend in figure.findobj(Legend):
        legend.remove()  # one that is merely invisible still takes room
    for text in figure.findobj(Text):
        text.set_visible(False)
        text.set_in_layout(False)
    for panel in figure.findobj(Axes):
        panel.tick_params(labelbottom=False, labelleft=False, labelright=False)
    figure.savefig(folder / name, dpi=50)
    return compare_images(str(FIGURES / name), str(folder / name), tol=TOLERANCE)


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(Text) if text.get_visible()}


def all_inside(figure: Figure) -> bool:
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


# --- Images -----------------------------------------------------------------------------------------------------------
# Where a change is meant: look at the new image, in the folder that the message names, and copy it to tests/figures.


def test_history_looks_as_before(adata, tmp_path):
    assert difference(pl.history(adata, return_fig=True), "history.png", tmp_path) is None


def test_history_without_validation_looks_as_before(adata, tmp_path):
    without_validation(adata)
    assert difference(pl.history(adata, return_fig=True), "history_without_validation.png", tmp_path) is None


def test_latent_traverse_looks_as_before(adata, tmp_path):
    figure = pl.latent_traverse(adata, "axis_3", return_fig=True)
    assert difference(figure, "latent_traverse.png", tmp_path) is None


@pytest.mark.parametrize("missing", ["elbo_curve", "kl_curve", "mean_curve", "band"])
def test_a_missing_curve_is_seen(adata, tmp_path, missing):
    if missing in {"elbo_curve", "kl_curve"}:
        name, axes = "history.png", pl.history(adata, show=False)
        axes[missing[:-6]].lines[-2].remove()  # the last one marks the epoch
    else:
        name, axes = "latent_traverse.png", pl.latent_traverse(adata, "axis_3", show=False)
        panel = next(iter(axes.values()))
        (panel.lines if missing == "mean_curve" else panel.collections)[0].remove()
    assert "Error" in difference(plt.gcf(), name, tmp_path)


# --- What is written --------------------------------------------------------------------------------------------------


def test_history_says_what_it_shows(adata):
    figure = pl.history(adata, return_fig=True)
    written = texts(figure)
    assert {"training cells", "validation cells", "epoch", "KL divergence\n(nats per cell)"} <= written
    assert {
        "ELBO (nats per cell)\nhigher is better",
        "weight of KL term still rises",
        "↓ 3 epochs are below",
    } <= written
    best = np.argmax(adata.uns["celldial"]["history"]["elbo_validation"]) + 1
    assert any(text.startswith(f"best epoch, {best}: −6") for text in written)
    assert all_inside(figure)


def test_history_does_not_let_the_start_squash_the_rest(adata):
    low, high = pl.history(adata, show=False)["elbo"].get_ylim()
    values = adata.uns["celldial"]["history"]["elbo_validation"]
    assert values.min() < -3000
    assert -800 < low < values[5] < values.max() < high


def test_history_shows_all_where_nothing_is_squashed(adata):
    history = adata.uns["celldial"]["history"]
    for name in ("elbo_train", "elbo_validation"):
        history[name] = np.linspace(-700, -650, 30)
    axes = pl.history(adata, show=False)
    assert axes["elbo"].get_ylim()[0] < -700
    assert not any("below" in text for text in texts(plt.gcf()))


def test_history_without_validation_has_one_panel(adata):
    without_validation(adata)
    assert list(pl.history(adata, show=False)) == ["elbo"]
    written = texts(plt.gcf())
    assert "validation cells" not in written
    assert any(text.startswith("last epoch, 30: −645") for text in written)


def test_history_of_one_epoch(adata):
    history = adata.uns["celldial"]["history"]
    adata.uns["celldial"]["history"] = {name: values[:1] for name, values in history.items()} | {"kept": np.ones(1)}
    figure = pl.history(adata, return_fig=True)
    assert any(text.startswith("best epoch, 1:") for text in texts(figure))


def test_history_after_partial_fit_marks_the_epoch_of_the_last_call(adata):
    history = adata.uns["celldial"]["history"]
    for name, values in history.items():
        history[name] = np.concatenate([values, values[:5]])
    history["kept"] = np.eye(35)[33]
    pl.history(adata, show=False)
    assert any(text.startswith("best epoch, 34:") for text in texts(plt.gcf()))

    history["elbo_validation"][-5:] = history["kl_validation"][-5:] = np.nan
    history["kept"] = np.eye(35)[34]
    pl.history(adata, show=False)
    assert any(text.startswith("last epoch, 35:") for text in texts(plt.gcf()))


def test_latent_traverse_says_what_it_shows(adata):
    figure = pl.latent_traverse(adata, "axis_3", return_fig=True)
    written = texts(figure)
    assert {"latent coordinate 3", "expression (counts per 10,000)", "what 90% of cells show"} <= written
    assert {"What changes along latent coordinate 3", "mean over cells", "the 30 genes that change most"} <= written
    assert all_inside(figure)


def test_curves_are_those_of_the_named_genes(adata):
    axes = pl.latent_traverse(adata, "axis_3", ["GENE7", "GENE30", "GENE2"], show=False)
    assert list(axes) == ["GENE7", "GENE30", "GENE2", "heatmap"]
    stored = adata.uns["latent_traverse"]["axis_3"]
    np.testing.assert_array_equal(axes["GENE30"].lines[0].get_ydata(), stored["mean"][:, 30])
    assert axes["GENE30"].get_ylim()[1] > stored["upper"][:, 30].max()
    assert axes["GENE30"].get_title() == "GENE30"


def test_top_genes_change_most_and_stand_in_order_of_their_peak(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    change = dict(zip(stored["feature_names"], np.ptp(np.log1p(stored["mean"]), axis=0), strict=True))
    *curves, _ = axes = pl.latent_traverse(adata, "axis_3", n_genes=3, n_heatmap=12, show=False)
    assert curves == sorted(change, key=change.get, reverse=True)[:3]
    rows = [label.get_text() for label in axes["heatmap"].get_yticklabels()]
    assert set(rows) == set(sorted(change, key=change.get, reverse=True)[:12])
    assert rows == sorted(rows, key=lambda gene: int(gene[4:]))  # GENE0 peaks first
    values = axes["heatmap"].collections[0].get_array().reshape(12, 25)
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(1), 1)


def test_order_does_not_depend_on_the_library_size(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    before = list(pl.latent_traverse(adata, "axis_3", show=False))
    for name in ("mean", "lower", "upper"):
        stored[name] = stored[name] / 1e4
    stored["library_size"] = 1.0
    assert list(pl.latent_traverse(adata, "axis_3", show=False)) == before
    assert "expression (counts per 1)" in texts(plt.gcf())


def test_a_constant_gene_can_be_drawn(adata):
    for name in ("mean", "lower", "upper"):
        adata.uns["latent_traverse"]["axis_3"][name][:, 5] = 2
    axes = pl.latent_traverse(adata, "axis_3", "GENE5", n_heatmap=40, show=False)
    plt.gcf().canvas.draw()
    assert np.isfinite(axes["heatmap"].collections[0].get_array()).all()


def test_more_genes_are_wanted_than_there_are(adata):
    axes = pl.latent_traverse(adata, "axis_3", n_genes=41, n_heatmap=100, show=False)
    assert len(axes) == 41
    assert len(axes["heatmap"].get_yticks()) == 40


# --- Several modalities -----------------------------------------------------------------------------------------------


@pytest.fixture
def multiome(adata) -> AnnData:
    """The first 24 of the 40 features stay genes, the others become peaks: their means are probabilities."""
    stored = adata.uns["latent_traverse"]["axis_3"]
    for name in ("mean", "lower", "upper"):
        stored[name][:, 24:] /= 100
    stored["mean"][:, :24] *= 1e4 / stored["mean"][:, :24].sum(1, keepdims=True)
    stored["modality"] = np.array(["rna"] * 24 + ["atac"] * 16, dtype=object)
    stored["feature_names"] = np.array([f"GENE{i}" if i < 24 else f"chr1:{i}00-{i}50" for i in range(40)], dtype=object)
    adata.uns["celldial"]["schema"] = {
        "modalities": ["rna", "atac"],
        "likelihood": {"rna": "negative_binomial", "atac": "bernoulli"},
    }
    return adata


def test_history_of_several_modalities_has_an_axis_for_weights(multiome):
    history = multiome.uns["celldial"]["history"]
    for name in ("log_likelihood", "log_likelihood_rna", "log_likelihood_atac"):
        history[f"{name}_validation"] = history["elbo_validation"] / 2
    history["elbo_train"] = history["elbo_train"] / 3
    axes = pl.history(multiome, show=False)
    assert list(axes) == ["elbo", "kl", "elbo_train"]
    assert axes["elbo"].get_ylim()[1] < -600
    assert axes["elbo_train"].get_ylim()[0] > -300
    assert "training cells, modalities weighted\n(axis on the right)" in texts(plt.gcf())
    assert "ELBO with weights" in texts(plt.gcf())
    assert all_inside(plt.gcf())

    history["kept"] = np.eye(30)[-1]
    history["elbo_validation"][-3:] = np.nan
    assert pl.history(multiome, show=False)["elbo_train"].lines[1].get_ydata() == history["elbo_train"][-1]


def test_each_modality_has_a_column_of_curves_and_a_heatmap(multiome):
    figure = pl.latent_traverse(multiome, "axis_3", return_fig=True)
    written = texts(figure)
    assert {"the 15 genes that change most", "the 15 peaks that change most", "counts per 10,000"} <= written
    assert "probability open" in written
    assert not any(text.startswith("expression") for text in written)
    assert all_inside(figure)
    *curves, rna, atac = axes = pl.latent_traverse(multiome, "axis_3", show=False)
    assert (rna, atac) == ("heatmap_rna", "heatmap_atac")
    assert [name.startswith("GENE") for name in curves] == [True, False] * 3
    for name in curves:
        expected = "counts per 10,000" if name.startswith("GENE") else "probability open"
        assert axes[name].get_ylabel() == expected
        assert axes[name].title.get_fontstyle() == ("italic" if name.startswith("GENE") else "normal")
    assert len(axes["heatmap_atac"].get_yticks()) == 15
    assert all(label.get_text().startswith("chr1:") for label in axes["heatmap_atac"].get_yticklabels())


def test_peaks_are_ranked_alike_at_any_depth(multiome):
    stored = multiome.uns["latent_traverse"]["axis_3"]
    before = list(pl.latent_traverse(multiome, "axis_3", show=False))
    stored["mean"][:, 24:] /= 50
    assert list(pl.latent_traverse(multiome, "axis_3", show=False)) == before


def test_numbers_are_shared_out_over_modalities(multiome):
    *curves, _, _ = axes = pl.latent_traverse(multiome, "axis_3", n_genes=5, n_heatmap=40, show=False)
    assert [name.startswith("GENE") for name in curves] == [True, False, True, False, True]
    assert len(axes["heatmap_rna"].get_yticks()) == 20
    assert len(axes["heatmap_atac"].get_yticks()) == 16
    assert len(pl.latent_traverse(multiome, "axis_3", n_genes=1, n_heatmap=1, show=False)) == 4


def test_curves_of_named_genes_and_peaks(multiome):
    axes = pl.latent_traverse(multiome, "axis_3", ["chr1:3000-3050", "GENE2"], show=False)
    assert list(axes) == ["chr1:3000-3050", "GENE2", "heatmap_rna", "heatmap_atac"]
    with pytest.raises(KeyError, match="no gene 'chr1-3000-3050': did you mean 'chr1:3000-3050'?"):
        pl.latent_traverse(multiome, "axis_3", "chr1-3000-3050")


def test_counts_of_peaks_are_no_probabilities(multiome):
    multiome.uns["celldial"]["schema"]["likelihood"]["atac"] = "poisson"
    stored = multiome.uns["latent_traverse"]["axis_3"]
    stored["mean"][:, 24:] *= 500 / stored["mean"][:, 24:].sum(1, keepdims=True)
    pl.latent_traverse(multiome, "axis_3", show=False)
    assert {"counts per 10,000", "counts per 500"} <= texts(plt.gcf())
    assert "probability open" not in texts(plt.gcf())


def test_without_a_schema_peaks_are_probabilities_where_none_is_above_1(multiome):
    del multiome.uns["celldial"]["schema"]
    pl.latent_traverse(multiome, "axis_3", show=False)
    assert "probability open" in texts(plt.gcf())
    multiome.uns["latent_traverse"]["axis_3"]["mean"][:, 24:] *= 100
    pl.latent_traverse(multiome, "axis_3", show=False)
    assert "probability open" not in texts(plt.gcf())


def test_peaks_alone(multiome):
    stored = multiome.uns["latent_traverse"]["axis_3"]
    del stored["modality"]
    for name in ("mean", "lower", "upper"):
        stored[name] = stored[name][:, 24:]
    stored["feature_names"], stored["library_size"] = stored["feature_names"][24:], 900.0
    multiome.uns["celldial"]["schema"] = {"modalities": np.array(["atac"]), "likelihood": {"atac": "bernoulli"}}
    axes = pl.latent_traverse(multiome, "axis_3", show=False)
    assert list(axes)[-1] == "heatmap"
    assert {"probability open", "the 16 peaks that change most"} <= texts(plt.gcf())


def test_a_model_of_several_modalities_is_drawn():
    import celldial as cd

    cells = cd.datasets.simulate_multiome(120, 60, 200, mosaic=(0.6, 0.2, 0.2))
    cd.VAE(n_latent=3, n_hidden=16).fit(cells, max_epochs=1, progress=False).latent_traverse(cells, n_cells=20)
    assert list(pl.latent_traverse(cells, n_genes=2, show=False))[2:] == ["heatmap_rna", "heatmap_atac"]
    assert {"counts per 10,000", "probability open"} <= texts(plt.gcf())


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_history_of_cells_without_a_model():
    with pytest.raises(KeyError, match="call model.fit\\(adata\\) first"):
        pl.history(AnnData(np.zeros((2, 2))))


def test_an_unknown_traversal_names_those_there_are(adata):
    with pytest.raises(KeyError, match="no traversal .*axis_0.* there are .*axis_3.*: call model.latent_traverse"):
        pl.latent_traverse(adata)
    with pytest.raises(KeyError, match="there is none: call model.latent_traverse"):
        pl.latent_traverse(AnnData(np.zeros((2, 2))))


@pytest.mark.parametrize("genes", ["gene12", ["GENE1", "gene12"]])
def test_an_unknown_gene_is_named(adata, genes):
    with pytest.raises(KeyError, match="no gene 'gene12': did you mean 'GENE12'?"):
        pl.latent_traverse(adata, "axis_3", genes)


@pytest.mark.parametrize(
    "options", [{"genes": []}, {"genes": ["GENE1", "GENE1"]}, {"n_genes": 0}, {"n_heatmap": 0}], ids=str
)
def test_numbers_of_genes_that_make_no_sense(adata, options):
    with pytest.raises(ValueError, match="at least (one|1) gene"):
        pl.latent_traverse(adata, "axis_3", **options)


# --- scanpy's habits --------------------------------------------------------------------------------------------------

PLOTS = pytest.mark.parametrize("plot", [pl.history, lambda adata, **o: pl.latent_traverse(adata, "axis_3", **o)])


@PLOTS
def test_what_is_shown_and_returned(adata, monkeypatch, plot):
    import scanpy as sc

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert plot(adata) is None
    assert plot(adata, show=True) is None
    assert len(shown) == 2
    assert isinstance(plot(adata, show=False), dict)
    assert isinstance(plot(adata, return_fig=True), Figure)
    assert isinstance(plot(adata, ax=plt.subplots()[1]), dict)
    sc.settings.autoshow = False
    try:
        assert isinstance(plot(adata), dict)
    finally:
        sc.settings.autoshow = True
    assert len(shown) == 2


@PLOTS
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_drawing_into_given_axes(adata, plot, layout):
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 6), layout=layout)
    assert plot(adata, ax=right, return_fig=True) is figure
    assert all_inside(figure)
    assert left in figure.axes
    assert right not in figure.axes
    drawn = [panel.get_position() for panel in figure.findobj(Axes) if panel is not left]
    assert len(drawn) >= 2
    assert all(panel.figure is not figure for panel in figure.findobj(Axes) if panel is not left)


@PLOTS
def test_axes_without_a_grid_are_refused(adata, plot):
    with pytest.raises(ValueError, match="ax is not part of a grid"):
        plot(adata, ax=plt.figure().add_axes((0, 0, 1, 1)))


@PLOTS
def test_settings_of_matplotlib_and_the_cells_stay_as_they_are(adata, plot):
    import scanpy as sc

    sc.set_figure_params(fontsize=14)
    before = dict(mpl.rcParams)
    uns = repr(adata.uns)
    assert all_inside(plot(adata, return_fig=True))
    assert dict(mpl.rcParams) == before
    assert repr(adata.uns) == uns


def test_importing_the_plots_loads_no_matplotlib():
    code = "import sys, importlib.util as u; s = u.spec_from_file_location('pl', sys.argv[1]); " + (
        "m = u.module_from_spec(s); s.loader.exec_module(m); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, pl.__file__], check=False).returncode == 0


def test_a_coordinate_along_which_nothing_changes_looks_pale(adata):
    stored = adata.uns["latent_traverse"]["axis_3"]
    stored["mean"] = 10 + 0.01 * stored["position"][:, None] * np.ones(40)
    heatmap = pl.latent_traverse(adata, "axis_3", show=False)["heatmap"]
    assert np.abs(heatmap.collections[0].get_array()).max() < 0.1
