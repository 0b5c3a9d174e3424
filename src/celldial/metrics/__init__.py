"""Metrics of embeddings, imputations and angles. Arrays in, numbers out."""

from celldial.metrics.circular import angular_error, circular_mean, cyclic_order, fisher_lee, fourier_r2
from celldial.metrics.embedding import foscttm, ilisi, knn_f1, leiden_nmi
from celldial.metrics.imputation import auroc_per_cell, pearson_per_cell

__all__ = [
    "angular_error",
    "auroc_per_cell",
    "circular_mean",
    "cyclic_order",
    "fisher_lee",
    "foscttm",
    "fourier_r2",
    "ilisi",
    "knn_f1",
    "leiden_nmi",
    "pearson_per_cell",
]
