"""Cluster probabilities of cells."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from celldial.inference.fitted_model import FittedModel, check_fitted, infer_all, is_file_path
from celldial.io import results

__all__ = ["clusters"]


def clusters(model: FittedModel, adata: AnnData, *, modality: str | None = None) -> pd.DataFrame:
    """Infer the probability of each cluster for each cell, and write it to the AnnData.

    The probabilities come from the counts alone, also for cells with a known label (label transfer).

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.clusters(adata)``.
    adata, modality
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        Probabilities, cells × clusters. They are also written to ``adata.obsm["celldial_cluster_probability"]``, and
        the most probable cluster of each cell to ``adata.obs["celldial_cluster"]``. Clusters with a label have its
        name; the others are called ``"0"``, ``"1"`` and so on. The columns in ``obsm`` have ``"-"`` in place of
        ``"/"``, because h5ad files do not allow a slash in a column name.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model has no clusters.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(n_clusters=8).fit(adata, max_epochs=2, progress=False)
    >>> model.clusters(adata).shape
    (700, 8)
    """
    check_fitted(model)
    if model.clusters_ is None:
        raise ValueError("this model has no clusters: fit one with VAE(n_clusters=...) or VAE(labels_key=...)")
    if not is_file_path(adata):
        results.check_clusters(adata)
    latent_state, obs = infer_all(model, adata, modality)
    table = pd.DataFrame(latent_state.cluster, obs.index, columns=model.clusters_["names"])
    if not is_file_path(adata):
        results.write_clusters(adata, model.fingerprint_, table)
    return table
