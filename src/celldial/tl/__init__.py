"""Analyses of a fitted model, one per file: functions of a model and an AnnData.

They are also methods of the estimator: ``cd.tl.latent_traverse(model, adata)`` is ``model.latent_traverse(adata)``.
"""

from celldial.tl.check import check
from celldial.tl.clusters import clusters
from celldial.tl.differential import differential
from celldial.tl.expression import denoise, denoise_to_file, impute, impute_to_file
from celldial.tl.feature_tables import loadings, topics
from celldial.tl.find_axis import find_axis
from celldial.tl.generate import decode, sample
from celldial.tl.gradients import compare_gradients, sweep_gradients
from celldial.tl.integration_report import integration_report
from celldial.tl.kinetics import kinetics
from celldial.tl.latent_traverse import latent_traverse
from celldial.tl.link_peaks import link_peaks
from celldial.tl.mapping_quality import mapping_quality
from celldial.tl.markers import markers
from celldial.tl.name_axes import name_axes
from celldial.tl.phase import phase
from celldial.tl.posterior_predictive import posterior_predictive
from celldial.tl.rank_axes import axes
from celldial.tl.remove_results import remove_results

__all__ = [
    "axes",
    "check",
    "clusters",
    "compare_gradients",
    "decode",
    "denoise",
    "denoise_to_file",
    "differential",
    "find_axis",
    "impute",
    "impute_to_file",
    "integration_report",
    "kinetics",
    "latent_traverse",
    "link_peaks",
    "loadings",
    "mapping_quality",
    "markers",
    "name_axes",
    "phase",
    "posterior_predictive",
    "remove_results",
    "sample",
    "sweep_gradients",
    "topics",
]
