"""Traversals: paths and curves against closed forms, intervals against brute force, and `VAE.latent_traverse`."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse, stats

from celldial import VAE
from celldial.inference import population_means, posterior
from celldial.inference.anndata import read_cells
from celldial.inference.laplace import fit_laplace
from celldial.inference.posterior import Covariates
from celldial.model import laplace
from celldial.model.likelihoods import LIKELIHOODS
from celldial.tl import cell_selection, moved_cells, traversal, traversal_axis
from celldial.tl.traversal import Traversal
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, simulate, simulate_two

STATES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.integers(-50, 50))
POSITIONS = np.array([-1.0, 0.0, 2.5])


def fit(adata: AnnData, model: VAE | None = None, **options: Any) -> VAE:
    model = VAE(3, 8) if model is None else model
    return model.fit(adata, **{"max_epochs": 3, "progress": False, **options})


@pytest.fixture(scope="module")
def model() -> VAE:
    return fit(simulate(), VAE(3, 8, **COVARIATES), max_epochs=15)


@pytest.fixture(scope="module")
def bimodal() -> VAE:
    return fit(simulate_two())


@pytest.fixture
def adata() -> AnnData:
    return simulate()


@contextmanager
def without_loadings(model: VAE) -> Iterator[None]:
    """Forget for a while how sure the loadings are."""
    modalities = [modality for _, modality in model.module_.by_modality()]
    known = [modality.loadings for modality in modalities]
    for modality in modalities:
        modality.loadings = None
    yield
    for modality, loadings in zip(modalities, known, strict=True):
        modality.loadings = loadings


# --- Paths ------------------------------------------------------------------------------------------------------------


@given(z_cz=STATES, coordinate=st.integers(0, 2), n_steps=st.integers(2, 7))
def test_steps_go_evenly_from_quantile_to_quantile(z_cz: np.ndarray, coordinate: int, n_steps: int) -> None:
    path_s = traversal.evenly_spaced(z_cz[:, coordinate], (0.25, 1.0), n_steps)
    assert path_s.shape == (n_steps,)
    assert path_s[-1] == z_cz[:, coordinate].max()
    np.testing.assert_allclose(path_s[0], np.quantile(z_cz[:, coordinate], 0.25), atol=1e-5)
    np.testing.assert_allclose(np.diff(path_s), (path_s[-1] - path_s[0]) / (n_steps - 1), atol=1e-4)


@given(z_cz=STATES, coordinate=st.integers(0, 2))
def test_a_coordinate_is_set_and_the_others_stay(z_cz: np.ndarray, coordinate: int) -> None:
    before = z_cz.copy()
    state_scz = traversal.along_coordinate(z_cz, coordinate, POSITIONS)
    others = [column for column in range(3) if column != coordinate]
    assert (state_scz[:, :, coordinate] == POSITIONS[:, None]).all()
    assert (state_scz[:, :, others] == z_cz[:, others]).all()
    np.testing.assert_array_equal(z_cz, before)


@given(z_cz=STATES, filter_z=hnp.arrays(np.float32, 2, elements=st.integers(-3, 3)))
def test_along_a_direction_the_score_is_the_position(z_cz: np.ndarray, filter_z: np.ndarray) -> None:
    origin_z, direction_z = np.array([1, -2], dtype=np.float32), np.array([0.5, 0.25], dtype=np.float32)
    if not filter_z @ direction_z:
        filter_z = np.array([2, 0], dtype=np.float32)
    state_scz = traversal.along_direction(z_cz, origin_z, filter_z, direction_z, POSITIONS)
    score_sc = (state_scz[:, :, :2] - origin_z) @ filter_z
    np.testing.assert_allclose(score_sc, np.broadcast_to(POSITIONS[:, None], score_sc.shape), atol=1e-2)
    moved_scz = state_scz[:, :, :2] - z_cz[:, :2]
    np.testing.assert_allclose(moved_scz[..., 0] * 0.25, moved_scz[..., 1] * 0.5, atol=1e-3)
    assert (state_scz[:, :, 2] == z_cz[:, 2]).all()
    assert state_scz.dtype == np.float32


def test_round_the_circle_cells_are_active_and_come_back() -> None:
    z_cz = np.array([[7.0, 0.1, 0.2], [8.0, 0.0, 0.0]], dtype=np.float32)
    angle_s = np.linspace(0, 2 * np.pi, 5)
    state_scz = traversal.around_circle(z_cz, angle_s)
    np.testing.assert_allclose(state_scz[1], [[7, 0, 1], [8, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(state_scz[-1], state_scz[0], atol=1e-6)
    np.testing.assert_array_equal(state_scz[:, :, 0], np.broadcast_to(z_cz[:, 0], (5, 2)))


@given(from_cz=STATES)
def test_between_two_states_the_way_is_straight(from_cz: np.ndarray) -> None:
    to_cz = from_cz[::-1] + np.float32(3)
    state_scz = traversal.between(from_cz, to_cz, np.array([0, 0.25, 1]))
    np.testing.assert_array_equal(state_scz[[0, 2]], [from_cz, to_cz])
    np.testing.assert_allclose(state_scz[1], 0.75 * from_cz + 0.25 * to_cz, atol=1e-4)


@given(cells=hnp.arrays(np.float32, (2, 4, 2), elements=st.integers(-9, 9)))
def test_pairs_have_the_shortest_ways(cells: np.ndarray) -> None:
    from_cz, to_cz = cells
    partner_c = traversal.optimal_pairs(from_cz, to_cz)
    assert sorted(partner_c) == [0, 1, 2, 3]
    available_estimators = [((from_cz - to_cz[list(order)]) ** 2).sum() for order in itertools.permutations(range(4))]
    assert ((from_cz - to_cz[partner_c]) ** 2).sum() == min(available_estimators)


# --- Curves -----------------------------------------------------------------------------------------------------------


def curves(
    mean_sf: Any, sd: Any = 0.1, change_sd: Any = 0.1, largest: float = np.inf, closed: bool = False
) -> Traversal:
    mean_sf = np.array(mean_sf, dtype=float)
    variance_sf = np.broadcast_to(np.square(sd), mean_sf.shape)
    change_f = np.broadcast_to(np.square(change_sd), mean_sf.shape[1:])
    return Traversal(mean_sf, variance_sf, change_f, np.full(mean_sf.shape[1], largest), closed)


def test_what_is_read_off_curves() -> None:
    found = curves([[1.0, 8.0], [4.0, 2.0], [2.0, 4.0]], sd=0.3)
    np.testing.assert_allclose(found.log2_fold_change_sf, [[0, 0], [2, -2], [1, -1]])
    np.testing.assert_allclose(found.effect_size_f, [2, 2])
    np.testing.assert_allclose(found.change_f, [1, -1])
    np.testing.assert_array_equal(found.peak_step_f, [1, 0])
    low, high = stats.norm.interval(0.9, np.log(found.mean_sf), 0.3)
    np.testing.assert_allclose(found.lower_sf, np.exp(low), rtol=1e-6)
    np.testing.assert_allclose(found.upper_sf, np.exp(high), rtol=1e-6)
    assert curves([[0.9], [0.5]], sd=1, largest=1).upper_sf.max() == 1
    np.testing.assert_array_equal(curves([[1.0], [3.0], [1.1]], closed=True).change_f, [0])


def test_the_false_sign_rate_is_that_of_a_normal_posterior() -> None:
    """A change of 1.96 standard deviations has the other sign with a probability of 2.5 %."""
    found = curves([[1.0, 1.0, 1.0], [np.exp(0.196), np.exp(0.0), np.exp(3)]])
    np.testing.assert_allclose(found.lfsr_f, [0.025, 0.5, 0], atol=1e-4)


def test_band_and_false_sign_rate_are_calibrated() -> None:
    """Against draws from the posterior that they describe."""
    random = np.random.default_rng(0)
    found = curves([[2.0], [2.4]], sd=0.2, change_sd=math.hypot(0.2, 0.2))
    draws_ns = np.exp(np.log([2.0, 2.4]) + 0.2 * random.normal(size=(20_000, 2)))
    inside = (found.lower_sf[:, 0] <= draws_ns) & (draws_ns <= found.upper_sf[:, 0])
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    assert (draws_ns[:, 1] < draws_ns[:, 0]).mean() == pytest.approx(found.lfsr_f[0], abs=0.01)


@given(hnp.arrays(float, st.integers(1, 30), elements=st.floats(0, 0.5)))
def test_s_values_are_running_means_of_the_surest(lfsr_f: np.ndarray) -> None:
    s_value_f = traversal.s_value(lfsr_f)
    for lfsr, s_value in zip(lfsr_f, s_value_f, strict=True):
        surer = lfsr_f[lfsr_f < lfsr].sum(), (lfsr_f < lfsr).sum()
        tied = (lfsr_f == lfsr).sum()
        means = [(surer[0] + k * lfsr) / (surer[1] + k) for k in range(1, tied + 1)]
        assert np.isclose(means, s_value, atol=1e-9).any()
    assert (s_value_f <= lfsr_f + 1e-12).all()


def test_ranks_go_by_what_surely_changes_and_is_there() -> None:
    # In turn: a sure change; the same of what is hardly there; the same, unsure; a smaller one; none.
    mean_sf = [[2.0, 0.002, 2.0, 2.0, 3.0], [8.0, 0.008, 8.0, 3.0, 3.0]]
    score_f = curves(mean_sf, change_sd=[0.1, 0.1, 1.0, 0.1, 0.1]).score_f(np.array(["rna"] * 5))
    assert list(np.argsort(traversal.ranks(score_f)))[:2] == [0, 3]
    assert list(traversal.ranks(np.array([1.0, 3.0, 1.0]))) == [1, 0, 2]
    assert score_f[4] < 0 < score_f[3] < score_f[0]
    # Modalities have a level each: of two of the same features, one in other units, the ranks are side by side.
    both = curves(np.hstack([mean_sf, np.array(mean_sf) / 100]), change_sd=[0.1, 0.1, 1.0, 0.1, 0.1] * 2)
    score_f = both.score_f(np.repeat(["rna", "atac"], 5))
    np.testing.assert_allclose(score_f[:5], score_f[5:])


# --- Information in a count -------------------------------------------------------------------------------------------


def log_pmf(name: str, rate: float, theta: float, lost: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the log-probability of counts at a rate, written down anew."""
    if name == "poisson":
        return lambda x: stats.poisson.logpmf(x, rate)
    if name == "bernoulli":
        return lambda x: stats.bernoulli.logpmf(x, 1 - np.exp(-rate))
    kept = lambda x: stats.nbinom.logpmf(x, theta, theta / (theta + rate))  # noqa: E731
    if name == "negative_binomial":
        return kept
    return lambda x: np.where(x == 0, np.log(lost + (1 - lost) * np.exp(kept(x))), np.log(1 - lost) + kept(x))


