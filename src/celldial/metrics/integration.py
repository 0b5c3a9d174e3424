"""Metrics of an integration by scib-metrics, with two references: without integration, and with shuffled batches.

Axis suffixes: ``c`` cells, ``n`` neighbors of a cell, ``z`` coordinates of an embedding.
"""

from __future__ import annotations

import importlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

__all__ = ["MIN_CELLS", "Groups", "compare_integration", "describe_over_correction", "load_scib_metrics"]

# Neighbors of a cell, with the cell itself, for LISI, for kBET and for the other metrics, as in scIB.
N_LISI, N_KBET, N_GRAPH = 90, 50, 15
# With fewer cells, neighborhoods are not small parts of the data.
MIN_CELLS = 50
# Smallest losses that count: of NMI and cLISI, of iLISI above that of shuffled batches, and of a type's share of
# neighbors of the same type. The NMI of two seeds of the same model differs by up to 0.03.
NMI_LOSS, ILISI_EXCESS, TYPE_LOSS = 0.05, 0.05, 0.1
# A type counts as found in one batch if the batch has at least this share of its cells.
ONE_BATCH = 0.95
MAX_NAMED = 3


@dataclass(frozen=True)
class Groups:
    """Batches of the cells, and their types if they are known."""

    batch_c: np.ndarray
    label_c: np.ndarray | None = None

    def shuffled(self, generator: np.random.Generator) -> np.ndarray:
        """Return the batches in random order: within each type, or over all cells if types are not known."""
        batch_c = self.batch_c.copy()
        within_c = np.zeros(len(batch_c), dtype=int) if self.label_c is None else self.label_c
        for label in np.unique(within_c):
            index_c = np.flatnonzero(within_c == label)
            batch_c[index_c] = generator.permutation(batch_c[index_c])
        return batch_c


def load_scib_metrics() -> Any:
    """Return the module `scib_metrics`.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        return importlib.import_module("scib_metrics")
    except ModuleNotFoundError as error:
        raise ImportError("integration_report needs scib-metrics: pip install scib-metrics") from error


def compare_integration(
    embedding_cz: np.ndarray, unintegrated_cz: np.ndarray, groups: Groups, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Measure mixing of batches and separation of types in an embedding and in one without integration.

    Parameters
    ----------
    embedding_cz
        Embedding to judge.
    unintegrated_cz
        Embedding of the same cells without integration.
    groups
        Batches, and types if known.
    seed
        Seed of the shuffled batches and of the clusters.

    Returns
    -------
    table : pandas.DataFrame
        One row per metric, with the columns ``"embedding"``, ``"unintegrated"`` and ``"shuffled"``, which is missing
        for metrics that do not depend on batches.
    types : pandas.DataFrame or None
        One row per type, in alphabetical order, if types are known: number of cells, the only ``batch`` (empty for
        types in several batches), share of neighbors of the same type in each embedding, and the standard error of
        their difference.
    """
    scib = load_scib_metrics()
    embedding, unintegrated = (find_neighbors(scib, array_cz) for array_cz in (embedding_cz, unintegrated_cz))
    shuffled_c = groups.shuffled(np.random.default_rng(seed))
    columns = {
        "embedding": batch_mixing(scib, embedding, groups.batch_c),
        "unintegrated": batch_mixing(scib, unintegrated, groups.batch_c),
        "shuffled": batch_mixing(scib, embedding, shuffled_c),
    }
    if groups.label_c is None:
        return pd.DataFrame(columns), None
    for name, neighbors in {"embedding": embedding, "unintegrated": unintegrated}.items():
        columns[name] |= type_separation(scib, neighbors, groups.label_c, seed)
    return pd.DataFrame(columns), compare_types(embedding.indices, unintegrated.indices, groups)


