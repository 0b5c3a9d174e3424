"""Variational autoencoders for single-cell data, with dials to turn."""

import importlib
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from celldial.utils.settings import settings

if TYPE_CHECKING:
    from celldial import datasets, metrics, pl, tl
    from celldial.estimator.vae import VAE

__all__ = ["VAE", "datasets", "metrics", "pl", "settings", "tl"]

__version__ = version("celldial")


def __getattr__(name: str) -> Any:
    """Import what is asked for: scikit-learn, Pyro and matplotlib take a second, which not every use needs."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets Pyro's import says that its progress bar is a plain one. None is shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        if name == "VAE":
            return importlib.import_module("celldial.estimator.vae").VAE
        if name in __all__:
            return importlib.import_module(f"celldial.{name}")
    raise AttributeError(f"module 'celldial' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
