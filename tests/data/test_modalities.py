"""Several modalities in one AnnData: features, likelihoods, and cells that have them."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from celldial.data.counts import match_features, select_columns
from celldial.data.modalities import FEATURE_TYPES
from celldial.data.schema import Schema
from helpers.raises import logged, raises, warns
from helpers.simulate import (
    IN_OBSM,
    TRIMODAL_COUNTS,
    TRIMODAL_NAMES,
    TRIMODAL_TYPES,
    build_trimodal,
    build_with_obsm,
)

COLUMNS = {"rna": slice(0, 3), "atac": slice(3, 5), "protein": slice(5, 7)}


def same_counts(counts: dict[str, sparse.csr_matrix], expected: np.ndarray = TRIMODAL_COUNTS) -> None:
    """Assert the counts of a model; those of peaks are at most 1."""
    for modality, matrix in counts.items():
        wanted = expected[:, COLUMNS[modality]]
        np.testing.assert_array_equal(matrix.toarray(), wanted.clip(0, 1) if modality == "atac" else wanted)
        assert type(matrix) is sparse.csr_matrix
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format


# --- Features ---------------------------------------------------------------------------------------------------------


def test_known_modalities() -> None:
    schema = Schema.from_anndata(build_trimodal())
    assert schema.feature_names == {"rna": ("g0", "g1", "g2"), "atac": ("p0", "p1"), "protein": ("a0", "a1")}
    assert schema.modalities == ("rna", "atac", "protein")
    assert schema.sources == {"rna": "Gene Expression", "atac": "Peaks", "protein": "Antibody Capture"}
    assert schema.likelihood == {"rna": "negative_binomial", "atac": "bernoulli", "protein": "negative_binomial"}
    assert schema.presence_keys == {}
    same_counts(schema.read_counts(build_trimodal()))


@given(order=st.permutations(range(len(TRIMODAL_NAMES))))
def test_order_of_features_does_not_matter(order: list[int]) -> None:
    shuffled = build_trimodal()[:, order].copy()
    schema = Schema.from_anndata(shuffled)
    assert list(schema.feature_names) == ["rna", "atac", "protein"]
    assert {modality: tuple(sorted(names)) for modality, names in schema.feature_names.items()} == {
        "rna": ("g0", "g1", "g2"),
        "atac": ("p0", "p1"),
        "protein": ("a0", "a1"),
    }
    same_counts(Schema.from_anndata(build_trimodal()).read_counts(shuffled))


@pytest.mark.parametrize("value", FEATURE_TYPES)
@pytest.mark.parametrize("kind", [list, pd.Categorical])
def test_synonyms_of_feature_types(value: str, kind: Callable[[list[str]], Any]) -> None:
    schema = Schema.from_anndata(build_trimodal(types=kind([value] * 7)))
    assert schema.sources == {FEATURE_TYPES[value]: value}
    assert list(schema.feature_names) == [FEATURE_TYPES[value]]


def test_unused_categories_are_not_modalities() -> None:
    types = pd.Categorical(TRIMODAL_TYPES, categories=[*dict.fromkeys(TRIMODAL_TYPES), "CRISPR Guide Capture"])
    assert list(Schema.from_anndata(build_trimodal(types=types)).feature_names) == ["rna", "atac", "protein"]


@pytest.mark.parametrize(
    ("likelihood", "modality"), [(None, "rna"), ("poisson", "rna"), ("bernoulli", "atac"), ({}, "rna")]
)
def test_without_a_column_there_is_one_modality(likelihood: Any, modality: str) -> None:
    adata = build_trimodal()
    del adata.var["feature_types"]
    schema = Schema.from_anndata(adata, likelihood=likelihood)
    assert schema.feature_names == {modality: tuple(TRIMODAL_NAMES)}
    assert schema.sources == {modality: ""}
    assert Schema.from_anndata(adata, modalities={"mine": "anything"}).feature_names == {"mine": tuple(TRIMODAL_NAMES)}


def test_another_column() -> None:
    adata = build_trimodal()
    adata.var["kind"] = ["ADT"] * 3 + ["rna"] * 4
    schema = Schema.from_anndata(adata, modality_key="kind")
    assert schema.feature_names == {"rna": ("p0", "p1", "a0", "a1"), "protein": ("g0", "g1", "g2")}


def test_unknown_feature_type() -> None:
    types = ["Gene Expression"] * 4 + ["CRISPR Guide Capture"] * 3
    with raises(ValueError, naming=["'CRISPR Guide Capture'", 3, "'p1'", "modalities", ".copy()"]):
        Schema.from_anndata(build_trimodal(types=types))
    schema = Schema.from_anndata(build_trimodal(types=types), modalities={"guides": "CRISPR Guide Capture"})
    assert schema.feature_names == {"guides": ("p1", "a0", "a1")}
    assert schema.likelihood == {"guides": "negative_binomial"}


def test_two_types_of_one_modality() -> None:
    with raises(ValueError, naming=["'GEX'", "'rna'"]):
        Schema.from_anndata(build_trimodal(types=["GEX"] * 3 + ["rna"] * 4))


@pytest.mark.parametrize("modalities", [None, {"rna": "Gene Expression"}])
def test_missing_feature_type(modalities: Any) -> None:
    adata = build_trimodal(types=[*TRIMODAL_TYPES[:3], None, np.nan, *TRIMODAL_TYPES[5:]])
    with raises(ValueError, naming=["'feature_types'", "'p0'", 2, 7]):
        Schema.from_anndata(adata, modalities=modalities)


def test_a_single_feature() -> None:
    with raises(ValueError, naming=["'atac'", 1, "'a1'"]):
        Schema.from_anndata(build_trimodal(types=["rna"] * 6 + ["Peaks"]))


def test_chosen_modalities(caplog: pytest.LogCaptureFixture) -> None:
    adata = build_trimodal()
    with caplog.at_level(logging.INFO, logger="celldial"):
        schema = Schema.from_anndata(adata, modalities={"tags": "Antibody Capture", "rna": "Gene Expression"})
    assert logged(caplog, naming=[2, "'Peaks'"])
    assert schema.feature_names == {"rna": ("g0", "g1", "g2"), "tags": ("a0", "a1")}
    assert list(schema.sources) == ["rna", "tags"]
    counts = schema.read_counts(adata)
    np.testing.assert_array_equal(counts["tags"].toarray(), TRIMODAL_COUNTS[:, 5:])


@pytest.mark.parametrize(
    ("modalities", "error", "facts"),
    [
        ({"rna": "Genes"}, KeyError, ["'rna'", "'Genes'", "'Gene Expression'", "'Peaks'"]),
        ({"a": "Peaks", "b": "Peaks"}, ValueError, ["'Peaks'"]),
        ({"a.b": "Peaks"}, ValueError, ["'a.b'"]),
        ({"": "Peaks"}, ValueError, ["''"]),
        ({}, ValueError, ["modalities"]),
        ({"rna": 1}, TypeError, ["modalities", "dict"]),
        (["rna"], TypeError, ["modalities", "dict"]),
        ({"protein": "obsm/adt"}, KeyError, ["obsm", "'adt'", "'X_pca'"]),
    ],
)
def test_invalid_modalities(modalities: Any, error: type[Exception], facts: list[Any]) -> None:
    adata = build_trimodal()
    adata.obsm["X_pca"] = np.zeros((4, 2))
    with raises(error, naming=facts):
        Schema.from_anndata(adata, modalities=modalities)


def test_several_modalities_need_the_column() -> None:
    adata, modalities = build_trimodal(), {"rna": "Gene Expression", "atac": "Peaks"}
    with raises(KeyError, naming=["modality_key", "'type'"]):
        Schema.from_anndata(adata, modalities=modalities, modality_key="type")
    del adata.var["feature_types"]
    with raises(KeyError, naming=["'feature_types'", "'rna'", "'atac'"]):
        Schema.from_anndata(adata, modalities=modalities)


# --- Modalities in obsm -----------------------------------------------------------------------------------------------

PROTEINS = TRIMODAL_COUNTS[:, 5:]
CELLS = [f"c{cell}" for cell in range(4)]


@pytest.mark.parametrize(
    "matrix",
    [
        PROTEINS,
        PROTEINS.astype(np.float64),
        sparse.csr_matrix(PROTEINS),
        sparse.csc_matrix(PROTEINS.astype(np.float32)),
        sparse.csr_array(PROTEINS),
        pd.DataFrame(PROTEINS, CELLS, ["a0", "a1"]),
        pd.DataFrame(PROTEINS, CELLS, ["a0", "a1"]).astype("Int64"),
        pd.DataFrame.sparse.from_spmatrix(sparse.csr_matrix(PROTEINS), CELLS, ["a0", "a1"]),
    ],
    ids=["int", "float", "csr_matrix", "csc_matrix", "csr_array", "DataFrame", "Int64", "sparse DataFrame"],
)
def test_counts_in_obsm(matrix: Any) -> None:
    adata = build_with_obsm(matrix)
    schema = Schema.from_anndata(adata, modalities=IN_OBSM)
    assert list(schema.feature_names) == ["rna", "atac", "protein"]
    assert schema.sources["protein"] == "obsm/adt"
    names = ("a0", "a1") if isinstance(matrix, pd.DataFrame) else ("protein_0", "protein_1")
    assert schema.feature_names["protein"] == names
    same_counts(schema.read_counts(adata))


def test_all_in_obsm() -> None:
    adata = AnnData(obs=pd.DataFrame(index=CELLS), obsm={"adt": PROTEINS})
    schema = Schema.from_anndata(adata, modalities={"protein": "obsm/adt"})
    same_counts(schema.read_counts(adata))


def test_a_layer_does_not_apply_to_obsm() -> None:
    adata = build_with_obsm(PROTEINS)
    adata.layers["raw"], adata.X = adata.X, adata.X / 3
    same_counts(Schema.from_anndata(adata, modalities=IN_OBSM, layer="raw").read_counts(adata))


def test_a_data_frame_is_aligned_by_name() -> None:
    frame = pd.DataFrame(PROTEINS, CELLS, ["a0", "a1"])
    schema = Schema.from_anndata(build_with_obsm(frame), modalities=IN_OBSM)
    same_counts(schema.read_counts(build_with_obsm(frame[["a1", "a0"]].assign(isotype=-1.0))))
    with warns(naming=[1, 2, "protein"]):
        counts = schema.read_counts(build_with_obsm(frame[["a1"]]))
    np.testing.assert_array_equal(counts["protein"].toarray(), PROTEINS * [0, 1])
    with raises(ValueError, naming=[0, 2, "protein", "obsm['adt']"]):
        schema.read_counts(build_with_obsm(frame.set_axis(["b0", "b1"], axis=1)))


def test_an_array_must_have_the_same_columns() -> None:
    schema = Schema.from_anndata(build_with_obsm(PROTEINS), modalities=IN_OBSM)
    with raises(ValueError, naming=["obsm['adt']", 3, 2]):
        schema.read_counts(build_with_obsm(TRIMODAL_COUNTS[:, :3]))


@pytest.mark.parametrize(
    ("matrix", "error", "facts"),
    [
        (
            pd.DataFrame(PROTEINS, CELLS, ["a", "b"]).astype({"b": str}),
            TypeError,
            ["'b'", "obsm['adt']"],
        ),
        (pd.DataFrame(PROTEINS, CELLS, ["a", "a"]), ValueError, ["'a'"]),
        (PROTEINS.astype(np.float16), TypeError, ["obsm['adt']", "float16"]),
        (PROTEINS[:, :, None], TypeError, ["(4, 2, 1)"]),
        (PROTEINS[:, :1], ValueError, ["'protein'", 1, "'protein_0'"]),
        (PROTEINS[:, :0], ValueError, ["'protein'", 0]),
    ],
)
def test_invalid_obsm(matrix: Any, error: type[Exception], facts: list[Any]) -> None:
    with raises(error, naming=facts):
        Schema.from_anndata(build_with_obsm(matrix), modalities=IN_OBSM)


@pytest.mark.parametrize("value", [-1, 0.5, np.nan])
def test_invalid_value_in_obsm(value: float) -> None:
    frame = pd.DataFrame(PROTEINS.astype(float), CELLS, ["a0", "a1"])
    frame.loc["c2", "a1"] = value
    adata = build_with_obsm(frame)
    with raises(ValueError, naming=["obsm['adt']", f"{value:g}", "'c2'", "'a1'"]):
        Schema.from_anndata(adata, modalities=IN_OBSM).read_counts(adata)


# --- Likelihoods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        ("poisson", ["poisson"] * 3),
        ({"atac": "poisson"}, ["negative_binomial", "poisson", "negative_binomial"]),
        ({"protein": "poisson"}, ["negative_binomial", "bernoulli", "poisson"]),
    ],
)
def test_likelihoods(likelihood: Any, expected: list[str]) -> None:
    schema = Schema.from_anndata(build_trimodal(), likelihood=likelihood)
    assert list(schema.likelihood.items()) == list(zip(("rna", "atac", "protein"), expected, strict=True))


def test_the_default_likelihood_depends_on_the_type_of_the_features_not_on_the_name_of_the_modality() -> None:
    modalities = {"expression": "Gene Expression", "chromatin": "Peaks", "atac": "Antibody Capture"}
    schema = Schema.from_anndata(build_trimodal(), modalities=modalities)
    assert schema.likelihood == {
        "atac": "negative_binomial",
        "expression": "negative_binomial",
        "chromatin": "bernoulli",
    }


def test_invalid_likelihoods() -> None:
    with raises(KeyError, naming=["likelihood", "'adt'", "'rna'", "'atac'", "'protein'"]):
        Schema.from_anndata(build_trimodal(), likelihood={"adt": "poisson"})
    with raises(TypeError, naming=["likelihood", 1]):
        Schema.from_anndata(build_trimodal(), likelihood=1)


def test_binary_counts_are_ones(caplog: pytest.LogCaptureFixture) -> None:
    adata = build_trimodal()
    schema = Schema.from_anndata(adata)
    assert schema.binary == {"rna": False, "atac": True, "protein": False}
    assert not any(Schema.from_anndata(adata, binary_likelihoods=()).binary.values())
    with caplog.at_level(logging.DEBUG, logger="celldial"):
        counts = schema.read_counts(adata)
    np.testing.assert_array_equal(counts["atac"].toarray(), [[1, 1], [0, 0], [1, 0], [0, 1]])
    assert len(logged(caplog, naming=["atac", 2, "binary"])) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celldial"):
        same_counts(schema.read_counts(build_trimodal(TRIMODAL_COUNTS.clip(0, 1))), TRIMODAL_COUNTS.clip(0, 1))
    assert not logged(caplog, naming=["atac", "binary"])


@pytest.mark.parametrize(("column", "noun"), [(1, "gene 'g1'"), (3, "peak 'p0'"), (6, "protein 'a1'")])
@pytest.mark.parametrize("value", [-2, 0.5, np.nan, np.inf])
def test_invalid_value_is_named(column: int, noun: str, value: float) -> None:
    x = TRIMODAL_COUNTS.astype(float)
    x[2, column] = value
    adata = build_trimodal(x)
    with raises(ValueError, naming=[f"{value:g}", "'c2'", noun]):
        Schema.from_anndata(adata).read_counts(adata)


# --- Cells that have a modality ---------------------------------------------------------------------------------------


def present(schema: Schema, adata: AnnData) -> dict[str, list[bool]]:
    return {modality: (np.diff(rows.indptr) > 0).tolist() for modality, rows in schema.read_counts(adata).items()}


def test_without_a_column_cells_without_counts_lack_the_modality(caplog: pytest.LogCaptureFixture) -> None:
    adata = build_trimodal()
    with caplog.at_level(logging.INFO, logger="celldial"):
        found = present(Schema.from_anndata(adata), adata)
    assert found == {"rna": [True] * 4, "atac": [True, False, True, True], "protein": [True, True, True, False]}
    assert logged(caplog, naming=[1, 4, "atac"])
    assert not logged(caplog, naming=["rna"])


def test_empty_cells_of_a_single_modality_are_not_reported_here(caplog: pytest.LogCaptureFixture) -> None:
    adata = build_trimodal(TRIMODAL_COUNTS * [[1], [0], [1], [1]], types=["rna"] * 7)
    adata.obs["has_rna"] = True
    with caplog.at_level(logging.INFO, logger="celldial"):
        Schema.from_anndata(adata).read_counts(adata)
    assert not caplog.text


@pytest.mark.parametrize("dtype", [bool, "boolean", object, "category"])
def test_default_presence_columns_are_found(dtype: Any) -> None:
    adata = build_trimodal()
    adata.obs["has_protein"] = pd.Series([True, True, True, False], CELLS).astype(dtype)
    adata.obs["has_atac"] = [1, 0, 1, 1]  # not boolean: may have another meaning
    adata.obs["has_rna"] = ["yes"] * 4
    schema = Schema.from_anndata(adata)
    assert schema.presence_keys == {"protein": "has_protein"}
    assert present(schema, adata)["protein"] == [True, True, True, False]


@pytest.mark.parametrize("values", [[1, 0, 1, 1], [1.0, 0.0, 1.0, 1.0], pd.Categorical([1, 0, 1, 1])])
def test_chosen_presence_columns(values: Any) -> None:
    adata = build_trimodal()
    adata.obs["multiome"] = values
    schema = Schema.from_anndata(adata, presence_keys={"atac": "multiome"})
    assert schema.presence_keys == {"atac": "multiome"}
    assert present(schema, adata)["atac"] == [True, False, True, True]
    del adata.obs["multiome"]
    assert present(schema, adata)["atac"] == [True, False, True, True]


def test_invalid_presence_keys() -> None:
    adata = build_trimodal()
    adata.obs["has_adt"] = [True, True, True, False]
    adata.obs["multiome"] = ["yes", "no", "yes", "yes"]
    adata.obs["twice"] = [1, 0, 2, 1]
    with raises(KeyError, naming=["'has_add'", "'has_adt'"]):
        Schema.from_anndata(adata, presence_keys={"protein": "has_add"})
    with raises(KeyError, naming=["presence_keys", "'adt'", "'rna'", "'atac'", "'protein'"]):
        Schema.from_anndata(adata, presence_keys={"adt": "has_adt"})
    with raises(TypeError, naming=["presence_keys", "'has_adt'"]):
        Schema.from_anndata(adata, presence_keys="has_adt")
    with raises(ValueError, naming=["obs['multiome']", "'yes'", "'c0'"]):
        Schema.from_anndata(adata, presence_keys={"atac": "multiome"})
    with raises(ValueError, naming=["obs['twice']", "'2'", "'c2'"]):
        Schema.from_anndata(adata, presence_keys={"atac": "twice"})


@pytest.mark.parametrize("keys", [None, {"atac": "has_atac"}])
@pytest.mark.parametrize("dtype", ["boolean", object])
def test_missing_presence(keys: Any, dtype: Any) -> None:
    adata = build_trimodal()
    adata.obs["has_atac"] = pd.Series([True, None, True, None], CELLS, dtype=dtype)
    with raises(ValueError, naming=["obs['has_atac']", "'c1'", 2, 4]):
        Schema.from_anndata(adata, presence_keys=keys)


def test_counts_in_cells_that_should_lack_the_modality() -> None:
    adata = build_trimodal()
    adata.obs["has_protein"] = [True, False, True, False]
    with raises(ValueError, naming=["'c1'", 9, "protein", "obs['has_protein']"]):
        Schema.from_anndata(adata).read_counts(adata)


def test_no_counts_in_cells_that_should_have_the_modality() -> None:
    adata = build_trimodal()
    adata.obs["has_protein"] = True
    with warns(naming=[1, 4, "protein", "'c3'"]) as warned:
        found = present(Schema.from_anndata(adata), adata)
    assert len(warned) == 1
    assert found["protein"] == [True, True, True, False]


# --- New data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["rna", "atac", "protein"])
def test_new_data_may_lack_a_modality(lacking: str, caplog: pytest.LogCaptureFixture) -> None:
    adata = build_trimodal()
    adata.obs[f"has_{lacking}"] = TRIMODAL_COUNTS[:, COLUMNS[lacking]].sum(1) > 0
    schema = Schema.from_anndata(adata)
    rest = np.setdiff1d(np.arange(7), np.arange(7)[COLUMNS[lacking]])
    with caplog.at_level(logging.INFO, logger="celldial"):
        counts = schema.read_counts(adata[:, rest].copy())
    assert list(counts) == ["rna", "atac", "protein"]
    n_features = len(schema.feature_names[lacking])
    assert logged(caplog, naming=[lacking, n_features])
    expected = TRIMODAL_COUNTS.copy()
    expected[:, COLUMNS[lacking]] = 0
    same_counts(counts, expected)


def test_new_data_may_lack_the_modalities_of_obsm_or_of_var() -> None:
    adata = build_with_obsm(PROTEINS)
    schema = Schema.from_anndata(adata, modalities=IN_OBSM)
    del adata.obsm["adt"]
    same_counts(schema.read_counts(adata), TRIMODAL_COUNTS * [1, 1, 1, 1, 1, 0, 0])
    same_counts(
        schema.read_counts(AnnData(obs=pd.DataFrame(index=CELLS), obsm={"adt": PROTEINS})),
        TRIMODAL_COUNTS * [0, 0, 0, 0, 0, 1, 1],
    )


def test_new_data_must_have_a_modality() -> None:
    adata = build_trimodal()
    schema = Schema.from_anndata(adata)
    with raises(ValueError, naming=["rna", "'g0'", "'g1'", "'g2'", "atac", "'p0'", "'x0'"]):
        schema.read_counts(AnnData(adata.X, adata.obs, pd.DataFrame(index=[f"x{f}" for f in range(7)])))
    proteins_only = Schema.from_anndata(build_with_obsm(PROTEINS), modalities={"protein": "obsm/adt"})
    with raises(KeyError, naming=["obsm", "'adt'"]):
        proteins_only.read_counts(adata)


def test_new_data_must_have_half_of_the_features_of_a_modality() -> None:
    schema = Schema.from_anndata(build_trimodal())
    with warns(naming=[1, 2, "atac"]):
        counts = schema.read_counts(build_trimodal()[:, ["a1", "p1", "g0", "g1", "g2", "a0"]].copy())
    same_counts(counts, TRIMODAL_COUNTS * [1, 1, 1, 0, 1, 1, 1])
    with raises(ValueError, naming=[1, 3, "rna"]):
        schema.read_counts(build_trimodal()[:, ["p0", "p1", "g1"]].copy())


@given(data=st.data())
def test_select_columns_is_dense_indexing(data: st.DataObject) -> None:
    n_columns = data.draw(st.integers(1, 6))
    positions = data.draw(st.permutations([*range(n_columns), -1, -1]))
    position_f = np.array(positions[: data.draw(st.integers(1, len(positions)))])
    x = np.arange(1, 2 * n_columns + 1).reshape(2, n_columns) % 3
    aligned = select_columns(sparse.csr_matrix(x), position_f)
    np.testing.assert_array_equal(aligned.toarray(), np.where(position_f >= 0, x[:, position_f], 0))
    assert aligned.has_canonical_format


def test_match_features() -> None:
    found = pd.Index(["a", "b", "c"])
    assert match_features(found, ("a", "b", "c")).tolist() == [0, 1, 2]
    assert match_features(found, ("c", "x", "a")).tolist() == [2, -1, 0]


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_nothing_is_written() -> None:
    adata = build_with_obsm(pd.DataFrame(PROTEINS, CELLS, ["a0", "a1"]))
    adata.obs["has_protein"] = [True, True, True, False]
    before = adata.copy()
    schema = Schema.from_anndata(adata, modalities=IN_OBSM)
    schema.read_counts(adata)
    schema.read_counts(adata[:, ::-1])
    for part in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, part), getattr(before, part))
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(adata.X, part), getattr(before.X, part))
    pd.testing.assert_frame_equal(adata.obsm["adt"], before.obsm["adt"])
    assert list(adata.obsm) == ["adt"]
    assert not adata.uns
    assert not adata.layers
