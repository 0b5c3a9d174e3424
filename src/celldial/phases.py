"""What is told of a circle: which features mark it, what its phases are, and where each cell is, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial import circle
from celldial.data import Cells
from celldial.inference import Inferred
from celldial.lookup import find_column
from celldial.markers import Rhythm, find_markers
from celldial.module import Module
from celldial.periodic import phase_codes, phase_starts
from celldial.schema import Schema

__all__ = ["describe", "marker_columns", "table"]

# An active cell is more probably on the circle than not. Of one whose angle could be almost anything (a mean resultant
# length below 1/2), as where all that tells it was not measured, no phase is said.
MIN_ACTIVE, MIN_CONCENTRATION = 0.5, 1.0


def marker_columns(
    adata: AnnData, schema: Schema, cells: Cells, rhythm: Rhythm | None, gene_symbols: str | None
) -> tuple[dict[str, np.ndarray], str]:
    """Find the markers of a rhythm: phase to columns, and the modality these are of, RNA where there is some.

    Parameters
    ----------
    adata
        Whose ``var`` has the column `gene_symbols`, if one is named.
    schema, cells
        Of the same cells.
    rhythm
        What to look for; nothing is found where it is None or has no markers.
    gene_symbols
        Column of ``adata.var`` with the symbols of features; by default they are called by them.
    """
    modality = "rna" if "rna" in schema.modalities else schema.modalities[0]
    if rhythm is None or not rhythm.markers:
        return {}, modality
    symbols = list(schema.feature_names[modality])
    if gene_symbols is not None:
        symbols = list(find_column(adata.var, gene_symbols, "gene_symbols").astype(str).reindex(symbols))
    counts = cells.counts[modality]
    return find_markers(rhythm, symbols, counts.sum_columns(counts.value_n).numpy() > 0), modality


def describe(
    module: Module,
    schema: Schema,
    rhythm: Rhythm,
    markers: Mapping[str, np.ndarray],
    modality: str,
    gene_symbols: str | None,
) -> dict[str, Any]:
    """Describe the circle of a trained module: its name, phases, the angles where they start, and the markers found."""
    described: dict[str, Any] = {"name": rhythm.name}
    if rhythm.phases:
        names = np.array(schema.feature_names[modality], dtype=object)
        described["phases"] = np.array(rhythm.phases, dtype=object)
        described["phase_start"] = phase_starts(
            circle.marker_curves(module, markers, modality), circle.density(module), rhythm
        )
        described["markers"] = {phase: names[column_f] for phase, column_f in markers.items()}
    if gene_symbols is not None:
        described["gene_symbols"] = gene_symbols
    return described


def table(inferred: Inferred, described: Mapping[str, Any], names: pd.Index) -> pd.DataFrame:
    """Put where cells are on the circle in a table; see `celldial.VAE.phase`."""
    assert inferred.circle is not None
    angle_c, concentration_c, active_c, _ = inferred.circle
    columns: dict[str, Any] = {
        "angle": angle_c,
        "concentration": concentration_c,
        "active_probability": active_c,
        "active": active_c >= MIN_ACTIVE,
    }
    if "phases" in described:
        told_c = columns["active"] & (concentration_c >= MIN_CONCENTRATION)
        codes_c = np.where(told_c, phase_codes(angle_c, described["phase_start"]), -1)
        columns["phase"] = pd.Categorical.from_codes(codes_c.tolist(), pd.Index(described["phases"]))
    return pd.DataFrame({f"{described['name']}_{part}": values for part, values in columns.items()}, index=names)
