"""What was counted, to be drawn beside what a model expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celldial.utils.messages import format_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Counts"]


class Counts:
    """What was counted, one feature at a time, with the totals of the cells in its modality."""

    def __init__(self, adata: AnnData, gene_symbols: str | None, layer: str | None) -> None:
        about = adata.uns.get("celldial", {})
        layer = layer if layer is not None else about.get("parameters", {}).get("layer")
        if layer is not None and layer not in adata.layers:
            layers = [key for key in adata.layers if key is not None]
            raise KeyError(f"adata has no layer {layer!r}; its layers: {format_names(layers)}")
        self.matrix_cf = adata.X if layer is None else adata.layers[layer]
        self.source = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        if self.matrix_cf is None:
            raise ValueError("adata.X is None: name the layer that holds counts, layer=...")
        if gene_symbols is not None and gene_symbols not in adata.var:
            raise KeyError(
                f"gene_symbols is {gene_symbols!r}, which is not among the columns of adata.var: "
                f"{format_names(adata.var)}"
            )
        self.where = "var_names" if gene_symbols is None else f"var[{gene_symbols!r}]"
        names_f = adata.var_names if gene_symbols is None else adata.var[gene_symbols]
        self.names_f, self.var_names = np.asarray(names_f.astype(str)), np.asarray(adata.var_names.astype(str))
        # Without a schema, all that is there is taken for genes.
        schema = about.get("schema", {})
        names = schema.get("feature_names", {})
        self.modality_f = np.full(adata.n_vars, "rna", dtype=object)
        for modality in schema.get("modalities", []):
            self.modality_f[adata.var_names.isin(list(names[modality]))] = str(modality)
        self.binary = {str(key) for key, value in schema.get("likelihood", {}).items() if value == "bernoulli"}
        self.totals: dict[str, np.ndarray] = {}

    def unit(self, column: int) -> str:
        """Say what the numbers of `normalized` are."""
        return "share of cells open" if self.modality_f[column] in self.binary else "counts per 10,000"

    def normalized(self, column: int) -> np.ndarray:
        """Give a feature's counts per 10,000 of each cell; not a number in cells without any count."""
        modality = self.modality_f[column]
        if modality not in self.totals:
            of_modality_f = (self.modality_f == modality).astype(float)
            self.totals[modality] = np.asarray(self.matrix_cf @ of_modality_f, dtype=float).ravel()
        total_c = np.where(self.totals[modality] > 0, self.totals[modality], np.nan)
        count_c = self.matrix_cf[:, [column]]
        count_c = np.asarray(count_c.toarray() if hasattr(count_c, "toarray") else count_c, dtype=float).ravel()
        if count_c.min() < 0 or (count_c != np.round(count_c)).any():
            raise ValueError(
                f"{self.source} does not hold counts of {self.names_f[column]!r}: name the layer that does, layer=..."
            )
        if modality in self.binary:
            return np.where(np.isnan(total_c), np.nan, count_c > 0)
        return count_c / total_c * 1e4
