"""Traversals as `celldial.tl.latent_traverse` stores them: reading, units, and the choice and order of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.io.results import read_traversals
from celldial.pl._colors import modality_color
from celldial.pl._phases import Phases
from celldial.pl._units import COUNTS, PROBABILITY, modality_units
from celldial.utils.messages import did_you_mean, feature_noun, format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "LFSR_CUTOFF",
    "ModalityFeatures",
    "StoredTraversal",
    "feature_columns",
    "interleave",
    "order_by_peak",
    "read_traversal",
]

# Below this local false sign rate, the direction of a change is marked as certain.
LFSR_CUTOFF = 0.05
MAX_LOG2 = 30.0


def read_traversal(adata: AnnData, name: str | None) -> StoredTraversal:
    """Return a stored traversal, by default the last one, or raise an error that names the stored ones."""
    stored = read_traversals(adata)
    if not stored:
        requested = "" if name is None else f" {name!r}"
        raise KeyError(
            f"no traversal{requested} in adata.uns['latent_traverse'], which is empty: "
            "call model.latent_traverse(adata, axis=...) first"
        )
    if name is None:
        name = list(stored)[-1]
    if name not in stored:
        raise KeyError(
            f"no traversal {name!r} in adata.uns['latent_traverse']{did_you_mean(name, stored)}; available: "
            f"{format_names(stored)}. Call model.latent_traverse(adata, axis=...) to add one"
        )
    if stored[name].get("replaced", False):
        raise ValueError(
            f"traversal {name!r} in adata.uns['latent_traverse'] belongs to a model ({stored[name]['model']}) that a "
            "later fit replaced: call model.latent_traverse(adata, ...) with the new model. To keep several models, "
            "fit each with its own key_added"
        )
    return StoredTraversal(name, stored[name])


def to_text(names: Any) -> np.ndarray:
    """Return names as text; a zarr store returns them in a data type that NumPy cannot convert."""
    return np.array([str(name) for name in names], dtype=str)


class ModalityFeatures:
    """The features of one modality in a traversal: their columns by rank, and how they are drawn."""

    def __init__(self, name: str, column_f: np.ndarray, unit: str, color: str) -> None:
        self.name, self.column_f, self.unit, self.color = name, column_f, unit, color
        self.noun = feature_noun(name)
        self.font_style = "italic" if name == "rna" else "normal"


class StoredTraversal:
    """A stored traversal; its arrays have axis suffixes ``s`` steps and ``f`` features."""

    def __init__(self, name: str, stored: Mapping[str, Any]) -> None:
        self.name, self.stored = name, stored
        # Identifier of the model; traversals of earlier versions have none.
        self.model = None if "model" not in stored else str(stored["model"])
        self.axis, self.kind = str(stored["axis"]), str(stored["kind"])
        self.position_s = np.asarray(stored["position"], dtype=float)
        self.position_label = str(stored["position_label"])
        self.feature_names = to_text(stored["feature_names"])
        self.modality_f = to_text(stored["modality"])

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one of the stored numeric arrays."""
        return np.asarray(self.stored[name], dtype=float)

    @property
    def periodic(self) -> bool:
        """Whether the path is a closed loop of angles."""
        return self.kind == "periodic"

    @property
    def interval_name(self) -> str:
        """Name of the intervals, such as "90% credible interval"."""
        if "replicates" in self.stored:
            return f"{self.interval} confidence interval over {len(self.stored['replicates'])} replicates"
        return f"{self.interval} credible interval"

    @property
    def interval(self) -> str:
        """Probability of the intervals, such as "90%"."""
        return f"{float(self.stored['interval']):.0%}"

    @property
    def title(self) -> str:
        """Title of a figure of this traversal."""
        prefix = {"periodic": "along the ", "direction": "along the axis ", "path": ""}.get(self.kind, "along ")
        return f"Changes {prefix}{self.axis}"

    @cached_property
    def phases(self) -> Phases | None:
        """Phases of a periodic coordinate, if it has any."""
        phases = self.stored.get("phases")
        return None if not phases else Phases.from_arrays(phases["names"], phases["start"])

    @cached_property
    def ends(self) -> tuple[str, str]:
        """Names of the start and the end of a path between two groups."""
        names = self.axis.removeprefix("from ").split(" to ")
        return (names[0], names[1]) if self.kind == "path" and len(names) == 2 else ("start", "end")

    @cached_property
    def units(self) -> dict[str, str]:
        """Whether the values of each modality are counts or probabilities."""
        return modality_units(self.stored)

    @cached_property
    def modalities(self) -> list[ModalityFeatures]:
        """Features of each modality, by rank."""
        names = list(dict.fromkeys(self.modality_f))
        rank_f = self["rank"]
        modalities = []
        for name in names:
            column_f = np.flatnonzero(self.modality_f == name)
            if self.units.get(name, COUNTS) == PROBABILITY:
                unit = "probability open" if name == "atac" else "probability"
            else:
                unit = f"counts per {float(self.stored['library_size'][name]):,.0f}"
            by_rank_f = column_f[np.argsort(rank_f[column_f], kind="stable")]
            modalities.append(ModalityFeatures(name, by_rank_f, unit, modality_color(name, names)))
        return modalities

    def modality_of(self, column: int) -> ModalityFeatures:
        """Return the modality of a feature."""
        return next(modality for modality in self.modalities if modality.name == self.modality_f[column])

    def log2_fold_change(self, column_f: np.ndarray) -> np.ndarray:
        """Return the log2 of the means relative to the first step, limited to ±30; 0 if a mean of 0 makes it NaN."""
        log2_sf = np.nan_to_num(self["log2_fold_change"][:, column_f], nan=0, posinf=MAX_LOG2, neginf=-MAX_LOG2)
        return np.clip(log2_sf, -MAX_LOG2, MAX_LOG2)


