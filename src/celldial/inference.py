"""What a trained module says of cells: latent states from counts, expression from latent states, new cells.

Arrays in, arrays out, in blocks of cells, so that memory stays bounded on the device. No AnnData here.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``q`` quantiles, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyro
import torch
from scipy import sparse
from torch import Tensor

from celldial.data import Cells, minibatches
from celldial.likelihoods import Observation
from celldial.module import Module
from celldial.settings import settings

__all__ = ["Covariates", "Posterior", "draw_cells", "expression", "infer", "ready"]

BLOCK_SIZE = 1024


class Posterior(NamedTuple):
    """Mean and standard deviation of each cell's latent state, float32, each of shape ``(cells, n_latent)``."""

    mean: np.ndarray
    standard_deviation: np.ndarray


class Covariates(NamedTuple):
    """Encoded covariates of some cells: what `Schema.covariates` returns."""

    category_ck: np.ndarray
    continuous_ck: np.ndarray


def ready(module: Module) -> torch.device:
    """Bring a module to the device where it is to compute, and make it deterministic."""
    device = settings.torch_device
    if next(module.parameters()).device != device:
        module.to(device)
    module.eval()
    return device


@torch.no_grad()
def infer(module: Module, cells: Cells) -> Posterior:
    """Infer each cell's latent state; for cells without any count, the prior.

    Raises
    ------
    FloatingPointError
        A result is not finite.
    """
    device = ready(module)
    parts = []
    with pyro.validation_enabled(False):  # values that are not finite have a better error below
        for block in minibatches(cells, BLOCK_SIZE):
            posterior = module.posterior(block.to(device))
            parts.append((posterior.mean.cpu().numpy(), posterior.stddev.cpu().numpy()))
    mean_cz, deviation_cz = (np.concatenate(part) for part in zip(*parts, strict=True))
    empty_c = cells.empty_c.numpy()
    mean_cz[empty_c], deviation_cz[empty_c] = 0, 1
    finite_c = np.isfinite(mean_cz).all(1) & np.isfinite(deviation_cz).all(1)
    if not finite_c.all():
        raise FloatingPointError(
            f"the latent states of {(~finite_c).sum()} of {len(cells)} cells are not finite, so training went wrong: "
            "try a lower learning_rate, and look for features with extreme counts"
        )
    return Posterior(mean_cz, deviation_cz)


def expression(
    module: Module, z_cz: np.ndarray, covariates: Covariates, library_size: float, columns: np.ndarray | None = None
) -> np.ndarray:
    """Decode latent states to the expected counts of cells of a library size.

    Parameters
    ----------
    module
        What decodes.
    z_cz
        Latent states, float32.
    covariates
        Of the same cells.
    library_size
        What the expression of a cell sums to, over all features.
    columns
        Indices of the features wanted; all by default.

    Returns
    -------
    Expression, float32, shape ``(c, f)``.
    """
    blocks = _decode(module, torch.from_numpy(z_cz), covariates, torch.full((len(z_cz),), float(library_size)))
    parts = []
    for observation in blocks:
        expected_cf = (observation.rate * observation.library_size_c[:, None]).cpu().numpy()
        parts.append(expected_cf if columns is None else expected_cf[:, columns])
    return np.concatenate(parts)


def draw_cells(
    module: Module, covariates: Covariates, library_size_q: np.ndarray
) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Draw latent states from the prior and counts from the model, by torch's generator.

    Parameters
    ----------
    module
        What decodes.
    covariates
        Of the cells to draw.
    library_size_q
        Evenly spaced quantiles of the library sizes to draw from.

    Returns
    -------
    Latent states, shape ``(c, z)``, and counts, float32, shape ``(c, f)``.
    """
    n_cells = len(covariates.category_ck)
    quantiles = torch.from_numpy(library_size_q).float()
    position_c = torch.rand(n_cells) * (len(quantiles) - 1)
    low_c = position_c.long()
    library_size_c = torch.lerp(quantiles[low_c], quantiles[low_c + 1], position_c - low_c)
    z_cz = module.latent.prior(n_cells, like=library_size_c).sample()
    blocks = _decode(module, z_cz, covariates, library_size_c)
    counts = sparse.vstack([sparse.csr_matrix(block.sample().cpu().numpy()) for block in blocks], format="csr")
    return z_cz.numpy(), counts


@torch.no_grad()
def _decode(module: Module, z_cz: Tensor, covariates: Covariates, library_size_c: Tensor) -> Iterator[Observation]:
    """Decode block by block."""
    device = ready(module)
    (modality,) = module.modalities
    cells = Cells({}, {modality: library_size_c}, *map(torch.from_numpy, covariates))
    for start in range(0, len(z_cz), BLOCK_SIZE):
        block = cells.between(start, start + BLOCK_SIZE).to(device)
        yield module.decode(z_cz[start : start + BLOCK_SIZE].to(device), block)[modality]
