"""Direction and rotation of a circle from the peaks of genes: closed forms, order, open directions and false alarms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celldial.periodic.direction import GenePeaks, estimate_peaks, infer_direction, warps
from celldial.periodic.markers import CELL_CYCLE, find_reference_genes
from celldial.periodic.reference_peaks import CYCLEBASE, REFERENCE_PERCENT, STAGE_PERCENT, STAGES

TURN = 2 * np.pi
KNOTS = CELL_CYCLE.knots
REFERENCE = np.array(list(CELL_CYCLE.reference.values()))


def draw_peaks(seed: int, n_genes: int = 40, error: float = 0.3, warp: tuple[float, ...] = KNOTS) -> GenePeaks:
    """Draw the peaks of some genes, whose reference is warped, with errors."""
    random = np.random.default_rng(seed)
    reference_g = random.choice(REFERENCE, n_genes, replace=False)
    peak_g = (np.interp(reference_g, KNOTS, warp) + random.normal(0, error, n_genes)) % TURN
    return GenePeaks(peak_g, np.full(n_genes, 20.0), reference_g)


def turned(peaks: GenePeaks, sign: int = 1, by: float = 0.0) -> GenePeaks:
    return GenePeaks((sign * peaks.peak_g + by) % TURN, peaks.information_g, peaks.reference_g)


def test_the_reference_has_genes_all_around_the_published_part_of_the_cycle() -> None:
    assert len(REFERENCE_PERCENT) >= 200
    assert not set(CYCLEBASE) & {gene for genes in STAGES.values() for gene in genes}
    assert set(STAGES) == set(STAGE_PERCENT)
    assert all(gene in REFERENCE_PERCENT for genes in CELL_CYCLE.markers.values() for gene in genes)
    order = [REFERENCE_PERCENT[gene] for gene in ("CCNE1", "PCNA", "RRM2", "CDK1", "TOP2A", "CCNB1", "CDC20")]
    assert order == sorted(order)


def test_positions_keep_their_order_and_the_lists_their_angles() -> None:
    angles = [CELL_CYCLE.reference[gene] for gene in sorted(REFERENCE_PERCENT, key=REFERENCE_PERCENT.__getitem__)]
    assert np.diff(angles).min() >= 0
    for phase, genes in CELL_CYCLE.markers.items():
        median = np.median([CELL_CYCLE.reference[gene] for gene in genes])
        assert median == pytest.approx(CELL_CYCLE.peak_angle[phase], abs=0.05)


def test_genes_are_found_by_old_and_new_names_in_any_case() -> None:
    symbols = ["Gapdh", "Pcna", "H4C3", "Hist1h4c", "CIP2A"]
    column_g, angle_g = find_reference_genes(CELL_CYCLE, symbols, np.ones(5, dtype=bool))
    assert dict(zip(column_g.tolist(), angle_g.tolist(), strict=True)) == {
        1: CELL_CYCLE.reference["PCNA"],
        3: CELL_CYCLE.reference["HIST1H4C"],
        4: CELL_CYCLE.reference["KIAA1524"],
    }


@settings(max_examples=8)
@given(sign=st.sampled_from([1, -1]), by=st.floats(-7, 7), seed=st.integers(0, 1000))
def test_any_rotation_and_reflection_is_undone(sign: int, by: float, seed: int) -> None:
    found = infer_direction(turned(draw_peaks(seed), sign, by), KNOTS)
    assert found.is_reflected == (sign < 0)
    assert max(found.probability, 1 - found.probability) > 0.95
    assert np.cos(found.rotation + sign * by) > np.cos(0.25)


def test_the_probability_of_the_reflected_circle_is_the_complement() -> None:
    peaks = draw_peaks(0, n_genes=8, error=1.0)
    forward, backward = (infer_direction(turned(peaks, sign), KNOTS).probability for sign in (1, -1))
    assert forward + backward == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_order_within_groups_decides_if_g1_is_short(seed: int) -> None:
    """The groups of S and of G2M are half a turn apart."""
    short = (0.0, 0.5, 2.0, 3.9, TURN)
    assert infer_direction(draw_peaks(seed, 60, 0.25, short), KNOTS).probability > 0.95


def test_two_points_half_a_turn_apart_have_no_direction() -> None:
    reference_g = np.repeat([CELL_CYCLE.peak_angle["S"], CELL_CYCLE.peak_angle["G2M"]], 20)
    peak_g = np.repeat([1.0, 1.0 + np.pi], 20)
    assert 0.05 < infer_direction(GenePeaks(peak_g, np.full(40, 20.0), reference_g), KNOTS).probability < 0.95


def test_random_peaks_leave_the_direction_open() -> None:
    random = np.random.default_rng(0)
    peaks = [GenePeaks(random.uniform(0, TURN, 60), np.full(60, 20.0), REFERENCE[:60]) for _ in range(20)]
    probabilities = np.array([infer_direction(each, KNOTS).probability for each in peaks])
    assert np.mean((probabilities > 0.95) | (probabilities < 0.05)) <= 0.1


def test_uninformative_genes_do_not_count() -> None:
    peaks = draw_peaks(0)
    found = infer_direction(GenePeaks(peaks.peak_g, np.full(40, 0.5), peaks.reference_g), KNOTS)
    assert (found.probability, found.rotation, found.n_genes) == (0.5, 0.0, 0)


def test_without_an_order_only_the_rotation_is_inferred() -> None:
    found = infer_direction(turned(draw_peaks(0), 1, 1.0), KNOTS, has_direction=False)
    assert found.probability == 0.5
    assert found.rotation == pytest.approx(-1, abs=0.25)


def test_warps_cover_the_circle_and_have_a_prior() -> None:
    log_prior_w, warp_wi = warps(np.array(KNOTS))
    assert np.exp(log_prior_w).sum() == pytest.approx(1)
    assert (np.diff(warp_wi, axis=1) > 0).all()
    assert np.exp(log_prior_w) @ warp_wi == pytest.approx(np.array(KNOTS), abs=0.2)


def test_peaks_of_waves_are_exact_and_their_information_is_the_inverse_variance() -> None:
    random = np.random.default_rng(0)
    angle_c = np.arange(400) * TURN / 400
    batch_c = np.arange(400) % 2
    peak_g = np.array([0.5, 2.0, 4.5])
    clean_cg = 0.7 * np.cos(angle_c[:, None] - peak_g) + 3 * batch_c[:, None]
    found = [
        estimate_peaks(clean_cg + random.normal(0, 1, clean_cg.shape), peak_g, angle_c, np.ones(400), batch_c)
        for _ in range(200)
    ]
    exact = estimate_peaks(clean_cg, peak_g, angle_c, np.ones(400), batch_c)
    np.testing.assert_allclose(exact.peak_g, peak_g, atol=1e-6)
    error_ng = np.angle(np.exp(1j * (np.array([each.peak_g for each in found]) - peak_g)))
    information = np.median([each.information_g for each in found])
    assert error_ng.var() == pytest.approx(1 / (2 * information), rel=0.2)


def test_a_flat_gene_has_no_information() -> None:
    angle_c = np.linspace(0, 6, 50)
    found = estimate_peaks(np.ones((50, 1)), np.zeros(1), angle_c, np.ones(50), np.zeros(50, dtype=int))
    assert found.information_g[0] == 0
