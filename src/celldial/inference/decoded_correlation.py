"""Correlation of decoded features of two modalities over cells, with the uncertainty of the decoders' loadings.

The log share of a feature is linear in the inputs of the decoder's last layer and in the log of the sum over features.
Covariances over cells therefore follow from those of the inputs, without a matrix of cells × features.

Axis suffixes: ``c`` cells, ``f`` and ``g`` features of the two modalities, ``h`` inputs of the last layer, and last
the negative log of the sum; ``q`` entries of a symmetric matrix, ``r`` directions of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from celldial.data.cells import decode_block_size
from celldial.inference.posterior import Covariates, to_eval
from celldial.model.laplace import Loadings, packed_outer
from celldial.model.module import Module
from celldial.model.networks import Modality

__all__ = ["Correlations", "correlate"]

TINY = 1e-12


class Correlations(NamedTuple):
    """Correlations of features of a first and a second modality, float32, shape ``(g, f)``.

    `deviation_gf` is the standard deviation of their posterior.
    """

    mean_gf: np.ndarray
    deviation_gf: np.ndarray


@torch.no_grad()
def correlate(
    module: Module, names: tuple[str, str], state_cz: np.ndarray, covariates: Covariates, columns_g: np.ndarray
) -> Correlations:
    """Correlate decoded log shares of features of two modalities over latent states.

    A correlation is the covariance divided by both standard deviations, which include the uncertainty of the loadings.
    Features with few counts then have correlations near 0.

    Parameters
    ----------
    module
        A trained module.
    names
        The two modalities.
    state_cz
        Latent states.
    covariates
        Covariates to decode with.
    columns_g
        Features of the first modality. All features of the second are used.
    """
    first, second = (_DecodedModality(module, name, state_cz, covariates) for name in names)
    weight_gh = first.weight_fh[torch.from_numpy(columns_g).to(first.weight_fh.device)]
    variance_g = (weight_gh @ first.covariance_hh * weight_gh).sum(1).clamp_min(TINY)
    uncertainty_g = first.uncertainty()[columns_g]
    pattern_gc = (weight_gh @ first.input_ch.T) / variance_g.sqrt()[:, None]
    contrast_gh = pattern_gc @ second.input_ch / len(state_cz)
    variance_f = (second.weight_fh @ second.covariance_hh * second.weight_fh).sum(1)
    scale_f = (variance_f + second.uncertainty()).clamp_min(TINY).sqrt()
    scale_gf = (variance_g / (variance_g + uncertainty_g)).sqrt()[:, None] / scale_f
    mean_gf = contrast_gh @ second.weight_fh.T * scale_gf
    deviation_gf = second.deviation(contrast_gh[:, :-1]) * scale_gf
    return Correlations(mean_gf.cpu().numpy(), deviation_gf.cpu().numpy())


class _DecodedModality:
    """The centered inputs of the decoder's last layer, and the weights that map them to log shares."""

    def __init__(self, module: Module, name: str, state_cz: np.ndarray, covariates: Covariates) -> None:
        modality = module.modalities[name]
        assert isinstance(modality, Modality)
        self.loadings: Loadings | None = modality.loadings
        device = to_eval(module)
        weight_fh, bias_f = modality.decoder.loadings()
        inputs, totals = [], []
        size = decode_block_size(len(bias_f))
        for start in range(0, len(state_cz), size):
            parts = [torch.from_numpy(part[start : start + size]).to(device) for part in (state_cz, *covariates)]
            inputs.append(modality.decoder.inputs(*parts))
            totals.append(torch.logsumexp(torch.addmm(bias_f, inputs[-1], weight_fh.T), 1))
        input_ch = torch.cat([torch.cat(inputs), -torch.cat(totals)[:, None]], 1)
        self.input_ch = input_ch - input_ch.mean(0)
        self.weight_fh = torch.cat([weight_fh, torch.ones_like(bias_f)[:, None]], 1)
        self.covariance_hh = self.input_ch.T @ self.input_ch / len(input_ch)

    def uncertainty(self) -> Tensor:
        """Return the variance over cells of each feature's log share that is due to its loadings, shape ``(f,)``."""
        if self.loadings is None:
            return torch.zeros_like(self.weight_fh[:, 0])
        scaled_ch = self.input_ch[:, :-1] * self.loadings.scale_h
        position_cr = scaled_ch @ self.loadings.basis_hr
        pair_q = self._packed(position_cr).mean(0)
        residual = scaled_ch.square().sum(1).mean() - position_cr.square().sum(1).mean()
        return (self.loadings.covariance_fq @ pair_q + residual.clamp_min(0)).clamp_min(0)

    def deviation(self, contrast_gh: Tensor) -> Tensor:
        """Return the posterior standard deviation of contrasts of each feature's log rate, shape ``(g, f)``."""
        if self.loadings is None:
            return contrast_gh.new_zeros(len(contrast_gh), len(self.weight_fh))
        scaled_gh = contrast_gh * self.loadings.scale_h
        position_gr = scaled_gh @ self.loadings.basis_hr
        residual_g = (scaled_gh.square().sum(1) - position_gr.square().sum(1)).clamp_min(0)
        variance_gf = self._packed(position_gr) @ self.loadings.covariance_fq.T + residual_g[:, None]
        return variance_gf.clamp_min(0).sqrt()

    @staticmethod
    def _packed(position_cr: Tensor) -> Tensor:
        """Return packed outer products of slopes, without the intercept."""
        return packed_outer(torch.cat([torch.zeros_like(position_cr[:, :1]), position_cr], 1))
