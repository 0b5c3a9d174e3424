"""Inference with a trained module: latent states from counts, expected values from latent states, new cells.

Arrays in, arrays out. Cells are processed in blocks, so the memory on the device does not grow with their number.

Axis suffixes: ``c`` cells, ``f`` features, ``k`` covariates, ``q`` quantiles, ``z`` latent coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from scipy import sparse
from torch import Tensor
from torch.distributions import kl_divergence

from celldial.data.cells import MAX_DECODE_CELLS, Cells, decode_block_size, decode_blocks, minibatches
from celldial.model.module import Module
from celldial.model.observations import SparseObservation
from celldial.utils.random import isolate_rng
from celldial.utils.settings import settings

__all__ = [
    "Covariates",
    "Posterior",
    "concat_states",
    "decode_mean",
    "importance_weighted_bound",
    "infer",
    "log_weights",
    "sample_counts",
    "sample_latent",
    "sample_library_sizes",
    "sample_prior",
    "to_eval",
]

# Samples to estimate the moments of a posterior without a closed form.
N_DRAWS = 64


class Posterior(NamedTuple):
    """Posterior of the latent coordinates of each cell.

    Parameters
    ----------
    mean
        Mean of the latent coordinates, float32, shape ``(cells, n_latent)``.
    standard_deviation
        Standard deviation of the latent coordinates, float32, shape ``(cells, n_latent)``. A coordinate that the counts
        do not inform has 1, the standard deviation of the prior.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE().fit(adata, max_epochs=1, progress=False)
    >>> posterior = model.latent_posterior(adata)
    >>> posterior.mean.shape, posterior.standard_deviation.shape
    ((700, 10), (700, 10))
    """

    mean: np.ndarray
    standard_deviation: np.ndarray


class CirclePosterior(NamedTuple):
    """Posterior of the periodic coordinate of each cell, all of shape ``(cells,)``.

    The angle in [0, 2π) given that the cell is active, its concentration (κ of the power spherical distribution), the
    probability that the cell is active, and the KL divergence from the prior in nats.
    """

    angle: np.ndarray
    concentration: np.ndarray
    active: np.ndarray
    kl: np.ndarray


class LatentState(NamedTuple):
    """Latent state of each cell: posterior of the coordinates, and the embedding.

    If the model has them, also the posterior of the periodic coordinate, and the probability of each cluster, shape
    ``(cells, n_clusters)``.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    embedding: np.ndarray
    circle: CirclePosterior | None = None
    cluster: np.ndarray | None = None

    @property
    def state_cz(self) -> np.ndarray:
        """State to decode: mean coordinates, then activity times cosine and sine of the angle."""
        return self._with_circle(self.mean)

    @property
    def embedding_with_circle(self) -> np.ndarray:
        """Embedding, followed by the point on the circle if there is one."""
        return self._with_circle(self.embedding)

    def _with_circle(self, value_cz: np.ndarray) -> np.ndarray:
        if self.circle is None:
            return value_cz
        angle_c, active_c = self.circle.angle, self.circle.active
        plane_cu = active_c[:, None] * np.column_stack([np.cos(angle_c), np.sin(angle_c)])
        return np.concatenate([value_cz, plane_cu.astype(value_cz.dtype)], axis=1)


class Covariates(NamedTuple):
    """Encoded covariates of cells."""

    category_ck: np.ndarray
    continuous_ck: np.ndarray


def to_eval(module: Module) -> torch.device:
    """Move a module to the device of the settings, and switch it to evaluation mode."""
    device = settings.torch_device
    if next(module.parameters()).device != device:
        module.to(device)
    module.eval()
    return device


