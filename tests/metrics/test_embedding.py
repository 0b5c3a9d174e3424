"""Metrics of embeddings: known values, definitions written out as loops, invariances, and bad input."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from celldial.metrics import embedding, foscttm, ilisi, knn_f1, leiden_nmi
from helpers.raises import raises

METRICS = [leiden_nmi, knn_f1]


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return an embedding of three well-separated types, and their labels."""
    labels = np.repeat(["B", "NK", "T"], [40, 30, 50])
    center_cz = 50 * (labels[:, None] == np.unique(labels)[None, :])
    return np.random.default_rng(0).normal(size=(120, 3)) + center_cz, labels


@pytest.fixture(scope="module")
def pbmc_pca() -> tuple[np.ndarray, pd.Series]:
    """Return ten principal components of the bundled blood cells, and their types."""
    import scanpy as sc

    from celldial.datasets import pbmc68k_reduced

    adata = pbmc68k_reduced()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=50)
    return adata.obsm["X_pca"][:, :10], adata.obs["bulk_labels"]


def test_leiden_nmi_of_pca(pbmc_pca):
    assert leiden_nmi(*pbmc_pca) == pytest.approx(0.704, abs=5e-4)


def test_knn_f1_of_pca(pbmc_pca):
    assert knn_f1(*pbmc_pca) == pytest.approx(0.717, abs=5e-4)


@pytest.mark.slow
def test_leiden_nmi_of_many_cells_in_read_only_memory():
    """With more than 8,192 cells, scanpy finds neighbors with pynndescent, which writes to its input."""
    labels = np.repeat(["B", "T"], 4200)
    embedding_cz = np.random.default_rng(0).normal(size=(8400, 3)).astype(np.float32) + 50 * (labels == "T")[:, None]
    embedding_cz = embedding_cz.astype(np.float32)
    embedding_cz.flags.writeable = False
    assert leiden_nmi(embedding_cz, labels, resolutions=[0.001]) == pytest.approx(1.0)


def test_clear_types_score_one(blobs):
    assert leiden_nmi(*blobs, resolutions=[0.01]) == pytest.approx(1.0)
    assert knn_f1(*blobs) == 1.0


def test_noise_scores_near_chance():
    rng = np.random.default_rng(0)
    embedding_cz, labels = rng.normal(size=(300, 4)), rng.integers(0, 2, size=300)
    assert leiden_nmi(embedding_cz, labels, resolutions=[0.5]) < 0.05
    assert 0.4 < knn_f1(embedding_cz, labels) < 0.6


def test_leiden_nmi_is_the_best_over_resolutions(blobs):
    single = [leiden_nmi(*blobs, resolutions=[resolution]) for resolution in (0.01, 5.0)]
    assert single[0] != single[1]
    assert leiden_nmi(*blobs, resolutions=[0.01, 5.0]) == max(single)


@pytest.mark.parametrize("metric", METRICS)
def test_same_seed_same_number(metric, blobs):
    embedding_cz, labels = blobs
    blurred_cz = embedding_cz + 25 * np.random.default_rng(1).normal(size=embedding_cz.shape)
    result = metric(blurred_cz, labels)
    assert type(result) is float
    assert 0 <= result < 1
    assert metric(blurred_cz, labels) == result


@pytest.mark.parametrize("metric", METRICS)
def test_kind_of_labels_does_not_matter(metric, blobs):
    embedding_cz, labels = blobs
    blurred_cz = embedding_cz + 25 * np.random.default_rng(1).normal(size=embedding_cz.shape)
    result = metric(blurred_cz, labels)
    assert metric(blurred_cz, list(labels)) == result
    # Categories in another order, and another index.
    series = pd.Series(pd.Categorical(labels, categories=["T", "B", "NK", "unused"]), index=np.arange(120)[::-1])
    assert metric(blurred_cz, series) == result
    assert metric(blurred_cz, pd.Categorical(labels)) == result


@pytest.mark.parametrize("metric", METRICS)
def test_float16_and_integers_are_accepted(metric, blobs):
    embedding_cz, labels = blobs
    assert metric(embedding_cz.astype(np.float16), labels) > 0.5
    assert metric(embedding_cz.round().astype(int), labels) > 0.5


