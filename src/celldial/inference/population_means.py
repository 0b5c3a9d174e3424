"""Population means of expected values along a path of latent states, with their posterior variance.

The variance has three sources. Each cell's latent state is uncertain: several samples from its posterior show by how
much. A sample of cells represents a population: the differences between cells show by how much it may deviate. The
loadings of the decoder were learned from noisy counts: a Laplace approximation gives their posterior
(`celldial.model.laplace`). All three are small on the log scale, where they are added.

Only sums over cells are kept, so that memory grows with steps × features and not with the number of cells.

Expected values can be averaged over several conditions, such as all batches: each sample is then decoded under each of
them, and everything else refers to the average.

Axis suffixes: ``b`` conditions, ``c`` cells, ``f`` features, ``h`` inputs of the last layer, ``j`` samples (those of
one cell side by side), ``k`` covariates, ``n`` samples of one cell, ``s`` steps, ``z`` columns of the latent state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from celldial.data.cells import MAX_DECODE_VALUES
from celldial.inference.posterior import Covariates, to_eval
from celldial.model.laplace import BLOCK_FEATURES
from celldial.model.likelihoods import ALL, Columns
from celldial.model.module import Module
from celldial.model.networks import Modality

__all__ = ["PopulationMeans", "contrast_covariance", "mean_along_path"]

# Number of float32 values that fit into the cache: 1 MB.
CACHED_ENTRIES = 2**18
# Smaller expected values are rounding errors.
TINY = 1e-30


class PopulationMeans(NamedTuple):
    """Mean expected values of one modality at each step, float32.

    Parameters
    ----------
    mean_sf
        The means.
    variance_sf
        Posterior variance of their natural logarithms.
    change_variance_f
        Posterior variance of each feature's log change from its lowest to its highest step.
    state_variance_f
        The part of it that is not due to the loadings.
    """

    mean_sf: np.ndarray
    variance_sf: np.ndarray
    change_variance_f: np.ndarray
    state_variance_f: np.ndarray


@torch.no_grad()
def mean_along_path(
    module: Module,
    name: str,
    states_sjz: np.ndarray,
    conditions: Sequence[Covariates],
    library_size: float,
    n_samples: int,
    n_group: int,
) -> PopulationMeans:
    """Decode latent states at each step, and average over the cells that represent a population.

    Parameters
    ----------
    module
        A trained module.
    name
        Modality to decode.
    states_sjz
        Latent states, float32: `n_samples` samples of each cell side by side.
    conditions
        Covariates of the same samples under each condition, at least one.
    library_size
        Library size of every cell in this modality.
    n_samples
        Samples of each cell, at least 2.
    n_group
        Number of cells in the population.
    """
    along = _PathDecoder(module, name, states_sjz, conditions, library_size, n_samples, n_group)
    mean_sf, variance_sf, log_total_bsj = along.steps()
    state_variance_f = along.state_variance_of_change(mean_sf, log_total_bsj)
    change_variance_f = state_variance_f + along.loadings_variance_of_change(mean_sf)
    return PopulationMeans(
        *(part.cpu().numpy() for part in (mean_sf, variance_sf, change_variance_f, state_variance_f))
    )


@torch.no_grad()
def contrast_covariance(
    module: Module,
    name: str,
    states_sjz: np.ndarray,
    conditions: Sequence[Covariates],
    library_size: float,
    contrast_ks: np.ndarray,
    mean_sf: np.ndarray,
) -> np.ndarray:
    """Return the posterior covariance of contrasts of the log mean due to the loadings, shape ``(f, k, k)``.

    Parameters
    ----------
    module, name, states_sjz, conditions, library_size
        As in `mean_along_path`.
    contrast_ks
        Weights of the steps in each contrast.
    mean_sf
        Means at each step.
    """
    modality = module.modalities[name]
    assert isinstance(modality, Modality)
    n_contrasts = len(contrast_ks)
    if modality.loadings is None:
        return np.zeros((mean_sf.shape[1], n_contrasts, n_contrasts), dtype=np.float32)
    input_bsjh = decoder_inputs(module, modality, states_sjz, conditions)
    weight_ks = torch.from_numpy(contrast_ks).to(input_bsjh)
    covariance_fkk = modality.loadings.covariance_of_contrasts(input_bsjh.mean(2).mean(0), weight_ks)
    size = input_bsjh.new_tensor([library_size])
    elasticity_f = modality.likelihood.elasticity(torch.from_numpy(mean_sf).to(input_bsjh), size).mean(0)
    result_fkk: np.ndarray = (covariance_fkk * elasticity_f.square()[:, None, None]).cpu().numpy()
    return result_fkk


def decoder_inputs(
    module: Module, modality: Modality, states_sjz: np.ndarray, conditions: Sequence[Covariates]
) -> Tensor:
    """Return the inputs of the decoder's last layer at each step under each condition, shape ``(b, s, j, h)``."""
    device = to_eval(module)
    parts = []
    for covariates in conditions:
        category_jk, continuous_jk = (torch.from_numpy(part).to(device) for part in covariates)
        states = (torch.from_numpy(z_jz).to(device) for z_jz in states_sjz)
        parts.append(torch.stack([modality.decoder.inputs(z_jz, category_jk, continuous_jk) for z_jz in states]))
    return torch.stack(parts)


