"""Colors of modalities, phases, categories and missing values; up to eight are safe for color-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "BLACK",
    "BLUE",
    "CYCLIC_COLORMAP",
    "LIGHT_GRAY",
    "MISSING_COLOR",
    "OKABE_ITO",
    "ORANGE",
    "PHASE_COLORS",
    "category_colors",
    "is_numeric",
    "modality_color",
]

# Okabe and Ito (2008), "Color Universal Design". Phases start with colors that modalities do not have.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#000000"
MODALITY_COLORS = {"rna": BLUE, "atac": ORANGE, "protein": "#009E73"}
OTHER_MODALITY_COLORS = ("#CC79A7", "#E69F00", "#56B4E9", BLACK)
PHASE_COLORS = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#F0E442", "#0072B2", "#D55E00")
LIGHT_GRAY, MISSING_COLOR = "0.8", "0.85"
CYCLIC_COLORMAP = "twilight_shifted"


def modality_color(modality: str, modalities: Sequence[str] = ()) -> str:
    """Return the color of a modality; modalities with other names get the remaining colors, in their order."""
    unknown = [name for name in modalities if name not in MODALITY_COLORS]
    index = unknown.index(modality) if modality in unknown else 0
    return MODALITY_COLORS.get(modality, OTHER_MODALITY_COLORS[index % len(OTHER_MODALITY_COLORS)])


def is_numeric(column_c: pd.Series) -> bool:
    """Return whether a column is drawn with a color scale, because it has numbers and not categories."""
    return pd.api.types.is_numeric_dtype(column_c) and not pd.api.types.is_bool_dtype(column_c)


def category_colors(adata: AnnData, key: str, names: list[Any]) -> list[Any]:
    """Return a color for each category of a column of ``obs``: those that scanpy stored, or a default palette."""
    stored = adata.uns.get(f"{key}_colors")
    categories = adata.obs[key].cat.categories if isinstance(adata.obs[key].dtype, pd.CategoricalDtype) else names
    if stored is not None and len(stored) >= len(categories):
        color_of = dict(zip(categories, stored, strict=False))
        return [color_of[name] for name in names]
    if len(names) <= len(OKABE_ITO):
        return list(OKABE_ITO[: len(names)])
    import matplotlib as mpl

    # No palette has this many distinct colors. Neighboring categories at least differ in lightness.
    return [mpl.colormaps["tab20"](k % 20) for k in range(len(names))]
