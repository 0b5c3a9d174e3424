"""Reading a traversal that `celldial.VAE.latent_traverse` stored in an AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from celldial.pl._figure import Phases, color_of
from celldial.utils.messages import did_you_mean, feature_noun, format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Part", "Traversal", "find_features", "in_turns", "plural", "read_traversal"]


def read_traversal(adata: AnnData, name: str | None) -> Traversal:
    """Return a stored traversal, by default the last one, or say which ones there are."""
    there: Mapping[str, Any] = adata.uns.get("latent_traverse", {})
    if not there:
        asked = "" if name is None else f" {name!r}"
        raise KeyError(
            f"no traversal{asked} in adata.uns['latent_traverse'], there is none: "
            "call model.latent_traverse(adata, axis=...) first"
        )
    if name is None:
        name = list(there)[-1]
    if name not in there:
        raise KeyError(
            f"no traversal {name!r} in adata.uns['latent_traverse']{did_you_mean(name, there)}; "
            f"there are {format_names(there)}: call model.latent_traverse(adata, axis=...) first"
        )
    return Traversal(name, there[name])


def find_features(feature_names: np.ndarray, wanted: Sequence[str] | str, argument: str, where: str) -> list[int]:
    """Return the columns of features that are named; `where` says in the error which features there are."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if len(wanted) == 0 or len(set(wanted)) < len(wanted):
        raise ValueError(f"{argument} is {wanted}: name at least one feature, and none twice")
    column = {str(name): index for index, name in enumerate(feature_names)}
    for name in wanted:
        if name not in column:
            raise KeyError(
                f"{where} no feature {str(name)!r}{did_you_mean(name, column)}; there are: {format_names(column, 5)}"
            )
    return [column[name] for name in wanted]


def plural(noun: str, n: int) -> str:
    """Count things in words."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


class Part:
    """The features of one modality in a traversal, as columns, those of the best rank first."""

    def __init__(self, modality: str, column_f: np.ndarray, unit: str, color: str) -> None:
        self.modality, self.column_f, self.unit, self.color = modality, column_f, unit, color
        self.noun = feature_noun(modality)
        self.style = "italic" if modality == "rna" else "normal"


class Traversal:
    """A stored traversal, with its arrays as arrays."""

    def __init__(self, name: str, stored: Mapping[str, Any]) -> None:
        self.name, self.stored = name, stored
        self.axis, self.kind = str(stored["axis"]), str(stored["kind"])
        self.position_s = np.asarray(stored["position"], dtype=float)
        self.position_label = str(stored["position_label"])
        self.feature_names = np.asarray(stored["feature_names"]).astype(str)
        self.modality_f = np.asarray(stored["modality"]).astype(str)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one of the arrays of numbers."""
        return np.asarray(self.stored[name], dtype=float)

    @property
    def periodic(self) -> bool:
        """Whether the path is a closed loop of angles."""
        return self.kind == "periodic"

    @cached_property
    def phases(self) -> Phases | None:
        """The sectors of a periodic axis, if they have names."""
        phases = self.stored.get("phases")
        return None if not phases else Phases.read(phases["names"], phases["start"])

    @cached_property
    def ends(self) -> tuple[str, str]:
        """What the path goes from and to."""
        names = self.axis.removeprefix("from ").split(" to ")
        return (names[0], names[1]) if self.kind == "path" and len(names) == 2 else ("start", "end")

    @cached_property
    def parts(self) -> list[Part]:
        """The traversal taken apart into modalities."""
        modalities = list(dict.fromkeys(self.modality_f))
        rank_f = self["rank"]
        parts = []
        for modality in modalities:
            column_f = np.flatnonzero(self.modality_f == modality)
            if self.stored["likelihood"][modality] == "bernoulli":
                unit = "probability open" if modality == "atac" else "probability"
            else:
                unit = f"counts per {float(self.stored['library_size'][modality]):,.0f}"
            by_rank_f = column_f[np.argsort(rank_f[column_f], kind="stable")]
            parts.append(Part(modality, by_rank_f, unit, color_of(modality, modalities)))
        return parts

    def load_dataset_file(self, column: int) -> Part:
        """Find the modality that a feature belongs to."""
        return next(part for part in self.parts if part.modality == self.modality_f[column])


def in_turns(parts: Sequence[Part], n: int) -> list[int]:
    """Take features of the best rank in turns from each modality, so that of two, each has a column of its own."""
    n_each = [max(1, n // len(parts) + (turn < n % len(parts))) for turn in range(len(parts))]
    groups = [part.column_f[:n_of_part] for part, n_of_part in zip(parts, n_each, strict=True)]
    return [int(group[turn]) for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
