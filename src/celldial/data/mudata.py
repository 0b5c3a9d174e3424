"""Conversion of a MuData to an AnnData, so that all other files of the package handle only AnnData."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.data.counts import check_anndata, get_count_matrix, to_canonical_csr
from celldial.data.modalities import FEATURE_TYPES
from celldial.utils.messages import get_column
from celldial.utils.names import to_name
from celldial.utils.warnings import warn

if TYPE_CHECKING:
    from celldial.data.schema import Schema

__all__ = ["mudata_to_anndata"]


def mudata_to_anndata(
    data: AnnData | Any,
    *,
    layer: str | None = None,
    modality_key: str = "feature_types",
    schema: Schema | None = None,
    obs_keys: Sequence[str] = (),
) -> AnnData:
    """Convert a MuData to one AnnData; return any other object as it is.

    The cells are those of the MuData, in the same order. A modality that a cell lacks has a row of zeros. The MuData
    does not change, but the result may share memory with it.

    Parameters
    ----------
    data
        A MuData in memory whose modalities share cells (``axis=0``), or an AnnData.
    layer
        The layer of each modality with raw counts; ``None`` for ``X``. It has the same name in the result.
    modality_key
        Column of ``var`` for the types of features in the result. If this column has one value in a modality, the value
        is a known feature type, and no other modality has the same type, this value is kept. Otherwise, the type is the
        name of the modality in the MuData.
    schema
        Features and covariates of a fitted model, if there is one. Features are then named as in the model.
    obs_keys
        Columns of ``obs`` that are going to be used.

    Returns
    -------
    ``X``
        Counts as float CSR. If `layer` is given, they are also in ``layers[layer]``.
    ``var``
        Names of the features as in the modalities. If a name is in two modalities, all names have the modality as
        prefix, as in ``"rna:CD4"``.
    ``obs``
        The columns of the MuData. If it lacks a column of a modality, the column is added, with the values of the first
        modality that has the cell. Each modality adds a column ``has_rna``, ``has_atac``, ``has_protein`` or
        ``has_<name in the MuData>``, which is True for the cells of that modality.

    Raises
    ------
    TypeError
        A modality is not an AnnData, or its counts have an unsupported type.
    ValueError
        The modalities share features instead of cells; or a modality is backed, has a name twice, or has no counts.
    KeyError
        A modality lacks the layer.

    Warns
    -----
    UserWarning
        A column of `obs_keys` has different values in a modality.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from celldial.data.mudata import mudata_to_anndata
    >>> adata = AnnData(np.ones((3, 2), dtype=np.float32))
    >>> mudata_to_anndata(adata) is adata
    True
    """
    # If `data` is a MuData, mudata has already been imported, so this check does not import it.
    mudata: Any = sys.modules.get("mudata")
    if mudata is None or not isinstance(data, mudata.MuData):
        return data
    if data.axis != 0:
        raise ValueError(f"the MuData has axis={data.axis}: its modalities must share cells, axis=0")
    if data.isbacked:
        raise ValueError("the MuData is backed by a file: read it into memory first, mudata.read_h5mu(path)")
    # A subset of a MuData keeps modalities that none of its cells has.
    mods: dict[str, AnnData] = {name: mod for name, mod in data.mod.items() if mod.n_obs > 0}
    if not mods:
        raise ValueError("the MuData has no cell in any modality: at least one is needed")
    cells = data.obs_names
    matrices = [
        reindex_rows(read_modality_counts(mod, name, layer), mod.obs_names.get_indexer(cells))
        for name, mod in mods.items()
    ]
    stacked = sparse.hstack(matrices, format="csr")
    types = assign_feature_types(mods, modality_key)
    var = pd.DataFrame(
        {modality_key: np.repeat(list(types.values()), [mod.n_vars for mod in mods.values()])},
        index=pd.Index(unique_feature_names(mods, types, schema), dtype=object),
    )
    obs = merge_obs(data.obs, mods)
    warn_differences(obs, mods, obs_keys)
    for name, mod in mods.items():
        obs[f"has_{default_modality_name(name, types)}"] = cells.isin(mod.obs_names)
    return AnnData(stacked, obs, var, layers=None if layer is None else {layer: stacked})


def read_modality_counts(mod: Any, name: str, layer: str | None) -> sparse.csr_matrix:
    """Return the counts of one modality. Errors name the modality."""
    try:
        check_anndata(mod)
        return to_canonical_csr(get_count_matrix(mod, layer))
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"in modality {name!r} of the MuData (here adata): {error.args[0]}") from None


def reindex_rows(rows: sparse.csr_matrix, position_c: np.ndarray) -> sparse.csr_matrix:
    """Return the rows at the given positions, in that order; a position of -1 gives a row of zeros."""
    if len(position_c) == rows.shape[0] and bool((position_c == np.arange(len(position_c))).all()):
        return rows
    present_c = position_c >= 0
    selected = rows[position_c[present_c]]
    nnz_c = np.zeros(len(position_c), dtype=np.int64)
    nnz_c[present_c] = np.diff(selected.indptr)
    indptr_c = np.concatenate([[0], np.cumsum(nnz_c)])
    return sparse.csr_matrix((selected.data, selected.indices, indptr_c), shape=(len(position_c), rows.shape[1]))


def assign_feature_types(mods: Mapping[str, AnnData], modality_key: str) -> dict[str, str]:
    """Return the feature type of each modality: the one in its own ``var``, or else the name of the modality."""
    types = {}
    for name, mod in mods.items():
        values: Any = get_column(mod.var, modality_key, "modality_key").unique() if modality_key in mod.var else []
        single = len(values) == 1 and isinstance(values[0], str)
        # A type is used if it is known, or if neither the type nor the name is known.
        types[name] = values[0] if single and (values[0] in FEATURE_TYPES or name not in FEATURE_TYPES) else name
    # Two modalities of one type, such as "rna" and "spatial" of genes, are distinguished by their names.
    n_of_type = Counter(FEATURE_TYPES.get(value, value) for value in types.values())
    return {name: value if n_of_type[FEATURE_TYPES.get(value, value)] == 1 else name for name, value in types.items()}


def default_modality_name(name: str, types: Mapping[str, str]) -> str:
    """Return the name of a modality in a schema by default: that of its feature type, or else that in the MuData."""
    of_type = FEATURE_TYPES.get(types[name], name)
    unique = all(FEATURE_TYPES.get(types[other], other) != of_type for other in types if other != name)
    return of_type if unique else name


def unique_feature_names(mods: Mapping[str, AnnData], types: Mapping[str, str], schema: Schema | None) -> list[str]:
    """Return distinct names of all features. They have the modality as prefix if needed, or if they have it in a model.

    Parameters
    ----------
    mods
        Name of each modality to its AnnData.
    types
        Name of each modality to its feature type.
    schema
        Features of a fitted model, if there is one.
    """
    if schema is None:
        prefixed = dict.fromkeys(mods, has_name_clash(mods.values()))
    else:
        known = {name for names in schema.feature_names.values() for name in names}
        prefixed = {name: any(f"{name}:{feature}" in known for feature in mod.var_names) for name, mod in mods.items()}
        if has_name_clash(mod for name, mod in mods.items() if not prefixed[name]):
            # Modalities that are not in the model get the prefix.
            in_model = {*schema.sources, *schema.sources.values()}
            for name in mods:
                prefixed[name] |= not {default_modality_name(name, types), types[name]} & in_model
    return [
        f"{name}:{feature}" if prefixed[name] else str(feature)
        for name, mod in mods.items()
        for feature in mod.var_names
    ]


def has_name_clash(mods: Iterable[AnnData]) -> bool:
    """Return whether the name of a feature is in two modalities."""
    return max(Counter(feature for mod in mods for feature in mod.var_names).values(), default=0) > 1


def merge_obs(obs: pd.DataFrame, mods: Mapping[str, AnnData]) -> pd.DataFrame:
    """Return the table of all cells, with the columns of the modalities that it lacks."""
    table = obs.copy()
    for name in dict.fromkeys(column for mod in mods.values() for column in mod.obs):
        if name not in obs:
            values = pd.concat([mod.obs[name] for mod in mods.values() if name in mod.obs])
            table[name] = values[~values.index.duplicated()].reindex(obs.index)
    return table


def warn_differences(table: pd.DataFrame, mods: Mapping[str, AnnData], keys: Iterable[str]) -> None:
    """Warn if a column that is going to be used has other values in ``obs`` of a modality."""
    for key in dict.fromkeys(keys):
        for name, mod in mods.items():
            if key not in mod.obs or key not in table:
                continue
            here, there = (column.map(to_name) for column in (table[key].reindex(mod.obs_names), mod.obs[key]))
            differs_c = (here.astype(object) != there.astype(object)).to_numpy(dtype=bool)
            if differs_c.any():
                cell = mod.obs_names[differs_c][0]
                warn(
                    f"column {key!r} of {name} differs from the one that is used in {differs_c.sum()} of {mod.n_obs} "
                    f"cells, such as {str(cell)!r} ({there[cell]!r}, used is {here[cell]!r}): correct one of them"
                )
