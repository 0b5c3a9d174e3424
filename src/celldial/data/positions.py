"""Positions of genes and peaks on the genome: from columns of ``var``, from names of peaks, or from a GTF file.

Axis suffix: ``f`` features.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from celldial.utils.messages import format_names

__all__ = ["COLUMNS", "positions_from_names", "positions_from_table", "read_gtf"]

COLUMNS = ["chrom", "start", "end"]
# "chr1:100-200", "chr1-100-200" and "chr1_100_200"; names of scaffolds may contain the separators, too.
PEAK_NAME = re.compile(r"^(.+?)[:\-_](\d+)[\-_](\d+)$")
GTF_NAMES = ("gene_name", "gene_id")
N_GTF_FIELDS = 9


def positions_from_table(var: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    """Return the positions of features from the columns ``chrom``, ``start``, ``end`` and, if there is one, ``strand``.

    Parameters
    ----------
    var
        Table of features.
    names
        Features to return.

    Returns
    -------
    pandas.DataFrame | None
        ``chrom`` without the prefix ``"chr"``, ``start``, ``end`` and ``strand`` of the features that have a position;
        None if a column is missing.
    """
    if not set(COLUMNS) <= set(var.columns):
        return None
    known = var[~var.index.duplicated()].reindex(pd.Index(names))
    table = known[COLUMNS].assign(strand=known.get("strand", "+"))
    return _clean(table.dropna(subset=COLUMNS))


def positions_from_names(names: Sequence[str]) -> pd.DataFrame:
    """Return the positions of peaks from names such as ``chr1:100-200`` or ``chr1-100-200``.

    Raises
    ------
    ValueError
        A name is not a position.

    Examples
    --------
    >>> from celldial.data.positions import positions_from_names
    >>> positions_from_names(["chr1:100-200", "X-5-10"])[["chrom", "start", "end"]].to_numpy().tolist()
    [['1', 100, 200], ['X', 5, 10]]
    """
    matches = [PEAK_NAME.match(name) for name in names]
    wrong = [name for name, match in zip(names, matches, strict=True) if match is None]
    if wrong:
        raise ValueError(
            f"peak {wrong[0]!r} has no position ({len(wrong)} of {len(names)} names are not like 'chr1:100-200'): add "
            "the columns chrom, start and end to adata.var"
        )
    table = pd.DataFrame([match.groups() for match in matches if match], columns=COLUMNS, index=pd.Index(names))
    return _clean(table.assign(strand="+"))


def read_gtf(path: str | Path, names: Iterable[str]) -> pd.DataFrame:
    """Return the positions of genes from a GTF file, which may be compressed with gzip.

    Parameters
    ----------
    path
        The file.
    names
        Genes to return, by ``gene_name`` or ``gene_id``, the latter with or without its version.

    Returns
    -------
    pandas.DataFrame
        As `positions_from_table`, for the genes that the file has. Of several entries with the same name, the first.

    Raises
    ------
    OSError
        The file could not be read.
    ValueError
        A line does not have nine columns, or the file has no line of a gene.
    """
    wanted, rows = set(names), {}
    path, n_genes = Path(path).expanduser(), 0
    for number, fields in _gtf_lines(path):
        if len(fields) < N_GTF_FIELDS:
            raise ValueError(
                f"line {number} of {path} has {len(fields)} columns instead of {N_GTF_FIELDS}: use a GTF file"
            )
        if fields[2] != "gene":
            continue
        n_genes += 1
        attributes = dict(re.findall(r'(\w+) "([^"]*)"', fields[8]))
        found = [attributes[key] for key in GTF_NAMES if key in attributes]
        for name in [*found, *(name.partition(".")[0] for name in found[-1:])]:
            if name in wanted and name not in rows:
                # Positions in GTF files start at 1 and include the end.
                rows[name] = (fields[0], int(fields[3]) - 1, int(fields[4]), fields[6])
    if n_genes == 0:
        raise ValueError(f"{path} has no lines of genes (third column 'gene'): use a GTF file with gene annotation")
    return _clean(pd.DataFrame.from_dict(rows, orient="index", columns=[*COLUMNS, "strand"]))


def _gtf_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not a comment."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                yield number, line.rstrip("\n").split("\t")


def _clean(table: pd.DataFrame) -> pd.DataFrame:
    """Return positions with common names of chromosomes and integer bounds.

    Raises
    ------
    ValueError
        A bound is not a number, or an end is before its start.
    """
    bounds = table[["start", "end"]].apply(pd.to_numeric, errors="coerce")
    wrong = bounds.isna().any(axis=1) | (bounds["end"] < bounds["start"])
    if wrong.any():
        raise ValueError(
            f"the positions of {format_names(table.index[wrong], 3)} are not valid: start and end must be numbers, and "
            "end must not be below start"
        )
    chrom = table["chrom"].astype(str).str.replace(r"^chr", "", regex=True, case=False)
    start, end = (bounds[key].to_numpy().astype(np.int64) for key in ("start", "end"))
    strand = table["strand"].astype(str).to_numpy()
    return pd.DataFrame({"chrom": chrom.to_numpy(), "start": start, "end": end, "strand": strand}, index=table.index)
