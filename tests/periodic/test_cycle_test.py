"""The test of whether there is a periodic process: cells with a cycle, without one, and too few genes."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from celldial.periodic.cycle_test import CycleTest, assess_process, permutation_test
from celldial.periodic.direction import GenePeaks
from celldial.periodic.expression import log_normalize
from celldial.periodic.markers import CELL_CYCLE, find_markers, find_reference_genes

GENES = [*CELL_CYCLE.markers["S"], *CELL_CYCLE.markers["G2M"]]
PEAK = np.array([CELL_CYCLE.reference[gene] for gene in GENES])


def assess(rate_cf: np.ndarray, random: np.random.Generator, genes: list[str] = GENES) -> CycleTest:
    counts_cf = csr_matrix(random.poisson(rate_cf).astype(float))
    counted_f = np.ones(len(genes), dtype=bool)
    logged_cf = log_normalize(counts_cf, np.full(len(rate_cf), 100.0))
    markers, reference = (find(CELL_CYCLE, genes, counted_f) for find in (find_markers, find_reference_genes))
    return assess_process(logged_cf, np.arange(len(rate_cf)) % 2, markers, reference, CELL_CYCLE)


def draw_rates(random: np.random.Generator, kind: str) -> np.ndarray:
    """Return the rates of genes in cells without a cycle: one type, three types, or markers that rise together."""
    level_kf = random.gamma(0.5, 1, (3, len(GENES)))
    if kind == "three types":
        return level_kf[random.integers(0, 3, 200)] * random.lognormal(0, 0.4, (200, 1))
    together_c = 4.0 ** (random.random(200) < 0.3) if kind == "rise together" else np.ones(200)
    return level_kf[0] * together_c[:, None]


def test_a_cycle_is_found() -> None:
    random = np.random.default_rng(0)
    angle_c = random.uniform(0, 2 * np.pi, 200)
    found = assess(np.exp(0.8 * np.cos(angle_c[:, None] - PEAK)), random)
    assert found.p_value < 0.001
    assert found.statistic > 0.6
    assert not found.is_rejected


@pytest.mark.parametrize("kind", ["one type", "three types", "rise together"])
def test_p_values_are_not_small_without_a_cycle(kind: str) -> None:
    p_values = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        p_values.append(assess(draw_rates(random, kind), random).p_value)
    assert np.median(p_values) > 0.1
    assert np.min(p_values) > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one type", "three types", "rise together"])
def test_p_values_are_uniform_without_a_cycle(kind: str) -> None:
    p_values = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        p_values.append(assess(draw_rates(random, kind), random).p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) < level + 0.15
    assert np.mean(np.array(p_values) <= 0.01) <= 0.05


def test_too_few_genes_are_not_tested() -> None:
    random = np.random.default_rng(0)
    few = [*GENES[:10], *GENES[43:53]]
    found = assess(np.ones((50, 20)), random, few)
    assert np.isnan(found.p_value)
    assert not found.is_rejected


def test_alignment_is_invariant_to_rotation_and_reflection() -> None:
    random = np.random.default_rng(0)
    reference_g = random.uniform(0, 6, 40)
    for sign, by in ((1, 0.0), (1, 2.0), (-1, 1.0)):
        found = permutation_test([GenePeaks((sign * reference_g + by) % (2 * np.pi), np.full(40, 5.0), reference_g)])
        assert found.statistic == pytest.approx(1)
        assert found.p_value == pytest.approx(1 / 2000)


def test_permutation_p_values_are_uniform_for_random_peaks() -> None:
    random = np.random.default_rng(0)
    p_values = [
        permutation_test(
            [GenePeaks(random.uniform(0, 6, 30), random.gamma(1, 5, 30), random.uniform(0, 6, 30))]
        ).p_value
        for _ in range(60)
    ]
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.1) < 0.2
