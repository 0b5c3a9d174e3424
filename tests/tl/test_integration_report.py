"""The report on an integration: closed forms, nulls, signs of over-correction, and what is rejected."""

import importlib.util
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from scipy import sparse

from celldial import VAE, tl
from celldial.metrics.integration import Groups, compare_integration, describe_over_correction
from celldial.tl.integration_report import unintegrated_embedding
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate, simulate_two

NEEDS_SCIB = pytest.mark.skipif(importlib.util.find_spec("scib_metrics") is None, reason="scib-metrics is an extra")
# The same in all tests: jax compiles functions for each number of cells.
N_CELLS = 120
MIXING, SEPARATION = ["iLISI", "kBET"], ["graph connectivity", "cLISI", "NMI", "ARI"]


def two_types(n_cells: int = N_CELLS, gap: float = 50.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an embedding with two distant types, the types, and batches that are independent of both."""
    random = np.random.default_rng(0)
    label_c = np.repeat(["A", "B"], n_cells // 2)
    embedding_cz = random.normal(size=(n_cells, 2)) + gap * (label_c == "B")[:, None]
    return embedding_cz, label_c, np.tile(["x", "y"], n_cells // 2)


# --- Numbers, which need scib-metrics ---------------------------------------------------------------------------------


@NEEDS_SCIB
def test_mixed_batches_and_separate_types_have_the_best_values() -> None:
    embedding_cz, label_c, batch_c = two_types()
    table, types = compare_integration(embedding_cz, embedding_cz, Groups(batch_c, label_c), seed=0)
    assert list(table.index) == [*MIXING, *SEPARATION]
    np.testing.assert_allclose(table.loc[SEPARATION[1:], "embedding"], 1, atol=1e-6)
    assert (table.loc[[*MIXING, "graph connectivity"], "embedding"] > 0.9).all()
    np.testing.assert_array_equal(table["embedding"], table["unintegrated"])
    assert table["shuffled"].isna().tolist() == [False] * 2 + [True] * 4
    assert types[["embedding", "unintegrated"]].eq(1).all(axis=None)
    assert describe_over_correction(table, types).startswith("No sign")


@NEEDS_SCIB
def test_separate_batches_have_the_lowest_values() -> None:
    """Batches are not mixed before, and the reference is what shuffled batches reach within each type."""
    embedding_cz, label_c, batch_c = two_types()
    apart_cz = embedding_cz + np.where(batch_c == "y", 500.0, 0.0)[:, None]
    table, types = compare_integration(embedding_cz, apart_cz, Groups(batch_c, label_c), seed=0)
    np.testing.assert_allclose(table.loc[MIXING, "unintegrated"], 0, atol=1e-6)
    assert (table.loc[MIXING, "shuffled"] > 0.9).all()
    # Each type is in two parts.
    assert table.loc["graph connectivity", "unintegrated"] <= 0.5
    assert types["batch"].tolist() == ["", ""]


@NEEDS_SCIB
def test_a_lost_type_of_one_batch_is_named() -> None:
    embedding_cz, label_c, batch_c = two_types()
    batch_c = np.where(label_c == "B", "y", batch_c)
    merged_cz = embedding_cz - 50 * (label_c == "B")[:, None]
    groups = Groups(batch_c, label_c)
    table, types = compare_integration(merged_cz, embedding_cz, groups, seed=0)
    assert types["batch"].tolist() == ["", "y"]
    sentence = describe_over_correction(table, types)
    assert all(fact in sentence for fact in ("NMI", "cLISI", "'A'", "'B'", "'y'"))
    assert sentence.index("'B'") < sentence.index("'A'")
    # Batches mix as they would if shuffled over all cells, more than within types.
    overall, none = compare_integration(merged_cz, embedding_cz, Groups(batch_c), seed=0)
    assert none is None
    assert list(overall.index) == MIXING


@NEEDS_SCIB
@pytest.mark.parametrize("seed", range(2))
def test_two_embeddings_that_differ_by_noise_show_no_sign(seed: int) -> None:
    """Types overlap, so that a part of the neighbors is of another type in both."""
    random = np.random.default_rng(seed)
    label_c = random.choice(["A", "B", "C"], N_CELLS, p=[0.6, 0.3, 0.1])
    center_cz = 2.5 * (label_c[:, None] == np.array(["A", "B", "C"])) + random.normal(size=(N_CELLS, 3))
    noisy = [center_cz + 0.3 * random.normal(size=center_cz.shape) for _ in range(2)]
    table, types = compare_integration(*noisy, Groups(random.choice(["x", "y"], N_CELLS), label_c), seed)
    assert "'" not in describe_over_correction(table, types)


@NEEDS_SCIB
def test_random_numbers_of_the_caller_are_unchanged() -> None:
    import random

    import igraph

    embedding_cz, label_c, batch_c = two_types()
    random.seed(1)
    expected = igraph.Graph.Erdos_Renyi(20, 0.3).get_edgelist()
    random.seed(1)
    compare_integration(embedding_cz, embedding_cz, Groups(batch_c, label_c), seed=0)
    assert igraph.Graph.Erdos_Renyi(20, 0.3).get_edgelist() == expected


@NEEDS_SCIB
def test_report_of_a_model(tmp_path: Any) -> None:
    adata = simulate_two(n_cells=N_CELLS + 3, lacking={"rna": [0, 1]})
    model = fit(adata, VAE(2, 8, batch_key="batch"))
    adata.obs["type"] = adata.obs["type"].where(np.arange(N_CELLS + 3) != 5)
    embedding_cz = adata.obsm["X_celldial"].copy()
    report = model.integration_report(adata, "type")
    assert list(report.columns) == ["embedding", "unintegrated", "shuffled"]
    stored = adata.uns["celldial"]["integration"]
    assert [stored[part] for part in ("n_cells", "n_batches", "batch_key")] == [N_CELLS, 2, "batch"]
    assert stored["label_key"] == "type"
    assert stored["types"]["n_cells"].to_dict() == adata.obs["type"][2:].value_counts().to_dict()
    assert stored["over_correction"] == report.attrs["over_correction"]
    np.testing.assert_array_equal(adata.obsm["X_celldial"], embedding_cz)
    pd.testing.assert_frame_equal(tl.integration_report(model, adata, "type"), report)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = read_h5ad(tmp_path / "cells.h5ad").uns["celldial"]["integration"]
    pd.testing.assert_frame_equal(read["table"], stored["table"])
    assert len(model.integration_report(adata, modality="atac", n_cells=N_CELLS)) == 2
    assert adata.uns["celldial"]["integration"]["n_cells"] == N_CELLS
    # The report goes with the results of its model.
    fit(adata, VAE(2, 8, batch_key="batch", seed=1))
    assert "integration" not in adata.uns["celldial"]


# --- Without scib-metrics ---------------------------------------------------------------------------------------------


def measured(**values: tuple[float, float, float]) -> pd.DataFrame:
    """Return a table of metrics without any sign, except for given values."""
    rows = {"iLISI": (0.8, 0.1, 0.9), "cLISI": (0.9, 0.9, np.nan), "NMI": (0.7, 0.7, np.nan)} | values
    return pd.DataFrame.from_dict(rows, orient="index", columns=["embedding", "unintegrated", "shuffled"])


def shares(n: int = 5, lost: int = 0) -> pd.DataFrame:
    """Return types T0, T1, ..., of which some were lost, the later ones more; T0 is of a single batch."""
    embedding_k = 0.9 - 0.2 * np.arange(1, n + 1) / n * (np.arange(n) < lost) - 0.1 * (np.arange(n) < lost)
    table = pd.DataFrame({"batch": ["x", *[""] * (n - 1)], "embedding": embedding_k, "unintegrated": 0.9})
    return table.assign(n_cells=100, standard_error=0.02).set_axis([f"T{k}" for k in range(n)])


@pytest.mark.parametrize(
    ("table", "types", "facts"),
    [
        (measured(), shares(), ["No sign"]),
        (measured(NMI=(0.66, 0.7, np.nan)), shares(), ["No sign"]),
        (measured(NMI=(0.6, 0.7, np.nan)), shares(), ["NMI 0.60", "0.70"]),
        (measured(cLISI=(0.6, 0.7, np.nan)), shares(), ["cLISI 0.60", "0.70"]),
        (measured(iLISI=(0.8, 0.1, 0.7)), shares(), ["iLISI 0.80", "0.70"]),
        (measured(), shares(lost=1), ["'T0'", "'x'", "90 %"]),
        (measured(), shares(lost=1).assign(standard_error=0.2), ["No sign"]),
        (measured(), shares(lost=5), ["'T0'", "'T4'", "'T3'", "2 other types"]),
        (measured().loc[["iLISI"]], None, ["label_key"]),
    ],
)
def test_signs_of_over_correction(table: pd.DataFrame, types: pd.DataFrame | None, facts: list[str]) -> None:
    sentence = describe_over_correction(table, types)
    assert all(fact in sentence for fact in facts)
    assert sentence.startswith("No sign") == (facts == ["No sign"])


@pytest.mark.parametrize("with_types", [True, False])
def test_shuffled_batches_keep_their_numbers(with_types: bool) -> None:
    random = np.random.default_rng(0)
    label_c = random.choice(["A", "B"], 200)
    batch_c = np.where(random.uniform(size=200) < 0.8, np.where(label_c == "A", "x", "y"), "z")
    shuffled_c = Groups(batch_c, label_c if with_types else None).shuffled(random)
    kept = pd.crosstab(label_c, shuffled_c).equals(pd.crosstab(label_c, batch_c))
    assert kept == with_types
    assert sorted(shuffled_c) == sorted(batch_c)
    assert (shuffled_c != batch_c).any()


def test_embedding_without_integration_is_that_of_scanpy() -> None:
    """Up to the signs of the components."""
    import scanpy as sc

    adata = simulate(n_cells=80, n_genes=40)
    found_cz = unintegrated_embedding(sparse.csr_matrix(adata.X), is_binary=False, seed=0)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30, svd_solver="arpack")
    np.testing.assert_allclose(np.abs(found_cz), np.abs(adata.obsm["X_pca"]), rtol=1e-3, atol=1e-3)


def test_values_of_peaks_depend_on_presence_only() -> None:
    counts_cf = sparse.csr_matrix(simulate_two(n_cells=60).X[:, 20:])
    more_cf = counts_cf.copy()
    more_cf.data *= np.arange(1, len(more_cf.data) + 1)
    embeddings = [unintegrated_embedding(x_cf, is_binary=True, seed=0) for x_cf in (counts_cf, more_cf)]
    np.testing.assert_allclose(*embeddings, atol=1e-8)


@pytest.fixture(scope="module")
def fitted() -> tuple[AnnData, VAE]:
    adata = simulate(n_cells=80)
    return adata, fit(adata, VAE(2, 8, batch_key="batch"))


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bad input be rejected where scib-metrics is not installed, too."""
    if importlib.util.find_spec("scib_metrics") is None:
        monkeypatch.setitem(sys.modules, "scib_metrics", object())


@pytest.mark.usefixtures("_installed")
def test_bad_input_is_rejected_and_nothing_is_written(fitted: tuple[AnnData, VAE]) -> None:
    adata, model = fitted
    adata = adata.copy()
    adata.obs["one"] = "A"
    adata.obs["few"] = np.where(np.arange(80) < 20, "A", None)
    before = repr(adata.uns["celldial"])
    with raises(KeyError, naming=["'typ'", "'type'"]):
        model.integration_report(adata, "typ")
    with raises(ValueError, naming=["'one'", "'A'"]):
        model.integration_report(adata, "one")
    with raises(ValueError, naming=["20 of 80", "'few'", "50"]):
        model.integration_report(adata, "few")
    with raises(ValueError, naming=["'batch'", "'b1'"]):
        model.integration_report(simulate(n_cells=120)[1::2].copy())
    with raises(ValueError, naming=["40 of 40", "50"]):
        model.integration_report(adata[:40].copy())
    with raises(ValueError, naming=["n_cells", "49"]):
        model.integration_report(adata, n_cells=49)
    with raises(KeyError, naming=["'atac'", "'rna'"]):
        model.integration_report(adata, modality="atac")
    assert repr(adata.uns["celldial"]) == before


@pytest.mark.usefixtures("_installed")
def test_a_model_without_batches_is_rejected() -> None:
    adata = simulate(n_cells=60)
    with raises(ValueError, naming=["batch_key"]):
        fit(adata).integration_report(adata, "type")


def test_a_missing_installation_is_named(fitted: tuple[AnnData, VAE], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with raises(ImportError, naming=["pip install scib-metrics"]):
        fitted[1].integration_report(fitted[0])