def find_neighbors(scib: Any, embedding_cz: np.ndarray) -> Any:
    """Return the nearest neighbors of each cell, the cell itself first, as scib-metrics reads them."""
    n_neighbors = min(N_LISI, len(embedding_cz) // 2)
    distance_cn, index_cn = NearestNeighbors(n_neighbors=n_neighbors - 1).fit(embedding_cz).kneighbors()
    own_c1 = np.arange(len(embedding_cz))[:, None]
    return scib.nearest_neighbors.NeighborsResults(
        indices=np.hstack([own_c1, index_cn]), distances=np.hstack([np.zeros(own_c1.shape), distance_cn])
    )


def batch_mixing(scib: Any, neighbors: Any, batch_c: np.ndarray) -> dict[str, float]:
    """Return the metrics of mixing, from 0 to 1."""
    nearest = neighbors.subset_neighbors(min(N_KBET, neighbors.n_neighbors))
    return {
        "iLISI": float(scib.ilisi_knn(neighbors, batch_c)),
        "kBET": float(scib.kbet(nearest, batch_c)[0]),
    }


def type_separation(scib: Any, neighbors: Any, label_c: np.ndarray, seed: int) -> dict[str, float]:
    """Return the metrics of separation of types, up to 1."""
    graph = neighbors.subset_neighbors(N_GRAPH)
    try:
        clusters = scib.nmi_ari_cluster_labels_leiden(graph, label_c, seed=seed)
    finally:
        # scib-metrics sets a generator of its own in igraph.
        importlib.import_module("igraph").set_random_number_generator(random)
    return {
        "graph connectivity": float(scib.graph_connectivity(graph, label_c)),
        "cLISI": float(scib.clisi_knn(neighbors, label_c)),
        "NMI": float(clusters["nmi"]),
        "ARI": float(clusters["ari"]),
    }


def compare_types(embedding_cn: np.ndarray, unintegrated_cn: np.ndarray, groups: Groups) -> pd.DataFrame:
    """Return for each type the share of neighbors of the same type in two embeddings, given neighbors of cells."""
    label_c, batch_c = groups.label_c, groups.batch_c
    assert label_c is not None
    rows = {}
    for label in np.unique(label_c):
        own_c = label_c == label
        # A type of five cells has at most four neighbors of the same type.
        n_possible = min(N_GRAPH - 1, int(own_c.sum()) - 1)
        share = {}
        for name, index_cn in {"embedding": embedding_cn, "unintegrated": unintegrated_cn}.items():
            same_cn = label_c[index_cn[own_c, 1:N_GRAPH]] == label
            share[name] = same_cn.sum(axis=1) / n_possible if n_possible > 0 else np.full(1, np.nan)
        batches, sizes = np.unique(batch_c[own_c], return_counts=True)
        difference_c = share["embedding"] - share["unintegrated"]
        rows[label] = {
            "n_cells": int(own_c.sum()),
            "batch": str(batches[sizes.argmax()]) if sizes.max() >= ONE_BATCH * own_c.sum() else "",
            **{name: float(share_c.mean()) for name, share_c in share.items()},
            "standard_error": float(difference_c.std() / np.sqrt(len(difference_c))),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def describe_over_correction(table: pd.DataFrame, types: pd.DataFrame | None) -> str:
    """Return a sentence on over-correction: whether differences between types were removed with those between batches.

    Parameters
    ----------
    table, types
        As `compare_integration` returns them.
    """
    if types is None:
        return "Over-correction was not checked, because this needs known types: name their column by label_key."
    value: Any = table.to_dict("index")
    signs = []
    for metric in ("cLISI", "NMI"):
        now, before = value[metric]["embedding"], value[metric]["unintegrated"]
        if now < before - NMI_LOSS:
            signs.append(f"types are less separate than without integration ({metric} {now:.2f}, before {before:.2f})")
    now, before = value["iLISI"]["embedding"], value["iLISI"]["shuffled"]
    if now > before + ILISI_EXCESS:
        signs.append(f"batches mix more than shuffled within types (iLISI {now:.2f}, shuffled {before:.2f})")
    signs += mixed_types(types)
    if not signs:
        return "No sign of over-correction: types are as separate as without integration."
    return f"Signs of over-correction: {'; '.join(signs)}."


def mixed_types(types: pd.DataFrame) -> list[str]:
    """Describe the types that were mixed into others, those of a single batch first."""
    types = types.assign(loss=types["unintegrated"] - types["embedding"], is_single=types["batch"] != "")
    lost = types[(types["loss"] > TYPE_LOSS) & (types["loss"] > 2 * types["standard_error"])]
    lost = lost.sort_values(["is_single", "loss"], ascending=False)
    signs = []
    for name, row in lost.head(MAX_NAMED).iterrows():
        where = f", found only in batch {row['batch']!r}," if row["batch"] else ""
        now, before = round(100 * row["embedding"]), round(100 * row["unintegrated"])
        signs.append(
            f"{str(name)!r}{where} was mixed into other types ({now} % of its neighbors are of this type, before "
            f"{before} %)"
        )
    if len(lost) > MAX_NAMED:
        signs.append(f"so were {len(lost) - MAX_NAMED} other types")
    return signs