@pytest.mark.parametrize("rate", [0.01, 0.5, 4.0])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_information_is_the_expected_square_of_the_score(name: str, rate: float) -> None:
    theta, lost = 1.7, 0.3
    likelihood = LIKELIHOODS[name](2)
    if hasattr(likelihood, "log_inverse_dispersion_f"):
        likelihood.log_inverse_dispersion_f.data.fill_(math.log(theta))
    # Two features of one share each; the second takes what the library size leaves.
    heads = [torch.zeros(1, 2), torch.full((1, 2), math.log(lost / (1 - lost)))]
    with torch.no_grad():
        found = likelihood.fisher_information(heads, torch.tensor([2 * rate]))[0, 0].item()
        mean = likelihood.expected(torch.tensor([[0.5]]), torch.tensor([2 * rate])).item()
        slope = likelihood.elasticity(torch.tensor([mean])).item()
        up = likelihood.expected(torch.tensor([[0.5 * 1.001]]), torch.tensor([2 * rate])).item()
    x = np.arange(2 if name == "bernoulli" else 400)
    h = 1e-4
    score = log_pmf(name, rate * np.exp(h), theta, lost)(x) - log_pmf(name, rate * np.exp(-h), theta, lost)(x)
    expected = (np.exp(log_pmf(name, rate, theta, lost)(x)) * (score / (2 * h)) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-3)
    assert slope == pytest.approx(np.log(up / mean) / np.log(1.001), abs=2e-3)


