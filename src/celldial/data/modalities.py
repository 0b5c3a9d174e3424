"""Modalities of an AnnData: their features, their likelihoods, and the cells that have them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.data.counts import get_obsm_matrix
from celldial.utils.messages import format_names, get_column
from celldial.utils.warnings import warn

__all__ = [
    "ALL_FEATURES",
    "DENSE_TYPES",
    "FEATURE_TYPES",
    "check_presence",
    "find_modalities",
    "modality_of_likelihood",
    "modality_type",
    "obsm_key",
    "resolve_likelihoods",
    "resolve_presence_keys",
]

FEATURE_TYPES = {
    "Gene Expression": "rna",  # as in files of 10x Genomics
    "GEX": "rna",
    "rna": "rna",
    "Peaks": "atac",
    "ATAC": "atac",
    "atac": "atac",
    "Antibody Capture": "protein",
    "ADT": "protein",
    "protein": "protein",
    "prot": "protein",
}
"""Value of ``var["feature_types"]`` to its modality."""

DEFAULT_KEY = "feature_types"
"""Default column of ``var`` with the type of each feature. It may be missing, other columns may not."""

DEFAULT_LIKELIHOOD = "negative_binomial"
DEFAULT_LIKELIHOODS = {"atac": "bernoulli"}
"""Type of a modality to its default likelihood, if it is not `DEFAULT_LIKELIHOOD`."""

BINARY_LIKELIHOODS = (DEFAULT_LIKELIHOODS["atac"],)
"""Likelihoods for which counts above 1 are read as 1."""

DENSE_TYPES = frozenset({"protein"})
"""Types of modalities whose counts are rarely 0. A cell with a count that dropout sets to 0 would resemble no cell."""

KNOWN_MODALITIES = tuple(dict.fromkeys(FEATURE_TYPES.values()))
"""Modalities with known feature types, in the order of a model. Other modalities come after them."""

ALL_FEATURES = ""
"""Source of a modality that has all features of ``var``, because there is no column of feature types."""

OBSM_PREFIX = "obsm/"
"""Prefix of the source of a modality in ``obsm``. With it, the source is the path in an h5ad file."""

logger = logging.getLogger("celldial")


def obsm_key(source: str) -> str | None:
    """Return the key in ``obsm`` of a source; None for a source in ``var``."""
    return source.removeprefix(OBSM_PREFIX) if source.startswith(OBSM_PREFIX) else None


def modality_type(name: str, source: str) -> str:
    """Return the type of a modality: that of its features if it is known, otherwise the name of the modality.

    Examples
    --------
    >>> modality_type("adt", "Antibody Capture"), modality_type("protein", "obsm/counts")
    ('protein', 'protein')
    """
    return FEATURE_TYPES.get(source, name)


# --- Features ---------------------------------------------------------------------------------------------------------


def find_modalities(
    adata: AnnData, modalities: Mapping[str, str] | None, modality_key: str, default_modality: str
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the source of each modality, and the names of its features.

    Parameters
    ----------
    adata
        Its ``var`` and ``obsm`` are read.
    modalities
        Modality to a value of ``var[modality_key]`` or to ``"obsm/key"``; by default, the modalities of all feature
        types, which must be known.
    modality_key
        Column of ``var`` with the type of each feature.
    default_modality
        The only modality, if there is no column of feature types.

    Returns
    -------
    sources, feature_names
        Dicts by modality, in the order of the model.
    """
    type_f = read_feature_types(adata, modality_key)
    if modalities is not None:
        sources = check_sources(modalities, type_f, modality_key)
    elif type_f is None:
        sources = {default_modality: ALL_FEATURES}
    else:
        sources = default_sources(type_f, modality_key)
    order = [
        *(name for name in KNOWN_MODALITIES if name in sources),
        *(name for name in sources if name not in KNOWN_MODALITIES),
    ]
    sources = {modality: sources[modality] for modality in order}
    return sources, {
        modality: get_feature_names(adata, modality, source, type_f) for modality, source in sources.items()
    }


def read_feature_types(adata: AnnData, modality_key: str) -> pd.Series | None:
    """Return the type of each feature as text; None if there is no column of types."""
    if modality_key not in adata.var:
        if modality_key != DEFAULT_KEY:  # perhaps misspelled; all features would become genes
            raise KeyError(
                f"modality_key {modality_key!r} is not a column of adata.var; its columns: {format_names(adata.var)}"
            )
        return None
    column = get_column(adata.var, modality_key, "modality_key")
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"adata.var[{modality_key!r}] is missing (NaN) for feature {str(adata.var_names[missing[0]])!r} "
            f"({len(missing)} of {adata.n_vars} features): fill it in, or remove these features"
        )
    return column.astype(str)


