"""The angle posterior against plain sums over the grid, and the updates of decoders: rotation, decorrelation."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

import celldial.data.cells
from celldial.data.cells import Cells, to_csr_tensor
from celldial.metrics.circular import angular_error
from celldial.model import angle_posterior
from celldial.model.module import Module
from celldial.model.networks import Modality
from celldial.model.periodic import N_GRID, angle_grid, fourier_features
from helpers.modules import build_module
from helpers.raises import warns
from helpers.simulate import simulate_cells, simulate_two_cells

MISSING = {"rna": [0, 1, 2], "atac": [3, 4], "protein": []}


def make_module(n_features: Mapping[str, int], likelihood: str = "poisson", effect: float = 0.5) -> Module:
    """Return a module with a circle in which all features depend on the angle, with random harmonics."""
    torch.manual_seed(0)
    module = build_module(n_features, likelihood, dropout_rate=0.0, periodic=True)
    for _, modality in module.by_modality():
        torch.nn.init.normal_(modality.decoder.harmonics.weight, std=effect)
        modality.decoder.angle_feature_mask_f.fill_(True)
    module.circle.log_density_j.copy_(torch.randn(N_GRID).log_softmax(0))
    module.circle.active_logit.fill_(0.5)
    return module.eval().requires_grad_(False)


def state(z_cz: Tensor, angle_c: Tensor, activity: float | Tensor = 1.0) -> Tensor:
    point_cu = torch.stack([angle_c.cos(), angle_c.sin()], 1) * torch.as_tensor(activity).reshape(-1, 1)
    return torch.cat([z_cz, point_cu], 1)


def with_angles(module: Module, cells: Cells, learn_prior: bool = False) -> Cells:
    """Return the cells with the angles that the module infers."""
    return replace(cells, angle_params_cq=module.infer_angles(cells, learn_prior))


def for_update(module: Module, cells: Cells) -> tuple[dict[str, Modality], Cells, Tensor]:
    """Return the arguments of the functions that update decoders."""
    return dict(module.by_modality()), cells, module.encode_means(cells)


def initialize_harmonics(module: Module, cells: Cells, columns: Mapping[str, Tensor]) -> None:
    angle_posterior.initialize_harmonics(dict(module.by_modality()), module.circle, cells, columns)


def sample_counts(module: Module, state_cz: Tensor, library_size: float, seed: int = 0) -> Cells:
    """Sample counts of one modality for cells with given states."""
    n_cells = len(state_cz)
    empty = Cells(
        {}, {"rna": torch.full((n_cells,), library_size)}, torch.zeros(n_cells, 0, dtype=int), torch.zeros(n_cells, 0)
    )
    torch.manual_seed(seed)
    counts_cf = module.decode_modality("rna", state_cz, empty).sample()
    rows = to_csr_tensor(sparse.csr_matrix(counts_cf.numpy()))
    return replace(empty, counts={"rna": rows}, library_size={"rna": counts_cf.sum(1)})


def angles_of(cells: Cells) -> Tensor:
    assert cells.angle_params_cq is not None
    return torch.atan2(cells.angle_params_cq[:, 1], cells.angle_params_cq[:, 0])


# --- The posterior ----------------------------------------------------------------------------------------------------


def enumerate_posterior(module: Module, cells: Cells) -> Tensor:
    """Return the posterior over the angles of the grid, then inactivity, by decoding every cell at every point."""
    z_cz = module.encode_means(cells)
    angle_j = angle_grid(z_cz)
    parts = []
    for point in range(N_GRID + 1):
        activity = 0.0 if point == N_GRID else 1.0
        state_cz = state(z_cz, angle_j[point % N_GRID].expand(len(cells)), activity)
        log_p_c = torch.zeros(len(cells))
        for name, observation in module.decode(state_cz, cells).items():
            log_p_c[cells.mask_with(name)] += observation.log_prob(cells.observed_counts(name))
        parts.append(log_p_c)
    active = module.circle.active_logit.sigmoid()
    log_prior_j = torch.cat([module.circle.log_density_j + active.log(), (1 - active).log()[None]])
    return (torch.stack(parts, 1) + log_prior_j).double().softmax(1)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "bernoulli"])
def test_posterior_equals_plain_enumeration(likelihood: str) -> None:
    """If all features are used, the posterior equals that of the model on the grid."""
    cells = simulate_two_cells(lacking={"rna": MISSING["rna"], "atac": MISSING["atac"]})
    module = make_module({"rna": 20, "atac": 30}, likelihood, effect=0.15)
    posterior_cj = enumerate_posterior(module, cells)
    angle_j = angle_grid(torch.zeros(1, dtype=torch.float64))
    around_cj = posterior_cj[:, :-1] / posterior_cj[:, :-1].sum(1, keepdim=True)
    mean_cu = around_cj @ torch.stack([angle_j.cos(), angle_j.sin()], 1)
    length_c = mean_cu.norm(dim=1)
    found = with_angles(module, cells)
    x_c, y_c, kappa_c, logit_c = found.angle_params_cq.double().unbind(1)
    torch.testing.assert_close(
        kappa_c / (kappa_c + 1), length_c.clamp_max(angle_posterior.MAX_LENGTH), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(x_c * length_c, mean_cu[:, 0], atol=2e-3, rtol=0)
    torch.testing.assert_close(y_c * length_c, mean_cu[:, 1], atol=2e-3, rtol=0)
    torch.testing.assert_close(logit_c.sigmoid(), 1 - posterior_cj[:, -1], atol=2e-3, rtol=0)
    assert length_c.std() > 0.05
    assert 0.02 < posterior_cj[:, -1].mean() < 0.95
    assert found.counts is cells.counts


def test_missing_modalities_have_no_effect() -> None:
    cells = simulate_two_cells(lacking={"rna": [0, 1, 2], "atac": [3, 4]})
    module = make_module({"rna": 20, "atac": 30})
    together = with_angles(module, cells).angle_params_cq
    for rows, name in (([0, 1, 2], "atac"), ([3, 4], "rna")):
        alone = with_angles(module, cells.select(torch.tensor(rows)).keep_modalities(name)).angle_params_cq
        torch.testing.assert_close(alone, together[rows], rtol=1e-4, atol=1e-4)


def test_the_posterior_of_an_empty_cell_is_the_prior() -> None:
    cells = simulate_two_cells(lacking={"rna": [0], "atac": [0]})
    module = make_module({"rna": 20, "atac": 30})
    params_q = with_angles(module, cells).angle_params_cq[0]
    density_j, angle_j = module.circle.log_density_j.exp(), angle_grid(torch.zeros(1))
    mean_u = density_j @ torch.stack([angle_j.cos(), angle_j.sin()], 1)
    torch.testing.assert_close(params_q[:2], mean_u / mean_u.norm())
    torch.testing.assert_close(params_q[2], mean_u.norm() / (1 - mean_u.norm()), rtol=1e-4, atol=0)
    torch.testing.assert_close(params_q[3], module.circle.active_logit)


def test_angles_are_inferred_from_selected_features_only() -> None:
    cells = simulate_cells()
    module = make_module({"rna": 20})
    decoder = module.modalities["rna"].decoder
    decoder.angle_feature_mask_f[5:] = False
    values_cf = torch.zeros(60, 20)
    rows = cells.counts["rna"]
    values_cf[torch.arange(60).repeat_interleave(rows.indptr_c.diff()), rows.column_n] = rows.value_n
    z_cz, angle_j = module.encode_means(cells), angle_grid(torch.zeros(1))
    log_p_cj = torch.stack(
        [
            torch.distributions.Poisson(module.decode_modality("rna", state(z_cz, angle.expand(60)), cells).mean[:, :5])
            .log_prob(values_cf[:, :5])
            .sum(1)
            for angle in angle_j
        ],
        1,
    )
    around_cj = (log_p_cj + module.circle.log_density_j).softmax(1)
    mean_cu = around_cj @ torch.stack([angle_j.cos(), angle_j.sin()], 1)
    found = with_angles(module, cells).angle_params_cq
    torch.testing.assert_close(found[:, :2], mean_cu / mean_cu.norm(dim=1, keepdim=True), atol=1e-3, rtol=0)
    decoder.angle_feature_mask_f.fill_(False)
    active_c = with_angles(module, cells).angle_params_cq[:, 3]
    torch.testing.assert_close(active_c, module.circle.active_logit.expand(60))


def test_the_posterior_uses_given_angles_or_infers_them() -> None:
    cells, module = simulate_cells(), make_module({"rna": 20})
    inferred = module.posterior(cells)
    torch.testing.assert_close(inferred["direction"].mean_cu, module.infer_angles(cells)[:, :2])
    given_cq = angle_posterior.pack_angle_posterior(torch.rand(60) * 6, torch.rand(60), torch.rand(60))
    given = module.posterior(replace(cells, angle_params_cq=given_cq))
    assert torch.equal(given["direction"].mean_cu, given_cq[:, :2])
    assert torch.equal(given["active"].logit_c, given_cq[:, 3])


def test_importance_weights_infer_angles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, module = simulate_cells(), make_module({"rna": 20})
    calls = []
    infer_angles = module.infer_angles
    monkeypatch.setattr(module, "infer_angles", lambda *inputs: calls.append(1) or infer_angles(*inputs))
    assert module.log_weights(cells, 3).shape == (3, 60)
    assert len(calls) == 1


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, module = simulate_cells(), make_module({"rna": 20})
    expected = with_angles(module, cells).angle_params_cq
    monkeypatch.setattr(celldial.data.cells, "decode_block_size", lambda n_features: 7)
    torch.testing.assert_close(with_angles(module, cells).angle_params_cq, expected, rtol=1e-4, atol=1e-4)


# Number of features with simulate_periodic harmonics. The other coordinates have no effect on the counts.
N_PERIODIC = 80


def simulate_periodic(n_cells: int = 600, active_share: float = 0.7) -> tuple[Module, Cells, np.ndarray, np.ndarray]:
    """Return a module and cells, some inactive, with angles of the density (1 + 0.8 cos(θ - 1)) / 2π."""
    module = make_module({"rna": N_PERIODIC})
    # The other coordinates have no effect, so the encoder does not matter.
    for head in module.modalities["rna"].decoder.heads:
        head.weight.zero_()
    random = np.random.default_rng(0)
    angle_s = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    density_s = 1 + 0.8 * np.cos(angle_s - 1)
    angle_c = random.choice(angle_s, n_cells, p=density_s / density_s.sum())
    active_c = random.random(n_cells) < active_share
    states = state(torch.zeros(n_cells, 2), torch.from_numpy(angle_c).float(), torch.from_numpy(active_c).float())
    return module, sample_counts(module, states, 400.0), angle_c, active_c


def test_prior_and_angles_are_recovered() -> None:
    module, cells, angle_c, active_c = simulate_periodic()
    module.circle.log_density_j.fill_(-math.log(N_GRID))
    module.circle.active_logit.fill_(2.0)
    found = with_angles(module, cells, learn_prior=True)
    np.testing.assert_array_equal(found.angle_params_cq[:, 3].numpy() > 0, active_c)
    difference = np.angle(np.exp(1j * (angles_of(found).numpy() - angle_c)))[active_c]
    assert np.abs(difference).mean() < 0.1
    # Errors agree with the standard deviation of the power spherical posterior.
    stated = np.sqrt(2 / found.angle_params_cq[active_c, 2].numpy())
    assert (difference**2).mean() == pytest.approx((stated**2).mean(), rel=0.35)
    density_j = module.circle.log_density_j.exp().double()
    angle_j = angle_grid(density_j)
    blur = torch.special.i1(torch.tensor(angle_posterior.SMOOTHING)) / torch.special.i0(
        torch.tensor(angle_posterior.SMOOTHING)
    )
    expected_j = (1 + 0.8 * blur * (angle_j - 1).cos()) / N_GRID
    assert (density_j - expected_j).abs().sum() < 0.15
    assert module.circle.active_logit.sigmoid() == pytest.approx(active_c.mean(), abs=0.01)


def test_the_prior_is_unchanged_without_learn_prior() -> None:
    module, cells, _, _ = simulate_periodic(50)
    before = [part.clone() for part in (module.circle.log_density_j, module.circle.active_logit)]
    with_angles(module, cells)
    assert torch.equal(module.circle.log_density_j, before[0])
    assert torch.equal(module.circle.active_logit, before[1])


def test_no_cell_becomes_inactive_if_all_started_active() -> None:
    module, cells, _, _ = simulate_periodic(200, active_share=1.0)
    module.circle.active_logit.fill_(angle_posterior.MAX_LOGIT)
    with_angles(module, cells, learn_prior=True)
    assert module.circle.active_logit == angle_posterior.MAX_LOGIT


@given(angle=st.floats(-7, 7), length=st.floats(0, 1), active=st.floats(0, 1))
def test_packed_parameters_are_finite(angle: float, length: float, active: float) -> None:
    params_q = angle_posterior.pack_angle_posterior(*(torch.tensor([value]) for value in (angle, length, active)))[0]
    assert params_q.isfinite().all()
    assert params_q[:2].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-5)
    assert params_q[2] / (1 + params_q[2]) == pytest.approx(min(length, angle_posterior.MAX_LENGTH), abs=1e-4)
    assert params_q[3].sigmoid() == pytest.approx(active, abs=1e-5)


# --- Rotation and decorrelation ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(by=st.floats(-7, 7), angle=st.floats(-7, 7), activity=st.floats(0.05, 1))
def test_a_rotated_circle_decodes_the_same_at_the_rotated_angle(by: float, angle: float, activity: float) -> None:
    module = make_module({"rna": 20, "atac": 30}).double()
    cells = simulate_two_cells(n_cells=5)
    cells = replace(cells, continuous_ck=cells.continuous_ck.double())
    z_cz = torch.randn(5, 2, dtype=torch.float64)
    before = module.decode(state(z_cz, torch.full((5,), angle).double(), activity), cells)
    angle_posterior.rotate(dict(module.by_modality()), by)
    after = module.decode(state(z_cz, torch.full((5,), by + angle).double(), activity), cells)
    for name in before:
        torch.testing.assert_close(after[name].mean, before[name].mean, rtol=1e-4, atol=1e-4)


def with_dependent_coordinates(module: Module, cells: Cells) -> Cells:
    """Return cells with angles, after making the other coordinates depend on the angle."""
    with torch.no_grad():
        module.modalities["rna"].encoder.output.weight.normal_()
        module.modalities["rna"].encoder.weight_fh.mul_(3)
    return with_angles(module, cells)


def test_decorrelation_does_not_change_decoded_values() -> None:
    module, cells, _, _ = simulate_periodic(1500)
    torch.nn.init.normal_(module.modalities["rna"].decoder.heads[0].weight)
    cells = with_dependent_coordinates(module, cells)

    def decoded() -> tuple[Tensor, Tensor]:
        posterior = module.posterior(cells)
        z_cz = posterior["z"].mean
        activity_c = posterior["active"].mean
        at_cz = torch.cat([z_cz, cells.angle_params_cq[:, :2] * activity_c[:, None]], 1)
        return z_cz, module.decode_modality("rna", at_cz, cells).mean

    harmonic_ck = fourier_features(cells.angle_params_cq[:, :2] * cells.angle_params_cq[:, 3:].sigmoid())[:, :-1]

    def max_correlation(z_cz: Tensor) -> float:
        """Return the largest correlation of a coordinate with a harmonic."""
        return float(torch.corrcoef(torch.cat([z_cz, harmonic_ck], 1).T)[:2, 2:].abs().max())

    z_before_cz, before_cf = decoded()
    assert max_correlation(z_before_cz) > 0.3
    angle_posterior.decorrelate_from_angle(*for_update(module, cells))
    z_cz, after_cf = decoded()
    assert max_correlation(z_cz) < 0.1  # not 0, because of the ridge, and because groups and harmonics overlap
    assert module.modalities["rna"].decoder.angle_offset_kz.any()
    torch.testing.assert_close(after_cf, before_cf, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z_cz.mean(0), z_before_cz.mean(0), atol=1.0, rtol=0)
    # A second call changes empty, and the inferred angles are the same.
    inferred_cq = with_angles(module, cells).angle_params_cq
    torch.testing.assert_close(inferred_cq, cells.angle_params_cq, rtol=1e-3, atol=1e-3)
    angle_offset_kz = module.modalities["rna"].decoder.angle_offset_kz.clone()
    angle_posterior.decorrelate_from_angle(*for_update(module, cells))
    torch.testing.assert_close(module.modalities["rna"].decoder.angle_offset_kz, angle_offset_kz)


def test_differences_between_groups_with_other_angles_stay_in_the_coordinates() -> None:
    """One coordinate separates two groups whose angles differ; a second one follows the angle in both."""
    random, n_cells = np.random.default_rng(0), 600
    group_c = np.arange(n_cells) % 2
    angle_c = random.vonmises(np.where(group_c == 0, 0.0, np.pi), 1.0)
    cells = simulate_cells(n_cells=n_cells)
    params_cq = torch.tensor(np.stack([np.cos(angle_c), np.sin(angle_c), 0 * angle_c, 12 + 0 * angle_c], 1)).float()
    mean_cz = np.stack([4.0 * group_c + 0.3 * random.normal(size=n_cells), np.cos(angle_c)], 1)
    module = make_module({"rna": 20})
    cells = replace(cells, angle_params_cq=params_cq)
    angle_posterior.decorrelate_from_angle(dict(module.by_modality()), cells, torch.tensor(mean_cz))
    offset_kz = module.modalities["rna"].decoder.angle_offset_kz
    assert float(offset_kz[:, 0].abs().max()) < 0.2  # 1.5 across all cells
    torch.testing.assert_close(offset_kz[:, 1], torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=0.05, rtol=0)


def test_curves_agree_with_decoded_rates() -> None:
    module, cells = make_module({"rna": 20}), simulate_cells(n_cells=1)
    column_f = torch.tensor([3, 7])
    curve_fj = angle_posterior.log_rate_curves(module.modalities["rna"].decoder, column_f)
    angle_j = angle_grid(torch.zeros(1))
    many = cells.select(torch.zeros(N_GRID, dtype=torch.int64))
    log_cf = module.decode_modality("rna", state(torch.zeros(N_GRID, 2), angle_j), many).mean.log()
    ratio_j = log_cf[:, 3] - log_cf[:, 7]
    torch.testing.assert_close(curve_fj[0] - curve_fj[1], ratio_j - ratio_j.mean(), atol=1e-4, rtol=0)


# --- Initialization, and selection of features ------------------------------------------------------------------------


def test_harmonics_are_initialized_from_the_angles_of_the_cells() -> None:
    module, cells, angle_c, active_c = simulate_periodic(3000)
    truth_fj = angle_posterior.log_rate_curves(module.modalities["rna"].decoder, torch.arange(N_PERIODIC))
    parts = (torch.from_numpy(angle_c).float(), torch.ones(3000), torch.from_numpy(active_c).float())
    cells = replace(cells, angle_params_cq=angle_posterior.pack_angle_posterior(*parts))
    column_f = torch.arange(0, N_PERIODIC, 2)
    initialize_harmonics(module, cells, {"rna": column_f})
    found_fj = angle_posterior.log_rate_curves(module.modalities["rna"].decoder, torch.arange(N_PERIODIC))
    assert not found_fj[1::2].any()
    similar_f = [
        np.corrcoef(found_j, truth_j)[0, 1] for found_j, truth_j in zip(found_fj[::2], truth_fj[::2], strict=True)
    ]
    assert np.median(similar_f) > 0.9
    slope = np.polyfit(truth_fj[::2].numpy().ravel(), found_fj[::2].numpy().ravel(), 1)[0]
    assert 0.6 < slope < 1.1
    assert module.circle.active_logit.sigmoid() == pytest.approx(active_c.mean(), abs=1e-3)


def test_all_cells_stay_active_if_all_are_active_initially() -> None:
    module, cells, angle_c, _ = simulate_periodic(50)
    cells = replace(
        cells,
        angle_params_cq=angle_posterior.pack_angle_posterior(
            torch.from_numpy(angle_c).float(), torch.ones(50), torch.ones(50)
        ),
    )
    initialize_harmonics(module, cells, {"rna": torch.arange(N_PERIODIC)})
    assert module.circle.active_logit == angle_posterior.MAX_LOGIT


def test_harmonics_of_other_modalities_are_not_initialized() -> None:
    module, cells = make_module({"rna": 20, "atac": 30}), simulate_two_cells(lacking={"rna": [0, 1]})
    before = module.modalities["atac"].decoder.harmonics.weight.clone()
    cells = replace(
        cells,
        angle_params_cq=angle_posterior.pack_angle_posterior(
            torch.rand(60) * 6, torch.ones(60), torch.full((60,), 0.8)
        ),
    )
    initialize_harmonics(module, cells, {"rna": torch.arange(20)})
    assert torch.equal(module.modalities["atac"].decoder.harmonics.weight, before)
    assert module.modalities["rna"].decoder.harmonics.weight.isfinite().all()


def test_periodic_features_are_selected() -> None:
    module, cells, _, _ = simulate_periodic(600)
    decoder = module.modalities["rna"].decoder
    periodic_f = torch.arange(N_PERIODIC) % 4 == 0
    decoder.harmonics.weight[~periodic_f] *= 0.005
    cells = with_angles(module, cells)
    angle_posterior.select_angle_features(*for_update(module, cells))
    assert not (decoder.angle_feature_mask_f & ~periodic_f).any()
    assert (decoder.angle_feature_mask_f & periodic_f).sum() > 0.8 * periodic_f.sum()  # some have few counts
    decoder.harmonics.weight *= 0.005
    with warns(naming=[angle_posterior.N_FALLBACK_FEATURES]):
        angle_posterior.select_angle_features(*for_update(module, cells))
    assert decoder.angle_feature_mask_f.sum() == min(angle_posterior.N_FALLBACK_FEATURES, N_PERIODIC - 1)


def test_at_most_the_most_informative_features_are_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    module, cells, _, _ = simulate_periodic(600)
    decoder = module.modalities["rna"].decoder
    decoder.harmonics.weight[10:] *= 0.3
    monkeypatch.setattr(angle_posterior, "MAX_FEATURES", 5)
    angle_posterior.select_angle_features(*for_update(module, with_angles(module, cells)))
    assert decoder.angle_feature_mask_f.sum() == 5
    assert decoder.angle_feature_mask_f[:10].sum() >= 4


def test_noisy_initial_angles_improve() -> None:
    """If harmonics are initialized from noisy angles, the inferred angles have a smaller error than the noisy ones."""
    module, cells, angle_c, _ = simulate_periodic(800, active_share=1.0)
    noisy_c = angle_c + np.random.default_rng(1).normal(0, 0.5, 800)
    cells = replace(
        cells,
        angle_params_cq=angle_posterior.pack_angle_posterior(
            torch.from_numpy(noisy_c).float(), torch.ones(800), torch.ones(800)
        ),
    )
    initialize_harmonics(module, cells, {"rna": torch.arange(N_PERIODIC)})
    angle_posterior.select_angle_features(*for_update(module, cells))
    found = with_angles(module, cells, learn_prior=True)
    assert angular_error(angles_of(found).numpy(), angle_c) < 0.15 < angular_error(noisy_c, angle_c)
