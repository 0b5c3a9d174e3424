"""Conditions to decode under: values of covariates that replace those of the cells, and averages over batches.

Axis suffixes: ``b`` conditions, ``c`` cells, ``k`` covariates, ``z`` latent coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, overload

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_list_like

from celldial.data.cells import decode_block_size
from celldial.data.schema import Schema
from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel
from celldial.inference.posterior import Covariates
from celldial.model.module import Module
from celldial.utils.messages import describe_value, did_you_mean, format_names
from celldial.utils.names import find_name

__all__ = ["ALL", "Conditions", "decode_average", "describe_conditions", "resolve_transform_batch"]

ALL = "all"
"""Value of a covariate that stands for all its categories."""


def resolve_transform_batch(model: FittedModel, transform_batch: Any) -> list[dict[str, Any]]:
    """Return the conditions to decode under; expected values are averaged over them, weighted alike.

    Parameters
    ----------
    model
        A fitted model.
    transform_batch
        None, so that cells keep their covariates; a batch; a list of batches; or ``"all"`` for all batches of the
        model. Or a dict that maps covariates to such values; if several of them are lists, all combinations are used.

    Returns
    -------
    list[dict[str, Any]]
        Covariate to one value, for each condition; ``[{}]`` if cells keep their covariates. The order of categories is
        that of the model.

    Raises
    ------
    ValueError
        It is a batch, and the model has no batch key; a category is unknown or is listed twice; a list is empty; or
        ``"all"`` is also the name of a category.
    KeyError
        The model has no such covariate.
    TypeError
        There are several values of a continuous covariate.
    """
    schema = model.schema_
    if transform_batch is None:
        return [{}]
    if not isinstance(transform_batch, Mapping):
        if schema.batch_key is None:
            raise ValueError(
                f"transform_batch is {transform_batch!r}, but the model was fitted without batch_key: pass a dict of "
                "covariate to value"
            )
        transform_batch = {schema.batch_key: transform_batch}
    for key, value in transform_batch.items():
        if not (is_list_like(value) or np.isscalar(value)):
            raise TypeError(f"transform_batch of {key!r} is {describe_value(value)}: pass a value, or a list of values")
    choices = {key: _values_of(schema, key, value) for key, value in transform_batch.items()}
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _values_of(schema: Schema, key: str, value: Any) -> list[Any]:
    """Return the values of one covariate to decode under."""
    if key not in schema.categories:
        if key not in schema.continuous:
            known = [*schema.categories, *schema.continuous]
            raise KeyError(f"the model has no covariate {key!r}; its covariates: {format_names(known)}")
        if is_list_like(value):
            raise TypeError(
                f"transform_batch has {len(list(value))} values of the continuous covariate {key!r}: pass one number"
            )
        return [value]
    categories = schema.categories[key]
    if is_list_like(value):
        names = [_category(name, categories) for name in value]
    elif value == ALL:
        if ALL in categories:
            raise ValueError(
                f"transform_batch is ambiguous, because {ALL!r} is also a category of {key!r}: pass [{ALL!r}] for this "
                f"category alone, or the list of all categories, {list(categories)}"
            )
        names = list(categories)
    else:
        names = [_category(value, categories)]
    if not names:
        raise ValueError(
            f"transform_batch has an empty list for {key!r}: its categories are {format_names(categories)}"
        )
    for name in names:
        if name not in categories:
            raise ValueError(
                f"covariate {key!r} of the model has no category {name!r}{did_you_mean(name, categories)}; its "
                f"categories: {format_names(categories)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"transform_batch has the category {name!r} of {key!r} more than once: pass it once")
    # The order does not change the result, not even by rounding.
    return sorted(names, key=categories.index)


def _category(value: Any, categories: Sequence[str]) -> str:
    """Return the category that a value names, or the value as text."""
    position = find_name(value, categories)
    return str(value) if position < 0 else categories[position]


def describe_conditions(conditions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return covariate to its value, or to the values that are averaged over, as text."""
    values = {key: list(dict.fromkeys(str(condition[key]) for condition in conditions)) for key in conditions[0]}
    return {
        key: names[0] if len(names) == 1 else f"average of {len(names)} ({format_names(names)})"
        for key, names in values.items()
    }


