"""`fit`: run a simulator at several settings, and fit a surrogate to its cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import clone
from torch import Tensor

from celldial.data.cells import Cells
from celldial.data.schema import Schema
from celldial.estimator.vae import VAE
from celldial.inference import posterior
from celldial.model.likelihoods import BINARY_LIKELIHOODS
from celldial.surrogate.calibration import Calibration, fit_calibration
from celldial.surrogate.density import LatentDensity, fit_density, refine_density
from celldial.surrogate.evidence import Evidence, draw_states, fit_normal, log_sizes
from celldial.surrogate.parameters import ParameterSpace
from celldial.surrogate.sampling import Surrogate
from celldial.surrogate.simulations import Simulator, concatenate, run_all
from celldial.utils.random import isolate_rng
from celldial.utils.threads import limit_threads
from celldial.utils.validation import check_integer

__all__ = ["fit"]

# Share of the settings that are left out for calibration, if there are enough of them.
CALIBRATION_SHARE, MIN_SETTINGS = 0.25, 16
MAX_CALIBRATION_CELLS = 500
# Cells to which the density is fitted by their evidence.
MAX_REFINED_CELLS = 20_000
# Parameters of a model that a surrogate has no use for.
EXCLUDED = (
    "batch_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "periodic",
    "labels_key",
    "n_clusters",
)


def fit(
    simulator: Simulator,
    parameters: pd.DataFrame,
    n_cells: int | None = None,
    *,
    model: VAE | None = None,
    calibrate: bool = True,
    max_epochs: int | Literal["auto"] = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Surrogate:
    """Fit a surrogate: a fast model of the cells that a simulator returns, for any values of its parameters.

    The simulator runs once for each row of `parameters`. A `VAE` is fitted to the cells of all runs together, and then
    the distribution of latent states and library sizes given the parameters.

    Parameters
    ----------
    simulator
        Function that gets the parameters as keywords and returns an AnnData with counts in ``X``. All runs must have
        the same features. If it has a seed for random numbers, each run should have its own.
    parameters
        Table with a row for each setting and a column for each parameter. The settings should fill the ranges evenly,
        such as those of `scipy.stats.qmc.LatinHypercube`. Take the logarithm of a parameter that spans orders of
        magnitude.
    n_cells
        Number of random cells of each run to use; by default all.
    model
        A `VAE` with other parameters than the default, without covariates, clusters and a periodic coordinate.
    calibrate
        Whether a quarter of the settings is left out of the fit to calibrate `celldial.surrogate.infer`, if there are
        at least 16.
    max_epochs
        As in `VAE.fit`.
    seed
        Seed of the random numbers; `model` has its own.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Surrogate
        The surrogate, whose `Surrogate.sample` stands for the simulator.

    Raises
    ------
    TypeError
        The simulator is no function or does not return an AnnData, or `parameters` is not a table of numbers.
    ValueError
        A parameter is missing, infinite or the same in all settings; a run has too few cells or other features; or the
        model has parameters that a surrogate cannot have.
    ValueError, TypeError, KeyError, MemoryError, FloatingPointError
        As `VAE.fit`.

    Notes
    -----
    The counts of a cell depend on the parameters only through its latent state and library size. A change of a feature
    that no single cell shows is not in the surrogate; `celldial.surrogate.compare` reports it as lower correlations of
    means.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import celldial
    >>> def simulator(depth):
    ...     return celldial.datasets.simulate_multiome(60, 60, 80, depth=depth)
    >>> settings = pd.DataFrame({"depth": np.linspace(0.5, 2, 6)})
    >>> surrogate = celldial.surrogate.fit(simulator, settings, max_epochs=2, calibrate=False, progress=False)
    >>> surrogate.space.names
    ['depth']
    """
    space = ParameterSpace.of_table(parameters)
    settings = parameters.rename(columns=str)
    if n_cells is not None:
        check_integer("n_cells", n_cells, 2)
    for name in EXCLUDED if model is not None else ():
        if getattr(model, name):
            raise ValueError(f"model has {name}={getattr(model, name)!r}, which a surrogate cannot have: leave it out")
    random = np.random.default_rng(seed)
    left_out_s = choose_left_out(settings, random) if calibrate else np.zeros(len(settings), dtype=bool)
    runs = run_all(simulator, settings, n_cells, random)
    training = concatenate([each for each, out in zip(runs, left_out_s, strict=True) if not out])
    fitted = default_model(training, seed) if model is None else clone(model)
    fitted.fit(training, max_epochs=max_epochs, progress=progress)
    density = density_of_cells(fitted, space, training)
    surrogate = Surrogate(fitted, space, density, runs[0].var.copy())
    if not left_out_s.any():
        return surrogate
    held_out = [each for each, out in zip(runs, left_out_s, strict=True) if out]
    return Surrogate(fitted, space, density, surrogate.var, calibrate_surrogate(surrogate, held_out, seed))


def choose_left_out(settings: pd.DataFrame, random: np.random.Generator) -> np.ndarray:
    """Return a mask of settings to leave out: random ones that are not at the end of a range."""
    left_out_s = np.zeros(len(settings), dtype=bool)
    if len(settings) < MIN_SETTINGS:
        return left_out_s
    value_sk = settings.to_numpy(dtype=float)
    inside = np.flatnonzero(((value_sk > value_sk.min(0)) & (value_sk < value_sk.max(0))).all(1))
    n_left_out = min(round(CALIBRATION_SHARE * len(settings)), len(inside))
    left_out_s[random.choice(inside, n_left_out, replace=False)] = True
    return left_out_s


def default_model(adata: AnnData, seed: int) -> VAE:
    """Return a model for simulated cells: peaks with counts above 1 are counts of fragments."""
    schema = Schema.from_anndata(adata, binary_likelihoods=BINARY_LIKELIHOODS)
    counts = {name: adata[:, list(names)].X for name, names in schema.feature_names.items()}
    likelihood = {
        name: "poisson" if schema.binary[name] and counts[name].max() > 1 else schema.likelihood[name]
        for name in schema.modalities
    }
    return VAE(likelihood=likelihood, seed=seed)


def density_of_cells(model: VAE, space: ParameterSpace, adata: AnnData) -> LatentDensity:
    """Fit the density of latent states and library sizes to the training cells."""
    cells = Cells.from_anndata(adata, model.schema_)
    state = posterior.infer(model.module_, cells)
    mean_cz, deviation_cz = torch.from_numpy(state.mean), torch.from_numpy(state.standard_deviation)
    scaled_ck = space.scaled(torch.from_numpy(adata.obs[space.names].to_numpy())).float()

    def draw() -> tuple[Tensor, Tensor]:
        state_cz = mean_cz + deviation_cz * torch.randn_like(deviation_cz)
        return torch.cat([state_cz, log_sizes(cells, jitter=True)], 1), scaled_ck

    refined_c = torch.from_numpy(np.sort(np.random.default_rng(model.seed).permutation(len(cells))[:MAX_REFINED_CELLS]))
    with isolate_rng(model.seed), limit_threads(0):
        density = fit_density(draw)
        drawn = draw_states(model.module_, cells.select(refined_c), model.seed, jitter=True)
        refine_density(density, *drawn, scaled_ck[refined_c])
    return density


def calibrate_surrogate(surrogate: Surrogate, runs: list[AnnData], seed: int) -> Calibration:
    """Return the calibration from runs that the surrogate was not fitted to."""
    true_k, posteriors = [], []
    model, space = surrogate.model, surrogate.space
    for each in runs:
        cells = Cells.from_anndata(each[:MAX_CALIBRATION_CELLS].copy(), model.schema_)
        with limit_threads(0):
            evidence = Evidence.of_cells(model.module_, surrogate.density, space, cells, seed)
            posteriors.append(fit_normal(evidence, seed))
        true_k.append(space.to_coordinate(space.read_table(each.obs.iloc[:1])[0]).numpy())
    return fit_calibration(np.stack(true_k), posteriors)
