"""Surrogates of simulators: a fast model that stands for a slow function from parameters to cells."""

from celldial.surrogate.comparison import compare
from celldial.surrogate.fitting import fit
from celldial.surrogate.inference import ParameterPosterior, infer
from celldial.surrogate.sampling import Surrogate

__all__ = ["ParameterPosterior", "Surrogate", "compare", "fit", "infer"]