def test_knn_f1_leaves_out_rare_types(blobs):
    embedding_cz, labels = blobs
    rare = labels.copy()
    rare[:9] = "rare"  # among the B cells, so every prediction of these would be wrong
    assert knn_f1(embedding_cz, rare) == 1.0
    assert knn_f1(embedding_cz, rare, min_cells=5) < 0.9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_embedding(metric, value, blobs):
    embedding_cz, labels = blobs[0].copy(), blobs[1]
    embedding_cz[7, 1] = embedding_cz[9, 0] = value
    with raises(ValueError, naming=["embedding_cz", "2 of 120", "row 7"]):
        metric(embedding_cz, labels)


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_input(metric, blobs):
    embedding_cz, labels = blobs
    with raises(ValueError, naming=["labels", "119", "embedding_cz", "120"]):
        metric(embedding_cz, labels[:-1])
    with raises(ValueError, naming=["embedding_cz", "(120,)"]):
        metric(embedding_cz[:, 0], labels)
    with raises(ValueError, naming=["embedding_cz", "(120, 0)"]):
        metric(embedding_cz[:, :0], labels)
    with raises(TypeError, naming=["embedding_cz", "complex128"]):
        metric(embedding_cz.astype(complex), labels)
    with raises(ValueError, naming=["labels", "1 of 120", "row 3"]):
        metric(embedding_cz, pd.Series(labels).where(np.arange(120) != 3))
    with raises(ValueError, naming=["n_neighbors", "1"]):
        metric(embedding_cz, labels, n_neighbors=1)
    with raises(ValueError, naming=["n_neighbors", "120"]):
        metric(embedding_cz, labels, n_neighbors=120)


def test_wrong_options(blobs):
    with raises(ValueError, naming=["resolutions"]):
        leiden_nmi(*blobs, resolutions=[])
    with raises(ValueError, naming=["n_splits", "1"]):
        knn_f1(*blobs, n_splits=1)
    with raises(ValueError, naming=["min_cells", "3", "n_splits", "5"]):
        knn_f1(*blobs, min_cells=3)
    with raises(ValueError, naming=["1 of 3", "min_cells", "45"]):
        knn_f1(*blobs, min_cells=45)


# --- Mixing of batches ------------------------------------------------------------------------------------------------


def ilisi_cell_by_cell(embedding_cz: np.ndarray, batches: np.ndarray, n_neighbors: int) -> float:
    """Return the index by its definition, with a loop over cells."""
    index_c = []
    for cell, position_z in enumerate(embedding_cz):
        distance_c = np.linalg.norm(embedding_cz - position_z, axis=1)
        nearest = [other for other in np.argsort(distance_c) if other != cell][: n_neighbors - 1]

        def weights(beta: float, distance_n: np.ndarray = distance_c[nearest]) -> np.ndarray:
            weight_n = np.exp(-beta * distance_n)
            return weight_n / weight_n.sum()

        def excess(beta: float, weights=weights) -> float:
            return -(weights(beta) * np.log(weights(beta))).sum() - np.log(n_neighbors / 3)

        weight_n = weights(brentq(excess, 1e-3, 1e2))
        index_c.append(1 / sum(weight_n[batches[nearest] == batch].sum() ** 2 for batch in np.unique(batches)))
    return float(np.median(index_c))


@pytest.mark.parametrize("separation", [0.0, 1.5])
def test_ilisi_is_its_definition(separation):
    rng = np.random.default_rng(0)
    batches = rng.integers(0, 3, size=120)
    embedding_cz = rng.normal(size=(120, 4)) + separation * (batches == 1)[:, None]
    expected = ilisi_cell_by_cell(embedding_cz, batches, n_neighbors=30)
    assert ilisi(embedding_cz, batches, n_neighbors=30) == pytest.approx(expected, abs=1e-6)
    # Scale and position do not matter.
    assert ilisi(1e-3 * embedding_cz + 7, batches, n_neighbors=30) == pytest.approx(expected, abs=1e-6)


def test_ilisi_between_one_and_the_number_of_batches():
    rng = np.random.default_rng(0)
    embedding_cz, batches = rng.normal(size=(600, 3)), np.tile(["a", "b", "c"], 200)
    assert 2.6 < ilisi(embedding_cz, batches) < 3
    assert ilisi(embedding_cz + 100 * (batches == "a")[:, None] - 100 * (batches == "b")[:, None], batches) == 1
    # With batches of different sizes, the maximum is 1 / (.8² + .1² + .1²).
    uneven = np.tile(["a"] * 8 + ["b", "c"], 60)
    assert ilisi(embedding_cz, uneven) == pytest.approx(1 / 0.66, abs=0.1)


