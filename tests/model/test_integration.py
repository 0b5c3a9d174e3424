"""The integration term: an unbiased distance between batches that leaves types of a single batch alone."""

import pytest
import torch
from torch import Tensor

from celldial.model.integration import WEIGHT, Integration, batch_distance, overlap_weights, weighted_energy


def normal(n_cells: int, seed: int, n_latent: int = 3) -> Tensor:
    return torch.randn(n_cells, n_latent, generator=torch.Generator().manual_seed(seed))


def batches(n_cells: int, n_batches: int) -> Tensor:
    return torch.arange(n_cells) % n_batches


def distance(z_cz: Tensor, batch_c: Tensor, n_batches: int) -> Tensor:
    return batch_distance(z_cz, batch_c[:, None], n_batches)[0]


def one_hot(batch_c: Tensor, n_batches: int) -> Tensor:
    return torch.nn.functional.one_hot(batch_c, n_batches).float()


def test_it_is_the_energy_distance() -> None:
    """With equal weights: compared with means over pairs of different cells."""
    z_cz, batch_c = normal(30, 0), batches(30, 3)
    found = weighted_energy(torch.cdist(z_cz, z_cz), one_hot(batch_c, 3), torch.ones(30, 3)).sum()
    expected = torch.zeros(())
    for batch in range(3):
        x, y = z_cz[batch_c == batch], z_cz[batch_c != batch]
        within = [torch.pdist(part).mean() for part in (x, y)]
        expected = expected + (2 * torch.cdist(x, y).mean() - sum(within)) * len(x) / len(z_cz)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_batches", [2, 4, 20])
def test_equal_batches_are_as_far_apart_as_random_groups(n_batches: int) -> None:
    """And a batch that is shifted by two standard deviations is farther."""
    torch.manual_seed(0)
    batch_c = batches(128, n_batches)
    excess_n, shifted_n = [], []
    for seed in range(100):
        z_cz, assigned_ca = normal(128, seed), torch.stack([batch_c, batch_c[torch.randperm(128)]], 1)
        for shift, found_n in [(0.0, excess_n), (2.0, shifted_n)]:
            given, random = batch_distance(z_cz + shift * (batch_c == 0)[:, None], assigned_ca, n_batches)
            found_n.append(given - random)
    excess, deviation = torch.stack(excess_n).mean(), torch.stack(excess_n).std() / 10
    assert abs(float(excess)) < 4 * float(deviation)
    assert float(torch.stack(shifted_n).mean()) > 10 * float(deviation)


def test_the_gradient_pulls_batches_together() -> None:
    batch_c = batches(100, 2)
    z_cz = (normal(100, 0) + 0.5 * batch_c[:, None]).requires_grad_()
    distance(z_cz, batch_c, 2).backward()
    assert z_cz.grad is not None
    assert bool((z_cz.grad[batch_c == 1].mean(0) > 0).all())  # descent moves these cells down, toward the others
    assert bool((z_cz.grad[batch_c == 0].mean(0) < 0).all())


def test_a_type_of_a_single_batch_is_not_pulled() -> None:
    batch_c = batches(120, 2)
    alone_c = (torch.arange(120) < 40) & (batch_c == 1)
    z_cz = (normal(120, 0) + 12 * alone_c[:, None]).requires_grad_()
    distance(z_cz, batch_c, 2).backward()
    assert z_cz.grad is not None
    size_c = z_cz.grad.norm(dim=1)
    assert float(size_c[alone_c].max()) < 0.15 * float(size_c[~alone_c].median())


def test_weights_are_the_ratio_of_densities() -> None:
    """A place with half as many cells of the other batch, relative to its size, has weight one half."""
    z_cz = torch.cat([torch.zeros(20, 1), torch.full((20, 1), 100.0)]) + 1e-3 * normal(40, 0, 1)
    # The first batch has 16 cells at 0 and 8 at 100, the second one has 4 and 12.
    second_c = torch.zeros(40, dtype=torch.int64)
    second_c[:4], second_c[20:32] = 1, 1
    inside_cs = one_hot(second_c, 2)
    weight_cs = overlap_weights(torch.cdist(z_cz, z_cz), inside_cs)
    density = {(0, 0): 16 / 24, (0, 1): 8 / 24, (1, 0): 4 / 16, (1, 1): 12 / 16}
    for cell, place, batch in [(10, 0, 0), (0, 0, 1), (35, 1, 0), (25, 1, 1)]:
        expected = min(1, density[1 - batch, place] / density[batch, place])
        assert float(weight_cs[cell, batch]) == pytest.approx(expected, abs=0.07)  # pseudo-cells


@pytest.mark.parametrize("batch_c", [[0] * 6, [2] * 6, [0, 1, 2, 3, 4, 5]])
def test_too_few_cells_contribute_nothing(batch_c: list[int]) -> None:
    z_cz = normal(len(batch_c), 0).requires_grad_()
    found = distance(z_cz, torch.tensor(batch_c), 6)
    found.backward()
    assert z_cz.grad is not None
    assert bool((z_cz.grad == 0).all())
    assert found.item() == 0


def test_equal_cells_have_finite_gradients() -> None:
    z_cz = torch.zeros(8, 3, requires_grad=True)
    distance(z_cz, batches(8, 2), 2).backward()
    assert z_cz.grad is not None
    assert bool(torch.isfinite(z_cz.grad).all())


# --- The term of the loss ---------------------------------------------------------------------------------------------


def train(shift: float, n_steps: int = 100) -> list[float]:
    """The term in training steps with new cells of two batches that are this far apart."""
    torch.manual_seed(0)
    term, batch_c = Integration(2.0, 2), batches(128, 2)
    return [term(normal(128, seed) + shift * batch_c[:, None], batch_c).item() for seed in range(n_steps)]


def test_batches_that_do_not_differ_have_no_term() -> None:
    terms = train(0.0)
    assert abs(sum(terms[20:])) < 0.1 * sum(train(1.0)[20:])
    assert sum(term == 0 for term in terms) > 40


def test_different_batches_have_the_full_term() -> None:
    """It is the distance beyond that of permuted batches, times the weight."""
    torch.manual_seed(1)
    batch_c, expected = batches(128, 2), 0.0
    for seed in range(20, 100):
        assigned_ca = torch.stack([batch_c, batch_c[torch.randperm(128)]], 1)
        given, random = batch_distance(normal(128, seed) + batch_c[:, None], assigned_ca, 2)
        expected += 2 * WEIGHT * (given - random).item()
    assert sum(train(1.0)[20:]) == pytest.approx(expected, rel=0.1)


def test_averages_change_in_training_only() -> None:
    term = Integration(1.0, 2).eval()
    term(normal(64, 0), batches(64, 2))
    assert term.n_updates.item() == 0
    term.train()(normal(64, 0), batches(64, 2))
    assert term.n_updates.item() == 1


def test_a_minibatch_of_few_cells_has_no_term() -> None:
    term = Integration(1.0, 2)
    assert term(normal(3, 0), batches(3, 2)).item() == 0
    assert term.n_updates.item() == 0
