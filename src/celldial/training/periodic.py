"""Training a module that has a circle: where cells are on it, and what the decoder makes of that, in turns.

Expectation maximization: `celldial.periodic.initial_angles` makes the first guess, `celldial.training.loop` trains with
these angles, and `celldial.model.angle_posterior` infers the angles again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celldial.data.cells import Cells, to_csr
from celldial.data.in_memory import Resident
from celldial.data.schema import Schema
from celldial.model import angle_posterior
from celldial.model.angle_posterior import density, marker_curves
from celldial.model.module import Module
from celldial.periodic import initial_angles, unsupervised
from celldial.periodic.initial_angles import phase_starts
from celldial.periodic.markers import Rhythm
from celldial.training import loop
from celldial.utils.settings import settings

__all__ = ["continue_fit", "describe", "fit"]

# The share of the epochs before cells are located for the first time, and by how much slower the rest learns.
FIRST_STAGE_FRACTION, LR_DIVISOR = 2 / 3, 2.0
NO_CIRCLE_WARNING = (
    "periodic=True: no circle stands out among the cells. The best there is was taken, but it is likely to be "
    "something else: do not rely on its angle. If the cells have a rhythm, name its markers, as in "
    "periodic='cell_cycle'; otherwise leave periodic out"
)


def fit(
    module: Module,
    cells: Cells,
    train_c: Tensor,
    validation_c: Tensor,
    plan: loop.TrainingPlan,
    seed: int,
    run: loop.RunContext,
    rhythm: Rhythm,
    markers: dict[str, np.ndarray],
    modality: str,
) -> tuple[Cells, dict[str, list[float]]]:
    """Train from the start.

    Parameters
    ----------
    module, plan, seed, run
        As in `celldial.training.loop.fit`; `module` is initialised.
    cells, train_c, validation_c
        As in `celldial.data.in_memory.Resident`.
    rhythm
        What to look for.
    markers
        Phase to the columns of its markers.
    modality
        What these are features of.

    Returns
    -------
    tuple[Cells, dict[str, list[float]]]
        The cells with their places on the circle, and the history.
    """
    cells, heard_f = first_angles(cells, rhythm, markers, modality, seed)
    angle_posterior.start(module, cells.select(train_c), {modality: heard_f})
    n_first = math.ceil(FIRST_STAGE_FRACTION * plan.max_epochs)
    plans = [replace(plan, max_epochs=n_first)]
    if plan.max_epochs > n_first:
        rate = plan.learning_rate / LR_DIVISOR
        plans.append(replace(plan, max_epochs=plan.max_epochs - n_first, learning_rate=rate, kl_warmup=False))
    cells, history = _train(module, cells, train_c, validation_c, plans, seed, run)
    if markers:
        angle_posterior.turn(
            module, initial_angles.anchor(marker_curves(module, markers, modality), density(module), rhythm)
        )
        cells = update_angles(module, cells, learn_prior=True)
    angle_posterior.straighten(module, cells.select(train_c).to(settings.torch_device))
    return cells, history


def continue_fit(
    module: Module, cells: Cells, train_c: Tensor, validation_c: Tensor, plan: loop.TrainingPlan, seed: int
) -> tuple[Cells, dict[str, list[float]]]:
    """Train further; the circle keeps its orientation. Takes and returns the same as `fit`."""
    cells = update_angles(module, cells)
    for _, modality in module.by_modality():
        modality.decoder.tilt_kz.zero_()
    # What a few new cells would not tell of features, all those before did: they stay as chosen.
    cells, history = _train(module, cells, train_c, validation_c, [plan], seed, loop.RunContext(), choose=False)
    angle_posterior.straighten(module, cells.select(train_c).to(settings.torch_device))
    return cells, history


def _train(
    module: Module,
    cells: Cells,
    train_c: Tensor,
    validation_c: Tensor,
    plans: Sequence[loop.TrainingPlan],
    seed: int,
    run: loop.RunContext,
    choose: bool = True,
) -> tuple[Cells, dict[str, list[float]]]:
    """Train by each plan, and after it choose the features that tell the angle, if asked to, and locate the cells."""
    history: dict[str, list[float]] = {}
    for turn, plan in enumerate(plans):
        source = Resident(cells, train_c, validation_c)
        stage = run.for_stage(f"turn-{turn + 1}")
        record = loop.fit(module, source, plan, seed + turn, stage)
        history = loop.concat_history(history, record) if history else record
        if choose:
            angle_posterior.choose_features(module, cells.select(train_c).to(settings.torch_device))
        cells = update_angles(module, cells, learn_prior=True)
        if stage.interrupted:
            break
    return cells, history


def update_angles(module: Module, cells: Cells, learn_prior: bool = False) -> Cells:
    """Locate cells on the device, and bring them back."""
    device = settings.torch_device
    return angle_posterior.located(module.to(device), cells.to(device), learn_prior).to("cpu")


def first_angles(
    cells: Cells, rhythm: Rhythm, markers: dict[str, np.ndarray], modality: str, seed: int
) -> tuple[Cells, Tensor]:
    """Say by the markers, or without any, where cells are; those that lack the modality could be anywhere."""
    has_c = cells.has(modality).numpy()
    counts_cf = to_csr(cells.counts[modality])[has_c].astype(np.float64)
    library_size_c = cells.library_size[modality].numpy()[has_c].astype(np.float64)
    logged_cf = initial_angles.log_normalized(counts_cf, library_size_c)
    if markers:
        active_c = initial_angles.first_activity(counts_cf, library_size_c, markers)
        place, heard_f = initial_angles.first_places(logged_cf, active_c, markers, rhythm)
    else:
        batch_c = np.unique(cells.category_ck.numpy()[has_c], axis=0, return_inverse=True)[1].ravel()
        place, heard_f, roundness = unsupervised.first_places(logged_cf, batch_c, seed)
        if roundness < unsupervised.MIN_ROUNDNESS:
            warnings.warn(NO_CIRCLE_WARNING, stacklevel=4)
    angle_c, length_c, all_active_c = (np.full(len(cells), value) for value in (0.0, 0.0, place.active_c.mean()))
    angle_c[has_c], length_c[has_c], all_active_c[has_c] = place.angle_c, place.length_c, place.active_c
    told = (torch.from_numpy(part).float() for part in (angle_c, length_c, all_active_c))
    return replace(cells, belief_cq=angle_posterior.belief(*told)), torch.from_numpy(heard_f)


def describe(
    module: Module,
    schema: Schema,
    rhythm: Rhythm,
    markers: Mapping[str, np.ndarray],
    modality: str,
    gene_symbols: str | None,
) -> dict[str, Any]:
    """Describe the circle of a trained module: its name, phases, the angles where they start, and the markers found."""
    described: dict[str, Any] = {"name": rhythm.name}
    if rhythm.phases:
        names = np.array(schema.feature_names[modality], dtype=object)
        described["phases"] = np.array(rhythm.phases, dtype=object)
        described["phase_start"] = phase_starts(marker_curves(module, markers, modality), density(module), rhythm)
        described["markers"] = {phase: names[column_f] for phase, column_f in markers.items()}
    if gene_symbols is not None:
        described["gene_symbols"] = gene_symbols
    return described