def test_ilisi_where_all_cells_are_in_one_place():
    # All distances are zero, so all neighbors get equal weights.
    batches = np.repeat(["a", "b"], 50)
    assert 1 <= ilisi(np.zeros((100, 2)), batches) <= 2


def test_ilisi_of_wrong_input(blobs):
    embedding_cz, labels = blobs
    with raises(ValueError, naming=["batches", "119", "120"]):
        ilisi(embedding_cz, labels[:-1])
    with raises(ValueError, naming=["batches", "1 of 120", "row 3"]):
        ilisi(embedding_cz, pd.Series(labels).where(np.arange(120) != 3))
    with raises(ValueError, naming=["batches", "1"]):
        ilisi(embedding_cz, np.repeat("one", 120))
    with raises(ValueError, naming=["n_neighbors", "120"]):
        ilisi(embedding_cz, labels, n_neighbors=120)
    with raises(ValueError, naming=["n_neighbors", "5", "6"]):
        ilisi(embedding_cz, labels, n_neighbors=5)
    with raises(ValueError, naming=["embedding_cz", "1 of 120", "row 0"]):
        ilisi(np.where(np.arange(120)[:, None] == 0, np.nan, embedding_cz), labels)


# --- Agreement of two embeddings --------------------------------------------------------------------------------------


def test_foscttm_of_known_places():
    x_cz = np.arange(50.0)[:, None]
    assert foscttm(x_cz, x_cz) == 0
    # Two swapped cells: the other one is always closer.
    assert foscttm([[0.0], [1.0]], [[1.0], [0.0]]) == 1
    # Shifted by one: all cells but the first have a closer one, and all but the first two have a tie (counts half).
    assert foscttm(x_cz, x_cz + 1) == pytest.approx((49 + 48 / 2) / (50 * 49))
    # An embedding at a single point scores as chance.
    assert foscttm(x_cz, np.full((50, 1), 3.3)) == 0.5
    assert foscttm(np.full((50, 1), 3.3), np.full((50, 1), 3.3)) == 0.5


def test_foscttm_properties():
    rng = np.random.default_rng(0)
    x_cz = rng.normal(size=(300, 3))
    y_cz = x_cz + rng.normal(size=(300, 3))
    result = foscttm(x_cz, y_cz)
    assert type(result) is float
    assert 0.02 < result < 0.3
    assert foscttm(y_cz, x_cz) == pytest.approx(result, abs=1e-12)
    # The same transformation of both, or another order of cells, does not change the result.
    rotation_zz = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert foscttm(5 * x_cz @ rotation_zz + 2, 5 * y_cz @ rotation_zz + 2) == pytest.approx(result, abs=1e-4)
    order = rng.permutation(300)
    assert foscttm(x_cz[order], y_cz[order]) == pytest.approx(result, abs=1e-12)
    assert foscttm(x_cz, rng.normal(size=(300, 3))) == pytest.approx(0.5, abs=0.05)


def test_foscttm_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x_cz, y_cz = rng.normal(size=(2, 50, 3))
    at_once = foscttm(x_cz, y_cz)
    for entries in (1, 7 * 50):  # one row per block; blocks that do not divide the rows evenly
        monkeypatch.setattr(embedding, "_BLOCK_ENTRIES", entries)
        assert foscttm(x_cz, y_cz) == at_once


def test_foscttm_of_wrong_input():
    x_cz = np.zeros((4, 2))
    with raises(ValueError, naming=["x_cz", "(4, 2)", "y_cz", "(3, 2)"]):
        foscttm(x_cz, x_cz[:3])
    with raises(ValueError, naming=["x_cz", "1"]):
        foscttm(x_cz[:1], x_cz[:1])
    with raises(ValueError, naming=["y_cz", "4 of 4"]):
        foscttm(x_cz, x_cz + np.nan)
    with raises(TypeError, naming=["y_cz", "<U1"]):
        foscttm(x_cz, np.full((4, 2), "a"))
