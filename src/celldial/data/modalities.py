"""Modalities of an AnnData: which features are of which, how each is modelled, and which cells have it."""

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
    "FEATURE_TYPES",
    "check_presence",
    "find_modalities",
    "modality_of_likelihood",
    "obsm_key",
    "resolve_likelihoods",
    "resolve_presence_keys",
]

FEATURE_TYPES = {
    "Gene Expression": "rna",  # as 10x Genomics writes it, and some others after it
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
"""Values of ``var["feature_types"]`` and the modality that each means."""

DEFAULT_KEY = "feature_types"
"""The column of ``var`` that says what a feature is; only this one may be absent."""

DEFAULT_LIKELIHOOD = "negative_binomial"
DEFAULT_LIKELIHOODS = {"atac": "bernoulli"}
"""Modality to its observation model, if it is not `DEFAULT_LIKELIHOOD`."""

BINARY_LIKELIHOODS = (DEFAULT_LIKELIHOODS["atac"],)
"""Observation models of presence: counts above 1 are read as 1. Callers that know of others name them."""

KNOWN_MODALITIES = tuple(dict.fromkeys(FEATURE_TYPES.values()))
"""The modalities known by name, in the order in which a model has them; others come after."""

ALL_FEATURES = ""
"""The source of a modality that has all of ``var``, because no column says what the features are."""

OBSM_PREFIX = "obsm/"
"""What the source of a modality in ``obsm`` starts with: it is then the path in an h5ad file."""

logger = logging.getLogger("celldial")


def obsm_key(source: str) -> str | None:
    """Give the key in ``obsm`` that a source names; None for a source in ``var``."""
    return source.removeprefix(OBSM_PREFIX) if source.startswith(OBSM_PREFIX) else None


# --- Which features ---------------------------------------------------------------------------------------------------


def find_modalities(
    adata: AnnData, modalities: Mapping[str, str] | None, modality_key: str, default_modality: str
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Find the modalities and the names of their features.

    Parameters
    ----------
    adata
        Its ``var`` (and ``obsm``) is looked at.
    modalities
        Modality to a value of ``var[modality_key]``, or to ``"obsm/key"``; None for all values that are known.
    modality_key
        Column of ``var`` that says what each feature is; it may be absent.
    default_modality
        The one modality, where nothing tells what the features are.

    Returns
    -------
    sources, feature_names
        Of each modality, in the order of the model.
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
    """Read what each feature is, as text; None where no column says it."""
    if modality_key not in adata.var:
        if modality_key != DEFAULT_KEY:  # misspelt, perhaps; all would be taken for genes
            raise KeyError(
                f"modality_key is {modality_key!r}, which is not among the columns of adata.var: "
                f"{format_names(adata.var)}"
            )
        return None
    column = adata.var[modality_key]
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"adata.var[{modality_key!r}] is missing (NaN) for feature {str(adata.var_names[missing[0]])!r} "
            f"({len(missing)} of {adata.n_vars} features): fill it in, or leave these features out"
        )
    return column.astype(str)


def default_sources(type_f: pd.Series, modality_key: str) -> dict[str, str]:
    """Find the modalities whose feature types are known by name; others are refused."""
    where = f"adata.var[{modality_key!r}]"
    sources: dict[str, str] = {}
    values = list(type_f.unique())
    for value in values:
        if value not in FEATURE_TYPES:
            known = {FEATURE_TYPES[value]: value for value in values if value in FEATURE_TYPES}
            unknown_f = type_f == value
            raise ValueError(
                f"{where} is {value!r} for {unknown_f.sum()} features (the first is "
                f"{str(type_f.index[unknown_f][0])!r}), which is no modality known by name: name it, as in "
                f"modalities={known | {'other': value}}, or leave these features out, "
                f"adata[:, {where} != {value!r}].copy()"
            )
        modality = FEATURE_TYPES[value]
        if modality in sources:
            raise ValueError(
                f"{where} has both {sources[modality]!r} and {value!r}, which mean the same modality, {modality}: "
                f"write them alike, or choose one with modalities={ {modality: value} }"
            )
        sources[modality] = value
    return sources


def check_sources(modalities: object, type_f: pd.Series | None, modality_key: str) -> dict[str, str]:
    """Check the modalities that the user named, and say which features are left out."""
    if not isinstance(modalities, Mapping) or not all(
        isinstance(part, str) for pair in modalities.items() for part in pair
    ):
        raise TypeError(
            f"modalities must be a dict of names, such as {{'rna': 'Gene Expression', 'protein': 'obsm/protein'}}, "
            f"not {modalities!r}"
        )
    if not modalities:
        raise ValueError("modalities is empty: name at least one, or leave it at None for all that are known by name")
    for modality, source in modalities.items():
        if not modality or set(modality) & set("./"):
            raise ValueError(f"modalities has the name {modality!r}: a name is not empty and has neither dot nor slash")
        if list(modalities.values()).count(source) > 1:
            raise ValueError(f"modalities names {source!r} more than once: features are of one modality")
    in_var = {modality: source for modality, source in modalities.items() if obsm_key(source) is None}
    if type_f is None:
        if len(in_var) > 1:
            raise KeyError(
                f"adata.var has no column {modality_key!r} that says which features are {format_names(in_var)}: write "
                f"it, "
                "or name another column as modality_key"
            )
        return {**modalities, **dict.fromkeys(in_var, ALL_FEATURES)}
    values = list(type_f.unique())
    for modality, source in in_var.items():
        if source not in values:
            raise KeyError(
                f"modalities takes {modality!r} from features that are {source!r}, but adata.var[{modality_key!r}] has "
                f"none of them; it has: {format_names(values)}"
            )
    n_left_out = int((~type_f.isin(list(in_var.values()))).sum())
    if n_left_out:
        others = [value for value in values if value not in in_var.values()]
        logger.info("leaving out %d features that are of no modality named: %s", n_left_out, format_names(others))
    return dict(modalities)


def get_feature_names(adata: AnnData, modality: str, source: str, type_f: pd.Series | None) -> tuple[str, ...]:
    """List the names of a modality's features."""
    key = obsm_key(source)
    if key is not None:
        matrix, names = get_obsm_matrix(adata, key)
        return names if names is not None else tuple(f"{modality}_{column}" for column in range(matrix.shape[1]))
    names_f = adata.var_names if source == ALL_FEATURES or type_f is None else adata.var_names[type_f == source]
    return tuple(map(str, names_f))


# --- How each is modelled ---------------------------------------------------------------------------------------------


def resolve_likelihoods(modalities: Iterable[str], likelihood: str | Mapping[str, str] | None) -> dict[str, str]:
    """Give each modality the name of its observation model.

    Parameters
    ----------
    modalities
        Names of the modalities.
    likelihood
        One name for all; or modality to name, the others by default; None for all by default. The default is
        ``"bernoulli"`` for ATAC and ``"negative_binomial"`` otherwise.
    """
    names = list(modalities)
    if isinstance(likelihood, str):
        return dict.fromkeys(names, likelihood)
    if not (likelihood is None or isinstance(likelihood, Mapping)):
        raise TypeError(f"likelihood is {likelihood!r}: it must be a name, or a dict from modality to name")
    given = {} if likelihood is None else likelihood
    check_known_modalities("likelihood", given, names)
    return {name: given.get(name, DEFAULT_LIKELIHOODS.get(name, DEFAULT_LIKELIHOOD)) for name in names}


def modality_of_likelihood(likelihood: str | Mapping[str, str] | None) -> str:
    """Return the modality of features without a type: the one with this default likelihood, otherwise ``"rna"``."""
    return next((name for name, default in DEFAULT_LIKELIHOODS.items() if default == likelihood), "rna")


def check_known_modalities(argument: str, given: Iterable[str], known: list[str]) -> None:
    """Raise where an argument names a modality that there is not."""
    for modality in given:
        if modality not in known:
            raise KeyError(f"{argument} names the modality {modality!r}; those of adata are: {format_names(known)}")


# --- Which cells have it ----------------------------------------------------------------------------------------------


def resolve_presence_keys(
    obs: pd.DataFrame, modalities: Iterable[str], presence_keys: Mapping[str, str] | None
) -> dict[str, str]:
    """Find the columns of ``obs`` that say which cells have a modality: as given, else boolean ``has_<modality>``."""
    names = list(modalities)
    if not (presence_keys is None or isinstance(presence_keys, Mapping)):
        raise TypeError(f"presence_keys is {presence_keys!r}: it must be a dict from modality to a column of adata.obs")
    given = {} if presence_keys is None else presence_keys
    check_known_modalities("presence_keys", given, names)
    usual = {name: f"has_{name}" for name in names if is_boolean(obs.get(f"has_{name}"))}
    keys = {name: given.get(name, usual.get(name)) for name in names}
    found = {name: key for name, key in keys.items() if key is not None}
    for key in found.values():
        read_presence(obs, key)
    return found


def is_boolean(column: pd.Series | None) -> bool:
    """Tell whether a column holds True and False, apart from what may be missing."""
    if column is None:
        return False
    return pd.api.types.is_bool_dtype(column) or pd.api.types.infer_dtype(column, skipna=True) == "boolean"


def read_presence(obs: pd.DataFrame, key: str) -> np.ndarray:
    """Read which cells have a modality, bool, shape ``(cells,)``."""
    column = get_column(obs, key, "presence column")
    missing = np.flatnonzero(column.isna())
    if len(missing) > 0:
        raise ValueError(
            f"adata.obs[{key!r}] is missing (NaN) in cell {str(obs.index[missing[0]])!r} ({len(missing)} of "
            f"{len(column)} cells): write True where the cell has the modality, else False"
        )
    for value in column.unique():
        if isinstance(value, str) or value not in (0, 1):
            cell = obs.index[np.flatnonzero(column == value)[0]]
            raise ValueError(
                f"adata.obs[{key!r}] is {str(value)!r} in cell {str(cell)!r}: write True where the cell has the "
                "modality, else False"
            )
    return column.to_numpy().astype(bool)


def check_presence(obs: pd.DataFrame, key: str | None, modality: str, rows: sparse.csr_matrix, several: bool) -> None:
    """Compare which cells should have a modality with which have counts of it.

    A cell has it if it has a count: the number of its counts is given to the model, and where that is 0 nothing else
    was observed. Counts where there should be none are an error, and no count where there should be some gives a
    warning.

    Parameters
    ----------
    obs
        One row a cell.
    key
        The column of `obs` that says which cells have the modality; without it this only says how many have none.
    modality
        Its name, for the messages.
    rows
        Its counts, in canonical form.
    several
        Whether the model has other modalities. If not, nothing is said of cells without counts: they are empty, and the
        estimator warns of them.
    """
    present_c = np.diff(rows.indptr) > 0
    if key is None or key not in obs:
        if several and not present_c.all():
            logger.info("%d of %d cells have no count of %s: they lack it", (~present_c).sum(), len(obs), modality)
        return
    said_c = read_presence(obs, key)
    wrong = np.flatnonzero(present_c & ~said_c)
    if len(wrong) > 0:
        raise ValueError(
            f"cell {str(obs.index[wrong[0]])!r} has {rows[wrong[0]].sum():g} counts of {modality}, but "
            f"adata.obs[{key!r}] says that it lacks it ({len(wrong)} such cells): set one of the two right, the column "
            "to True or the counts to zero"
        )
    without = np.flatnonzero(said_c & ~present_c)
    if several and len(without) > 0:
        warn(
            f"{len(without)} of {len(obs)} cells have {modality} by adata.obs[{key!r}], but no count of it (the first "
            f"is {str(obs.index[without[0]])!r}): they are taken to lack it",
        )
