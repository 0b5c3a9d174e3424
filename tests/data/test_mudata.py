"""A MuData as one AnnData."""

import importlib.util
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from celldial.data.cells import Cells
from celldial.data.mudata import mudata_to_anndata
from celldial.data.schema import Schema
from helpers.raises import raises, warns

mudata = pytest.importorskip("mudata")

# mudata 0.3 warns of changes in 0.4 and of repeated names whenever a MuData is created.
pytestmark = [
    pytest.mark.filterwarnings("ignore:From 0.4 :FutureWarning"),
    pytest.mark.filterwarnings("ignore:Cannot join columns with the same name"),
]

GENES = np.array([[1, 0, 2], [0, 3, 0], [4, 0, 5]])
PROTEINS = np.array([[6, 7], [0, 8]])


def make_rna() -> AnnData:
    """Cells a, b and c."""
    obs = pd.DataFrame({"batch": ["x", "y", "x"], "n_genes": [2, 1, 2]}, index=list("abc"))
    return AnnData(sparse.csr_matrix(GENES, dtype=np.float32), obs, pd.DataFrame(index=["g0", "g1", "CD4"]))


def make_protein() -> AnnData:
    """Cells d and b."""
    obs = pd.DataFrame({"batch": ["z", "y"], "panel": pd.Categorical(["one", "two"])}, index=list("db"))
    return AnnData(PROTEINS.astype(np.float32), obs, pd.DataFrame(index=["a0", "a1"]))


def make_mudata(**mods: AnnData) -> Any:
    return mudata.MuData(mods or {"rna": make_rna(), "prot": make_protein()})


def dense(adata: AnnData, cells: str, matrix: Any = None) -> np.ndarray:
    """Return the counts of some cells."""
    matrix = adata.X if matrix is None else matrix
    return matrix.toarray()[adata.obs_names.get_indexer(list(cells))]


EXPECTED = np.array([[1, 0, 2, 0, 0], [0, 3, 0, 0, 8], [4, 0, 5, 0, 0], [0, 0, 0, 6, 7]])


def test_other_objects_are_returned() -> None:
    adata = make_rna()
    for data in (adata, GENES, None, {"rna": adata}):
        assert mudata_to_anndata(data) is data


def test_mudata_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mudata")
    spec = importlib.util.find_spec("celldial.data.mudata")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.mudata_to_anndata(1) == 1
    assert "mudata" not in sys.modules


def test_cells_of_all_modalities() -> None:
    data = make_mudata()
    adata = mudata_to_anndata(data)
    assert list(adata.obs_names) == list(data.obs_names)
    assert set(adata.obs_names) == set("abcd")
    assert list(adata.var_names) == ["g0", "g1", "CD4", "a0", "a1"]
    assert list(adata.var["feature_types"]) == ["rna"] * 3 + ["prot"] * 2
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    np.testing.assert_array_equal(dense(adata, "abcd"), EXPECTED)
    obs = adata.obs.loc[list("abcd")]
    assert list(obs["has_rna"]) == [True, True, True, False]
    assert list(obs["has_protein"]) == [False, True, False, True]


def test_a_model_can_be_fit_to_a_mudata() -> None:
    adata = mudata_to_anndata(make_mudata())
    schema = Schema.from_anndata(adata, batch_key="batch")
    assert schema.feature_names == {"rna": ("g0", "g1", "CD4"), "protein": ("a0", "a1")}
    assert schema.presence_keys == {"rna": "has_rna", "protein": "has_protein"}
    assert schema.categories == {"batch": ("x", "y", "z")}
    cells = Cells.from_anndata(adata, schema)
    order = adata.obs_names.get_indexer(list("abcd"))
    assert cells.present["rna"][order].tolist() == [True, True, True, False]
    assert cells.present["protein"][order].tolist() == [False, True, False, True]


def test_columns_of_cells() -> None:
    data = make_mudata()
    data.obs["site"] = ["s0", "s1", "s2", "s3"]
    obs = mudata_to_anndata(data).obs.loc[list("abcd")]
    assert list(obs["batch"]) == ["x", "y", "x", "z"]  # of both modalities
    assert list(obs["n_genes"].iloc[:3]) == [2, 1, 2]
    assert obs["n_genes"].isna().tolist() == [False, False, False, True]
    assert list(obs["panel"].iloc[[1, 3]]) == ["two", "one"]
    assert list(mudata_to_anndata(data).obs["site"]) == ["s0", "s1", "s2", "s3"]
    # A column of the MuData itself has priority over those of its modalities.
    data.obs["batch"] = "w"
    assert list(mudata_to_anndata(data).obs["batch"]) == ["w"] * 4


@pytest.mark.parametrize("values", [[np.nan, np.nan], [True, False], pd.Categorical(["u", "v"]), [0.5, 1.5]])
def test_columns_of_every_kind(values: Any) -> None:
    data = make_mudata()
    data["rna"].obs["key"] = [1, 2, 3]
    data["prot"].obs["key"] = values
    column = mudata_to_anndata(data).obs["key"]
    assert column[list("abc")].tolist() == [1, 2, 3]
    assert column["d"] == values[0] or np.isnan(values[0])