def default_sources(type_f: pd.Series, modality_key: str) -> dict[str, str]:
    """Return the modalities of the feature types; raise if a type is unknown."""
    where = f"adata.var[{modality_key!r}]"
    sources: dict[str, str] = {}
    values = list(type_f.unique())
    for value in values:
        if value not in FEATURE_TYPES:
            known = {FEATURE_TYPES[value]: value for value in values if value in FEATURE_TYPES}
            unknown_f = type_f == value
            raise ValueError(
                f"{where} is {value!r} for {unknown_f.sum()} features (the first is "
                f"{str(type_f.index[unknown_f][0])!r}), and {value!r} is not a known feature type: name its modality, "
                f"as in modalities={known | {'other': value}}, or remove these features, "
                f"adata[:, {where} != {value!r}].copy()"
            )
        modality = FEATURE_TYPES[value]
        if modality in sources:
            raise ValueError(
                f"{where} has both {sources[modality]!r} and {value!r}, which are types of the same modality, "
                f"{modality}: use one type for both, or choose one with modalities={ {modality: value} }"
            )
        sources[modality] = value
    return sources


def check_sources(modalities: object, type_f: pd.Series | None, modality_key: str) -> dict[str, str]:
    """Return the source of each modality that the user chose; raise if there is no such source."""
    sources = check_modality_names(modalities)
    in_var = {modality: source for modality, source in sources.items() if obsm_key(source) is None}
    if type_f is None:
        if len(in_var) > 1:
            raise KeyError(
                f"adata.var has no column {modality_key!r} with feature types, but there are several modalities in "
                f"adata.var ({format_names(in_var)}): add the column, or set modality_key to another one"
            )
        return {**sources, **dict.fromkeys(in_var, ALL_FEATURES)}
    types = list(type_f.unique())
    for modality, source in in_var.items():
        if source not in types:
            raise KeyError(
                f"modalities maps {modality!r} to {source!r}, but adata.var[{modality_key!r}] has no such feature "
                f"type; it has: {format_names(types)}"
            )
    n_ignored = int((~type_f.isin(list(in_var.values()))).sum())
    if n_ignored:
        others = [value for value in types if value not in in_var.values()]
        logger.info("ignoring %d features whose types are not in modalities: %s", n_ignored, format_names(others))
    return sources


def check_modality_names(modalities: object) -> dict[str, str]:
    """Return the parameter `modalities` as a dict; raise unless it has valid names and distinct sources."""
    if not isinstance(modalities, Mapping) or not all(
        isinstance(text, str) for pair in modalities.items() for text in pair
    ):
        raise TypeError(
            f"modalities must be a dict of strings, such as {{'rna': 'Gene Expression', 'protein': 'obsm/protein'}}, "
            f"not {modalities!r}"
        )
    if not modalities:
        raise ValueError("modalities is empty: name at least one, or use None for all known feature types")
    for modality, source in modalities.items():
        if not modality or set(modality) & set("./"):
            raise ValueError(f"modalities has the name {modality!r}: a name must not be empty or have a dot or a slash")
        if list(modalities.values()).count(source) > 1:
            raise ValueError(f"modalities has {source!r} more than once: features belong to one modality")
    return dict(modalities)


def get_feature_names(adata: AnnData, modality: str, source: str, type_f: pd.Series | None) -> tuple[str, ...]:
    """Return the names of the features of a modality."""
    key = obsm_key(source)
    if key is not None:
        matrix, names = get_obsm_matrix(adata, key)
        return names if names is not None else tuple(f"{modality}_{column}" for column in range(matrix.shape[1]))
    names_f = adata.var_names if source == ALL_FEATURES or type_f is None else adata.var_names[type_f == source]
    return tuple(map(str, names_f))


# --- Likelihoods ------------------------------------------------------------------------------------------------------


