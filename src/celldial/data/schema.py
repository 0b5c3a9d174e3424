"""The schema of a model: its features, layer and covariates, and how to read them from any AnnData.

This file returns numpy and scipy arrays and never writes to an AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.data.basis import Basis, basis_from_dict, fit_basis, parse_bases
from celldial.data.counts import (
    MIN_OVERLAP,
    check_anndata,
    check_counts,
    check_feature_overlap,
    describe_layer,
    describe_obsm,
    get_count_matrix,
    get_obsm_matrix,
    match_features,
    match_obsm_columns,
    select_columns,
    to_canonical_csr,
)
from celldial.data.covariates import (
    encode_categories,
    find_categories,
    mean_and_std,
    to_column,
    to_covariate_table,
    to_float,
)
from celldial.data.modalities import (
    BINARY_LIKELIHOODS,
    check_presence,
    find_modalities,
    modality_of_likelihood,
    obsm_key,
    resolve_likelihoods,
    resolve_presence_keys,
)
from celldial.utils.messages import format_names, get_column

__all__ = ["MIN_OVERLAP", "Schema", "SchemaOptions"]

logger = logging.getLogger("celldial")


@dataclass(frozen=True)
class SchemaOptions:
    """Parameters of a model that choose the features and covariates in an AnnData.

    Parameters
    ----------
    layer
        The layer with raw counts; ``None`` for ``adata.X``. Modalities in ``obsm`` have no layers.
    batch_key
        Column of ``adata.obs`` with the batch.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``adata.obs``. The categories of a categorical column keep their order, without unused ones;
        those of other columns are sorted.
    basis
        Continuous covariate to the basis in which its effect is smooth; see `celldial.data.basis.parse_bases`.
    likelihood
        Name of the likelihood, or modality to its name; by default ``"bernoulli"`` for peaks and
        ``"negative_binomial"`` for other modalities.
    modalities
        Modality to a value of ``adata.var[modality_key]``, or to ``"obsm/key"`` if ``adata.obsm`` has its counts as a
        matrix, array or DataFrame. Other features are ignored. By default, all feature types are used, and must be in
        `celldial.data.modalities.FEATURE_TYPES`.
    modality_key
        Column of ``adata.var`` with the type of each feature. Without this column, all features are genes, ``"rna"``;
        or peaks, ``"atac"``, if `likelihood` is ``"bernoulli"``.
    presence_keys
        Modality to the boolean column of ``adata.obs`` that marks its cells; by default ``"has_<modality>"``, such as
        ``"has_protein"``, if it exists. Without a column, cells without counts of a modality lack it.
    binary_likelihoods
        Names of the likelihoods for which counts above 1 are read as 1; by default the one of peaks.
    """

    layer: str | None = None
    batch_key: str | None = None
    categorical_covariate_keys: Sequence[str] = ()
    continuous_covariate_keys: Sequence[str] = ()
    basis: Mapping[str, Any] | None = None
    likelihood: str | Mapping[str, str] | None = None
    modalities: Mapping[str, str] | None = None
    modality_key: str = "feature_types"
    presence_keys: Mapping[str, str] | None = None
    binary_likelihoods: Collection[str] = BINARY_LIKELIHOODS

    def all_categorical_keys(self) -> list[str]:
        """Return the keys of all categorical covariates, the batch first; raise if a covariate is given twice."""
        for keys in (self.categorical_covariate_keys, self.continuous_covariate_keys):
            if isinstance(keys, str):
                raise TypeError(f"covariate keys must be a list of names, not a string: use [{keys!r}]")
        categorical = [*([] if self.batch_key is None else [self.batch_key]), *self.categorical_covariate_keys]
        all_keys = [*categorical, *self.continuous_covariate_keys]
        for key in all_keys:
            if all_keys.count(key) > 1:
                raise ValueError(
                    f"covariate {key!r} is given more than once (batch, categorical, continuous): keep one"
                )
        return categorical


@dataclass(frozen=True)
class Schema:
    """Features and covariates of a model. Every AnnData that the model reads must have them.

    Parameters
    ----------
    feature_names
        Modality to the names of its features. Modalities are in the order of the model: ``"rna"``, ``"atac"``,
        ``"protein"``, others.
    sources
        Modality to the source of its features: a value of the column of feature types in ``var``, ``"obsm/key"``, or
        `celldial.data.modalities.ALL_FEATURES` if there is no such column.
    likelihood
        Modality to the name of its likelihood.
    binary
        Modality to whether its counts above 1 are read as 1.
    presence_keys
        Modality to the boolean column of ``obs`` that marks its cells, for the modalities with such a column.
    layer
        The layer with the counts of the features in ``var``; ``None`` for ``adata.X``.
    batch_key
        The categorical covariate that is the batch, which is the first key of `categories`; ``None`` without batches.
    categories
        Categorical covariate to its categories, in the order of their codes.
    continuous
        Continuous covariate to its mean and standard deviation over the training data.
    bases
        Continuous covariate to its basis, for those that do not act through their standardized value alone.
    ranges
        Continuous covariate to its lowest and highest value in the training data; empty in old model files.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from celldial.data.schema import Schema
    >>> obs = pd.DataFrame({"donor": ["b", "a"]}, index=["cell_1", "cell_2"])
    >>> var = pd.DataFrame({"feature_types": ["Gene Expression"] * 2 + ["Peaks"] * 2}, index=["g1", "g2", "p1", "p2"])
    >>> schema = Schema.from_anndata(AnnData(np.ones((2, 4), dtype=np.float32), obs, var), batch_key="donor")
    >>> schema.feature_names
    {'rna': ('g1', 'g2'), 'atac': ('p1', 'p2')}
    >>> schema.likelihood
    {'rna': 'negative_binomial', 'atac': 'bernoulli'}
    >>> schema.categories
    {'donor': ('a', 'b')}
    """

    feature_names: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    likelihood: dict[str, str]
    binary: dict[str, bool]
    presence_keys: dict[str, str]
    layer: str | None
    batch_key: str | None
    categories: dict[str, tuple[str, ...]]
    continuous: dict[str, tuple[float, float]]
    bases: dict[str, Basis] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    @classmethod
    def from_anndata(cls, adata: AnnData, *, obs: pd.DataFrame | None = None, **options: Any) -> Schema:
        """Find the features and covariates of the training data.

        The counts must exist, but their values are checked by :meth:`read_counts`, so that they are read only once.

        Parameters
        ----------
        adata
            Training data in memory.
        obs
            Table of all cells, if `adata` has only some of them; by default ``adata.obs``.
        **options
            Fields of `SchemaOptions`.

        Raises
        ------
        TypeError
            `adata` is not an AnnData, the counts have an unsupported type, or a continuous covariate is not numeric.
        ValueError
            `adata` is backed or empty, has a name twice, or has no counts; a feature type is unknown; a modality has
            only one feature; a covariate is given twice; or a covariate or a presence column has a missing or invalid
            value.
        KeyError
            There is no such layer, column, modality or feature type.
        """
        given = SchemaOptions(**options)
        modalities = given.modalities
        all_in_obsm = isinstance(modalities, Mapping) and all(obsm_key(str(source)) for source in modalities.values())
        check_anndata(adata, needs_features=not all_in_obsm)
        obs = adata.obs if obs is None else obs
        default_modality = modality_of_likelihood(given.likelihood)
        sources, feature_names = find_modalities(adata, modalities, given.modality_key, default_modality)
        check_n_features(feature_names)
        if any(obsm_key(source) is None for source in sources.values()):
            get_count_matrix(adata, given.layer)
        categorical_keys = given.all_categorical_keys()
        likelihoods = resolve_likelihoods(sources, given.likelihood)
        continuous = {key: get_column(obs, key) for key in given.continuous_covariate_keys}
        values = {key: to_float(column, key) for key, column in continuous.items()}
        bases = parse_bases(given.basis, values)
        return cls(
            feature_names=feature_names,
            sources=sources,
            likelihood=likelihoods,
            binary={modality: name in given.binary_likelihoods for modality, name in likelihoods.items()},
            presence_keys=resolve_presence_keys(obs, sources, given.presence_keys),
            layer=given.layer,
            batch_key=given.batch_key,
            categories={key: find_categories(get_column(obs, key), key) for key in categorical_keys},
            continuous={key: mean_and_std(column, key) for key, column in continuous.items()},
            bases={key: fit_basis(*bases[key], values[key]) for key in values if key in bases},
            ranges={key: (float(value_c.min()), float(value_c.max())) for key, value_c in values.items()},
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, in the order of the model."""
        return tuple(self.feature_names)

    @property
    def obs_keys(self) -> list[str]:
        """The columns of ``obs`` that the model reads."""
        return [*self.categories, *self.continuous, *self.presence_keys.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the schema in plain JSON types. :meth:`from_dict` restores it exactly.

        The keys of dicts are also stored as lists, because h5ad files do not keep the order of a dict.
        """
        return {
            "modalities": list(self.feature_names),
            "feature_names": {modality: list(names) for modality, names in self.feature_names.items()},
            "sources": dict(self.sources),
            "likelihood": dict(self.likelihood),
            "binary": dict(self.binary),
            "presence_keys": dict(self.presence_keys),
            "layer": self.layer,
            "batch_key": self.batch_key,
            "categorical_covariate_keys": list(self.categories),
            "categories": {key: list(names) for key, names in self.categories.items()},
            "continuous_covariate_keys": list(self.continuous),
            "continuous": {key: list(mean_sd) for key, mean_sd in self.continuous.items()},
            "bases": {key: basis.to_dict() for key, basis in self.bases.items()},
            "ranges": {key: list(low_high) for key, low_high in self.ranges.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schema:
        """Read the result of :meth:`to_dict`, also after it was stored as JSON or in ``adata.uns`` of an h5ad file."""
        modalities = list(stored["modalities"])
        presence_keys = stored["presence_keys"]
        return cls(
            feature_names={key: tuple(map(str, stored["feature_names"][key])) for key in modalities},
            sources={key: str(stored["sources"][key]) for key in modalities},
            likelihood={key: str(stored["likelihood"][key]) for key in modalities},
            binary={key: bool(stored["binary"][key]) for key in modalities},
            presence_keys={key: str(presence_keys[key]) for key in modalities if key in presence_keys},
            layer=stored.get("layer"),
            batch_key=stored.get("batch_key"),
            categories={
                key: tuple(map(str, stored["categories"][key])) for key in stored["categorical_covariate_keys"]
            },
            continuous={key: _pair(stored["continuous"][key]) for key in stored["continuous_covariate_keys"]},
            bases={key: basis_from_dict(basis) for key, basis in stored.get("bases", {}).items()},
            ranges={key: _pair(low_high) for key, low_high in stored.get("ranges", {}).items()},
        )

    def extend(self, obs: pd.DataFrame) -> Schema:
        """Return the schema with the categories of further cells added; known categories keep their codes.

        Parameters
        ----------
        obs
            Table of cells with the categorical covariates of the schema.

        Raises
        ------
        KeyError
            A covariate is missing.
        ValueError
            A value is missing.
        """
        categories = {}
        for key, known in self.categories.items():
            found = find_categories(get_column(obs, key), key)
            categories[key] = (*known, *(name for name in found if name not in known))
        return replace(self, categories=categories)

    def read_counts(self, adata: AnnData) -> dict[str, sparse.csr_matrix]:
        """Return the checked counts of the model's features.

        Features are in the order of the schema. Features of `adata` that are not in the model are ignored, and features
        that `adata` lacks are zeros. If the model has several modalities, `adata` may lack all features of some of
        them. A cell lacks a modality if, and only if, its row there is empty.

        A float32 CSR matrix in canonical form that has exactly these features is not copied. The result then shares its
        memory: do not write to it.

        Parameters
        ----------
        adata
            Cells in memory.

        Returns
        -------
        dict[str, sparse.csr_matrix]
            Modality to float32 counts, shape ``(cells, features)``, with sorted columns and without duplicates and
            stored zeros. Counts of binary modalities are ones.

        Raises
        ------
        TypeError
            `adata` is not an AnnData, or its counts are neither a numpy array nor a scipy sparse matrix of numbers.
        ValueError
            `adata` is backed or empty or has a name twice; a count is negative, not finite or not a whole number; less
            than `MIN_OVERLAP` of the features of a modality are present; or a cell has counts of a modality that it
            should lack.
        KeyError
            The layer is missing.

        Warns
        -----
        UserWarning
            Some features of the model are missing, or a cell that should have a modality has no count of it.
        """
        multimodal = len(self.feature_names) > 1
        obsm_keys = {modality: obsm_key(source) for modality, source in self.sources.items()}
        check_anndata(adata, needs_features=all(key is None for key in obsm_keys.values()))
        positions = {
            modality: match_features(adata.var_names, self.feature_names[modality])
            for modality, key in obsm_keys.items()
            if key is None
        }
        missing = self._missing_modalities(adata, positions) if multimodal else set()
        n_known = sum(int((position_f >= 0).sum()) for position_f in positions.values())
        if n_known < adata.n_vars:
            logger.info("ignoring %d features that are not in the model", adata.n_vars - n_known)
        in_var = to_canonical_csr(get_count_matrix(adata, self.layer)) if positions.keys() - missing else None
        counts = {}
        for modality, names in self.feature_names.items():
            if modality in missing:
                logger.info("adata has none of the %d features of %s: all cells lack it", len(names), modality)
                counts[modality] = sparse.csr_matrix((adata.n_obs, len(names)), dtype=np.float32)
                continue
            label = modality if multimodal else ""
            key = obsm_keys[modality]
            if key is None:
                where = describe_layer(self.layer)
                check_feature_overlap(positions[modality], adata.var_names, names, "adata.var_names", label)
                rows = select_columns(in_var, positions[modality])
            else:
                where = describe_obsm(key)
                matrix, found = get_obsm_matrix(adata, key)
                position_f = match_obsm_columns(matrix, found, names, where, label)
                rows = select_columns(to_canonical_csr(matrix), position_f)
            check_counts(rows, adata, names, where, modality)
            check_presence(adata.obs, self.presence_keys.get(modality), modality, rows, multimodal)
            counts[modality] = as_model_counts(rows, modality, self.binary[modality])
        return counts

    def _missing_modalities(self, adata: AnnData, positions: Mapping[str, np.ndarray]) -> set[str]:
        """Return the modalities without any feature in `adata`; raise if all modalities are missing."""
        missing = {modality for modality, position_f in positions.items() if (position_f < 0).all()}
        for modality, source in self.sources.items():
            key = obsm_key(source)
            if key is not None and key not in adata.obsm:
                missing.add(modality)
        if len(missing) == len(self.feature_names):
            wanted = "; ".join(f"{modality} {format_names(names, 3)}" for modality, names in self.feature_names.items())
            raise ValueError(
                f"adata has no feature of any modality of the model. The model has {wanted} (sources: "
                f"{format_names(self.sources.values())}); adata has {format_names(adata.var_names, 3)}. Use the same "
                "kind of names (genes: symbols or Ensembl ids)"
            )
        return missing

    def encode_covariates(
        self,
        obs: AnnData | pd.DataFrame | Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        n_cells: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the covariates of cells as codes and standardized numbers.

        Parameters
        ----------
        obs
            Covariates of the cells: an AnnData, its ``obs``, or a dict from covariate to one value for all cells or one
            value per cell.
        overrides
            Covariate to one value for all cells, instead of the values in `obs`, which may then lack it.
        n_cells
            Number of cells. Required if `obs` is a dict; otherwise, it must be the number of rows, if given.

        Returns
        -------
        category_ck
            Codes of the categorical covariates, int64, shape ``(cells, len(categories))``.
        continuous_ck
            Columns of the continuous covariates, float32, shape ``(cells, n_continuous)``: values standardized by mean
            and standard deviation of the training data, or the columns of a basis.

        Raises
        ------
        KeyError
            A covariate is missing, or is not in the model.
        ValueError
            A category was not in the training data; a value is missing or infinite; or the number of cells is wrong.
        TypeError
            A continuous covariate is not numeric, or an override is not a single value.
        """
        known = [*self.categories, *self.continuous]
        overrides = {} if overrides is None else overrides
        given = [*overrides, *(obs if isinstance(obs, Mapping) else ())]
        for key in given:
            if key not in known:
                raise KeyError(f"the model has no covariate {key!r}; its covariates: {format_names(known)}")
        for key, value in overrides.items():
            if np.ndim(value) != 0:
                raise TypeError(f"the override of {key!r} must be one value for all cells, not {type(value).__name__}")
        table = obs.obs if isinstance(obs, AnnData) and n_cells is None else to_covariate_table(obs, n_cells)
        columns = {
            key: to_column(overrides[key], table.index) if key in overrides else get_column(table, key) for key in known
        }
        category_ck = np.empty((len(table), len(self.categories)), dtype=np.int64)
        for k, (key, categories) in enumerate(self.categories.items()):
            remedy = (
                "learn them with model.map_query(adata), fit a model with these cells, or set "
                f"adata.obs[{key!r}] to the most similar category"
            )
            if key in overrides:
                remedy = "choose one of them"
            category_ck[:, k] = encode_categories(columns[key], key, categories, remedy)
        continuous_ck = np.empty((len(table), self.n_continuous), dtype=np.float32)
        for key, columns_k in self.continuous_columns().items():
            continuous_ck[:, columns_k] = self.encode_continuous(key, to_float(columns[key], key))
        return category_ck, continuous_ck

    @property
    def n_continuous(self) -> int:
        """Number of columns of all continuous covariates."""
        return sum(self.bases[key].n_columns if key in self.bases else 1 for key in self.continuous)

    def continuous_columns(self) -> dict[str, slice]:
        """Return the columns of each continuous covariate."""
        columns, first = {}, 0
        for key in self.continuous:
            end = first + (self.bases[key].n_columns if key in self.bases else 1)
            columns[key], first = slice(first, end), end
        return columns

    def encode_continuous(self, key: str, value_c: np.ndarray) -> np.ndarray:
        """Return the columns of values of one continuous covariate, shape ``(cells, columns)``."""
        if key in self.bases:
            return self.bases[key].columns(value_c)
        mean, std = self.continuous[key]
        column_c1: np.ndarray = ((value_c - mean) / std)[:, None]
        return column_c1


def _pair(stored: Sequence[Any]) -> tuple[float, float]:
    """Return two stored numbers."""
    return float(stored[0]), float(stored[1])


def check_n_features(feature_names: Mapping[str, tuple[str, ...]]) -> None:
    """Raise if one of several modalities has fewer than two features. A single modality is checked elsewhere."""
    for modality, names in feature_names.items():
        if len(names) < 2 and (len(feature_names) > 1 or not names):
            raise ValueError(
                f"modality {modality!r} has {len(names)} features ({format_names(names)}): at least two are needed. To "
                "leave it out, name only the others in modalities"
            )


def as_model_counts(rows: sparse.csr_matrix, modality: str, binary: bool) -> sparse.csr_matrix:
    """Return checked counts as the model reads them, float32; `rows` does not change."""
    value_n = rows.data
    if binary:
        n_above = np.count_nonzero(value_n > 1)
        if n_above:
            logger.debug("%s: %d counts above 1 are read as 1 (binary)", modality, n_above)
            value_n = np.ones(len(value_n), dtype=np.float32)
    return sparse.csr_matrix((value_n.astype(np.float32, copy=False), rows.indices, rows.indptr), shape=rows.shape)
