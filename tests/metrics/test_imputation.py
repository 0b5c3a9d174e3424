"""Metrics of imputation in each cell: known ranks, scikit-learn and numpy as references, and bad input."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.metrics import roc_auc_score

from celldial.metrics import auroc_per_cell, pearson_per_cell
from helpers.raises import raises

METRICS = [auroc_per_cell, pearson_per_cell]


@pytest.fixture(scope="module")
def imputed() -> tuple[np.ndarray, np.ndarray]:
    """Return sparse counts, and predictions with many ties."""
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
    # Only the order matters, and the reverse order gives one minus the result.
    np.testing.assert_allclose(auroc_per_cell(observed_cf, np.exp(predicted_cf) - 5), expected_c, atol=1e-12)
    np.testing.assert_allclose(auroc_per_cell(observed_cf, -predicted_cf), 1 - np.array(expected_c), atol=1e-12)


def test_pearson_is_the_correlation(imputed):
    observed_cf, predicted_cf = imputed
    expected_c = [np.corrcoef(x_f, y_f)[0, 1] for x_f, y_f in zip(observed_cf, predicted_cf, strict=True)]
    np.testing.assert_allclose(pearson_per_cell(observed_cf, predicted_cf), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, 3 * predicted_cf + 7), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, 1e-200 * predicted_cf), expected_c, atol=1e-12)
    np.testing.assert_allclose(pearson_per_cell(observed_cf, -predicted_cf), -np.array(expected_c), atol=1e-12)


def test_pearson_of_constant_cells():
    # In floating point, the mean of .1, .1 and .1 is not .1.
    pearson_c = pearson_per_cell([[1, 2, 3], [0, 0, 0], [3, 2, 1]], [[0.1, 0.1, 0.1], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(np.isnan(pearson_c), [True, True, False])
    assert pearson_c[2] == pytest.approx(-1)


@pytest.mark.parametrize("metric", METRICS)
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


@pytest.mark.parametrize("metric", METRICS)
def test_cells_are_independent(metric, imputed):
    observed_cf, predicted_cf = imputed
    order = np.random.default_rng(1).permutation(len(observed_cf))
    np.testing.assert_array_equal(metric(observed_cf[order], predicted_cf[order]), metric(*imputed)[order])
    assert metric(observed_cf[:0], predicted_cf[:0]).shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_predictions(metric, imputed):
    observed_cf, predicted_cf = imputed
    with raises(ValueError, naming=["observed_cf", "(30, 40)", "predicted_cf", "(40, 30)"]):
        metric(observed_cf, predicted_cf.T)
    with raises(ValueError, naming=["predicted_cf", "(40,)"]):
        metric(observed_cf, predicted_cf[0])
    with raises(TypeError, naming=["predicted_cf", "sparse"]):
        metric(observed_cf, csr_matrix(predicted_cf))
    with raises(TypeError, naming=["observed_cf", "<U1"]):
        metric(np.full((30, 40), "a"), predicted_cf)
    broken_cf = predicted_cf.copy()
    broken_cf[[2, 5], 0] = np.nan
    with raises(ValueError, naming=["predicted_cf", "2 of 30", "row 2"]):
        metric(observed_cf, broken_cf)
    with raises(ValueError, naming=["observed_cf", "2 of 30", "row 2"]):
        metric(csr_matrix(broken_cf), predicted_cf)
