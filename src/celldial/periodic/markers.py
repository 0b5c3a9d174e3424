"""Periodic processes: their markers and phases, and how markers are found among the features.

The list of the cell cycle is from Tirosh et al. (2016), Dissecting the multicellular ecosystem of metastatic melanoma
by single-cell RNA-seq, doi:10.1126/science.aad0501.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import pi
from numbers import Real
from typing import Any

import numpy as np

from celldial.periodic.direction import MIN_GENES
from celldial.periodic.reference_peaks import REFERENCE_PERCENT
from celldial.utils.messages import format_names

__all__ = ["CELL_CYCLE", "PeriodicProcess", "find_markers", "find_reference_genes", "parse_periodic"]

S_GENES = """
    MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 MLF1IP HELLS RFC2 RPA2 NASP RAD51AP1 GMNN
    WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1 CHAF1B
    BRIP1 E2F8
"""
G2M_GENES = """
    HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 FAM64A SMC4 CCNB2 CKAP2L CKAP2
    AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 HN1 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5 CDCA2 CDCA8
    ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA
"""
RENAMED_GENES = {
    "MLF1IP": "CENPU",
    "FAM64A": "PIMREG",
    "HN1": "JPT1",
    "H2AFX": "H2AX",
    "HIST1H4C": "H4C3",
    "KIAA1524": "CIP2A",
    "SGOL2": "SGO2",
}
"""Symbol of a gene in the lists to its current symbol."""

PERCENT_KNOTS, ANGLE_KNOTS = (0, 52, 87, 100), (0.0, 2 * pi * 14.3 / 24, 2 * pi * 21.7 / 24, 2 * pi)
"""Published positions in percent of the cycle, and their angles. The median gene of the S list is at 52 %, and that of
the G2M list at 87 %. Positions in between are interpolated."""

MIN_G2M_FOLD_CHANGE = 2.2
"""Smallest fold change of G2M markers around the circle. It was 2.5 to 15 in cycling cells, real and simulated, and at
most 2.0 in cells at rest."""

SEGMENT_PERCENT = (0, 34, 60, 74, 100)
"""Segments of the cycle whose lengths differ between cells: early G1, where no gene of the reference peaks; genes of
the start of S; those of late S; and those of G2 and M."""

MIN_MARKERS = 5
"""Number of markers of a phase that must be found, or half of the list if that is less."""


@dataclass(frozen=True)
class PeriodicProcess:
    """A periodic process with its phases and markers.

    Parameters
    ----------
    name
        Name of the process, such as ``"cell_cycle"``.
    markers
        Phase to the names of its markers; empty for a search without markers.
    peak_angle
        Phase to the angle at which its markers should peak.
    phases
        Names of all phases, in order.
    phase_start
        Angle at which each phase starts.
    reference
        Gene to the angle at which it should peak, for the direction and the rotation of the circle.
    knots
        Angles from 0 to 2π that divide the circle into segments, whose lengths may differ between cells.
    has_direction
        Whether the reference has an order. Two phases have none.
    min_fold_change
        Phase to the smallest fold change of its markers around the circle, if the cells have the process.
    """

    name: str
    markers: dict[str, tuple[str, ...]]
    peak_angle: dict[str, float]
    phases: tuple[str, ...] = ()
    phase_start: tuple[float, ...] = ()
    reference: dict[str, float] = field(default_factory=dict)
    knots: tuple[float, ...] = (0.0, pi / 2, pi, 3 * pi / 2, 2 * pi)
    has_direction: bool = True
    min_fold_change: dict[str, float] = field(default_factory=dict)


def _angle_of_percent(percent: float) -> float:
    """Return the angle of a position in the cell cycle in percent, as published."""
    return float(np.interp(percent, PERCENT_KNOTS, ANGLE_KNOTS))


# The angles divide 24 hours from one division to the next, as in cultured human cells: 12 hours of G1, 8 of S, and 4 of
# G2 and M. Genes of the S list peak between the start and the middle of S, and those of G2M two hours before division.
CELL_CYCLE = PeriodicProcess(
    "cell_cycle",
    markers={"S": tuple(S_GENES.split()), "G2M": tuple(G2M_GENES.split())},
    peak_angle={"S": 2 * pi * 14.3 / 24, "G2M": 2 * pi * 21.7 / 24},
    phases=("G1", "S", "G2M"),
    phase_start=(0.0, pi, 2 * pi * 20 / 24),
    reference={gene: _angle_of_percent(percent) for gene, percent in REFERENCE_PERCENT.items()},
    knots=tuple(map(_angle_of_percent, SEGMENT_PERCENT)),
    min_fold_change={"G2M": MIN_G2M_FOLD_CHANGE},
)


def parse_periodic(periodic: Any) -> PeriodicProcess | None:
    """Return the process that the parameter `periodic` of `celldial.VAE` describes; None if there is none.

    The phases of a user's process divide the circle evenly, in the given order. The first one starts at 0. Markers
    should peak in the middle of their phase, or where ``"peaks"`` has them, in units of ``"period"``.

    Raises
    ------
    ValueError, TypeError
        The parameter is invalid.
    """
    if periodic is None or periodic is False:
        return None
    if periodic is True:
        return PeriodicProcess("cycle", {}, {})
    if periodic == CELL_CYCLE.name:
        return CELL_CYCLE
    message = (
        f"periodic is {periodic!r}: it must be 'cell_cycle', True, or a dict with a name and with the markers of each "
        "phase, {'name': 'circadian', 'phases': {'day': [...], 'night': [...]}}"
    )
    if not isinstance(periodic, Mapping):
        raise ValueError(message) if isinstance(periodic, str) else TypeError(message)
    phases = periodic.get("phases")
    unknown = set(periodic) - {"name", "phases", "peaks", "period"}
    if "name" not in periodic or unknown or not isinstance(phases, Mapping) or len(phases) < 2:
        raise ValueError(f"{message}, with at least two phases, and optionally with 'peaks' and 'period'")
    name = periodic["name"]
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"the periodic process has the name {name!r}: it must be a text without a slash")
    for phase, markers in phases.items():
        if not isinstance(phase, str) or not phase or "/" in phase:
            raise ValueError(f"a phase of {name} has the name {phase!r}: it must be a text without a slash")
        if isinstance(markers, str) or not isinstance(markers, Sequence) or len(set(markers)) < 2:
            raise ValueError(f"phase {phase!r} of {name} has the markers {markers!r}: use a list of at least two")
    width = 2 * pi / len(phases)
    peak_angle = {phase: (index + 0.5) * width for index, phase in enumerate(phases)}
    peaks = _parse_peaks(name, periodic)
    of_phases = {str(gene): peak_angle[phase] for phase, markers in phases.items() for gene in markers}
    return PeriodicProcess(
        name,
        markers={phase: tuple(map(str, markers)) for phase, markers in phases.items()},
        peak_angle=peak_angle,
        phases=tuple(phases),
        phase_start=tuple(index * width for index in range(len(phases))),
        reference=of_phases if peaks is None else peaks,
        has_direction=peaks is not None or len(phases) > 2,
    )


def _parse_peaks(name: str, periodic: Mapping[str, Any]) -> dict[str, float] | None:
    """Return gene to the angle at which it peaks; None if the user's process has no peaks."""
    period, peaks = periodic.get("period", 1.0), periodic.get("peaks")
    if isinstance(period, bool) or not isinstance(period, Real) or not 0 < float(period) < np.inf:
        raise ValueError(f"the period of {name} is {period!r}: it must be a positive number, such as 24 for hours")
    if peaks is None:
        if "period" in periodic:
            raise ValueError(f"{name} has a period, {period!r}, but no peaks: add 'peaks', or leave out 'period'")
        return None
    if not isinstance(peaks, Mapping) or len(peaks) < MIN_GENES:
        raise ValueError(f"the peaks of {name} are {peaks!r}: use a dict of at least {MIN_GENES} genes and their peaks")
    for gene, peak in peaks.items():
        if isinstance(peak, bool) or not isinstance(peak, Real) or not 0 <= float(peak) <= float(period):
            raise ValueError(
                f"the peak of {gene!r} in {name} is {peak!r}: it must be a number from 0 to the period, {period!r}. "
                "Set 'period': 24 if the peaks are hours"
            )
    return {str(gene): 2 * pi * float(peak) / float(period) for gene, peak in peaks.items()}