def resolve_likelihoods(sources: Mapping[str, str], likelihood: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the name of the likelihood of each modality.

    Parameters
    ----------
    sources
        Modality to the source of its features.
    likelihood
        One name for all modalities, or a dict from modality to name. Modalities without a name have the default:
        ``"bernoulli"`` for peaks and ``"negative_binomial"`` for others.
    """
    names = list(sources)
    if isinstance(likelihood, str):
        return dict.fromkeys(names, likelihood)
    if not (likelihood is None or isinstance(likelihood, Mapping)):
        raise TypeError(f"likelihood is {likelihood!r}: it must be a name, or a dict from modality to name")
    given = {} if likelihood is None else likelihood
    check_known_modalities("likelihood", given, names)
    return {
        name: given.get(name, DEFAULT_LIKELIHOODS.get(modality_type(name, source), DEFAULT_LIKELIHOOD))
        for name, source in sources.items()
    }


def modality_of_likelihood(likelihood: str | Mapping[str, str] | None) -> str:
    """Return the modality of features without a type: the one with this default likelihood, otherwise ``"rna"``."""
    return next((name for name, default in DEFAULT_LIKELIHOODS.items() if default == likelihood), "rna")


def check_known_modalities(argument: str, given: Iterable[str], known: list[str]) -> None:
    """Raise if an argument has a modality that is not known."""
    for modality in given:
        if modality not in known:
            raise KeyError(
                f"{argument} has the modality {modality!r}; the modalities of adata are: {format_names(known)}"
            )


# --- Cells that have a modality ---------------------------------------------------------------------------------------


def resolve_presence_keys(
    obs: pd.DataFrame, modalities: Iterable[str], presence_keys: Mapping[str, str] | None
) -> dict[str, str]:
    """Return modality to the column of ``obs`` that marks its cells, for the modalities with such a column.

    Modalities that are not in `presence_keys` use the column ``has_<modality>``, if it is boolean.
    """
    names = list(modalities)
    if not (presence_keys is None or isinstance(presence_keys, Mapping)):
        raise TypeError(f"presence_keys is {presence_keys!r}: it must be a dict from modality to a column of adata.obs")
    given = {} if presence_keys is None else presence_keys
    check_known_modalities("presence_keys", given, names)
    default = {name: f"has_{name}" for name in names if is_boolean(obs.get(f"has_{name}"))}
    keys = {name: given.get(name, default.get(name)) for name in names}
    found = {name: key for name, key in keys.items() if key is not None}
    for key in found.values():
        read_presence(obs, key)
    return found


def is_boolean(column: pd.Series | None) -> bool:
    """Return whether all values of a column are True, False or missing."""
    if column is None:
        return False
    return pd.api.types.is_bool_dtype(column) or pd.api.types.infer_dtype(column, skipna=True) == "boolean"


def read_presence(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Return a mask of the cells that have a modality by a column of ``obs``, bool, shape ``(cells,)``."""
    column = get_column(obs, key, "presence column")
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"adata.obs[{key!r}] is missing (NaN) in cell {str(obs.index[missing[0]])!r} ({len(missing)} of "
            f"{len(column)} cells): use True for cells that have the modality, and False for others"
        )
    for value in column.unique():
        if isinstance(value, str) or value not in (0, 1):
            cell = obs.index[np.flatnonzero(column == value)[0]]
            raise ValueError(
                f"adata.obs[{key!r}] is {str(value)!r} in cell {str(cell)!r}: use True for cells that have the "
                "modality, and False for others"
            )
    return column.to_numpy().astype(bool)


def check_presence(
    obs: pd.DataFrame, key: str | None, modality: str, rows: sparse.csr_matrix, multimodal: bool
) -> None:
    """Compare the cells that should have a modality with those that have counts of it.

    For the model, a cell has a modality if it has a count of it. Counts in a cell that should lack the modality are an
    error. A cell without counts that should have the modality causes a warning.

    Parameters
    ----------
    obs
        One row per cell.
    key
        Column of `obs` that marks the cells with the modality; None if there is none.
    modality
        Name of the modality, for the messages.
    rows
        Counts of the modality, in canonical form.
    multimodal
        Whether the model has several modalities. If not, cells without counts are empty, and the caller warns of them.
    """
    has_counts_c = np.diff(rows.indptr) > 0
    if key is None or key not in obs:
        if multimodal and not has_counts_c.all():
            n_without = (~has_counts_c).sum()
            logger.info("%d of %d cells have no count of %s: they lack this modality", n_without, len(obs), modality)
        return
    marked_c = read_presence(obs, key)
    unmarked = np.flatnonzero(has_counts_c & ~marked_c)
    if len(unmarked) > 0:
        raise ValueError(
            f"cell {str(obs.index[unmarked[0]])!r} has {rows[unmarked[0]].sum():g} counts of {modality}, but "
            f"adata.obs[{key!r}] is False ({len(unmarked)} such cells): set the column to True, or the counts to zero"
        )
    without = np.flatnonzero(marked_c & ~has_counts_c)
    if multimodal and len(without) > 0:
        warn(
            f"{len(without)} of {len(obs)} cells have {modality} by adata.obs[{key!r}], but no count of it (the first "
            f"is {str(obs.index[without[0]])!r}): they are treated as cells that lack it"
        )
