"""The demo runs, and writes what it says."""

import anndata
import pytest

from celldial import demo

FILES = {"pbmc68k.h5ad", "umap.png", "history.png", "latent_traverse.png"}


# scanpy 1.11 sets the color of missing values as matplotlib 3.11 will not have it one day; Python does not show this.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_demo_writes_cells_and_figures(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert demo.main(["--out", str(folder), "--max-epochs", "2"]) == 0

    assert {path.name for path in folder.iterdir()} == FILES
    for name in FILES - {"pbmc68k.h5ad"}:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size > 10_000
    adata = anndata.read_h5ad(folder / "pbmc68k.h5ad")
    assert adata.shape == (700, 765)
    assert adata.obsm["X_celldial"].shape == (700, 10)
    assert adata.obsm["X_umap"].shape == (700, 2)
    assert {"leiden", "bulk_labels"} <= set(adata.obs)
    assert len(adata.uns["celldial"]["history"]["elbo_validation"]) == 2
    assert set(adata.uns["latent_traverse"]) == {f"axis_{axis}" for axis in range(10)}

    printed = capsys.readouterr().out
    assert all(name in printed for name in FILES)
    assert str(folder) in printed
    assert printed.count("(PCA: 0.") == 2


def test_colors_are_those_of_the_types():
    import celldial as cd

    assert list(demo.COLORS) == list(cd.datasets.pbmc68k_reduced().obs["bulk_labels"].cat.categories)
    assert len(set(demo.COLORS.values())) == 10


@pytest.mark.parametrize("epochs", ["0", "-1", "many", "1.5"])
def test_wrong_arguments_end_with_2(epochs, capsys):
    with pytest.raises(SystemExit) as end:
        demo.main([f"--max-epochs={epochs}"])
    assert end.value.code == 2
    assert f"{epochs!r} is no whole number of at least 1" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_ends_with_1(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file"), "--max-epochs", "1"]) == 1
    assert "cannot write to" in capsys.readouterr().err
