"""Variational autoencoders for single-cell data, with dials to turn."""

from importlib.metadata import version

from celldial import datasets, metrics, pl
from celldial.model import VAE
from celldial.settings import settings

__all__ = ["VAE", "datasets", "metrics", "pl", "settings"]

__version__ = version("celldial")
