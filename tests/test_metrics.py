import numpy as np
import pandas as pd
import pytest

from celldial.metrics import knn_f1, leiden_nmi

METRICS = [leiden_nmi, knn_f1]


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