# --- How sure the loadings are ----------------------------------------------------------------------------------------


def test_products_give_quadratic_forms() -> None:
    random = np.random.default_rng(0)
    vector_sr = torch.from_numpy(random.normal(size=(5, 3)))
    matrix_rr = torch.from_numpy(np.cov(random.normal(size=(3, 9))))
    packed_q = matrix_rr[tuple(torch.triu_indices(3, 3))]
    expected_s = torch.einsum("sr,rt,st->s", vector_sr, matrix_rr, vector_sr)
    torch.testing.assert_close(laplace.products(vector_sr) @ packed_q, expected_s)


def test_loadings_are_as_sure_as_a_brute_force_hessian_says() -> None:
    """Poisson regression of each feature on the inputs, with a normal prior of the slopes."""
    random = np.random.default_rng(0)
    n_cells, n_hidden, scale = 40, 4, 0.5
    input_ch = torch.from_numpy(random.normal(size=(n_cells, n_hidden)).astype(np.float32))
    slope_fh, bias_f = random.normal(0, 0.5, (3, n_hidden)), np.array([1.0, -1.0, 0.0])
    mu_cf = torch.from_numpy(np.exp(input_ch.numpy() @ slope_fh.T + bias_f).astype(np.float32))
    centre_h, scale_h = input_ch.mean(0), torch.full((n_hidden,), scale)
    scaled_ch = (input_ch - centre_h) * scale_h
    basis_hr = laplace.directions(scaled_ch, n_hidden)
    place_cr = torch.cat([torch.ones(n_cells, 1), scaled_ch @ basis_hr], 1)
    row_q, column_q = torch.triu_indices(n_hidden + 1, n_hidden + 1)
    information_fq = mu_cf.T @ (place_cr[:, row_q] * place_cr[:, column_q])
    loadings = laplace.Loadings(centre_h, scale_h, basis_hr, laplace.posterior_covariance(information_fq))
    at_sh = torch.from_numpy(random.normal(size=(6, n_hidden)).astype(np.float32))
    found_sf = loadings.variance(at_sh)
    first_f, last_f = torch.tensor([0, 5, 2]), torch.tensor([1, 5, 4])
    change_f = loadings.variance_of_change(at_sh, first_f, last_f)
    for f in range(3):

        def minus_log_posterior(b_w: torch.Tensor, mu_c: torch.Tensor = mu_cf[:, f]) -> torch.Tensor:
            log_rate_c = b_w[0] + input_ch.double() @ b_w[1:]
            prior = (b_w[1:] ** 2).sum() / (2 * scale**2)
            return (log_rate_c.exp() - mu_c * log_rate_c).sum() + prior

        mode = torch.tensor([bias_f[f], *slope_fh[f]])
        covariance = torch.linalg.inv(torch.autograd.functional.hessian(minus_log_posterior, mode))
        g = torch.cat([torch.ones(6, 1), at_sh], 1).double()
        torch.testing.assert_close(found_sf[:, f].double(), ((g @ covariance) * g).sum(1), rtol=1e-2, atol=1e-5)
        d = g[last_f[f]] - g[first_f[f]]
        torch.testing.assert_close(change_f[f].double(), d @ covariance @ d, rtol=1e-2, atol=1e-5)