class _PathDecoder:
    """Inputs of the decoder's last layer along a path, and the sums that are computed from them."""

    def __init__(
        self,
        module: Module,
        name: str,
        states_sjz: np.ndarray,
        conditions: Sequence[Covariates],
        library_size: float,
        n_samples: int,
        n_group: int,
    ) -> None:
        modality = module.modalities[name]
        assert isinstance(modality, Modality)
        self.likelihood, self.loadings = modality.likelihood, modality.loadings
        self.n_samples, self.n_group, self.n_features = n_samples, n_group, module.n_features[name]
        self.input_bsjh = decoder_inputs(module, modality, states_sjz, conditions)
        self.weight_fh, self.bias_f = modality.decoder.loadings()
        self.effects = modality.decoder.feature_effects
        device = self.input_bsjh.device
        self.category_bjk = torch.stack([torch.from_numpy(each.category_ck) for each in conditions]).to(device)
        self.further_heads = modality.decoder.further_heads if self.likelihood.has_background else ()
        self.library_size = self.input_bsjh.new_tensor([library_size])
        self.n_conditions, self.n_steps, self.n_draws = self.input_bsjh.shape[:3]
        # The loadings act linearly on the log rates, so their uncertainty is that at the mean input.
        self.mean_input_sh = self.input_bsjh.mean(2).mean(0)
        # Matrices that subtract the mean over samples of the same cell, by their number of rows.
        self.centering: dict[int, Tensor] = {}
        # A feature with a share above 0 everywhere, from which the sum over all features follows.
        self.anchor = int(self.bias_f.argmax())

    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean over samples, variance of its logarithm, and log sum of rates over features of each sample."""
        mean_sf = self.input_bsjh.new_empty((self.n_steps, self.n_features))
        variance_sf = torch.empty_like(mean_sf)
        log_total_bsj = self.input_bsjh.new_empty((self.n_conditions, self.n_steps, self.n_draws))
        blocks = list(self._blocks(self.n_draws, MAX_DECODE_VALUES // self.n_conditions))
        logits_buffer_bjf = mean_sf.new_empty((self.n_conditions, blocks[0].stop, self.n_features))
        for step in range(self.n_steps):
            sums_3f = mean_sf.new_zeros((3, self.n_features))
            for block in blocks:
                logits_bjf = logits_buffer_bjf[:, : block.stop - block.start]
                for b, logits_jf in enumerate(logits_bjf):
                    torch.addmm(self.bias_f, self.input_bsjh[b, step, block], self.weight_fh.T, out=logits_jf)
                    self._add_effects(logits_jf, self.category_bjk[b, block])
                # One large matrix product, then a few samples at a time, which stay in the processor's cache.
                for few in self._blocks(logits_bjf.shape[1], CACHED_ENTRIES):
                    input_bjh, log_total_bj = (
                        part_bsj[:, step, block][:, few] for part_bsj in (self.input_bsjh, log_total_bsj)
                    )
                    self._accumulate(self._average_of_step(input_bjh, logits_bjf[:, few], log_total_bj), sums_3f)
            torch.div(sums_3f[0], self.n_draws, out=mean_sf[step]).clamp_min_(TINY)
            variance_sf[step] = self._variance_of_mean(sums_3f) / mean_sf[step].square()
        if self.loadings is not None:
            loadings_variance_sf = self.loadings.variance(self.mean_input_sh)
            for step, mean_f in enumerate(mean_sf):
                variance_sf[step] += loadings_variance_sf[step] * self._elasticity(mean_f[None])[0].square_()
        return mean_sf, variance_sf, log_total_bsj

    def _add_effects(self, logits_jf: Tensor, category_jk: Tensor, column: Tensor | slice = slice(None)) -> None:
        """Add the effects of the samples' categories on some features, by default all, in place."""
        if self.effects is not None:
            for effect_sf, category_j in zip(self.effects.tables, category_jk.unbind(-1), strict=True):
                logits_jf.add_(effect_sf[:, column][category_j])

    def _average_of_step(self, input_bjh: Tensor, logits_bjf: Tensor, log_total_bj: Tensor) -> Tensor:
        """Return expected values averaged over conditions, shape ``(j, f)``, and set the log sums of rates."""
        total_jf: Tensor | None = None
        for input_jh, logits_jf, log_total_j in zip(input_bjh, logits_bjf, log_total_bj, strict=True):
            share_jf = torch.softmax(logits_jf, -1)
            log_total_j.copy_(logits_jf[:, self.anchor] - share_jf[:, self.anchor].log())
            expected_jf = self.likelihood.expected(share_jf, self.library_size, self._further(input_jh, ALL))
            total_jf = expected_jf if total_jf is None else total_jf.add_(expected_jf)
        assert total_jf is not None
        return total_jf if self.n_conditions == 1 else total_jf.div_(self.n_conditions)

    def state_variance_of_change(self, mean_sf: Tensor, log_total_bsj: Tensor) -> Tensor:
        """Return the variance of the log change from the lowest to the highest step that is due to the states.

        Both steps use the same samples, so that their common part cancels.
        """
        lowest_f, highest_f = mean_sf.argmin(0), mean_sf.argmax(0)
        variance_f = torch.empty_like(mean_sf[0])
        for start in range(0, self.n_features, BLOCK_FEATURES):
            part = slice(start, start + BLOCK_FEATURES)
            sums_3f = variance_f.new_zeros((3, len(variance_f[part])))
            for block in self._blocks(self.n_draws, MAX_DECODE_VALUES):
                change_jf = self._relative(highest_f, part, block, mean_sf, log_total_bsj)
                change_jf -= self._relative(lowest_f, part, block, mean_sf, log_total_bsj)
                self._accumulate(change_jf, sums_3f)
            variance_f[part] = self._variance_of_mean(sums_3f)
        return variance_f

    def loadings_variance_of_change(self, mean_sf: Tensor) -> Tensor:
        """Return the variance of the log change from the lowest to the highest step that is due to the loadings."""
        if self.loadings is None:
            return torch.zeros_like(mean_sf[0])
        lowest_f, highest_f = mean_sf.argmin(0), mean_sf.argmax(0)
        ends_2f = mean_sf.gather(0, torch.stack([lowest_f, highest_f]))
        variance_f = self.loadings.variance_of_change(self.mean_input_sh, lowest_f, highest_f)
        return variance_f * self._elasticity(ends_2f).mean(0).square_()

    def _relative(self, step_f: Tensor, part: slice, block: slice, mean_sf: Tensor, log_total_bsj: Tensor) -> Tensor:
        """Return expected values relative to their mean, with a separate step for each feature, shape ``(j, f)``."""
        weight_fh, bias_f, step_of_f = self.weight_fh[part], self.bias_f[part], step_f[part]
        mean_f = mean_sf[:, part].gather(0, step_of_f[None])[0]
        total_jf: Tensor | None = None
        along_b = self.input_bsjh[:, :, block], log_total_bsj[:, :, block], self.category_bjk[:, block]
        for input_sjh, log_total_sj, category_jk in zip(*along_b, strict=True):
            expected_jf = input_sjh.new_empty((input_sjh.shape[1], len(bias_f)))
            for step in step_of_f.unique().tolist():
                column = (step_of_f == step).nonzero()[:, 0]
                columns = column + part.start  # among all features
                logits_jf = torch.addmm(bias_f[column], input_sjh[step], weight_fh[column].T)
                self._add_effects(logits_jf, category_jk, columns)
                share_jf = (logits_jf - log_total_sj[step, :, None]).exp_()
                further = self._further(input_sjh[step], columns)
                expected_jf[:, column] = self.likelihood.expected(share_jf, self.library_size, further, columns)
            relative_jf = expected_jf.div_(mean_f)
            total_jf = relative_jf if total_jf is None else total_jf.add_(relative_jf)
        assert total_jf is not None
        return total_jf if self.n_conditions == 1 else total_jf.div_(self.n_conditions)

    def _elasticity(self, mean_sf: Tensor) -> Tensor:
        """Return the derivatives of the log means by the log rates, shape ``(s, f)``."""
        return self.likelihood.elasticity(mean_sf, self.library_size)

    def _further(self, input_jh: Tensor, columns: Columns) -> list[Tensor]:
        """Return the outputs of the decoder after the first, if expected values depend on them."""
        return [
            torch.addmm(head.bias[columns], input_jh[:, : head.in_features], head.weight[columns].T)
            for head in self.further_heads
        ]

    def _accumulate(self, value_jf: Tensor, sums_3f: Tensor) -> None:
        """Add values, squared deviations from the mean of the same cell, and squares to running sums over samples."""
        n_draws = len(value_jf)
        if n_draws not in self.centering:
            one_nn = value_jf.new_ones((self.n_samples, self.n_samples)) / self.n_samples
            same_cell_jj = torch.block_diag(*[one_nn] * (n_draws // self.n_samples))
            self.centering[n_draws] = torch.eye(n_draws, device=value_jf.device) - same_cell_jj
        one_1j = value_jf.new_ones((1, n_draws))
        sums_3f[:1].addmm_(one_1j, value_jf)
        sums_3f[1:2].addmm_(one_1j, (self.centering[n_draws] @ value_jf).square_())
        sums_3f[2:].addmm_(one_1j, value_jf.square_())

    def _blocks(self, n_draws: int, n_entries: int) -> Iterator[slice]:
        """Yield blocks of samples with about `n_entries` values; the samples of a cell stay together."""
        size = max(1, n_entries // (self.n_features * self.n_samples)) * self.n_samples
        for first in range(0, n_draws, size):
            yield slice(first, min(first + size, n_draws))

    def _variance_of_mean(self, sums_3f: Tensor) -> Tensor:
        """Return the variance of a population mean from running sums over the samples of some of its cells.

        Analysis of variance: within cells, from the posterior of their states; between cells, from the choice of cells.
        """
        sum_f, within_f, square_f = sums_3f
        n_cells = self.n_draws // self.n_samples
        within_f = within_f / (n_cells * (self.n_samples - 1))
        # Each cell of the population is uncertain, and only some samples of some cells were drawn.
        variance_f = within_f * (1 / self.n_group + 1 / self.n_draws)
        if n_cells == 1 or n_cells >= self.n_group:
            return variance_f
        means_f = (square_f - within_f * (n_cells * (self.n_samples - 1))) / self.n_samples  # sum of squared cell means
        between_f = (means_f - sum_f.square() / (self.n_samples**2 * n_cells)) / (n_cells - 1)
        between_f = (between_f - within_f / self.n_samples).clamp_min_(0)
        return variance_f + between_f * (1 / n_cells - 1 / self.n_group)
