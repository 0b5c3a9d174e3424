"""Variational autoencoders for single-cell data: embeddings, and traversals of their latent space."""

import importlib
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from celldial.utils.settings import settings

if TYPE_CHECKING:
    from celldial import datasets, metrics, pl, surrogate, tl
    from celldial.estimator.vae import VAE

__all__ = ["VAE", "datasets", "metrics", "pl", "settings", "surrogate", "tl"]

__version__ = version("celldial")


def __getattr__(name: str) -> Any:
    """Import a submodule or `VAE` on first use, because scikit-learn, Pyro and matplotlib take a second to import."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets, importing Pyro warns about its progress bar, which celldial does not use.
        warnings.filterwarnings("ignore", message="IProgress not found")
        if name == "VAE":
            return importlib.import_module("celldial.estimator.vae").VAE
        if name in __all__:
            return importlib.import_module(f"celldial.{name}")
    raise AttributeError(f"module 'celldial' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
