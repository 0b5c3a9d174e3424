"""Observed counts of single features, normalized for comparison with a model's expectation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.io.results import read_record
from celldial.pl._units import COUNTS, PROBABILITY, modality_units
from celldial.utils.messages import format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["ObservedCounts"]


class ObservedCounts:
    """Counts of single features, normalized by the cell's total count in their modality."""

    def __init__(self, adata: AnnData, gene_symbols: str | None, layer: str | None) -> None:
        record = read_record(adata)
        layer = layer if layer is not None else record.get("parameters", {}).get("layer")
        if layer is not None and layer not in adata.layers:
            layers = [key for key in adata.layers if key is not None]
            raise KeyError(f"adata has no layer {layer!r}; available layers: {format_names(layers)}")
        self.matrix_cf = adata.X if layer is None else adata.layers[layer]
        self.source = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        if self.matrix_cf is None:
            raise ValueError("adata.X is None: pass the layer with raw counts, layer=...")
        if gene_symbols is not None and gene_symbols not in adata.var:
            raise KeyError(
                f"gene_symbols is {gene_symbols!r}, which is not a column of adata.var; available columns: "
                f"{format_names(adata.var)}"
            )
        self.names_source = "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}]"
        names_f = adata.var_names if gene_symbols is None else adata.var[gene_symbols]
        self.names_f, self.var_names = np.asarray(names_f.astype(str)), np.asarray(adata.var_names.astype(str))
        # Without a schema, all features are taken for genes.
        schema = record.get("schema", {})
        feature_names = schema.get("feature_names", {})
        self.modality_f = np.full(adata.n_vars, "rna", dtype=object)
        for modality in schema.get("modalities", []):
            self.modality_f[adata.var_names.isin(list(feature_names[modality]))] = str(modality)
        self._units = modality_units(schema)
        self._total_c: dict[str, np.ndarray] = {}

    def is_probability(self, column: int) -> bool:
        """Return whether a feature is modeled as detected or not, instead of by its counts."""
        return self._units.get(self.modality_f[column], COUNTS) == PROBABILITY

    def axis_label(self, column: int) -> str:
        """Return the unit of the values of `normalized`, for an axis."""
        return "fraction of cells open" if self.is_probability(column) else "counts per 10,000"

    def normalized(self, column: int) -> np.ndarray:
        """Return a feature's counts per 10,000 in each cell, or whether it is detected; NaN in cells without counts."""
        modality = self.modality_f[column]
        if modality not in self._total_c:
            in_modality_f = (self.modality_f == modality).astype(float)
            self._total_c[modality] = np.asarray(self.matrix_cf @ in_modality_f, dtype=float).ravel()
        total_c = np.where(self._total_c[modality] > 0, self._total_c[modality], np.nan)
        count_c = self.matrix_cf[:, [column]]
        count_c = np.asarray(count_c.toarray() if hasattr(count_c, "toarray") else count_c, dtype=float).ravel()
        if count_c.min() < 0 or (count_c != np.round(count_c)).any():
            raise ValueError(
                f"{self.source} does not hold raw counts of {self.names_f[column]!r}: pass the layer that does, "
                "layer=..."
            )
        if self.is_probability(column):
            return np.where(np.isnan(total_c), np.nan, count_c > 0)
        return count_c / total_c * 1e4