class Conditions(Sequence[Covariates]):
    """Encoded covariates of cells under each of several conditions.

    Only one copy of the covariates is kept, so memory does not grow with the number of conditions.

    Parameters
    ----------
    covariates
        Encoded covariates of the cells under the first condition.
    column_k
        Columns of the categorical covariates that the conditions set.
    code_bk
        Their codes under each condition.
    """

    def __init__(self, covariates: Covariates, column_k: np.ndarray, code_bk: np.ndarray) -> None:
        self.covariates, self.column_k, self.code_bk = covariates, column_k, code_bk

    @classmethod
    def encode(cls, schema: Schema, obs: AnnData | pd.DataFrame, conditions: Sequence[Mapping[str, Any]]) -> Conditions:
        """Encode the covariates of cells under the conditions that `resolve_transform_batch` returns."""
        covariates = Covariates(*schema.encode_covariates(obs, conditions[0]))
        column_k = [k for k, key in enumerate(schema.categories) if key in conditions[0]]
        keys = [key for key in schema.categories if key in conditions[0]]
        code_bk = [[schema.categories[key].index(str(condition[key])) for key in keys] for condition in conditions]
        return cls(
            covariates,
            np.array(column_k, dtype=np.int64),
            np.array(code_bk, dtype=np.int64).reshape(len(conditions), len(keys)),
        )

    def __len__(self) -> int:
        return len(self.code_bk)

    @overload
    def __getitem__(self, index: int) -> Covariates: ...
    @overload
    def __getitem__(self, index: slice) -> list[Covariates]: ...
    def __getitem__(self, index: int | slice) -> Covariates | list[Covariates]:
        if isinstance(index, slice):
            return [self[b] for b in range(*index.indices(len(self)))]
        category_ck = self.covariates.category_ck.copy()
        category_ck[:, self.column_k] = self.code_bk[index]
        return Covariates(category_ck, self.covariates.continuous_ck)

    def cells(self, index_c: slice | np.ndarray) -> Conditions:
        """Return the conditions of some cells."""
        return Conditions(Covariates(*(part[index_c] for part in self.covariates)), self.column_k, self.code_bk)


def decode_average(
    module: Module,
    modality: str,
    z_cz: np.ndarray,
    conditions: Conditions,
    library_size: float,
    columns: np.ndarray | None = None,
    include_background: bool = True,
) -> Iterator[np.ndarray]:
    """Decode latent states to expected values of one modality, averaged over conditions, block by block of cells.

    Parameters
    ----------
    module, modality, z_cz
        As in `celldial.inference.posterior.decode_mean`.
    conditions
        Covariates of the same cells under each condition.
    library_size, columns, include_background
        As in `celldial.inference.posterior.decode_mean`.

    Yields
    ------
    numpy.ndarray
        Expected counts, or probabilities under a Bernoulli likelihood, float32, shape ``(c, f)``.
    """
    options = library_size, columns, include_background
    if len(conditions) == 1:
        yield from posterior.decode_mean(module, modality, z_cz, conditions[0], *options)
        return
    n_cells = decode_block_size(module.n_features[modality])
    for start in range(0, len(z_cz), n_cells):
        block = slice(start, start + n_cells)
        # A single block at a time, so that memory does not grow with the number of conditions.
        total_cf: Any = 0.0
        for covariates in conditions.cells(block):
            (expected_cf,) = posterior.decode_mean(module, modality, z_cz[block], covariates, *options)
            total_cf = total_cf + expected_cf.astype(np.float64)
        yield (total_cf / len(conditions)).astype(np.float32)
