"""The schema: it does not change the AnnData, and can be stored in JSON and h5ad."""

import json
from typing import Any

import pandas as pd
import pytest
from anndata import read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from celldial.data.schema import Schema
from helpers.simulate import (
    SMALL_COUNTS,
    build_rna,
)

# --- Counts -----------------------------------------------------------------------------------------------------------


def test_nothing_is_written() -> None:
    adata = build_rna(sparse.csr_matrix(SMALL_COUNTS))
    columns, x = adata.obs.copy(), adata.X.copy()
    schema = Schema.from_anndata(adata, batch_key="batch", continuous_covariate_keys=["age"])
    schema.read_counts(adata)
    schema.encode_covariates(adata, {"batch": "b0"})
    pd.testing.assert_frame_equal(adata.obs, columns)
    assert (x != adata.X).nnz == 0
    assert not adata.uns
    assert not adata.obsm


# --- Storage ----------------------------------------------------------------------------------------------------------


NAMES = st.lists(st.text()).map(tuple)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    feature_names = draw(st.dictionaries(st.text(), NAMES))
    per_modality = st.fixed_dictionaries(dict.fromkeys(feature_names, st.text()))
    return Schema(
        feature_names=feature_names,
        sources=draw(per_modality),
        likelihood=draw(per_modality),
        binary=draw(st.fixed_dictionaries(dict.fromkeys(feature_names, st.booleans()))),
        presence_keys={key: draw(st.text()) for key in feature_names if draw(st.booleans())},
        layer=draw(st.none() | st.text()),
        batch_key=draw(st.none() | st.text()),
        categories=draw(st.dictionaries(st.text(), NAMES)),
        continuous=draw(st.dictionaries(st.text(), st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2))),
        ranges=draw(st.dictionaries(st.text(), st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2))),
    )


@settings(max_examples=40)
@given(schema=schemas())
def test_json_round_trip(schema: Schema) -> None:
    back = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert back == schema
    assert back.ranges == schema.ranges
    assert list(back.categories) == list(schema.categories)


@pytest.mark.parametrize("kind", ["plain", "covariates", "modalities"])
def test_h5ad_round_trip(kind: str, tmp_path: Any) -> None:
    adata = build_rna()
    if kind == "plain":
        schema = Schema.from_anndata(adata)
    elif kind == "modalities":
        # Keys in another order than the alphabetical one, in which h5ad files return them.
        adata.var["feature_types"] = ["Peaks", "Gene Expression", "Gene Expression", "Peaks"]
        adata.obs["has_atac"] = [True, False, True]
        adata.obsm["counts"] = SMALL_COUNTS
        modalities = {"z": "obsm/counts", "atac": "Peaks", "rna": "Gene Expression"}
        schema = Schema.from_anndata(adata, modalities=modalities)
        assert list(schema.feature_names) == ["rna", "atac", "z"]
        assert schema.presence_keys == {"atac": "has_atac"}
    else:
        adata.layers["counts"] = adata.X
        # Keys in another order than the alphabetical one, in which h5ad files return them.
        schema = Schema.from_anndata(
            adata,
            layer="counts",
            batch_key="treated",
            categorical_covariate_keys=["donor", "batch"],
            continuous_covariate_keys=["plate", "age"],
        )
    adata.uns["celldial"] = schema.to_dict()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = Schema.from_dict(read_h5ad(tmp_path / "cells.h5ad").uns["celldial"])
    assert back == schema
    assert list(back.categories) == list(schema.categories)
    assert list(back.continuous) == list(schema.continuous)
    assert list(back.feature_names) == list(schema.feature_names)
    assert all(type(name) is str for name in back.feature_names["rna"])
