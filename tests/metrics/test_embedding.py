import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.metrics import roc_auc_score

from celldial import metrics
from celldial.metrics import auroc_per_cell, foscttm, ilisi, knn_f1, leiden_nmi, pearson_per_cell

METRICS = [leiden_nmi, knn_f1]
PER_CELL = [auroc_per_cell, pearson_per_cell]


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Three types, far apart."""
    labels = np.repeat(["B", "NK", "T"], [40, 30, 50])
    center_cz = 50 * (labels[:, None] == np.unique(labels)[None, :])
    return np.random.default_rng(0).normal(size=(120, 3)) + center_cz, labels


@pytest.fixture(scope="module")
def pbmc_pca() -> tuple[np.ndarray, pd.Series]:
    """Ten principal components of the bundled blood cells, and their types."""
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
def test_leiden_nmi_of_many_cells_that_cannot_be_written_to():
    """Above 8,192 cells scanpy finds neighbors by pynndescent, which writes to what it is given."""
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
    # Categories in another order, and an index that is not the embedding's.
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
    rare[:9] = "rare"  # among the B cells: each prediction of these would be wrong
    assert knn_f1(embedding_cz, rare) == 1.0
    assert knn_f1(embedding_cz, rare, min_cells=5) < 0.9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_embedding(metric, value, blobs):
    embedding_cz, labels = blobs[0].copy(), blobs[1]
    embedding_cz[7, 1] = embedding_cz[9, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite values in 2 of 120 cells, the first in row 7"):
        metric(embedding_cz, labels)


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_input(metric, blobs):
    embedding_cz, labels = blobs
    with pytest.raises(ValueError, match="`labels` has 119 entries, `embedding_cz` has 120 rows"):
        metric(embedding_cz, labels[:-1])
    with pytest.raises(ValueError, match=r"shape \(120,\); it must be a matrix"):
        metric(embedding_cz[:, 0], labels)
    with pytest.raises(ValueError, match=r"shape \(120, 0\)"):
        metric(embedding_cz[:, :0], labels)
    with pytest.raises(TypeError, match="complex128; it must hold real numbers"):
        metric(embedding_cz.astype(complex), labels)
    with pytest.raises(ValueError, match="missing for 1 of 120 cells, the first in row 3"):
        metric(embedding_cz, pd.Series(labels).where(np.arange(120) != 3))
    with pytest.raises(ValueError, match="`n_neighbors` is 1"):
        metric(embedding_cz, labels, n_neighbors=1)
    with pytest.raises(ValueError, match="`n_neighbors` is 120, too many"):
        metric(embedding_cz, labels, n_neighbors=120)


def test_wrong_options(blobs):
    with pytest.raises(ValueError, match="`resolutions` is empty"):
        leiden_nmi(*blobs, resolutions=[])
    with pytest.raises(ValueError, match="`n_splits` is 1"):
        knn_f1(*blobs, n_splits=1)
    with pytest.raises(ValueError, match="`min_cells` is 3, less than `n_splits`, 5"):
        knn_f1(*blobs, min_cells=3)
    with pytest.raises(ValueError, match=r"Of 3 types, 1 have at least `min_cells` = 45"):
        knn_f1(*blobs, min_cells=45)


# --- Mixing of batches ------------------------------------------------------------------------------------------------


def ilisi_cell_by_cell(embedding_cz: np.ndarray, batches: np.ndarray, n_neighbors: int) -> float:
    """The index from its definition, one cell after the other."""
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
    # Neither scale nor place matter.
    assert ilisi(1e-3 * embedding_cz + 7, batches, n_neighbors=30) == pytest.approx(expected, abs=1e-6)


def test_ilisi_between_one_and_the_number_of_batches():
    rng = np.random.default_rng(0)
    embedding_cz, batches = rng.normal(size=(600, 3)), np.tile(["a", "b", "c"], 200)
    assert 2.6 < ilisi(embedding_cz, batches) < 3
    assert ilisi(embedding_cz + 100 * (batches == "a")[:, None] - 100 * (batches == "b")[:, None], batches) == 1
    # Fewer of one batch: 1 / (.8² + .1² + .1²) is the best there can be.
    uneven = np.tile(["a"] * 8 + ["b", "c"], 60)
    assert ilisi(embedding_cz, uneven) == pytest.approx(1 / 0.66, abs=0.1)


def test_ilisi_where_all_cells_are_in_one_place():
    # All distances are zero, no weights have the perplexity: the others then weigh the same.
    batches = np.repeat(["a", "b"], 50)
    assert 1 <= ilisi(np.zeros((100, 2)), batches) <= 2


def test_ilisi_of_wrong_input(blobs):
    embedding_cz, labels = blobs
    with pytest.raises(ValueError, match="`batches` has 119 entries"):
        ilisi(embedding_cz, labels[:-1])
    with pytest.raises(ValueError, match="`batches` is missing for 1 of 120 cells, the first in row 3"):
        ilisi(embedding_cz, pd.Series(labels).where(np.arange(120) != 3))
    with pytest.raises(ValueError, match="`batches` has 1 different values"):
        ilisi(embedding_cz, np.repeat("one", 120))
    with pytest.raises(ValueError, match="`n_neighbors` is 120, too many"):
        ilisi(embedding_cz, labels, n_neighbors=120)
    with pytest.raises(ValueError, match="`n_neighbors` is 5; at least 6"):
        ilisi(embedding_cz, labels, n_neighbors=5)
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 120 cells, the first in row 0"):
        ilisi(np.where(np.arange(120)[:, None] == 0, np.nan, embedding_cz), labels)


# --- Agreement of two embeddings --------------------------------------------------------------------------------------


def test_foscttm_of_known_places():
    x_cz = np.arange(50.0)[:, None]
    assert foscttm(x_cz, x_cz) == 0
    # Two cells that have changed places: the other one is always closer.
    assert foscttm([[0.0], [1.0]], [[1.0], [0.0]]) == 1
    # Shifted by one: all but the first have a closer one, and all but the first two a tie, which counts half.
    assert foscttm(x_cz, x_cz + 1) == pytest.approx((49 + 48 / 2) / (50 * 49))
    # All in one place is no agreement.
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
    # The same motion of both changes nothing, nor does another order of the cells.
    rotation_zz = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert foscttm(5 * x_cz @ rotation_zz + 2, 5 * y_cz @ rotation_zz + 2) == pytest.approx(result, abs=1e-4)
    order = rng.permutation(300)
    assert foscttm(x_cz[order], y_cz[order]) == pytest.approx(result, abs=1e-12)
    assert foscttm(x_cz, rng.normal(size=(300, 3))) == pytest.approx(0.5, abs=0.05)


def test_foscttm_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x_cz, y_cz = rng.normal(size=(2, 50, 3))
    whole = foscttm(x_cz, y_cz)
    for entries in (1, 7 * 50):  # one row a block; blocks that do not divide the rows
        monkeypatch.setattr(metrics, "_BLOCK_ENTRIES", entries)
        assert foscttm(x_cz, y_cz) == whole


def test_foscttm_of_wrong_input():
    x_cz = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"`x_cz` has shape \(4, 2\), `y_cz` has \(3, 2\)"):
        foscttm(x_cz, x_cz[:3])
    with pytest.raises(ValueError, match="`x_cz` has 1 cells"):
        foscttm(x_cz[:1], x_cz[:1])
    with pytest.raises(ValueError, match="`y_cz` has NaN or infinite values in 4 of 4 cells"):
        foscttm(x_cz, x_cz + np.nan)
    with pytest.raises(TypeError, match="`y_cz` is of dtype <U1"):
        foscttm(x_cz, np.full((4, 2), "a"))


# --- Imputation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imputed() -> tuple[np.ndarray, np.ndarray]:
    """Counts, mostly zeros, and predictions of them with many ties."""
    rng = np.random.default_rng(0)
    rate_cf = rng.gamma(0.5, size=(30, 40))
    return rng.poisson(rate_cf).astype(np.float32), rate_cf.round(1)


def test_auroc_of_known_ranks():
    observed_cf = [[0, 0, 2, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 2, 3, 4]]
    predicted_cf = np.tile([0.1, 0.2, 0.3, 0.4], (6, 1))
    predicted_cf[3] = 0.7
    auroc_c = auroc_per_cell(observed_cf, predicted_cf)
    np.testing.assert_array_equal(auroc_c, [1, 0, 0, 0.5, np.nan, np.nan])


def test_auroc_is_the_area_under_the_curve(imputed):
    observed_cf, predicted_cf = imputed
    expected_c = [roc_auc_score(row_f > 0, score_f) for row_f, score_f in zip(observed_cf, predicted_cf, strict=True)]
    np.testing.assert_allclose(auroc_per_cell(observed_cf, predicted_cf), expected_c, atol=1e-12)
    # Only the order counts; upside down, it is one minus.
    np.testing.assert_allclose(auroc_per_cell(observed_cf, np.exp(predicted_cf) - 5), expected_c, atol=1e-12)
    np.testing.assert_allclose(auroc_per_cell(observed_cf, -predicted_cf), 1 - np.array(expected_c), atol=1e-12)


def test_pearson_is_the_correlation(imputed):
    observed_cf, predicted_cf = imputed
    expected_c = [np.corrcoef(x_f, y_f)[0, 1] for x_f, y_f in zip(observed_cf, predicted_cf, strict=True)]
    np.testing.assert_allclose(pearson_per_cell(observed_cf, predicted_cf), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, 3 * predicted_cf + 7), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, 1e-200 * predicted_cf), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, -predicted_cf), -np.array(expected_c), atol=1e-12)


def test_pearson_of_what_is_constant():
    # The mean of three times .1 is not .1.
    pearson_c = pearson_per_cell([[1, 2, 3], [0, 0, 0], [3, 2, 1]], [[0.1, 0.1, 0.1], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(np.isnan(pearson_c), [True, True, False])
    assert pearson_c[2] == pytest.approx(-1)


@pytest.mark.parametrize("metric", PER_CELL)
def test_sparse_measurements_give_the_same(metric, imputed):
    observed_cf, predicted_cf = imputed
    dense_c = metric(observed_cf, predicted_cf)
    assert dense_c.dtype == np.float64
    with_stored_zeros = csr_matrix(observed_cf)
    with_stored_zeros.data[::3] = 0
    expected_c = metric(with_stored_zeros.toarray(), predicted_cf)
    np.testing.assert_array_equal(metric(with_stored_zeros, predicted_cf), expected_c)
    np.testing.assert_array_equal(metric(csr_matrix(observed_cf), predicted_cf), dense_c)
    np.testing.assert_array_equal(metric(coo_matrix(observed_cf), pd.DataFrame(predicted_cf)), dense_c)


@pytest.mark.parametrize("metric", PER_CELL)
def test_cells_are_independent(metric, imputed):
    observed_cf, predicted_cf = imputed
    order = np.random.default_rng(1).permutation(len(observed_cf))
    np.testing.assert_array_equal(metric(observed_cf[order], predicted_cf[order]), metric(*imputed)[order])
    assert metric(observed_cf[:0], predicted_cf[:0]).shape == (0,)


@pytest.mark.parametrize("metric", PER_CELL)
def test_wrong_predictions(metric, imputed):
    observed_cf, predicted_cf = imputed
    with pytest.raises(ValueError, match=r"`observed_cf` has shape \(30, 40\), `predicted_cf` has \(40, 30\)"):
        metric(observed_cf, predicted_cf.T)
    with pytest.raises(ValueError, match=r"`predicted_cf` has shape \(40,\)"):
        metric(observed_cf, predicted_cf[0])
    with pytest.raises(TypeError, match="`predicted_cf` is sparse"):
        metric(observed_cf, csr_matrix(predicted_cf))
    with pytest.raises(TypeError, match="`observed_cf` is of dtype <U1"):
        metric(np.full((30, 40), "a"), predicted_cf)
    broken_cf = predicted_cf.copy()
    broken_cf[[2, 5], 0] = np.nan
    with pytest.raises(
        ValueError, match="`predicted_cf` has NaN or infinite values in 2 of 30 cells, the first in row 2"
    ):
        metric(observed_cf, broken_cf)
    with pytest.raises(
        ValueError, match="`observed_cf` has NaN or infinite values in 2 of 30 cells, the first in row 2"
    ):
        metric(csr_matrix(broken_cf), predicted_cf)