def feature_columns(feature_names: np.ndarray, requested: Sequence[str] | str, argument: str, source: str) -> list[int]:
    """Return the columns of the requested features.

    Parameters
    ----------
    feature_names
        Names of all features.
    requested
        Names of the requested features.
    argument
        Name of the argument in which they were passed, for errors.
    source
        What the features belong to, for errors.
    """
    requested = [requested] if isinstance(requested, str) else list(requested)
    if len(requested) == 0 or len(set(requested)) < len(requested):
        raise ValueError(f"{argument} is {requested}: pass at least 1 feature, and each feature once")
    column = {str(name): index for index, name in enumerate(feature_names)}
    for name in requested:
        if name not in column:
            hint = did_you_mean(name, column)
            raise KeyError(f"no feature {str(name)!r} in {source}{hint}; available: {format_names(column, 5)}")
    return [column[name] for name in requested]


def interleave(modalities: Sequence[ModalityFeatures], n: int) -> list[int]:
    """Return the columns of `n` top-ranked features, alternating between modalities to fill the columns of a grid."""
    n_each = [max(1, n // len(modalities) + (index < n % len(modalities))) for index in range(len(modalities))]
    groups = [modality.column_f[:n_features] for modality, n_features in zip(modalities, n_each, strict=True)]
    return [int(group[turn]) for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]


def order_by_peak(traversal: StoredTraversal, column_f: np.ndarray) -> np.ndarray:
    """Return features in the order in which they peak along the path."""
    log2_sf = traversal.log2_fold_change(column_f)
    # Many features peak at the same end. Among these, features whose curve has its center of mass earlier come first.
    height_sf = log2_sf - log2_sf.min(0)
    center_f = np.arange(len(log2_sf)) @ height_sf / np.maximum(height_sf.sum(0), 1e-9)
    return column_f[np.lexsort([center_f, traversal["peak_step"][column_f]])]