@torch.no_grad()
def infer(module: Module, cells: Cells) -> LatentState:
    """Infer each cell's latent state; cells without any count get the prior.

    Raises
    ------
    FloatingPointError
        A result is not finite.
    """
    device = to_eval(module)
    parts = []
    # Values that are not finite raise a clearer error below. The seed makes sampled moments reproducible.
    with pyro.validation_enabled(False), isolate_rng(0):
        for block in minibatches(cells, MAX_DECODE_CELLS):
            block = block.to(device)
            encoded = module.encode(block)
            posterior = module.posterior_distributions(encoded, block)
            part = list(posterior_moments(posterior["z"]))
            if encoded.logits_ck is not None:
                part.append(encoded.logits_ck.softmax(-1))
            if module.circle is not None:
                direction = posterior["direction"]
                angle_c = torch.atan2(direction.mean_cu[:, 1], direction.mean_cu[:, 0]) % (2 * math.pi)
                # Rounding can turn a tiny negative angle into 2π.
                angle_c = torch.where(angle_c >= 2 * math.pi, 0.0, angle_c)
                prior = module.circle.prior_distributions(block, {})
                kl_c = torch.stack([kl_divergence(posterior[name], prior[name]) for name in prior]).sum(0)
                part += [angle_c, direction.concentration_c, posterior["active"].mean, kl_c]
            parts.append([tensor.cpu().numpy() for tensor in part])
    mean_cz, deviation_cz, *others = (np.concatenate(part) for part in zip(*parts, strict=True))
    empty_c = cells.empty_c.numpy()
    mean_cz[empty_c], deviation_cz[empty_c] = 0, 1
    cluster_ck = None
    if module.clusters is not None:
        cluster_ck = others.pop(0)
        cluster_ck[empty_c] = module.clusters.log_weight_k.exp().cpu().numpy()
    if others:
        # The prior: any angle, and the prior probability of being active.
        for values_c in (others[0], others[1], others[3]):
            values_c[empty_c] = 0
    finite_c = np.isfinite(mean_cz).all(1) & np.isfinite(deviation_cz).all(1)
    if not finite_c.all():
        raise FloatingPointError(
            f"the latent states of {(~finite_c).sum()} of {len(cells)} cells are not finite because the training "
            "diverged: try a lower learning_rate, and check for features with extreme counts"
        )
    embedding_cz = module.latent.link(torch.from_numpy(mean_cz)).numpy()
    return LatentState(mean_cz, deviation_cz, embedding_cz, CirclePosterior(*others) if others else None, cluster_ck)


def concat_states(parts: Sequence[LatentState]) -> LatentState:
    """Concatenate the latent states of several blocks of cells."""
    if len(parts) == 1:
        return parts[0]
    circle = cluster = None
    if parts[0].circle is not None:
        circle = CirclePosterior(
            *map(np.concatenate, zip(*(part.circle for part in parts if part.circle), strict=True))
        )
    if parts[0].cluster is not None:
        cluster = np.concatenate([part.cluster for part in parts if part.cluster is not None])
    mean, deviation, embedding = (np.concatenate([part[index] for part in parts]) for index in range(3))
    return LatentState(mean, deviation, embedding, circle, cluster)


