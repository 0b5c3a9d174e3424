"""Markers of the phases of a rhythm: lists to start with, and how they are found among the features.

The list of the cell cycle is that of Tirosh et al. (2016), Dissecting the multicellular ecosystem of metastatic
melanoma by single-cell RNA-seq, doi:10.1126/science.aad0501.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from celldial.utils.messages import format_names

__all__ = ["CELL_CYCLE", "PeriodicProcess", "find_markers", "parse_periodic"]

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
# Genes that were renamed since.
RENAMED_GENES = {"MLF1IP": "CENPU", "FAM64A": "PIMREG", "HN1": "JPT1"}
# Fewer do not tell an angle; of a shorter list, half.
MIN_MARKERS = 5


@dataclass(frozen=True)
class PeriodicProcess:
    """A periodic process: its name, and for each phase that has markers these, and where they peak.

    Parameters
    ----------
    name
        Such as ``"cell_cycle"``.
    markers
        Phase to names of its markers; empty where a circle is looked for without any.
    peak
        Phase to the angle where its markers are taken to peak.
    phases
        Names of all phases, in order.
    phase_start
        The angle where each starts.
    """

    name: str
    markers: dict[str, tuple[str, ...]]
    peak: dict[str, float]
    phases: tuple[str, ...] = ()
    phase_start: tuple[float, ...] = ()


# Angles share out 24 hours from division to division as in human cells in culture: G1 for 12, S for 8, G2 and M for 4.
# Genes of the S list peak from the start to the middle of S, those of G2M about two hours before division.
CELL_CYCLE = PeriodicProcess(
    "cell_cycle",
    {"S": tuple(S_GENES.split()), "G2M": tuple(G2M_GENES.split())},
    {"S": 2 * pi * 14.3 / 24, "G2M": 2 * pi * 21.7 / 24},
    ("G1", "S", "G2M"),
    (0.0, pi, 2 * pi * 20 / 24),
)


def parse_periodic(periodic: Any) -> PeriodicProcess | None:
    """Make a rhythm of the parameter `periodic` of `celldial.VAE`.

    Phases of the user's share the circle evenly, in the order given, the first one from 0, and their markers are taken
    to peak in the middle.

    Raises
    ------
    ValueError, TypeError
        It is nothing that can be meant.
    """
    if periodic is None or periodic is False:
        return None
    if periodic is True:
        return PeriodicProcess("cycle", {}, {})
    if periodic == CELL_CYCLE.name:
        return CELL_CYCLE
    what = (
        f"periodic is {periodic!r}: it must be 'cell_cycle', True, or a dict with a name and markers of each phase, "
        "{'name': 'circadian', 'phases': {'day': [...], 'night': [...]}}"
    )
    if not isinstance(periodic, Mapping):
        raise ValueError(what) if isinstance(periodic, str) else TypeError(what)
    phases = periodic.get("phases")
    if set(periodic) != {"name", "phases"} or not isinstance(phases, Mapping) or len(phases) < 2:
        raise ValueError(f"{what}, of two phases at least")
    name = periodic["name"]
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"the name of the periodic axis is {name!r}: it must be a text without a slash")
    for phase, markers in phases.items():
        if not isinstance(phase, str) or not phase or "/" in phase:
            raise ValueError(f"a phase of {name} is called {phase!r}: it must be a text without a slash")
        if isinstance(markers, str) or not isinstance(markers, Sequence) or len(set(markers)) < 2:
            raise ValueError(f"phase {phase!r} of {name} has the markers {markers!r}: name two at least, as a list")
    width = 2 * pi / len(phases)
    return PeriodicProcess(
        name,
        {phase: tuple(map(str, markers)) for phase, markers in phases.items()},
        {phase: (place + 0.5) * width for place, phase in enumerate(phases)},
        tuple(phases),
        tuple(place * width for place in range(len(phases))),
    )


def find_markers(process: PeriodicProcess, symbols: Sequence[str], counted_f: np.ndarray) -> dict[str, np.ndarray]:
    """Find the markers of each phase among the features, without regard to case.

    Parameters
    ----------
    process
        With markers.
    symbols
        What each feature is called.
    counted_f
        Which features have any count; others tell nothing.

    Returns
    -------
    dict[str, np.ndarray]
        Phase to columns, in the order of its list.

    Raises
    ------
    ValueError
        Too few are found; the message says how many of which list.
    """
    column: dict[str, int] = {}
    for place, (symbol, counted) in enumerate(zip(symbols, counted_f, strict=True)):
        if counted:
            column.setdefault(str(symbol).upper(), place)
    found = {}
    for phase, markers in process.markers.items():
        names = [name if name.upper() in column else RENAMED_GENES.get(name, name) for name in markers]
        found[phase] = np.array(
            list(dict.fromkeys(column[name.upper()] for name in names if name.upper() in column)), dtype=np.int64
        )
    least = {phase: min(MIN_MARKERS, -(-len(markers) // 2)) for phase, markers in process.markers.items()}
    if any(len(found[phase]) < n for phase, n in least.items()):
        counts = " and ".join(
            f"{len(found[phase])} of the {len(markers)} {phase} markers" for phase, markers in process.markers.items()
        )
        raise ValueError(
            f"only {counts} of {process.name} are among the features and have counts (needed: "
            f"{' and '.join(f'{n} of {phase}' for phase, n in least.items())}; features are called "
            f"{format_names(symbols, 3)}). If these are no gene symbols, name the column of adata.var that has them: "
            "VAE(gene_symbols=...). If the markers were filtered out, keep them in; if cells hardly cycle, leave "
            "periodic out"
        )
    return found
