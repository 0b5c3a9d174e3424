"""Clusters and labels of cells, with their probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data.labels import UNASSIGNED
from celldial.inference.fitted_model import FittedModel, infer_all, is_file_path, read_from
from celldial.inference.posterior import LatentState
from celldial.io import results
from celldial.utils.argument_types import validate_types

__all__ = ["MIN_PROBABILITY", "FoundClusters", "clusters", "find_clusters"]

# Least probability of an assigned label.
MIN_PROBABILITY = 0.5


class FoundClusters(NamedTuple):
    """Clusters of cells: what `celldial.io.results.write_clusters` writes, in its order."""

    table: pd.DataFrame
    cluster_c: pd.Categorical
    disputed_c: np.ndarray | None = None
    about: dict[str, Any] | None = None


@validate_types
def clusters(
    model: FittedModel,
    adata: AnnData,
    *,
    min_probability: float = MIN_PROBABILITY,
    modality: str | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Infer the probability of each cluster or label for each cell, and write it to the AnnData.

    The probabilities come from the counts alone, also for cells with a known label (label transfer).

    With labels, the probability of a label combines two estimates from the labeled training cells: the density of each
    label in latent space, and the votes of the 15 nearest labeled cells. The probabilities are calibrated on labeled
    cells whose labels were held out from training. They are probabilities given that one of the labels is right. A cell
    is called ``"unassigned"`` if its highest probability is below `min_probability`, or if it is further from the
    labeled cells than 95 % of the held-out labeled cells were. The distance is larger if other cells of `adata` are
    much closer to the cell, because a type without a label is a dense group of cells without labels. So pass all cells
    of a sample at once.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.clusters(adata)``.
    adata
        As in `transform`.
    min_probability
        Least probability of an assigned label. With 0, each cell gets its most probable label, however far it is from
        the labeled cells. It has no effect on clusters without labels.
    modality, layer
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        Probabilities, cells × clusters. With labels, ``table.attrs["calibration_error"]`` is the expected calibration
        error on the held-out labels, or None if there are fewer than 50 of them.

        Written: the same to ``adata.obsm["celldial_cluster_probability"]``, and the most probable cluster to
        ``adata.obs["celldial_cluster"]``. Clusters with a label have its name; the others are called ``"0"``, ``"1"``
        and so on. The columns in ``obsm`` have ``"-"`` in place of ``"/"``, because h5ad files do not allow a slash in
        a column name. With labels also ``adata.obs["celldial_cluster_disputed"]``, which is true if the nearest labeled
        cells vote for another label, and ``adata.uns["celldial"]["labels"]`` with the calibration error.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model has no clusters, or `min_probability` is not between 0 and 1.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(labels_key="bulk_labels").fit(adata, max_epochs=2, progress=False)
    >>> table = model.clusters(adata, min_probability=0.8)
    >>> table.shape
    (700, 10)
    >>> assigned = adata.obs["celldial_cluster"] != "unassigned"
    >>> bool((table.max(axis=1)[assigned] >= 0.8).all())
    True
    """
    model = read_from(model, layer)
    if model.clusters_ is None:
        raise ValueError("this model has no clusters: fit one with VAE(n_clusters=...) or VAE(labels_key=...)")
    if not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability is {min_probability}: it must be between 0 and 1")
    if not is_file_path(adata):
        results.check_clusters(adata)
    latent_state, obs = infer_all(model, adata, modality)
    found = find_clusters(model, latent_state, obs, min_probability)
    if not is_file_path(adata):
        results.write_clusters(adata, model.fingerprint_, *found)
    return found.table


def find_clusters(
    model: FittedModel, latent_state: LatentState, obs: pd.DataFrame, min_probability: float = MIN_PROBABILITY
) -> FoundClusters:
    """Return the clusters of cells with known latent states.

    Parameters
    ----------
    model
        A fitted model with clusters.
    latent_state, obs
        Latent states, and ``obs`` of the same cells, with the batches of a model that has a batch key.
    min_probability
        As in `clusters`.
    """
    assert model.clusters_ is not None
    assert latent_state.cluster is not None
    names, probability_ck = model.clusters_["names"], latent_state.cluster
    classifier = model.label_classifier_
    if classifier is None:
        table = pd.DataFrame(probability_ck, obs.index, columns=names)
        return FoundClusters(table, pd.Categorical.from_codes(probability_ck.argmax(1), pd.Index(names)))
    n_labels = model.clusters_["n_labels"]
    batch_key = model.schema_.batch_key
    batch_c = None if batch_key is None else obs[batch_key].to_numpy(dtype=object)
    found = classifier.classify(latent_state.mean, batch_c)
    # Clusters without a label keep their probability; the labels share the rest.
    other_ck = probability_ck[:, n_labels:]
    has_counts_c = ~((latent_state.mean == 0) & (latent_state.standard_deviation == 1)).all(1)
    labeled_ck = found.probability_ck * (1 - other_ck.sum(1, keepdims=True))
    combined_ck = np.concatenate([labeled_ck, other_ck], axis=1).astype(probability_ck.dtype)
    combined_ck[~has_counts_c] = probability_ck[~has_counts_c]
    code_c = combined_ck.argmax(1)
    is_label_c = code_c < n_labels
    is_sure_c = (combined_ck.max(1) >= min_probability) & (~is_label_c | (found.distance_c <= 1)) & has_counts_c
    if min_probability == 0:
        is_sure_c[:] = True
    about = {
        "calibration_error": np.nan if classifier.calibration_error is None else classifier.calibration_error,
        "n_held_out": classifier.n_held_out,
        "min_probability": float(min_probability),
    }
    table = pd.DataFrame(combined_ck, obs.index, columns=names)
    table.attrs["calibration_error"] = classifier.calibration_error
    cluster_c = pd.Categorical.from_codes(np.where(is_sure_c, code_c, len(names)), pd.Index([*names, UNASSIGNED]))
    return FoundClusters(table, cluster_c, is_label_c & (found.neighbor_c != code_c), about)
