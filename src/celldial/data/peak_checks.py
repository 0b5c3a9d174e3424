"""Checks of peaks before a fit: counts that are read as 1, and peaks that would be read as genes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.data.counts import get_count_matrix, get_obsm_matrix, match_features, select_columns, to_canonical_csr
from celldial.data.modalities import ALL_FEATURES, obsm_key
from celldial.data.schema import Schema
from celldial.utils.warnings import warn

__all__ = ["MAX_CHECKED_CELLS", "share_above_one", "warn_counts_read_as_one", "warn_interval_names"]

MAX_CHECKED_CELLS = 2_000
"""Cells whose counts of peaks are checked."""

# Reading counts as 0 or 1 loses about as much information about their rates as the share of nonzero counts above 1: of
# a Poisson count of mean μ, it keeps the fraction μ / (exp(μ) - 1), which is 1 - μ/2, and P(x > 1 | x > 0) is μ/2.
MAX_LOST = 0.1
# Fewer nonzero counts give no reliable share.
MIN_ENTRIES = 100

# Sequence, start and end: chr1:100-600, chr1-100-600, chr1_100_600.
INTERVAL = r"^[\w.]+[:_-](\d+)[_-](\d+)$"
# A few genes have names of this form.
MIN_INTERVALS = 0.05


def warn_counts_read_as_one(cells: AnnData, schema: Schema, likelihood: str | Mapping[str, str] | None) -> None:
    """Warn if many counts of a modality are above 1, and its likelihood is the default and reads them as 1.

    Parameters
    ----------
    cells
        Some cells of the training data.
    schema
        Features of the model.
    likelihood
        Parameter of the model. There is no warning about a likelihood that the user chose.
    """
    chosen: Iterable[str] = schema.modalities if isinstance(likelihood, str) else likelihood or ()
    for modality in schema.modalities:
        if not schema.binary[modality] or modality in chosen:
            continue
        share, paired = share_above_one(_counts(cells, schema, modality))
        if share < MAX_LOST:
            continue
        name, kept = schema.likelihood[modality], f"likelihood={{{modality!r}: 'poisson'}}"
        found, remedy = f"{share:.0%} of the nonzero counts of {modality} are above 1", f"use {kept}"
        if paired:
            found = f"{share:.0%} of the nonzero counts of {modality} are several fragments (of two cut sites each)"
            remedy = f"halve the counts, rounded up, and use {kept}"
        warn(
            f"{found}, and the default likelihood reads them as 1: to keep them, {remedy}; to read them as 1 without "
            f"this warning, use likelihood={{{modality!r}: {name!r}}}"
        )


def _counts(cells: AnnData, schema: Schema, modality: str) -> np.ndarray:
    """Return the nonzero counts of a modality as they are stored."""
    names, key = schema.feature_names[modality], obsm_key(schema.sources[modality])
    if key is not None:
        matrix, _ = get_obsm_matrix(cells, key)
        return to_canonical_csr(matrix).data
    rows = to_canonical_csr(get_count_matrix(cells, schema.layer))
    return select_columns(rows, match_features(cells.var_names, names)).data


def share_above_one(value_n: np.ndarray) -> tuple[float, bool]:
    """Return the share of nonzero counts above 1, and whether they count cut sites, which come in pairs.

    Each fragment has two cut sites, and a peak often has both. Cut sites are counted as fragments here, half their
    number, rounded up [1]_.

    Parameters
    ----------
    value_n
        Nonzero counts; 0 is returned for fewer than 100 of them.

    Notes
    -----
    If n counts of independent events are k, their distribution is a mixture of Poisson distributions, for which
    :math:`3 n_1 n_3 ≥ 2 n_2^2` by the Cauchy-Schwarz inequality. Pairs violate it by far.

    References
    ----------
    .. [1] Martens et al. (2024), Modeling fragment counts improves single-cell ATAC-seq analysis, Nature Methods 21,
       28-31. doi:10.1038/s41592-023-02112-6

    Examples
    --------
    >>> import numpy as np
    >>> from celldial.data.peak_checks import share_above_one
    >>> share_above_one(np.repeat([1, 2, 3], [80, 15, 5]))
    (0.2, False)
    >>> share_above_one(np.repeat([1, 2, 3, 4], [40, 50, 4, 6]))
    (0.1, True)
    """
    if len(value_n) < MIN_ENTRIES:
        return 0.0, False
    one, two, three = (int((value_n == k).sum()) for k in (1, 2, 3))
    paired = 3 * one * three < two**2 and 2 * two > one
    fragments_n = np.ceil(value_n / 2) if paired else value_n
    return float((fragments_n > 1).mean()), paired


def warn_interval_names(schema: Schema, modality_key: str) -> None:
    """Warn if features without a feature type have names of intervals, and would be read as genes."""
    for modality, source in schema.sources.items():
        if source != ALL_FEATURES or schema.binary[modality]:
            continue
        names = pd.Series(schema.feature_names[modality], dtype=str)
        ends = names.str.extract(INTERVAL).astype(float)
        is_interval_f = (ends[0] < ends[1]).to_numpy()
        if is_interval_f.mean() < MIN_INTERVALS:
            continue
        n = int(is_interval_f.sum())
        if n == len(names):
            types = f'adata.var["{modality_key}"] = "Peaks"'
        else:
            types = f'the column "{modality_key}" to adata.var, with "Gene Expression" for genes and "Peaks" for peaks'
        warn(
            f"{n} of {len(names)} features have names of intervals, such as {names[is_interval_f].iloc[0]!r}, and are "
            f"read as genes, because adata.var has no column {modality_key!r}: if they are peaks, add {types} "
            '(anndata.concat keeps the column with merge="same")'
        )