def find_markers(process: PeriodicProcess, symbols: Sequence[str], counted_f: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of the markers of each phase. Upper and lower case are equivalent.

    Parameters
    ----------
    process
        The periodic process, with markers.
    symbols
        Gene symbol of each feature.
    counted_f
        Mask of the features with counts. Other features carry no information.

    Returns
    -------
    dict[str, np.ndarray]
        Phase to columns, in the order of the list of markers.

    Raises
    ------
    ValueError
        Too few markers are found. The message has the number for each list. Or several markers are found twice, as
        symbols of two species.
    """
    column = _columns_by_symbol(symbols, counted_f)
    _check_one_species(process, symbols, counted_f, column)
    found = {}
    for phase, markers in process.markers.items():
        names = [name if name.upper() in column else RENAMED_GENES.get(name, name) for name in markers]
        columns = dict.fromkeys(column[name.upper()] for name in names if name.upper() in column)
        found[phase] = np.array(list(columns), dtype=np.int64)
    minimum = {phase: min(MIN_MARKERS, -(-len(markers) // 2)) for phase, markers in process.markers.items()}
    if any(len(found[phase]) < n for phase, n in minimum.items()):
        counts = " and ".join(
            f"{len(found[phase])} of the {len(markers)} {phase} markers" for phase, markers in process.markers.items()
        )
        needed = " and ".join(f"{n} of {phase}" for phase, n in minimum.items())
        raise ValueError(
            f"only {counts} of {process.name} are among the features and have counts (needed: {needed}). The features "
            f"have the names {format_names(symbols, 3)}. If these are not gene symbols, name the column of adata.var "
            "with symbols: VAE(gene_symbols=...). If the markers were filtered out, keep them. If few cells cycle, "
            "leave periodic out"
        )
    return found


def find_reference_genes(
    process: PeriodicProcess, symbols: Sequence[str], counted_f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the genes whose peak is known, and the angles at which they should peak.

    Parameters
    ----------
    process
        The periodic process.
    symbols, counted_f
        As in `find_markers`.
    """
    column = _columns_by_symbol(symbols, counted_f)
    angle_of_column: dict[int, float] = {}
    for gene, angle in process.reference.items():
        for name in (gene, RENAMED_GENES.get(gene, gene)):
            if name.upper() in column:
                angle_of_column.setdefault(column[name.upper()], angle)
                break
    return np.array(list(angle_of_column), dtype=np.int64), np.array(list(angle_of_column.values()), dtype=float)


def _columns_by_symbol(symbols: Sequence[str], counted_f: np.ndarray) -> dict[str, int]:
    """Return the upper-case symbol of each feature with counts to its column, the first one if symbols repeat."""
    column: dict[str, int] = {}
    for index, (symbol, counted) in enumerate(zip(symbols, counted_f, strict=True)):
        if counted:
            column.setdefault(str(symbol).upper(), index)
    return column


def _check_one_species(
    process: PeriodicProcess, symbols: Sequence[str], counted_f: np.ndarray, column: Mapping[str, int]
) -> None:
    """Raise if several markers are among the features in two spellings, such as PCNA and Pcna.

    Their expression would distinguish the species, and the angle would follow the species.
    """
    wanted = {name.upper() for markers in process.markers.values() for name in markers}
    twice = [
        (symbols[column[str(symbol).upper()]], symbol)
        for symbol, counted in zip(symbols, counted_f, strict=True)
        if counted and str(symbol).upper() in wanted and str(symbol) != str(symbols[column[str(symbol).upper()]])
    ]
    if len(twice) >= MIN_MARKERS:
        raise ValueError(
            f"{len(twice)} markers of {process.name} are among the features in two spellings with counts, such as "
            f"{twice[0][0]!r} and {twice[0][1]!r}. These are symbols of two species. Fit each species alone, or give "
            "orthologous genes of both species one name"
        )
