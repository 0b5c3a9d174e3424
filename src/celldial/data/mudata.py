"""A MuData as one AnnData, so that the rest of the package knows one kind of data only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.data.counts import check_anndata, get_count_matrix, to_canonical_csr
from celldial.data.modalities import FEATURE_TYPES

if TYPE_CHECKING:
    from celldial.data.schema import Schema

__all__ = ["mudata_to_anndata"]


def mudata_to_anndata(
    data: AnnData | Any,
    *,
    layer: str | None = None,
    modality_key: str = "feature_types",
    schema: Schema | None = None,
) -> AnnData:
    """Make one AnnData of a MuData; give anything else back as it is.

    Cells are those of the MuData, in its order, with rows of zeros in a modality that lacks them. The MuData itself is
    left as it is, but the result may share memory with it.

    Parameters
    ----------
    data
        A MuData whose modalities share cells (``axis=0``), in memory; or an AnnData.
    layer
        The layer of each modality that holds raw counts; ``None`` for ``X``. It has the same name in the result.
    modality_key
        Column of ``var`` that says in the result what each feature is. It has the one value of that column in the
        modality, where there is one that is known and no other modality has it; else the modality's name in the MuData.
    schema
        What a model was fit to, where there is one already: features are then named as they were for it.

    Returns
    -------
    ``X``
        The counts, float CSR, also as ``layers[layer]`` where `layer` is given.
    ``var``
        Names as in the modalities. Where a name is in two modalities, all names are preceded by that of the modality,
        as in ``"rna:CD4"``.
    ``obs``
        The columns of the MuData; those of the modalities that it lacks, by the first modality that has the cell; and
        for each modality a column ``has_rna``, ``has_atac``, ``has_protein`` or ``has_<name in the MuData>``: True for
        the cells that it has.

    Raises
    ------
    TypeError
        A modality is no AnnData, or its counts are of an unknown kind.
    ValueError
        The modalities share features instead of cells; or one of them is backed, or has a name twice or no counts.
    KeyError
        A modality lacks the layer.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from celldial.data.mudata import mudata_to_anndata
    >>> adata = AnnData(np.ones((3, 2), dtype=np.float32))
    >>> mudata_to_anndata(adata) is adata
    True
    """
    # Who has a MuData has imported mudata: it is never imported for the sake of asking.
    mudata: Any = sys.modules.get("mudata")
    if mudata is None or not isinstance(data, mudata.MuData):
        return data
    if data.axis != 0:
        raise ValueError(f"the MuData has axis={data.axis}: its modalities must share cells, axis=0")
    if data.isbacked:
        raise ValueError("the MuData is backed by a file: read it into memory first, mudata.read_h5mu(path)")
    # A part of a MuData keeps modalities that none of its cells has.
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
    for name, mod in mods.items():
        obs[f"has_{default_modality_name(name, types)}"] = cells.isin(mod.obs_names)
    return AnnData(stacked, obs, var, layers=None if layer is None else {layer: stacked})


def read_modality_counts(mod: Any, name: str, layer: str | None) -> sparse.csr_matrix:
    """Find the counts of one modality, and name it in errors."""
    try:
        check_anndata(mod)
        return to_canonical_csr(get_count_matrix(mod, layer))
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"in modality {name!r} of the MuData (here adata): {error.args[0]}") from None


def reindex_rows(rows: sparse.csr_matrix, source_c: np.ndarray) -> sparse.csr_matrix:
    """Take the rows `source_c`, in that order; -1 stands for a row of zeros."""
    if len(source_c) == rows.shape[0] and bool((source_c == np.arange(len(source_c))).all()):
        return rows
    present_c = source_c >= 0
    chosen = rows[source_c[present_c]]
    length_c = np.zeros(len(source_c), dtype=np.int64)
    length_c[present_c] = np.diff(chosen.indptr)
    indptr_c = np.concatenate([[0], np.cumsum(length_c)])
    return sparse.csr_matrix((chosen.data, chosen.indices, indptr_c), shape=(len(source_c), rows.shape[1]))


def assign_feature_types(mods: Mapping[str, AnnData], modality_key: str) -> dict[str, str]:
    """Say what the features of each modality are: by their own column, or else by the modality's name."""
    types = {}
    for name, mod in mods.items():
        own = mod.var[modality_key].unique() if modality_key in mod.var else []
        # A type that says more than the name: known, or beside a name that says nothing, either.
        clear = len(own) == 1 and isinstance(own[0], str) and (own[0] in FEATURE_TYPES or name not in FEATURE_TYPES)
        types[name] = own[0] if clear else name
    # Two modalities of one type, such as "rna" and "spatial" of genes, are told apart by their names.
    times = Counter(FEATURE_TYPES.get(value, value) for value in types.values())
    return {name: value if times[FEATURE_TYPES.get(value, value)] == 1 else name for name, value in types.items()}


def default_modality_name(name: str, types: Mapping[str, str]) -> str:
    """Say what a schema calls a modality by default: what its features mean, or else its name in the MuData."""
    meant = FEATURE_TYPES.get(types[name], name)
    alone = all(FEATURE_TYPES.get(types[other], other) != meant for other in types if other != name)
    return meant if alone else name


def unique_feature_names(mods: Mapping[str, AnnData], types: Mapping[str, str], schema: Schema | None) -> list[str]:
    """Name all features: preceded by the modality where names alone do not tell them apart, or as a model has them."""
    if schema is None:
        preceded = dict.fromkeys(mods, has_name_clash(mods.values()))
    else:
        known = {name for names in schema.feature_names.values() for name in names}
        preceded = {name: any(f"{name}:{feature}" in known for feature in mod.var_names) for name, mod in mods.items()}
        if has_name_clash(mod for name, mod in mods.items() if not preceded[name]):
            # Modalities that the model does not know give way.
            for name in mods:
                preceded[name] |= not {default_modality_name(name, types), types[name]} & {
                    *schema.sources,
                    *schema.sources.values(),
                }
    return [
        f"{name}:{feature}" if preceded[name] else str(feature)
        for name, mod in mods.items()
        for feature in mod.var_names
    ]


def has_name_clash(mods: Iterable[AnnData]) -> bool:
    """Tell whether some feature's name is in two modalities."""
    return max(Counter(feature for mod in mods for feature in mod.var_names).values(), default=0) > 1


def merge_obs(obs: pd.DataFrame, mods: Mapping[str, AnnData]) -> pd.DataFrame:
    """Add the columns of the modalities that the table of all cells lacks."""
    table = obs.copy()
    for name in dict.fromkeys(column for mod in mods.values() for column in mod.obs):
        if name not in obs:
            values = pd.concat([mod.obs[name] for mod in mods.values() if name in mod.obs])
            table[name] = values[~values.index.duplicated()].reindex(obs.index)
    return table
