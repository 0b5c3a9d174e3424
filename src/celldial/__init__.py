"""Variational autoencoders for single-cell data, with dials to turn."""

from importlib.metadata import version

from celldial import datasets, gradients, metrics, pl
from celldial.model import VAE
from celldial.settings import settings

__all__ = ["VAE", "datasets", "gradients", "metrics", "pl", "settings"]

__version__ = version("celldial")
