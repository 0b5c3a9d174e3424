"""Search for a circle without markers: found in cycling cells, and not in others."""

import numpy as np
import pytest
from scipy import sparse

from celldial.metrics.circular import fisher_lee
from celldial.periodic.unsupervised import MIN_CIRCULARITY, discover_angles
from helpers.raises import raises

N_CELLS, N_GENES = 300, 120


def drawn(seed: int, cycles: bool) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Return log expression, batch and angle of two cell types and two batches; 40 genes cycle, if `cycles`."""
    rng = np.random.default_rng(seed)
    angle_c = rng.uniform(0, 2 * np.pi, N_CELLS)
    type_c, batch_c = rng.integers(2, size=(2, N_CELLS))
    logged_cf = 2 + rng.normal(0, 0.5, (N_CELLS, N_GENES))
    logged_cf += np.outer(batch_c, rng.normal(0, 0.3, N_GENES))
    logged_cf[:, 40:80] += np.outer(type_c, rng.normal(0, 1.5, 40))
    if cycles:
        logged_cf[:, :40] += np.cos(angle_c[:, None] - rng.uniform(0, 2 * np.pi, 40))
    return sparse.csr_matrix(np.maximum(logged_cf, 0)), batch_c, angle_c


@pytest.fixture(scope="module")
def found():
    logged_cf, batch_c, angle_c = drawn(0, cycles=True)
    return discover_angles(logged_cf, batch_c), angle_c


def test_a_circle_is_found_despite_cell_types_and_batches(found) -> None:
    (estimate, _, circularity), angle_c = found
    assert abs(fisher_lee(estimate.angle_c, angle_c)) > 0.95
    assert circularity > 5 * MIN_CIRCULARITY
    assert ((estimate.resultant_length_c > 0) & (estimate.resultant_length_c <= 1)).all()


def test_all_cells_are_active(found) -> None:
    assert (found[0][0].active_c == 1).all()


def test_genes_that_follow_the_circle_are_selected(found) -> None:
    assert (found[0][1] < 40).all()


def test_zero_is_where_cells_are_most_frequent() -> None:
    logged_cf, batch_c, angle_c = drawn(1, cycles=True)
    kept = np.cos(angle_c - 1) > np.random.default_rng(0).uniform(-1, 1, N_CELLS)
    angle = discover_angles(logged_cf[kept], batch_c[kept])[0].angle_c
    assert np.angle(np.exp(1j * angle).mean()) == pytest.approx(0, abs=0.5)


def test_results_are_reproducible(found) -> None:
    logged_cf, batch_c, _ = drawn(0, cycles=True)
    again = discover_angles(logged_cf, batch_c)
    assert np.array_equal(found[0][0].angle_c, again[0].angle_c)


def test_angles_of_all_cells_are_inferred_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celldial.periodic.unsupervised.MAX_SEARCH_CELLS", 200)
    logged_cf, batch_c, angle_c = drawn(0, cycles=True)
    estimate = discover_angles(logged_cf, batch_c)[0]
    assert abs(fisher_lee(estimate.angle_c, angle_c)) > 0.9


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_cell_types_and_batches_alone_are_not_a_circle(seed: int) -> None:
    logged_cf, batch_c, _ = drawn(seed, cycles=False)
    assert discover_angles(logged_cf, batch_c)[2] < MIN_CIRCULARITY


@pytest.mark.slow
def test_two_independent_programs_are_not_a_circle() -> None:
    logged_cf, batch_c, _ = drawn(0, cycles=False)
    rng = np.random.default_rng(1)
    dense_cf = logged_cf.toarray()
    dense_cf[:, :40] += rng.normal(0, 1, (N_CELLS, 2))[:, np.arange(40) % 2] * rng.choice([-1, 1], 40)
    assert discover_angles(sparse.csr_matrix(np.maximum(dense_cf, 0)), batch_c)[2] < MIN_CIRCULARITY


def test_too_few_features_are_an_error() -> None:
    logged_cf, batch_c, _ = drawn(0, cycles=True)
    with raises(ValueError, naming=[5]):
        discover_angles(logged_cf[:, :5], batch_c)
