"""Description of the circle of a trained module, and warnings about what is not known about it.

Phases are assigned if the genes of the process follow an angle in their known order, if they change enough around the
circle, and if the direction of the circle is known.

Axis suffixes: ``f`` features, ``g`` genes with a reference, ``j`` evenly spaced angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from celldial.data.cells import Cells
from celldial.data.in_memory import InMemorySource
from celldial.data.schema import Schema
from celldial.model.angle_posterior import marker_curves
from celldial.model.module import Module
from celldial.periodic.cycle_test import MAX_P_VALUE, CycleTest, assess_process
from celldial.periodic.direction import MIN_GENES, MIN_INFORMATION, MIN_PROBABILITY, DirectionEstimate, GenePeaks
from celldial.periodic.markers import PeriodicProcess
from celldial.periodic.phases import find_phase_starts
from celldial.training import periodic
from celldial.training.periodic import PeriodicTarget
from celldial.utils.warnings import warn

__all__ = ["describe_circle"]

# Angles with a smaller density of cells, relative to the largest one, do not count for fold changes.
MIN_RELATIVE_DENSITY = 0.02


@dataclass(frozen=True)
class Findings:
    """Properties of a fitted circle.

    Parameters
    ----------
    process
        The periodic process.
    evidence
        Test of whether its genes follow an angle in their known order.
    fold_change
        Phase to the fold change of its markers around the circle, for phases that should have a smallest one.
    direction
        Direction of the circle.
    peaks
        Where the genes of the reference peak on the circle.
    """

    process: PeriodicProcess
    evidence: CycleTest
    fold_change: dict[str, float]
    direction: DirectionEstimate
    peaks: GenePeaks

    @property
    def flat_phases(self) -> list[str]:
        """Phases whose markers change too little around the circle."""
        smallest = self.process.min_fold_change
        return [phase for phase, fold_change in self.fold_change.items() if fold_change < smallest[phase]]

    @property
    def is_found(self) -> bool:
        """Whether the cells have the process."""
        return not self.evidence.is_rejected and not self.flat_phases

    @property
    def is_open(self) -> bool:
        """Whether the direction is open."""
        return self.direction.probability < MIN_PROBABILITY

    @property
    def has_phases(self) -> bool:
        """Whether phases can be assigned. Two phases are the same in both directions."""
        return self.is_found and not (self.is_open and self.process.has_direction)

    def warning(self) -> str | None:
        """Return what must be known before the angle is used, or None."""
        name = self.process.name
        if self.evidence.is_rejected:
            return (
                f"no evidence of {name}: its genes do not follow an angle in their known order (p = "
                f"{self.evidence.p_value:.2g}, needed: {MAX_P_VALUE}). No cell is called active, and no phases are "
                "assigned. Leave periodic out if the cells do not have this process"
            )
        if self.flat_phases:
            changes = " and ".join(
                f"{phase} markers change {self.fold_change[phase]:.2f}-fold" for phase in self.flat_phases
            )
            needed = " and ".join(f"{self.process.min_fold_change[phase]:g}-fold" for phase in self.flat_phases)
            return (
                f"the cells do not go through {name}: around the circle, {changes}, which is too little "
                f"(needed: {needed}). No cell is called active, and no phases are assigned. The cells may "
                "be at rest, or there are too few cells or counts"
            )
        if self.is_open and not self.process.has_direction:
            return (
                f"the direction of {name} is open, because two phases have no order: the angle may run backwards. Add "
                "a third phase, or add 'peaks', the times at which genes peak"
            )
        if self.is_open:
            return (
                f"the direction of {name} is open: its probability is {self.direction.probability:.2f}, from "
                f"{self.direction.n_genes} genes with a known peak (needed: {MIN_PROBABILITY}). The angle may run "
                "backwards, and no phases are assigned. Keep more genes of this process among the features, or more "
                "cells"
            )
        return None


def describe_circle(
    module: Module, schema: Schema, source: InMemorySource, target: PeriodicTarget, gene_symbols: str | None
) -> dict[str, Any]:
    """Describe the circle of a trained module, and warn if the process is not found or its direction is open.

    Parameters
    ----------
    module, schema, source
        The trained module, the schema of its features, and the cells with their angles.
    target
        The periodic process and its markers.
    gene_symbols
        Column of ``var`` with the symbols of features, if one was given.

    Returns
    -------
    dict[str, Any]
        The name of the circle. With markers: the markers found; whether the cells have the process (``is_found``), its
        p-value if there are enough genes to test, and the fold changes of markers; the probability of the direction,
        and the number of genes that it is based on; and, if the process is found and the direction is known, the phases
        and where they start.
    """
    described: dict[str, Any] = {"name": target.process.name}
    if target.process.phases:
        findings = find_process(module, source.cells, target)
        names = np.array(schema.feature_names[target.modality], dtype=object)
        described["markers"] = {phase: names[column_f] for phase, column_f in target.markers.items()}
        described["is_found"] = findings.is_found
        if not math.isnan(findings.evidence.p_value):
            described["p_value"] = findings.evidence.p_value
        if findings.fold_change:
            described["fold_change"] = findings.fold_change
        described["direction_probability"] = findings.direction.probability
        described["direction_genes"] = findings.direction.n_genes
        if findings.has_phases:
            described["phases"] = np.array(target.process.phases, dtype=object)
            described["phase_start"] = find_phase_starts(findings.peaks, target.process)
        message = findings.warning()
        if message is not None:
            warn(message)
    if gene_symbols is not None:
        described["gene_symbols"] = gene_symbols
    return described


def find_process(module: Module, cells: Cells, target: PeriodicTarget) -> Findings:
    """Return what is known about the circle of cells with `angle_params_cq`."""
    column_f = np.unique(np.concatenate([*target.markers.values(), target.reference_f]))
    logged_cf, batch_c = periodic.logged_counts(cells, target.modality, column_f)
    markers = {phase: np.searchsorted(column_f, own_f) for phase, own_f in target.markers.items()}
    reference = np.searchsorted(column_f, target.reference_f), target.reference_angle_f
    evidence = assess_process(logged_cf, batch_c, markers, reference, target.process)
    peaks = periodic.observed_peaks(cells, target)
    fold_change = {phase: fold_change_of(module, target, peaks, phase) for phase in target.process.min_fold_change}
    return Findings(target.process, evidence, fold_change, periodic.direction_of(peaks, target.process), peaks)


def fold_change_of(module: Module, target: PeriodicTarget, peaks: GenePeaks, phase: str) -> float:
    """Return the ratio of the highest to the lowest rate around the circle of the markers of a phase.

    The log rates of the markers are averaged, weighted by their information about the angle. Without enough markers
    that follow the angle, the fold change is 1.
    """
    assert module.circle is not None
    information_of = dict(zip(target.reference_f.tolist(), peaks.information_g.tolist(), strict=True))
    follows = [column for column in target.markers[phase].tolist() if information_of.get(column, 0) >= MIN_INFORMATION]
    if len(follows) < MIN_GENES:
        return 1.0
    curve_fj = marker_curves(dict(module.by_modality())[target.modality].decoder, {phase: np.array(follows)})[phase]
    density_j = module.circle.density_j
    curve_j = np.average(curve_fj, axis=0, weights=[information_of[column] for column in follows])
    return math.exp(np.ptp(curve_j[density_j >= MIN_RELATIVE_DENSITY * density_j.max()]))