def test_in_directions_without_cells_the_prior_holds() -> None:
    n_hidden = laplace.RANK + 3
    scaled_ch = torch.zeros(8, n_hidden)
    scaled_ch[:, :2] = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32))
    basis_hr = laplace.directions(scaled_ch, 2)
    covariance_fq = laplace.posterior_covariance(torch.zeros(1, 6))
    loadings = laplace.Loadings(torch.zeros(n_hidden), torch.full((n_hidden,), 0.5), basis_hr, covariance_fq)
    far_sh = torch.zeros(2, n_hidden)
    far_sh[1, 5] = 3.0
    bias_variance = 1 / laplace.BIAS_PRECISION
    torch.testing.assert_close(loadings.variance(far_sh)[:, 0], torch.tensor([bias_variance, bias_variance + 2.25]))
    change_f = loadings.variance_of_change(far_sh, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(change_f, torch.tensor([2.25]))


def test_more_cells_make_surer(model: VAE) -> None:
    """Four times the cells, a quarter of the variance where the prior says little."""
    adata = simulate()
    _, cells = read_cells(model, adata)
    average_variance = []
    for times in (1, 4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            index_c = torch.arange(60)
            fit_laplace(model.module_, cells, index_c.repeat(times))
        loadings = model.module_.modalities["rna"].loadings
        average_variance.append(loadings.variance(loadings.centre_h[None]).mean().item())
    assert average_variance[0] / average_variance[1] == pytest.approx(4, rel=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit_laplace(model.module_, cells, torch.arange(60))


# --- Averages over cells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rna", "atac"])
@pytest.mark.parametrize("entries", [10, 10**6])
def test_averages_are_those_of_the_decoder(
    bimodal: VAE, name: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks or at once: means, and the variance that the draws of each cell have about the cell's mean."""
    monkeypatch.setattr(population_means, "CACHED_ENTRIES", entries)
    monkeypatch.setattr(population_means, "MAX_DECODE_VALUES", entries)
    monkeypatch.setattr(population_means, "BLOCK_FEATURES", 7)
    module = bimodal.module_
    n_cells, n_samples, n_steps = 5, 3, 4
    state_sjz = np.random.default_rng(0).normal(size=(n_steps, n_cells * n_samples, 3)).astype(np.float32)
    covariates = Covariates(np.zeros((15, 0), dtype=np.int64), np.zeros((15, 0), dtype=np.float32))
    with without_loadings(bimodal):
        found = population_means.mean_along_path(module, name, state_sjz, covariates, 100.0, n_samples, n_cells)
    value_sjf = np.stack(
        [np.concatenate(list(posterior.decode_mean(module, name, z_jz, covariates, 100.0))) for z_jz in state_sjz]
    ).astype(float)
    np.testing.assert_allclose(found.mean_sf, value_sjf.mean(1), rtol=1e-4)

    def variance_of_mean(draws_jf: np.ndarray) -> np.ndarray:
        within_f = draws_jf.reshape(n_cells, n_samples, -1).var(1, ddof=1).mean(0)
        return within_f * (1 / n_cells + 1 / (n_cells * n_samples))

    relative_sjf = value_sjf / value_sjf.mean(1, keepdims=True)
    expected_sf = np.stack([variance_of_mean(relative_jf) for relative_jf in relative_sjf])
    np.testing.assert_allclose(found.variance_sf, expected_sf, rtol=1e-3, atol=1e-9)
    low_f, high_f = value_sjf.mean(1).argmin(0), value_sjf.mean(1).argmax(0)
    column_f = np.arange(value_sjf.shape[2])
    change_jf = relative_sjf[high_f, :, column_f].T - relative_sjf[low_f, :, column_f].T
    np.testing.assert_allclose(found.change_variance_f, variance_of_mean(change_jf), rtol=1e-3, atol=1e-9)


def test_a_few_cells_for_a_group_are_less_sure(bimodal: VAE) -> None:
    """By the variance between cells, less where more of the group are among them."""
    n_cells, n_samples, n_group = 6, 5, 20
    state_jz = np.random.default_rng(0).normal(size=(n_cells, 1, 3)).repeat(n_samples, axis=1)
    state_jz = (state_jz + np.random.default_rng(1).normal(0, 0.1, state_jz.shape)).reshape(-1, 3).astype(np.float32)
    covariates = Covariates(np.zeros((30, 0), dtype=np.int64), np.zeros((30, 0), dtype=np.float32))
    with without_loadings(bimodal):
        found_f, of_all_f = (
            population_means.mean_along_path(
                bimodal.module_, "rna", state_jz[None], covariates, 1e4, n_samples, n
            ).variance_sf[0]
            for n in (n_group, n_cells)
        )
    (value_jf,) = posterior.decode_mean(bimodal.module_, "rna", state_jz, covariates, 1e4)
    value_cnf = (value_jf / value_jf.mean(0)).reshape(n_cells, n_samples, -1).astype(float)
    within_f = value_cnf.var(1, ddof=1).mean(0)
    between_f = value_cnf.mean(1).var(0, ddof=1) - within_f / n_samples
    posterior_f = within_f * (1 / n_group + 1 / (n_cells * n_samples))
    np.testing.assert_allclose(found_f, posterior_f + between_f * (1 / n_cells - 1 / n_group), rtol=1e-2, atol=1e-7)
    assert (found_f > of_all_f).all()


def test_intervals_add_what_is_not_known_of_states_and_of_loadings(bimodal: VAE) -> None:
    module = bimodal.module_
    state_sjz = np.zeros((2, 4, 3), dtype=np.float32)  # draws that do not differ
    covariates = Covariates(np.zeros((4, 0), dtype=np.int64), np.zeros((4, 0), dtype=np.float32))
    found = population_means.mean_along_path(module, "rna", state_sjz, covariates, 1e4, 2, 2)
    decoder, loadings = module.modalities["rna"].decoder, module.modalities["rna"].loadings
    with torch.no_grad():
        inputs = decoder.inputs(torch.zeros(1, 3), *(torch.from_numpy(part[:1]) for part in covariates))
    np.testing.assert_allclose(found.variance_sf[1], loadings.variance(inputs)[0], rtol=1e-4)
    np.testing.assert_allclose(found.change_variance_f, 0, atol=1e-6)


def test_a_change_is_as_unsure_as_the_loadings_that_tell_it(bimodal: VAE) -> None:
    module = bimodal.module_
    state_sjz = np.zeros((2, 4, 3), dtype=np.float32)  # draws that do not differ, at two places
    state_sjz[1] = 1.5
    covariates = Covariates(np.zeros((4, 0), dtype=np.int64), np.zeros((4, 0), dtype=np.float32))
    found = population_means.mean_along_path(module, "rna", state_sjz, covariates, 1e4, 2, 2)
    decoder, loadings = module.modalities["rna"].decoder, module.modalities["rna"].loadings
    with torch.no_grad():
        at_sh = decoder.inputs(torch.from_numpy(state_sjz[:, 0]), *(torch.from_numpy(part[:2]) for part in covariates))
    first_f = torch.zeros(len(found.change_variance_f), dtype=torch.int64)
    expected_f = loadings.variance_of_change(at_sh, first_f, first_f + 1)
    assert (expected_f > 1e-4).any()
    np.testing.assert_allclose(found.change_variance_f, expected_f, rtol=1e-3, atol=1e-6)


# --- Which cells ------------------------------------------------------------------------------------------------------


def test_cells_are_found_by_name_and_by_group(adata: AnnData) -> None:
    assert len(cell_selection.select_cells(adata.obs, None)[0]) == 60
    found, called = cell_selection.select_cells(adata.obs, {"batch": "b1", "donor": "x"})
    assert list(found) == list(np.flatnonzero((adata.obs["batch"] == "b1") & (adata.obs["donor"] == "x")))
    assert called == "batch: b1, donor: x"
    np.testing.assert_array_equal(cell_selection.select_cells(adata.obs, ("donor", "y"))[0], np.arange(1, 60, 3))
    assert cell_selection.select_cells(adata.obs, "c7") == (np.array([7]), "cell c7")
    first, last = cell_selection.select_endpoints(adata.obs, ("x", "z"), None)
    assert (adata.obs["donor"].iloc[first] == "x").all()
    assert (adata.obs["donor"].iloc[last] == "z").all()
    assert cell_selection.select_endpoints(adata.obs, ("c1", "c2"), None) == (np.array([1]), np.array([2]))


@pytest.mark.parametrize(
    ("at", "error", "facts"),
    [
        ({"donors": "x"}, KeyError, ["'donors'", "'donor'"]),
        (("donor", "w"), KeyError, ["donor", "'w'", "'x'", "'y'", "'z'"]),
        ("c60", KeyError, ["'c60'"]),
        (("donor", "x", 3), ValueError, ["(column, value)"]),
        ({"batch": "b0", "age": -1.0}, KeyError, ["age", -1.0]),
    ],
)
def test_cells_that_are_not_there(
    model: VAE, adata: AnnData, at: Any, error: type[Exception], facts: list[Any]
) -> None:
    with raises(error, naming=facts):
        model.latent_traverse(adata, at=at)
    assert not adata.uns


def test_groups_without_a_cell_in_common(adata: AnnData) -> None:
    with raises(ValueError, naming=["batch: b0", "name: c1"]):
        cell_selection.select_cells(adata.obs.assign(name=adata.obs_names), {"batch": "b0", "name": "c1"})


# --- VAE.latent_traverse ----------------------------------------------------------------------------------------------

AXIS = {
    "kind": "direction",
    "description": "type: A → B",
    "origin": np.array([0.1, 0.2, 0.3], dtype=np.float32),
    "direction": np.array([1.0, 0.5, 0.0], dtype=np.float32),
    "filter": np.array([0.8, 0.4, 0.0], dtype=np.float32),
}


def with_axis(adata: AnnData, name: str = "response") -> AnnData:
    adata.uns["celldial"] = {"axes": {name: AXIS}}
    return adata


def test_a_coordinate_has_two_names(model: VAE, adata: AnnData) -> None:
    by_number = model.latent_traverse(adata, 1, n_steps=4)
    by_name = model.latent_traverse(adata, "axis_1", n_steps=4)
    np.testing.assert_array_equal(by_number.X, by_name.X)
    assert list(adata.uns["latent_traverse"]) == ["axis_1"]
    low, high = np.quantile(model.transform(adata)[:, 1], [0.01, 0.99])
    np.testing.assert_allclose(by_name.obs["position"].iloc[[0, -1]], [low, high], rtol=1e-5)
    assert (by_name.uns["n_cells"], by_name.uns["n_samples"], by_name.uns["at"]) == (32, 2, "32 of all cells")


def test_a_traversal_has_a_row_a_step_and_a_column_a_feature(model: VAE, adata: AnnData) -> None:
    before = adata.copy()
    adata.uns["latent_traverse"] = {"mine": {"note": "kept"}}
    path = model.latent_traverse(adata, 0, n_steps=7)
    assert path.shape == (7, 20)
    assert list(path.var_names) == list(adata.var_names)
    assert (np.diff(path.obs["position"]) > 0).all()
    np.testing.assert_allclose(path.X.sum(1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(path.layers["log2_fold_change"], np.log2(path.X / path.X[0]), atol=1e-5)
    # Kept beside what was there, and nothing else is touched.
    assert adata.uns["latent_traverse"]["mine"] == {"note": "kept"}
    assert list(adata.uns) == ["latent_traverse", "celldial"]
    assert adata.uns["celldial"] == {"written": {"latent_traverse": {"axis_0": model.fingerprint_}}}
    assert not adata.obsm
    assert not adata.layers
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert (adata.X != before.X).nnz == 0


def test_a_named_axis_moves_the_score(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(with_axis(adata), "response", n_steps=5, span=(0.1, 0.9))
    score_c = (model.transform(adata) - AXIS["origin"]) @ AXIS["filter"]
    np.testing.assert_allclose(path.obs["position"].iloc[[0, -1]], np.quantile(score_c, [0.1, 0.9]), rtol=1e-4)
    np.testing.assert_allclose(
        (path.uns["path"] - AXIS["origin"]) @ AXIS["filter"], path.obs["position"], rtol=1e-3, atol=1e-4
    )
    assert (path.uns["kind"], path.uns["axis"]) == ("direction", "response")


def test_an_axis_by_chance_is_warned_of(model: VAE, adata: AnnData) -> None:
    cells = with_axis(adata)
    cells.uns["celldial"]["axes"]["response"] = {**AXIS, "p_value": 0.3}
    with warns(naming=["'response'", "p = 0.3"]) as told:
        model.latent_traverse(cells, "response", n_steps=3)
    assert told[0].filename == __file__
    cells.uns["celldial"]["axes"]["response"]["p_value"] = 0.001
    model.latent_traverse(cells, "response", n_steps=3)


def test_a_path_starts_in_one_group_and_ends_in_the_other(model: VAE, adata: AnnData) -> None:
    n_cells = int(adata.obs["type"].value_counts().min())
    smaller = adata.obs["type"].value_counts().idxmin()
    other = "AB".replace(smaller, "")
    path = model.latent_traverse(adata, (smaller, other), n_steps=3, n_cells=1000, n_samples=100)
    assert path.uns["n_cells"] == n_cells
    of_group = model.transform(adata)[adata.obs["type"] == smaller]
    np.testing.assert_allclose(path.uns["path"][0], of_group.mean(0), atol=0.1)
    np.testing.assert_allclose(path.uns["path"][1], path.uns["path"][[0, 2]].mean(0), atol=1e-5)
    assert list(path.obs["position"]) == [0, 0.5, 1]
    assert path.uns["axis"] == f"from {smaller} to {other}"
    expected = model.latent_traverse(adata, (smaller, other), groupby="type", n_steps=3, n_cells=1000, n_samples=100)
    np.testing.assert_array_equal(path.X, expected.X)


def test_a_path_between_two_cells_has_their_expression_at_its_ends(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, ("c0", "c6"), n_steps=2, n_samples=4000)
    at_0 = model.denoise(adata).loc["c0"]
    assert np.corrcoef(np.log(path.X[0]), np.log(at_0))[0, 1] > 0.98
    assert (path.uns["n_cells"], path.uns["at"], path.uns["kind"]) == (1, "from c0 to c6", "path")
    assert list(adata.uns["latent_traverse"]) == ["c0 to c6"]


def test_one_cell_is_drawn_often(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, 0, at="c3", n_steps=3)
    assert (path.uns["at"], path.uns["n_cells"], path.uns["n_samples"]) == ("cell c3", 1, 64)
    others = [1, 2]
    np.testing.assert_allclose(path.uns["path"][0, others], model.transform(adata)[3, others], atol=0.5)


def test_a_group_is_moved_by_itself(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, 0, at={"type": "B"}, n_steps=3, n_cells=1000)
    n_cells = int((adata.obs["type"] == "B").sum())
    assert path.uns["at"] == f"{n_cells} of type: B"
    # The span stays that of all cells.
    everything = model.latent_traverse(adata, 0, n_steps=3)
    np.testing.assert_array_equal(path.obs["position"], everything.obs["position"])


def test_covariates_are_those_asked_for(model: VAE, adata: AnnData) -> None:
    asked = model.latent_traverse(adata, 0, at="c3", n_steps=3, transform_batch={"batch": "b0", "donor": "x"})
    own = model.latent_traverse(adata, 0, at="c3", n_steps=3)
    assert not np.allclose(asked.X, own.X, rtol=1e-3)
    # The encoder hears the cell's own all the same.
    np.testing.assert_array_equal(asked.uns["path"], own.uns["path"])
    same = model.latent_traverse(adata, 0, at="c3", n_steps=3, transform_batch={"batch": adata.obs["batch"]["c3"]})
    np.testing.assert_array_equal(same.X, own.X)
    assert same.uns["covariates"] == {"batch": adata.obs["batch"]["c3"]}


def test_the_band_holds_the_mean_and_grows_with_what_is_not_known(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, 0, n_steps=5, n_cells=60)
    assert ((path.layers["lower"] < path.X) & (path.X < path.layers["upper"])).all()
    of_one = model.latent_traverse(adata, 0, n_steps=5, at="c3")
    widths = [np.log(p.layers["upper"] / p.layers["lower"]).mean() for p in (path, of_one)]
    assert widths[0] < widths[1]
    # A rare gene is less known than a common one.
    width_f = np.log(path.layers["upper"] / path.layers["lower"]).mean(0)
    assert stats.spearmanr(width_f, path.X.mean(0)).statistic < -0.5


def test_features_have_effects_false_sign_rates_and_ranks(bimodal: VAE) -> None:
    path = bimodal.latent_traverse(simulate_two(), 0, n_steps=6)
    var = path.var
    assert list(var["modality"].unique()) == ["rna", "atac"]
    assert sorted(var["rank"]) == list(range(50))
    assert var["lfsr"].between(0, 0.5).all()
    assert var["fdr"].is_monotonic_increasing or (var.sort_values("lfsr")["fdr"].diff().dropna() >= 0).all()
    np.testing.assert_allclose(var["change"], path.layers["log2_fold_change"][-1], rtol=1e-6)
    np.testing.assert_array_equal(path.layers["mean"], path.X)
    np.testing.assert_array_equal(var["peak_step"], path.X.argmax(0))
    assert path.layers["upper"][:, 20:].max() <= 1


def test_the_same_seed_gives_the_same_bits_and_another_others(model: VAE, adata: AnnData) -> None:
    paths = [model.latent_traverse(adata, 0, n_steps=3, n_cells=10, seed=seed) for seed in (0, 0, 1)]
    for layer in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(paths[0].layers[layer], paths[1].layers[layer])
    assert not np.array_equal(paths[0].X, paths[2].X)
    pd.testing.assert_frame_equal(paths[0].var, paths[1].var)
    assert paths[0].uns["n_cells"] == 10


def test_cells_are_read_block_by_block(model: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same, and no block is larger."""
    expected = model.latent_traverse(adata, 0, n_steps=3)
    monkeypatch.setattr(moved_cells, "BLOCK_CELLS", 7)
    sizes = []
    rows = moved_cells.subset

    def noted(table: AnnData, position_c: np.ndarray) -> AnnData:
        sizes.append(len(position_c))
        return rows(table, position_c)

    monkeypatch.setattr(moved_cells, "subset", noted)
    np.testing.assert_allclose(model.latent_traverse(adata, 0, n_steps=3).X, expected.X, rtol=1e-3)
    assert sorted(sizes) == [4, *[7] * 8, 32]
    # Of many cells, some are read.
    sizes.clear()
    monkeypatch.setattr(moved_cells, "MAX_SPAN_CELLS", 20)
    model.latent_traverse(adata, 0, n_steps=3)
    assert sorted(sizes) == [6, 7, 7, 20]


def test_a_warning_about_features_comes_once(model: VAE, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved_cells, "BLOCK_CELLS", 7)
    with warns(naming=[19, 20]) as caught:
        model.latent_traverse(adata[:, :19].copy(), 0, n_steps=2)
    assert len(caught) == 1


def test_what_is_stored_survives_a_file(bimodal: VAE, tmp_path: Path) -> None:
    adata = with_axis(simulate_two())
    returned = {
        "axis_0": bimodal.latent_traverse(adata, 0, n_steps=3),
        "response": bimodal.latent_traverse(adata, "response", n_steps=3),
        "A to B": bimodal.latent_traverse(adata, ("A", "B"), n_steps=3),
        "mine": bimodal.latent_traverse(adata, 1, n_steps=3, key_added="mine", library_size=100),
    }
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = read_h5ad(tmp_path / "cells.h5ad").uns["latent_traverse"]
    assert set(back) == set(returned)
    for name, path in returned.items():
        path.write_h5ad(tmp_path / "path.h5ad")
        path = read_h5ad(tmp_path / "path.h5ad")
        stored = back[name]
        for layer in ("mean", "lower", "upper", "log2_fold_change"):
            assert stored[layer].dtype == np.float32
            np.testing.assert_array_equal(stored[layer], path.layers[layer])
        for column in ("effect_size", "change", "peak_step", "lfsr", "fdr", "rank", "modality"):
            np.testing.assert_array_equal(stored[column], path.var[column])
        np.testing.assert_array_equal(stored["position"], path.obs["position"])
        assert list(stored["feature_names"]) == list(path.var_names)
        assert stored["path"].shape == (3, 3)
        assert stored["path"].dtype == np.float32
        assert stored["likelihood"] == {"rna": "negative_binomial", "atac": "bernoulli"}
        assert stored["interval"] == 0.9
        for key in ("axis", "kind", "position_label", "at"):
            assert stored[key] == path.uns[key]
    assert back["mine"]["library_size"]["rna"] == 100
    assert back["mine"]["library_size"]["atac"] == back["axis_0"]["library_size"]["atac"] != 100
    assert [back[name]["kind"] for name in returned] == ["coordinate", "direction", "path", "coordinate"]


def test_what_is_returned_is_apart_from_what_is_stored(model: VAE, adata: AnnData) -> None:
    path = model.latent_traverse(adata, 0, n_steps=3)
    stored = adata.uns["latent_traverse"]["axis_0"]
    before = {key: stored[key].copy() for key in ("mean", "lower", "path", "rank", "position")}
    path.X[:] = 0
    for layer in ("mean", "lower", "log2_fold_change"):
        path.layers[layer][:] = -1
    path.uns["path"][:] = 7
    path.var["rank"] = 0
    path.obs["position"] = 0.0
    for key, values in before.items():
        np.testing.assert_array_equal(stored[key], values)


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"axis": 3}, ValueError, ["axis", 3, 0, 2]),
        ({"axis": "axis_9"}, ValueError, ["axis", 9]),
        ({"axis": 1.0}, TypeError, ["axis", 1.0]),
        ({"axis": True}, TypeError, ["axis", "True"]),
        ({"axis": "interferon"}, KeyError, ["'interferon'", "'response'", "'other'", "find_axis"]),
        ({"axis": "other"}, ValueError, ["'other'", 3]),
        ({"axis": ("A", "B", "C")}, ValueError, ["axis", "('A', 'B', 'C')"]),
        ({"axis": ("A", "A")}, ValueError, ["axis", "'A'"]),
        ({"axis": ("A", "Z")}, KeyError, ["'A'", "'Z'"]),
        ({"axis": ("A", "Z"), "groupby": "type"}, KeyError, ["type", "'Z'", "'A'", "'B'"]),
        ({"axis": ("A", "B"), "groupby": "kind"}, KeyError, ["groupby", "'kind'"]),
        ({"axis": ("A", "B"), "at": "c1"}, ValueError, ["axis", "at"]),
        ({"axis": 0, "groupby": "type"}, ValueError, ["groupby", "'type'", "axis"]),
        ({"n_steps": 1}, ValueError, ["n_steps", 1]),
        ({"span": (0.9, 0.1)}, ValueError, ["span", "(0.9, 0.1)"]),
        ({"span": "observed"}, ValueError, ["span", "'observed'"]),
        ({"span": 0.9}, ValueError, ["span", 0.9]),
        ({"n_cells": 0}, ValueError, ["n_cells", 0]),
        ({"n_samples": 1}, ValueError, ["n_samples", 1, 2]),
        ({"seed": -1}, ValueError, ["seed", -1]),
        ({"transform_batch": "b7"}, ValueError, ["'batch'", "'b7'", "'b0'", "'b1'"]),
        ({"transform_batch": {"type": "A"}}, KeyError, ["'type'"]),
        ({"transform_batch": {"batch": "b9"}}, ValueError, ["'batch'", "'b9'", "'b0'", "'b1'"]),
        ({"library_size": 0}, ValueError, ["library_size", 0]),
        ({"key_added": "a/b"}, ValueError, ["key_added", "'a/b'"]),
    ],
)
def test_traversals_that_make_no_sense(
    model: VAE, adata: AnnData, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    with_axis(adata)
    adata.uns["celldial"]["axes"]["other"] = {**AXIS, "filter": np.ones(5, dtype=np.float32)}
    with raises(error, naming=facts):
        model.latent_traverse(adata, **options)
    assert set(adata.uns) == {"celldial"}


def test_labels_in_several_columns_need_groupby(model: VAE, adata: AnnData) -> None:
    adata.obs["copy"] = adata.obs["type"].astype(str)
    with raises(ValueError, naming=["'A'", "'B'", "'type'", "'copy'", "groupby"]):
        model.latent_traverse(adata, ("A", "B"))


def test_cells_without_counts_are_no_start(model: VAE, adata: AnnData) -> None:
    x = adata.X.toarray()
    x[[0, 3]] = 0
    adata.X = sparse.csr_matrix(x)
    with raises(ValueError, naming=["1 cells"]):
        model.latent_traverse(adata, 0, at="c3")
    found = model.latent_traverse(adata, 0, n_steps=2, n_cells=100)
    assert found.uns["n_cells"] == 58
    filled = simulate()[[cell for cell in range(60) if cell not in (0, 3)]].copy()
    np.testing.assert_allclose(found.X, model.latent_traverse(filled, 0, n_steps=2, n_cells=100).X, rtol=1e-3)


def test_a_periodic_axis_needs_to_be_the_models(model: VAE) -> None:
    periodic = {"name": "cell_cycle", "phases": np.array(["G1", "S"]), "phase_start": np.array([0.0, 3.0])}

    def resolve(axis: str, described: dict[str, Any] | None) -> traversal_axis.TraversalAxis:
        module = SimpleNamespace(latent=SimpleNamespace(n_latent=3, coordinate_noun="axis"))
        fitted = SimpleNamespace(module_=module, periodic_=described)
        return traversal_axis.resolve_axis(axis, fitted, {})

    axis = resolve("cell_cycle", periodic)
    assert (axis.kind, axis.title, axis.label) == ("periodic", "cell cycle", "cell cycle angle (rad)")
    assert list(axis.phases["names"]) == ["G1", "S"]
    assert resolve("day", {"name": "day"}).phases == {}
    with raises(KeyError, naming=["cell_cycle"]):
        resolve("cell_cycle", None)


# --- A model's file ---------------------------------------------------------------------------------------------------


def test_how_sure_the_loadings_are_is_saved(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    expected = model.latent_traverse(adata, 0, n_steps=3)
    found = VAE.load(tmp_path / "model.celldial").latent_traverse(adata, 0, n_steps=3)
    for layer in ("mean", "lower", "upper"):
        np.testing.assert_array_equal(found.layers[layer], expected.layers[layer])


def test_an_earlier_file_gives_intervals_of_the_states_alone(model: VAE, adata: AnnData) -> None:
    expected = model.latent_traverse(adata, 0, n_steps=3)
    with (
        without_loadings(model),
        warns(naming=["loadings", "partial_fit"]),
    ):
        found = model.latent_traverse(adata, 0, n_steps=3)
    np.testing.assert_array_equal(found.X, expected.X)
    assert (found.layers["upper"] < expected.layers["upper"]).all()
    assert (found.layers["upper"] > found.X).all()


def test_going_on_fitting_measures_anew(adata: AnnData) -> None:
    model = fit(adata)
    before = model.module_.modalities["rna"].loadings.covariance_fq.clone()
    model.partial_fit(adata, max_epochs=1, progress=False)
    assert not torch.equal(model.module_.modalities["rna"].loadings.covariance_fq, before)


# --- Coverage ---------------------------------------------------------------------------------------------------------


def test_nine_in_ten_true_means_are_in_the_band() -> None:
    """Two types of cells whose true shares are known; the band is that of the mean over a type's cells."""
    random = np.random.default_rng(0)
    n_cells, n_genes = 300, 60
    type_c = random.integers(2, size=n_cells)
    share_kf = np.exp(random.normal(0, 1, n_genes) + np.array([[0], [1]]) * random.normal(0, 0.8, n_genes))
    share_kf /= share_kf.sum(1, keepdims=True)
    x_cf = random.poisson(150 * share_kf[type_c])
    obs = pd.DataFrame({"type": np.array(["A", "B"])[type_c]}, [f"c{cell}" for cell in range(n_cells)])
    adata = AnnData(sparse.csr_matrix(x_cf, dtype=np.float32), obs)
    model = VAE(2, 32, likelihood="poisson").fit(adata, max_epochs=60, progress=False)
    path = model.latent_traverse(adata, ("A", "B"), n_steps=2, n_cells=150)
    inside = (path.layers["lower"] <= 1e4 * share_kf) & (1e4 * share_kf <= path.layers["upper"])
    assert 0.8 <= inside.mean() <= 0.99
