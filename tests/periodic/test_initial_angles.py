"""Initial angles of cells with known Fourier series, log normalization, and cells at rest."""

import math

import numpy as np
import pytest
from scipy import sparse

from celldial.metrics.circular import angular_error, fisher_lee
from celldial.periodic import initial_angles
from celldial.periodic.expression import log_normalize
from celldial.periodic.markers import CELL_CYCLE

N_CELLS = 400
TURN = 2 * math.pi
PEAK = CELL_CYCLE.peak_angle


def simulate(
    n_markers: int = 12, n_others: int = 0, n_typed: int = 0, noise: float = 0.5, seed: int = 0
) -> tuple[sparse.csr_matrix, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Simulate log expression of markers of S and G2M, of other cycling genes, and of genes of three cell types."""
    random = np.random.default_rng(seed)
    angle_c, type_c = random.uniform(0, TURN, N_CELLS), random.integers(3, size=N_CELLS)
    peak_f = np.concatenate(
        [*(PEAK[phase] + random.normal(0, 0.3, n_markers) for phase in ("S", "G2M")), random.uniform(0, TURN, n_others)]
    )
    cycling_cf = 2 + 0.8 * np.cos(angle_c[:, None] - peak_f)
    typed_cf = 2 + random.normal(0, 1, (3, n_typed))[type_c]
    value_cf = np.hstack([cycling_cf, typed_cf])
    value_cf += random.normal(0, noise, value_cf.shape)
    markers = {"S": np.arange(n_markers), "G2M": n_markers + np.arange(n_markers)}
    return sparse.csr_matrix(np.maximum(value_cf, 0)), markers, angle_c, type_c


# --- Initial angles ---------------------------------------------------------------------------------------------------


def test_angles_of_fourier_series_are_recovered() -> None:
    logged_cf, markers, angle_c, _ = simulate()
    estimate, gene_f = initial_angles.initial_angles(logged_cf, np.ones(N_CELLS), markers, CELL_CYCLE)
    assert gene_f.tolist() == list(range(24))
    assert ((estimate.angle_c >= 0) & (estimate.angle_c < TURN)).all()
    assert ((estimate.resultant_length_c >= 0) & (estimate.resultant_length_c <= 1 + 1e-6)).all()
    np.testing.assert_allclose(estimate.active_c, 1, atol=1e-6)
    assert fisher_lee(estimate.angle_c, angle_c) > 0.8
    # Also without a rotation, because the markers determine direction and zero.
    assert np.abs(np.angle(np.exp(1j * (estimate.angle_c - angle_c)))).mean() < 0.6


def test_genes_that_follow_the_angle_make_it_more_precise() -> None:
    logged_cf, markers, angle_c, _ = simulate(n_markers=6, n_others=150, noise=1.2)
    alone, _ = initial_angles.initial_angles(logged_cf[:, :12], np.ones(N_CELLS), markers, CELL_CYCLE)
    estimate, gene_f = initial_angles.initial_angles(logged_cf, np.ones(N_CELLS), markers, CELL_CYCLE)
    assert len(gene_f) > 12
    assert set(range(12)) <= set(gene_f.tolist())
    assert angular_error(estimate.angle_c, angle_c) < 0.7 * angular_error(alone.angle_c, angle_c)


def test_genes_that_follow_cell_types_are_not_selected() -> None:
    logged_cf, markers, angle_c, type_c = simulate(n_typed=600, noise=1.0)
    estimate, gene_f = initial_angles.initial_angles(logged_cf, np.ones(N_CELLS), markers, CELL_CYCLE)
    alone, _ = initial_angles.initial_angles(logged_cf[:, :24], np.ones(N_CELLS), markers, CELL_CYCLE)
    assert len(gene_f) < 100
    assert angular_error(estimate.angle_c, angle_c) < angular_error(alone.angle_c, angle_c) + 0.05
    by_type = [abs(np.exp(1j * (estimate.angle_c - angle_c))[type_c == name].mean()) for name in range(3)]
    assert min(by_type) > 0.6


def test_angles_of_active_cells_are_recovered_among_resting_cells() -> None:
    logged_cf, markers, angle_c, _ = simulate(noise=0.3)
    active_c = np.arange(N_CELLS) >= 100
    values_cf = logged_cf.toarray()
    values_cf[~active_c] = np.random.default_rng(1).normal(0.3, 0.3, (100, 24)).clip(0)
    first_c = np.where(active_c, 0.95, 0.05)
    estimate, _ = initial_angles.initial_angles(sparse.csr_matrix(values_cf), first_c, markers, CELL_CYCLE)
    np.testing.assert_array_equal(estimate.active_c, first_c)
    assert fisher_lee(estimate.angle_c[active_c], angle_c[active_c]) > 0.5


def test_angles_of_all_cells_are_inferred_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    logged_cf, markers, angle_c, _ = simulate()
    monkeypatch.setattr(initial_angles, "MAX_FIT_CELLS", 150)
    estimate, _ = initial_angles.initial_angles(logged_cf, np.ones(N_CELLS), markers, CELL_CYCLE)
    assert len(estimate.angle_c) == len(estimate.resultant_length_c) == len(estimate.active_c) == N_CELLS
    assert fisher_lee(estimate.angle_c, angle_c) > 0.75


def test_two_markers_per_phase_are_enough() -> None:
    logged_cf, markers, angle_c, _ = simulate(n_markers=2, n_others=20, noise=0.2)
    estimate, gene_f = initial_angles.initial_angles(logged_cf, np.ones(N_CELLS), markers, CELL_CYCLE)
    assert gene_f.tolist() == [0, 1, 2, 3]
    assert fisher_lee(estimate.angle_c, angle_c) > 0.5


def test_log_normalization() -> None:
    counts_cf = sparse.csr_matrix(np.array([[2.0, 0, 2], [1, 1, 0], [0, 8, 0], [0, 0, 0]]))
    found_cf = log_normalize(counts_cf, np.array([4.0, 2, 8, 0])).toarray()
    np.testing.assert_allclose(found_cf, np.log1p([[2, 0, 2], [2, 2, 0], [0, 4, 0], [0, 0, 0]]))


# --- Cells at rest ----------------------------------------------------------------------------------------------------


def counts_of_markers(resting_share: float) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    resting_c = random.random(N_CELLS) < resting_share
    rate_c = np.where(resting_c, 0.2, random.uniform(20, 60, N_CELLS))
    counts_cf = np.column_stack([random.poisson(rate_c[:, None] / 10, (N_CELLS, 10)), np.full(N_CELLS, 500)])
    return sparse.csr_matrix(counts_cf.astype(float)), counts_cf.sum(1), resting_c


MARKERS = {"S": np.arange(5), "G2M": np.arange(5, 10)}


def test_cells_without_counts_of_markers_are_at_rest() -> None:
    counts_cf, library_size_c, resting_c = counts_of_markers(0.4)
    active_c = initial_angles.initial_activity(counts_cf, library_size_c, MARKERS)
    np.testing.assert_array_equal(active_c < 0.5, resting_c)
    # Their fraction of the counts is decisive.
    deeper_c = initial_angles.initial_activity(counts_cf * 3, library_size_c * 3, MARKERS)
    np.testing.assert_array_equal(deeper_c < 0.5, resting_c)


def test_if_almost_no_cell_rests_all_are_active() -> None:
    counts_cf, library_size_c, _ = counts_of_markers(0.0)
    np.testing.assert_array_equal(initial_angles.initial_activity(counts_cf, library_size_c, MARKERS), 1)
