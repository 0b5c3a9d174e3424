"""Inference of kinetics: bins of cells, selection of genes, missing information, and the posterior."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from celldial.datasets import simulate_kinetics
from celldial.inference.kinetics.counts import N_BINS, CellCounts, angle_weights
from celldial.inference.kinetics.equations import angle_grid
from celldial.inference.kinetics.missing import missing_information
from celldial.inference.kinetics.mode import find_mode, information, log_joint
from celldial.inference.kinetics.parameters import Layout
from celldial.inference.kinetics.selection import periodic_p_values, select_genes
from celldial.inference.kinetics.variational import fit_posterior


def cells_of(adata, n_groups: int = 1) -> CellCounts:
    counts = [adata.layers[name].toarray() for name in ("unspliced", "spliced")]
    n_cells = adata.n_obs
    return CellCounts(
        torch.from_numpy(np.stack(counts).astype(float)),
        torch.from_numpy(np.tile(adata.obs["size"].to_numpy(), (2, 1))),
        torch.arange(n_cells) % n_groups,
        torch.zeros(n_cells, dtype=torch.long),
        n_groups,
        1,
    )


@pytest.fixture(scope="module")
def small():
    """Counts of six genes that cycle, and the true angles."""
    adata = simulate_kinetics(400, 6, 6, 1, depth=3)
    return cells_of(adata), torch.from_numpy(adata.obs["true_cell_cycle_angle"].to_numpy())


def test_weights_of_known_angles():
    angle_c = torch.tensor([0.0, 1.0, 2 * math.pi - 1e-6])
    weight_cj = angle_weights(angle_c)
    torch.testing.assert_close(weight_cj.sum(1), torch.ones(3, dtype=torch.float64))
    assert weight_cj[0, 0] == 1
    assert weight_cj[2, 0] > 0.99
    assert weight_cj[1] @ torch.arange(N_BINS).double() == pytest.approx(N_BINS / (2 * math.pi))


@pytest.mark.parametrize("length", [0.0, 0.3, 0.9, 0.98])
def test_weights_of_uncertain_angles_have_their_mean_and_length(length):
    weight_j = angle_weights(torch.tensor([2.0]), torch.tensor([length]))[0]
    mean = complex(weight_j @ angle_grid(N_BINS).cos(), weight_j @ angle_grid(N_BINS).sin())
    assert abs(mean) == pytest.approx(length, abs=1e-3)
    if length > 0:
        assert np.angle(mean) == pytest.approx(2.0, abs=1e-3)


def test_sums_of_equal_cells_have_the_score_of_the_cells(small):
    cells, angle_c = small
    cells = CellCounts(cells.counts_lcf, torch.ones_like(cells.size_lc), cells.group_c, cells.batch_c, 1, 1)
    bin_c = (angle_c / (2 * math.pi) * N_BINS).long()
    weight_cj = torch.nn.functional.one_hot(bin_c, N_BINS).double()
    theta_lf = torch.full((2, 6), 2.0, dtype=torch.float64)
    log_mean_lbjf = torch.randn(2, 1, N_BINS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    score_lbjf, weight_lbjf = cells.sum_in_bins(weight_cj, theta_lf).score_and_information(log_mean_lbjf)
    mean_lcf = log_mean_lbjf[:, 0, bin_c].exp()
    score_lcf = (cells.counts_lcf - mean_lcf) * 2 / (2 + mean_lcf)
    torch.testing.assert_close(score_lbjf[:, 0], torch.einsum("cj,lcf->ljf", weight_cj, score_lcf))
    expected = torch.einsum("cj,lcf->ljf", weight_cj, mean_lcf * 2 / (2 + mean_lcf))
    torch.testing.assert_close(weight_lbjf[:, 0], expected)


def test_inverse_dispersions_are_recovered():
    adata = simulate_kinetics(4000, 12, 0, 1, depth=6, seed=2)
    cells = cells_of(adata)
    weight_cj = torch.full((4000, N_BINS), 1 / N_BINS, dtype=torch.float64)
    mean_lf = cells.counts_lcf.sum(1) / cells.size_lc.sum(1, keepdim=True)
    theta_lf = cells.inverse_dispersion(mean_lf[:, None, None].log().expand(2, 1, N_BINS, 12), weight_cj)
    # Sizes that differ between layers add a little variance.
    truth_f = adata.var["inverse_dispersion"].to_numpy()
    assert np.corrcoef(np.log(truth_f), theta_lf[1].log())[0, 1] > 0.8


def test_genes_that_do_not_cycle_are_not_selected():
    adata = simulate_kinetics(800, 120, 20, 2, depth=2, seed=3)
    cells = cells_of(adata)
    weight_cj = angle_weights(torch.from_numpy(adata.obs["true_cell_cycle_angle"].to_numpy()))
    p_value_f = periodic_p_values(cells, weight_cj)
    assert stats.kstest(p_value_f[20:], "uniform").pvalue > 0.01
    chosen = select_genes(cells, weight_cj)
    assert set(range(20)) >= set(chosen.tolist())
    assert len(chosen) >= 18


def test_missing_information_is_the_covariance_of_the_score(small):
    cells, _ = small
    layout = Layout(1, 1, 6, 1, 1)
    random = torch.Generator().manual_seed(0)
    parameter_p = layout.prior()[0] + 0.1 * torch.randn(layout.n_parameters, dtype=torch.float64, generator=random)
    theta_lf = torch.full((2, 6), 2.0, dtype=torch.float64)
    # On three angles, polynomials of the second degree are all functions.
    part = CellCounts(cells.counts_lcf[:, :5], cells.size_lc[:, :5], cells.group_c[:5], cells.batch_c[:5], 1, 1)
    weight_cj = torch.zeros(5, N_BINS, dtype=torch.float64)
    for c in range(5):
        weight_cj[c, 8 * c + torch.tensor([0, 1, 3])] = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found_pp = missing_information(layout, part, parameter_p, weight_cj, theta_lf)

    def log_likelihood(parameter_p, c, j):
        log_mean_lf = layout.log_mean(*layout.split(parameter_p))[:, 0, j] + part.size_lc[:, c, None].log()
        value_lf = part.counts_lcf[:, c]
        return (value_lf * log_mean_lf - (value_lf + 2) * (log_mean_lf.exp() + 2).log()).sum()

    expected_pp = torch.zeros_like(found_pp)
    for c in range(5):
        index_j = weight_cj[c].nonzero()[:, 0]
        score_jp = torch.stack(
            [
                torch.autograd.functional.jacobian(lambda p, c=c, j=j: log_likelihood(p, c, j), parameter_p)
                for j in index_j
            ]
        )
        share_j = weight_cj[c, index_j]
        centered_jp = score_jp - share_j @ score_jp
        expected_pp += (centered_jp.T * share_j) @ centered_jp
    torch.testing.assert_close(found_pp, expected_pp, rtol=1e-5, atol=1e-6)


def test_the_mode_and_the_posterior(small):
    cells, angle_c = small
    layout = Layout(1, 1, 6, 1, 2)
    data = cells.sum_in_bins(angle_weights(angle_c), torch.full((2, 6), 3.0, dtype=torch.float64))
    mode_p = find_mode(layout, data, layout.initial(data)).requires_grad_()
    (gradient_p,) = torch.autograd.grad(log_joint(layout, data, mode_p), mode_p)
    precision_pp = information(layout, data, mode_p.detach())[2].to_dense()
    # The gradient is small relative to the uncertainty of the parameters.
    assert gradient_p @ torch.linalg.solve(precision_pp, gradient_p) < 0.05
    narrow, wide = (
        fit_posterior(layout, data, mode_p.detach(), torch.Generator().manual_seed(0), missing_pp)
        for missing_pp in (None, 0.5 * precision_pp)
    )
    covariance_pp, wide_pp = narrow.root_pp @ narrow.root_pp.T, wide.root_pp @ wide.root_pp.T
    ratio_p = covariance_pp.diagonal() * precision_pp.diagonal()
    assert (ratio_p > 0.3).all()
    # The prior bounds the posterior, also of what the counts do not inform.
    assert (covariance_pp.diagonal().sqrt() < 1.5 * layout.prior()[1]).all()
    # Half of the information is missing.
    assert (wide_pp.diagonal() / covariance_pp.diagonal()).median() == pytest.approx(2, rel=0.3)
