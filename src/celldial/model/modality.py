"""`Modality`: the networks and the observation model of one kind of measurement."""

from __future__ import annotations

from torch import nn

from celldial.model.laplace import Loadings
from celldial.model.likelihoods import Likelihood
from celldial.model.networks import Decoder, Encoder

__all__ = ["Modality"]


class Modality(nn.Module):
    """The networks and the observation model of one kind of measurement.

    After training, `loadings` holds the posterior of the decoder's loadings.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.loadings: Loadings | None = None
