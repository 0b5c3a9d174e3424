"""Fixtures of several folders: cells, and fitted models that no test may change."""

from collections.abc import Iterator

import pyro
import pytest
import torch
from anndata import AnnData

from celldial import VAE
from helpers.fit import fit
from helpers.simulate import COVARIATES, simulate, simulate_modalities, simulate_mosaic, simulate_two


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed before each test: it must not depend on those before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Seed, and compute in double precision without checks by Pyro, as in training."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(False):
        yield
    torch.set_default_dtype(torch.float32)


# --- Cells and fitted models, which no test may change ----------------------------------------------------------------


@pytest.fixture
def adata() -> AnnData:
    """Return cells with genes; each test has its own."""
    return simulate()


@pytest.fixture(scope="session")
def model() -> Iterator[VAE]:
    """Return a model without covariates."""
    yield from unchanged(fit(simulate()))


@pytest.fixture(scope="session")
def conditional() -> Iterator[VAE]:
    """Return a model with a covariate of every kind, trained for long enough to use them."""
    yield from unchanged(fit(simulate(), VAE(2, 8, **COVARIATES), max_epochs=20))


@pytest.fixture(scope="session")
def multiome() -> AnnData:
    """Return cells with genes and peaks; not to be written to."""
    return simulate_modalities("rna", "atac")


@pytest.fixture(scope="session")
def bimodal(multiome: AnnData) -> Iterator[VAE]:
    """Return a model of genes and peaks with a covariate of every kind."""
    yield from unchanged(fit(multiome.copy(), VAE(2, 8, **COVARIATES), max_epochs=10))


@pytest.fixture(scope="session")
def trimodal() -> Iterator[VAE]:
    """Return a model of genes, peaks and proteins."""
    yield from unchanged(fit(simulate_mosaic()))


@pytest.fixture(scope="session")
def model_3d() -> Iterator[VAE]:
    """Return a model with three latent coordinates and a covariate of every kind."""
    yield from unchanged(fit(simulate(), VAE(3, 8, **COVARIATES), max_epochs=15))


@pytest.fixture(scope="session")
def bimodal_3d() -> Iterator[VAE]:
    """Return a model of genes and peaks with three latent coordinates."""
    yield from unchanged(fit(simulate_two(), VAE(3, 8), max_epochs=3))


@pytest.fixture(scope="session")
def axis_fitted() -> tuple[VAE, AnnData]:
    """Return a model with covariates, and its 300 cells of two types and two batches."""
    adata = simulate(300, 40)
    return fit(adata, VAE(3, 16, **COVARIATES), max_epochs=15), adata


@pytest.fixture
def axis_model(axis_fitted: tuple[VAE, AnnData]) -> VAE:
    """Return the model of `axis_fitted`."""
    return axis_fitted[0]


@pytest.fixture
def axis_adata(axis_fitted: tuple[VAE, AnnData]) -> AnnData:
    """Return a copy of the cells of `axis_fitted`."""
    return axis_fitted[1].copy()


def unchanged(model: VAE) -> Iterator[VAE]:
    """Yield a model, and assert that no test has changed its weights, parameters or history."""
    weights = {name: tensor.clone() for name, tensor in model.module_.state_dict().items()}
    parameters, history = model.get_params(), {name: list(values) for name, values in model.history_.items()}
    yield model
    changed = [name for name, tensor in model.module_.state_dict().items() if not torch.equal(tensor, weights[name])]
    assert not changed, "a test changed a model that others use"
    assert model.get_params() == parameters
    assert model.history_ == history
