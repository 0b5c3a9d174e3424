"""Plots of results that a model stored in an AnnData. They do not need the model.

All plots except `dial`, which writes an HTML page, accept ``ax``, ``show`` and ``return_fig`` as scanpy's plots do, and
leave the settings of matplotlib unchanged.
"""

from celldial.pl.axes import axes
from celldial.pl.axis_features import axis_features
from celldial.pl.cell_cycle import cell_cycle
from celldial.pl.check import check
from celldial.pl.dial import dial
from celldial.pl.gradient_variance import gradient_variance
from celldial.pl.history import history
from celldial.pl.integration_report import integration_report
from celldial.pl.kinetics import kinetics
from celldial.pl.latent_traverse import latent_traverse
from celldial.pl.traverse_path import traverse_path

__all__ = [
    "axes",
    "axis_features",
    "cell_cycle",
    "check",
    "dial",
    "gradient_variance",
    "history",
    "integration_report",
    "kinetics",
    "latent_traverse",
    "traverse_path",
]
