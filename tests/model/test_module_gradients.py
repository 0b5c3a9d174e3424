"""Gradient estimators of a module: the unbiased ones agree with each other."""

import importlib
from typing import Any

import pytest
import torch

from celldial.data.cells import Cells
from celldial.model.elbo import Gradient
from celldial.model.latents import LatentName
from celldial.model.module import EncoderOutput, Module
from celldial.tl.gradients import EstimatorConfig, Moments, available_estimators, configure_module, draws
from helpers.modules import build_module
from helpers.simulate import simulate_cells
from helpers.toys import ERRORS

pytestmark = pytest.mark.usefixtures("double_precision")


gradients = importlib.import_module("celldial.tl.gradients")


# --- The module -------------------------------------------------------------------------------------------------------


def make_module(cells: Cells, **options: Any) -> Module:
    """Return an initialized module with random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    n_features = {"rna": cells.counts["rna"].n_columns}
    module = build_module(n_features, "negative_binomial", dropout_rate=0.2, **options)
    module.initialize(cells)
    with torch.no_grad():
        for part in (module.modalities, module.clusters):
            for parameter in () if part is None else part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


CLUSTERED = {"n_clusters": 3, "gradient": Gradient(cluster="enumerate")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"latent": "laplace"}, marks=pytest.mark.slow),
        {"latent": "logistic"},
        pytest.param({"latent": "logistic_normal"}, marks=pytest.mark.slow),
        {"prior": "mixture"},
        pytest.param({"prior": "flow"}, marks=pytest.mark.slow),
        CLUSTERED,
        pytest.param({**CLUSTERED, "latent": "logistic"}, marks=pytest.mark.slow),
        {**CLUSTERED, "posterior": "flow"},
    ],
    ids=str,
)
def test_unbiased_estimators_agree_on_a_module(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "N_BASELINE_STEPS", 60)
    cells = simulate_cells(4, 12)
    module = make_module(cells, **options)
    with torch.no_grad():
        encoded = module.encode(cells)
    if encoded.logits_ck is not None:
        # Rare clusters would need more draws than this test has.
        encoded = encoded._replace(logits_ck=torch.randn_like(encoded.logits_ck))
    means = {}
    for seed, (name, config) in enumerate(available_estimators(module).items()):
        if config.gradient.cluster == "gumbel_softmax":
            continue
        torch.manual_seed(seed)
        configured = configure_module(module, config, cells, encoded, 0.3)
        means[name] = moments_of(configured, cells, encoded, 2_500)
    first = means.pop(next(iter(means)))
    assert len(means) == 3
    for others in means.values():
        for name, moments in others.items():
            error_cp = (moments.variance_cp / moments.n + first[name].variance_cp / first[name].n).sqrt()
            assert ((moments.mean_cp - first[name].mean_cp).abs() <= ERRORS * error_cp).all()


def moments_of(
    module: Module, cells: Cells, encoded: EncoderOutput, n: int, temperature: float = 0.3
) -> dict[str, Moments]:
    found = {name: Moments() for name in gradients.posterior_of(encoded)}
    for drawn in draws(module, cells, encoded, temperature, n):
        for name, moments in found.items():
            moments.add(drawn[name])
    return found


@pytest.mark.parametrize("latent", ["gaussian", "laplace", "logistic"])
def test_the_loss_sums_over_clusters(latent: LatentName) -> None:
    cells = simulate_cells(5, 12)
    module = make_module(cells, latent=latent, **CLUSTERED)
    parameters = [p for p in module.parameters() if p.requires_grad]
    torch.manual_seed(1)
    loss = module(cells)
    found = torch.autograd.grad(loss, parameters)
    torch.manual_seed(1)
    encoded = module.encode(cells)
    posterior = module.posterior_distributions(encoded, cells)["z"]
    z_cz = posterior.rsample()
    log_p_c = module.decode(z_cz, cells)["rna"].log_prob(cells.counts["rna"])
    log_q_ck = encoded.logits_ck.log_softmax(1)
    of = module.clusters.components
    elbo_c = log_p_c - posterior.log_prob(z_cz)
    for k in range(3):
        component = module.latent.posterior(of.mean_kz[k], of.scale_kz[k])
        log_joint_c = of.logit_k.log_softmax(0)[k] + component.log_prob(z_cz)
        elbo_c = elbo_c + log_q_ck[:, k].exp() * (log_joint_c - log_q_ck[:, k])
    by_hand = -elbo_c.mean() - module.clusters.log_weight_prior() / module.n_training_cells
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(found, torch.autograd.grad(by_hand, parameters), rtol=1e-4, atol=1e-5)


def test_the_bias_of_relaxed_gradients_falls_with_the_temperature() -> None:
    cells = simulate_cells(4, 12)
    module = make_module(cells, **CLUSTERED)
    with torch.no_grad():
        encoded = module.encode(cells)
    exact_cp = moments_of(module, cells, encoded, 20_000)["cluster"].mean_cp
    relaxed = configure_module(module, EstimatorConfig(Gradient(cluster="gumbel_softmax")), cells, encoded, 0.3)
    bias = []
    for temperature in (2.0, 0.7, 0.2):
        found = moments_of(relaxed, cells, encoded, 20_000, temperature)["cluster"]
        bias.append(float((found.mean_cp - exact_cp).norm()))
        error = float((found.variance_cp.sum() / found.n).sqrt())
    assert bias[0] > 1.5 * bias[1] > 2 * bias[2]
    assert bias[0] > 2 * ERRORS * error