@pytest.mark.parametrize(
    ("name", "own", "expected", "key"),
    [
        ("prot", None, "prot", "has_protein"),
        ("prot", "Antibody Capture", "Antibody Capture", "has_protein"),
        ("prot", "whatever", "prot", "has_protein"),
        ("adt", "Antibody Capture", "Antibody Capture", "has_protein"),
        ("adt", ["Antibody Capture", "rna"], "adt", "has_adt"),
        ("tags", "Multiplexing", "Multiplexing", "has_tags"),
        ("spatial", None, "spatial", "has_spatial"),
    ],
)
def test_feature_types(name: str, own: Any, expected: str, key: str) -> None:
    mod = make_protein()
    if own is not None:
        mod.var["feature_types"] = own
    adata = mudata_to_anndata(make_mudata(rna=make_rna(), **{name: mod}))
    assert list(adata.var["feature_types"]) == ["rna"] * 3 + [expected] * 2
    assert sorted(column for column in adata.obs if column.startswith("has_")) == sorted(["has_rna", key])
    modalities = {"rna": "rna", key.removeprefix("has_"): expected}
    assert list(Schema.from_anndata(adata, modalities=modalities).presence_keys.values()) == ["has_rna", key]


def test_modalities_of_one_type_keep_their_names() -> None:
    rna, spatial = make_rna(), make_protein()
    rna.var["feature_types"] = spatial.var["feature_types"] = "Gene Expression"
    adata = mudata_to_anndata(make_mudata(rna=rna, spatial=spatial))
    assert list(adata.var["feature_types"]) == ["rna"] * 3 + ["spatial"] * 2
    schema = Schema.from_anndata(adata, modalities={"rna": "rna", "spatial": "spatial"})
    assert schema.presence_keys == {"rna": "has_rna", "spatial": "has_spatial"}
    both = mudata_to_anndata(make_mudata(prot=make_protein(), ADT=make_rna()))
    assert {"has_prot", "has_ADT"} <= set(both.obs)


def test_another_column_of_types() -> None:
    adata = mudata_to_anndata(make_mudata(), modality_key="kind")
    assert list(adata.var.columns) == ["kind"]
    assert list(Schema.from_anndata(adata, modality_key="kind").feature_names) == ["rna", "protein"]


def test_clashing_names() -> None:
    rna, protein = make_rna(), make_protein()
    protein.var_names = ["CD4", "a1"]
    data = make_mudata(rna=rna, prot=protein)
    adata = mudata_to_anndata(data)
    assert list(adata.var_names) == ["rna:g0", "rna:g1", "rna:CD4", "prot:CD4", "prot:a1"]
    np.testing.assert_array_equal(dense(adata, "abcd"), EXPECTED)
    # Features of new data without repeated names are named as in the model.
    schema = Schema.from_anndata(adata)
    later = mudata_to_anndata(make_mudata(rna=rna), schema=schema)
    assert list(later.var_names) == ["rna:g0", "rna:g1", "rna:CD4"]
    np.testing.assert_array_equal(schema.read_counts(later)["rna"].toarray(), GENES)
    # So are those of new data in which a modality that is not in the model repeats names.
    later = mudata_to_anndata(data, schema=Schema.from_anndata(rna))
    assert list(later.var_names) == ["g0", "g1", "CD4", "prot:CD4", "prot:a1"]


def test_a_layer() -> None:
    rna, protein = make_rna(), make_protein()
    for mod in (rna, protein):
        mod.layers["counts"], mod.X = mod.X, mod.X / 3
    adata = mudata_to_anndata(make_mudata(rna=rna, prot=protein), layer="counts")
    np.testing.assert_array_equal(dense(adata, "abcd"), EXPECTED)
    np.testing.assert_array_equal(dense(adata, "abcd", adata.layers["counts"]), EXPECTED)
    del protein.layers["counts"]
    with raises(KeyError, naming=["'prot'", "'counts'"]):
        mudata_to_anndata(make_mudata(rna=rna, prot=protein), layer="counts")


def test_a_subset() -> None:
    data = make_mudata()
    adata = mudata_to_anndata(data[["d", "b"]])
    np.testing.assert_array_equal(dense(adata, "bd"), EXPECTED[[1, 3]])
    alone = mudata_to_anndata(data[["a", "c"]])
    assert list(alone.var_names) == ["g0", "g1", "CD4"]
    assert list(alone.obs["has_rna"]) == [True, True]
    assert "has_protein" not in alone.obs


def test_nothing_is_written() -> None:
    data = make_mudata()
    before = data.copy()
    mudata_to_anndata(data)
    pd.testing.assert_frame_equal(data.obs, before.obs)
    pd.testing.assert_frame_equal(data.var, before.var)
    for name in ("rna", "prot"):
        pd.testing.assert_frame_equal(data[name].obs, before[name].obs)
        pd.testing.assert_frame_equal(data[name].var, before[name].var)


def test_a_mudata_that_cannot_be_converted(tmp_path: Any) -> None:
    rna = make_rna()
    with raises(ValueError, naming=["axis=1"]):
        mudata_to_anndata(mudata.MuData({"one": rna, "two": rna[:, ::-1].copy()}, axis=1))
    with raises(TypeError, naming=["'rna'", "float16"]):
        mudata_to_anndata(make_mudata(rna=AnnData(GENES.astype(np.float16), rna.obs, rna.var)))
    with raises(ValueError, naming=["'rna'", "adata.X"]):
        mudata_to_anndata(make_mudata(rna=AnnData(obs=rna.obs, var=rna.var)))
    with raises(ValueError, naming=["MuData"]):
        mudata_to_anndata(make_mudata()[[]])
    make_mudata().write(tmp_path / "cells.h5mu")
    data = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    with raises(ValueError, naming=["MuData", "mudata.read_h5mu"]):
        mudata_to_anndata(data)
    data.file.close()


def test_a_column_that_differs_between_modalities_is_named_if_it_is_used() -> None:
    protein = make_protein()
    protein.obs["batch"] = ["z", "other"]
    data = make_mudata(rna=make_rna(), prot=protein)
    mudata_to_anndata(data)
    with warns(naming=["'batch'", "prot", "'b'", "'other'", "'y'", 1, 2]):
        mudata_to_anndata(data, obs_keys=["batch"])