def posterior_moments(posterior: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each coordinate; those of a flow are estimated from samples."""
    if not isinstance(posterior, TransformedDistribution):
        return posterior.mean, posterior.stddev
    deviation_cz = posterior.base_dist.stddev
    if not bool(deviation_cz.isfinite().all()):  # of damaged weights; they could not be sampled
        return deviation_cz, deviation_cz
    draws_ncz = posterior.sample([N_DRAWS])
    return draws_ncz.mean(0), draws_ncz.std(0)


@torch.no_grad()
def importance_weighted_bound(module: Module, blocks: Iterable[Cells], n_samples: int) -> float:
    """Return the importance-weighted bound on the log probability of cells, in nats per cell.

    Parameters
    ----------
    module
        A trained module.
    blocks
        Cells with counts, on any device, block by block.
    n_samples
        Latent samples of each cell, from torch's generator.

    References
    ----------
    Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
    """
    device = to_eval(module)
    total, n_cells = 0.0, 0
    for block in blocks:
        log_weight_nc = module.log_weights(block.to(device), n_samples)
        total += float((log_weight_nc.double().logsumexp(0) - math.log(n_samples)).sum())
        n_cells += len(block)
    return total / n_cells


@torch.no_grad()
def log_weights(module: Module, cells: Cells, n_samples: int) -> np.ndarray:
    """Return the logs of importance weights at draws from each cell's posterior, with torch's generator, ``(n, c)``."""
    device = to_eval(module)
    blocks = [module.log_weights(block.to(device), n_samples).cpu().numpy() for block in decode_blocks(cells)]
    weight_nc: np.ndarray = np.concatenate(blocks, axis=1)
    return weight_nc


@torch.no_grad()
def decode_mean(
    module: Module,
    modality: str,
    z_cz: np.ndarray,
    covariates: Covariates,
    library_size: float,
    columns: np.ndarray | None = None,
    include_background: bool = True,
) -> Iterator[np.ndarray]:
    """Decode latent states to expected values of one modality, block by block of cells.

    Parameters
    ----------
    module
        A trained module.
    modality
        Modality to decode.
    z_cz
        Latent states, float32.
    covariates
        Covariates of the same cells.
    library_size
        Library size of every cell in this modality.
    columns
        Indices of the features to return; all by default.
    include_background
        Whether to return the background and the foreground together, or the foreground alone.

    Yields
    ------
    numpy.ndarray
        Expected counts, or probabilities under a Bernoulli likelihood, float32, shape ``(c, f)``.
    """
    for observation in _decode(module, modality, z_cz, covariates, np.full(len(z_cz), library_size)):
        expected_cf = observation.mean if include_background else observation.foreground
        yield (expected_cf if columns is None else expected_cf[:, columns]).cpu().numpy()


@torch.no_grad()
def sample_prior(module: Module, covariates: Covariates) -> np.ndarray:
    """Sample latent states of new cells from the prior, with torch's generator, shape ``(c, z)``."""
    device = to_eval(module)
    cells = Cells({}, {}, torch.from_numpy(covariates.category_ck), torch.from_numpy(covariates.continuous_ck))
    state_cz: np.ndarray = module.sample_prior(cells.to(device)).cpu().numpy()
    return state_cz


def sample_library_sizes(library_size_q: Mapping[str, np.ndarray], n_cells: int) -> dict[str, np.ndarray]:
    """Sample library sizes of each modality from evenly spaced quantiles, with torch's generator."""
    library_size = {}
    for modality, quantile_q in library_size_q.items():
        position_c = torch.rand(n_cells).numpy() * (len(quantile_q) - 1)
        library_size[modality] = np.interp(position_c, np.arange(len(quantile_q)), quantile_q)
    return library_size


@torch.no_grad()
def sample_counts(
    module: Module, z_cz: np.ndarray, covariates: Covariates, library_size: Mapping[str, np.ndarray]
) -> dict[str, sparse.csr_matrix]:
    """Sample counts of cells from the model, with torch's generator.

    Parameters
    ----------
    module
        A trained module.
    z_cz
        Latent states, float32.
    covariates
        Covariates of the same cells.
    library_size
        Modality to the library size of each cell; 0 in a cell without the modality.

    Returns
    -------
    dict[str, sparse.csr_matrix]
        Modality to counts, float32, shape ``(c, f)``.
    """
    counts = {}
    for modality, library_size_c in library_size.items():
        present_c = library_size_c > 0
        # A cell without the modality is decoded, too, and its counts are removed.
        blocks = _decode(module, modality, z_cz, covariates, np.where(present_c, library_size_c, 1.0))
        rows = sparse.vstack([sparse.csr_matrix(block.sample().cpu().numpy()) for block in blocks], format="csr")
        if not present_c.all():
            rows = sparse.diags(present_c.astype(np.float32)) @ rows
            rows.eliminate_zeros()
        counts[modality] = rows
    return counts


@torch.no_grad()
def _decode(
    module: Module, modality: str, z_cz: np.ndarray, covariates: Covariates, library_size_c: np.ndarray
) -> Iterator[SparseObservation]:
    """Decode block by block."""
    device = to_eval(module)
    library_size = {modality: torch.from_numpy(library_size_c).float()}
    category_ck, continuous_ck = map(torch.from_numpy, covariates)
    cells = Cells({}, library_size, category_ck, continuous_ck)
    n_cells = decode_block_size(module.n_features[modality])
    for start in range(0, len(z_cz), n_cells):
        stop = start + n_cells
        yield module.decode_modality(
            modality, torch.from_numpy(z_cz[start:stop]).to(device), cells.slice(start, stop).to(device)
        )


@torch.no_grad()
def sample_latent(module: Module, cells: Cells, n_samples: int) -> np.ndarray:
    """Sample latent states of each cell from its posterior, with torch's generator, shape ``(c, n, z)``."""
    device = to_eval(module)
    with pyro.validation_enabled(False):
        return sample_states(module, cells.to(device), n_samples).cpu().numpy()


def sample_states(module: Module, cells: Cells, n_samples: int) -> Tensor:
    """Sample latent states of cells on the device of the module, shape ``(c, n, z)``."""
    posterior = module.posterior(cells)
    draws = [{name: part.sample() for name, part in posterior.items()} for _ in range(n_samples)]
    return torch.stack([module.state(drawn) for drawn in draws], 1)
