"""`celldial demo`: output files, the printed report, and wrong arguments."""

import anndata
import numpy as np
import pandas as pd
import pytest

from celldial.cli import demo

EXPRESSION = {
    "pbmc68k.h5ad",
    "umap.png",
    "history.png",
    "axes.png",
    "latent_traverse.png",
    "cytotoxicity.png",
    "cytotoxicity.html",
}
MULTIOME = {
    "multiome_dial.html",
    "multiome.h5ad",
    "multiome_umap.png",
    "multiome_impute.png",
    "multiome_cell_cycle.png",
    "multiome_latent_traverse.png",
}


# scanpy 1.11 uses an option of matplotlib 3.11 that will be removed.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_demo_writes_cells_and_figures(tmp_path, capsys, monkeypatch):
    # With fewer cells or epochs, the model infers that no cell cycles.
    monkeypatch.setattr(demo, "N_CELLS", 1000)
    folder = tmp_path / "new" / "folder"
    assert demo.main(["--out", str(folder), "--max-epochs", "5"]) == 0

    assert {path.name for path in folder.iterdir()} == EXPRESSION | MULTIOME
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    check_expression(anndata.read_h5ad(folder / "pbmc68k.h5ad"))
    check_multiome(anndata.read_h5ad(folder / "multiome.h5ad"))

    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPRESSION | MULTIOME)
    assert str(folder) in printed
    assert printed.count("(PCA: 0.") == 3
    assert printed.count("(LSI: 0.") == printed.count("(mean: ") == 1
    assert "50% of the cells" in printed
    assert "nan" not in printed


def check_expression(adata):
    assert adata.shape == (700, 765)
    assert adata.obsm["X_celldial"].shape == (700, 10)
    assert adata.obsm["X_umap"].shape == (700, 2)
    assert {"leiden", "bulk_labels"} <= set(adata.obs)
    assert len(adata.uns["celldial"]["history"]["elbo_validation"]) == 5
    coordinates = adata.uns["celldial"]["coordinates"]
    assert list(coordinates.index) == [f"axis_{axis}" for axis in range(10)]
    assert set(adata.uns["latent_traverse"]) == {coordinates["rank"].idxmin(), demo.AXIS}
    assert adata.uns["celldial"]["axes"][demo.AXIS]["description"] == f"{demo.LABELS}: {demo.NAIVE} → {demo.CYTOTOXIC}"
    score = adata.obs.groupby(demo.LABELS, observed=True)[demo.AXIS].mean()
    assert score[demo.NAIVE] < score[demo.CYTOTOXIC]
    assert adata.uns["latent_traverse"][demo.AXIS]["at"] == f"32 of {demo.LABELS}: {demo.NAIVE}"


def check_multiome(adata):
    assert adata.shape == (1000, 3500)
    assert adata.obsm["X_celldial"].shape == (1000, 10)
    assert adata.obs["measured"].value_counts().to_dict() == {"both": 500, "RNA only": 250, "ATAC only": 250}
    assert ((adata.obs["measured"] != "ATAC only") == adata.obs["has_rna"]).all()
    assert list(adata.uns["celldial"]["schema"]["modalities"]) == ["rna", "atac"]
    assert set(adata.uns["latent_traverse"]) == {"cell_cycle"}
    assert adata.obs["cell_cycle_angle"].between(0, 2 * np.pi, inclusive="left").all()
    assert list(adata.obs["cell_cycle_phase"].cat.categories) == ["G1", "S", "G2M"]
    # The cells of the model do not contain the truth.
    assert "mean" not in adata.layers
    assert set(adata.obsm) == {"X_celldial", "X_umap"}


def test_cells_measured_again_are_the_same_cells():
    import celldial as cd

    mosaic, complete = (cd.datasets.simulate_multiome(200, mosaic=m, truth=True) for m in (demo.MOSAIC, (1, 0, 0)))
    truth = demo.open_probability(mosaic)
    assert truth.equals(demo.open_probability(complete))
    assert complete.var.loc[truth.columns, "is_marker_of"].notna().all()
    assert ((truth > 0) & (truth < 1)).all(axis=None)


def test_colors_are_those_of_the_types():
    import celldial as cd

    assert list(demo.COLORS) == list(cd.datasets.pbmc68k_reduced().obs["bulk_labels"].cat.categories)
    assert len(set(demo.COLORS.values())) == 10
    assert {demo.NAIVE, demo.CYTOTOXIC} < set(demo.COLORS)


def test_the_report_on_angles():
    """Only cycling cells are included; cells with RNA are reported separately from cells with ATAC only."""
    true_c = np.linspace(0, 6, 40)
    has_rna = np.arange(40) % 2 == 0
    angle_c = np.where(has_rna, true_c, -true_c)
    obs = pd.DataFrame({"cell_cycle_angle": angle_c, "true_cell_cycle_angle": true_c, "has_rna": has_rna})
    obs["is_cycling"] = np.arange(40) < 30
    obs.loc[~obs["is_cycling"], "cell_cycle_angle"] = 1.0
    text = demo.report_angles(anndata.AnnData(obs=obs.set_axis(obs.index.astype(str))))
    assert "  1.00               circular correlation" in text
    assert "  0.00 (ATAC: 1." in text
    assert ": 0.0 of 24 hours" in text


@pytest.mark.parametrize("epochs", ["0", "-1", "many", "1.5"])
def test_wrong_arguments_exit_with_2(epochs, capsys):
    with pytest.raises(SystemExit) as end:
        demo.main([f"--max-epochs={epochs}"])
    assert end.value.code == 2
    assert repr(epochs) in capsys.readouterr().err


def test_a_folder_that_is_not_writable_exits_with_1(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file"), "--max-epochs", "1"]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
