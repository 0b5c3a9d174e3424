"""Effects of batches on single features: the prior that is estimated from the counts, and shrinkage."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from celldial.data.cells import to_csr_tensor
from celldial.model.feature_effects import MIN_SCALE, FeatureEffects, log_fold_changes
from celldial.ops.csr import CSRTensor

N_FEATURES = 300


def simulate(
    scale: float, n_cells: int = 600, n_batches: int = 3, seed: int = 0
) -> tuple[CSRTensor, Tensor, Tensor, Tensor]:
    """Counts of a batch effect with this standard deviation: counts, library sizes, batches ``(c, 1)``, effects."""
    rng = np.random.default_rng(seed)
    effect_sf = rng.normal(0, scale, (n_batches, N_FEATURES))
    level_f, batch_c = rng.normal(0, 1, N_FEATURES), rng.integers(0, n_batches, n_cells)
    share_cf = np.exp(level_f + effect_sf[batch_c])
    share_cf /= share_cf.sum(1, keepdims=True)
    # Cells vary, too, so the counts are overdispersed.
    rate_cf = rng.gamma(2, 0.5, share_cf.shape) * share_cf * rng.gamma(5, 400, (n_cells, 1))
    counts_cf = torch.from_numpy(rng.poisson(rate_cf)).float()
    batch_c1 = torch.from_numpy(batch_c)[:, None]
    return (
        to_csr_tensor(sparse.csr_matrix(counts_cf.numpy())),
        counts_cf.sum(1),
        batch_c1,
        torch.from_numpy(effect_sf).float(),
    )


def fit(counts: CSRTensor, library_size_c: Tensor, batch_ck: Tensor, n_batches: int = 3) -> FeatureEffects:
    effects = FeatureEffects([n_batches], N_FEATURES)
    effects.initialize(counts, library_size_c, batch_ck)
    return effects


@pytest.mark.parametrize("scale", [0.2, 0.6])
def test_the_prior_has_the_scale_of_the_effects(scale: float) -> None:
    *data, effect_sf = simulate(scale)
    effects = fit(*data)
    found_sf, centered_sf = effects.tables[0].detach(), effect_sf - effect_sf.mean(0)
    assert float(effects.scale_k[0]) == pytest.approx(float(centered_sf.std()), rel=0.1)
    assert np.corrcoef(found_sf.flatten(), centered_sf.flatten())[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_random_batches_have_no_effect(seed: int) -> None:
    counts, library_size_c, batch_c1, _ = simulate(0.0, seed=seed)
    effects = fit(counts, library_size_c, batch_c1)
    assert float(effects.scale_k[0]) < 0.05
    assert float(effects.tables[0].detach().abs().max()) < 0.1


def test_batches_of_few_cells_are_shrunk() -> None:
    """The effect of a batch of two cells is much smaller than its fold changes."""
    counts, library_size_c, batch_c1, _ = simulate(0.3)
    batch_c1 = batch_c1.clone()
    batch_c1[:2] = 3
    effects = fit(counts, library_size_c, batch_c1, 4)
    change_sf, _ = log_fold_changes(counts, library_size_c, batch_c1[:, 0], 4)
    found_sf = effects.tables[0].detach()
    assert float(found_sf[3].norm()) < 0.3 * float(change_sf[3].norm())
    assert float(found_sf[0].norm()) > 0.7 * float(change_sf[0].norm())


def test_a_category_without_cells_has_no_effect() -> None:
    counts, library_size_c, batch_c1, _ = simulate(0.3)
    effects = fit(counts, library_size_c, batch_c1, 5)
    assert bool((effects.tables[0][3:] == 0).all())
    assert bool(torch.isfinite(effects.tables[0]).all())


def test_fold_changes_and_their_variance() -> None:
    """Compared with sums over dense counts."""
    counts, library_size_c, batch_c1, _ = simulate(0.3, n_cells=50)
    batch_c, x_cf = batch_c1[:, 0], counts.to_dense()
    change_sf, variance_sf = log_fold_changes(counts, library_size_c, batch_c, 3)
    share_f = x_cf.sum(0) / library_size_c.sum()
    expected_cf = library_size_c[:, None] * share_f
    for batch in range(3):
        here_c = batch_c == batch
        observed_f, expected_f = x_cf[here_c].sum(0) + 0.5, expected_cf[here_c].sum(0) + 0.5
        torch.testing.assert_close(change_sf[batch], (observed_f / expected_f).log(), rtol=1e-3, atol=1e-4)
        spread_f = (x_cf - expected_cf)[here_c].square().sum(0) + 0.5
        torch.testing.assert_close(variance_sf[batch], spread_f / expected_f.square(), rtol=1e-3, atol=1e-4)


def test_effects_are_added_to_log_rates() -> None:
    effects = FeatureEffects([2, 3], 4)
    with torch.no_grad():
        for table in effects.tables:
            table.normal_()
    category_ck = torch.tensor([[0, 2], [1, 0]])
    first, second = effects.tables
    expected = torch.stack([1 + first[0] + second[2], 1 + first[1] + second[0]])
    torch.testing.assert_close(effects(torch.ones(2, 4), category_ck), expected)


def test_new_effects_are_zero() -> None:
    effects = FeatureEffects([2], 4)
    assert torch.equal(effects(torch.ones(3, 4), torch.zeros(3, 1, dtype=torch.int64)), torch.ones(3, 4))
    assert effects.scale_k.tolist() == pytest.approx([MIN_SCALE])
