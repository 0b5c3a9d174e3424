"""Training a module that has a circle: where cells are on it, and what the decoder makes of that, in turns.

Expectation maximization: `celldial.periodic` makes the first guess, `celldial.train` trains with the cells where they
are taken to be, `celldial.phase` says anew where they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from celldial import periodic, phase, train, unmarked
from celldial.data import Cells, to_csr
from celldial.markers import Rhythm
from celldial.module import Module
from celldial.settings import settings
from celldial.source import Resident

__all__ = ["fit", "go_on", "marker_curves"]

# The share of the epochs before cells are located for the first time, and by how much slower the rest learns.
FIRST_SHARE, SLOWER = 2 / 3, 2.0
NO_CIRCLE = (
    "periodic=True: no circle stands out among the cells. The best there is was taken, but it is likely to be "
    "something else: do not rely on its angle. If the cells have a rhythm, name its markers, as in "
    "periodic='cell_cycle'; otherwise leave periodic out"
)


def fit(
    module: Module,
    cells: Cells,
    train_c: Tensor,
    validation_c: Tensor,
    plan: train.Plan,
    seed: int,
    run: train.Run,
    rhythm: Rhythm,
    markers: dict[str, np.ndarray],
    modality: str,
) -> tuple[Cells, dict[str, list[float]]]:
    """Train from the start.

    Parameters
    ----------
    module, plan, seed, run
        As in `celldial.train.fit`; `module` is initialised.
    cells, train_c, validation_c
        As in `celldial.source.Resident`.
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
    cells, heard_f = _first_guess(cells, rhythm, markers, modality, seed)
    phase.start(module, cells.select(train_c), {modality: heard_f})
    n_first = math.ceil(FIRST_SHARE * plan.max_epochs)
    plans = [replace(plan, max_epochs=n_first)]
    if plan.max_epochs > n_first:
        rate = plan.learning_rate / SLOWER
        plans.append(replace(plan, max_epochs=plan.max_epochs - n_first, learning_rate=rate, warm_up=False))
    cells, history = _train(module, cells, train_c, validation_c, plans, seed, run)
    if markers:
        phase.turn(module, periodic.anchor(marker_curves(module, markers, modality), density(module), rhythm))
        cells = _located(module, cells, learn_prior=True)
    phase.straighten(module, cells.select(train_c).to(settings.torch_device))
    return cells, history


def marker_curves(module: Module, markers: Mapping[str, np.ndarray], modality: str) -> dict[str, np.ndarray]:
    """Log rates of the markers of each phase around the circle, shape ``(f, j)``."""
    return {
        name: phase.curves(module, modality, torch.from_numpy(column_f)).cpu().numpy()
        for name, column_f in markers.items()
    }


def density(module: Module) -> np.ndarray:
    """How common each angle is, sums to 1, shape ``(j,)``."""
    assert module.circle is not None
    density_j: np.ndarray = module.circle.log_density_j.double().softmax(0).cpu().numpy()
    return density_j


def go_on(
    module: Module, cells: Cells, train_c: Tensor, validation_c: Tensor, plan: train.Plan, seed: int
) -> tuple[Cells, dict[str, list[float]]]:
    """Train further; the circle keeps its orientation. Takes and returns the same as `fit`."""
    cells = _located(module, cells)
    for _, modality in module.by_modality():
        modality.decoder.tilt_kz.zero_()
    # What a few new cells would not tell of features, all those before did: they stay as chosen.
    cells, history = _train(module, cells, train_c, validation_c, [plan], seed, train.Run(), choose=False)
    phase.straighten(module, cells.select(train_c).to(settings.torch_device))
    return cells, history


def _train(
    module: Module,
    cells: Cells,
    train_c: Tensor,
    validation_c: Tensor,
    plans: Sequence[train.Plan],
    seed: int,
    run: train.Run,
    choose: bool = True,
) -> tuple[Cells, dict[str, list[float]]]:
    """Train by each plan, and after it choose the features that tell the angle, if asked to, and locate the cells."""
    history: dict[str, list[float]] = {}
    for turn, plan in enumerate(plans):
        source = Resident(cells, train_c, validation_c)
        stage = run.of_stage(f"turn-{turn + 1}")
        record = train.fit(module, source, plan, seed + turn, stage)
        history = train.continued(history, record) if history else record
        if choose:
            phase.choose_features(module, cells.select(train_c).to(settings.torch_device))
        cells = _located(module, cells, learn_prior=True)
        if stage.interrupted:
            break
    return cells, history


def _located(module: Module, cells: Cells, learn_prior: bool = False) -> Cells:
    """Locate cells on the device, and bring them back."""
    device = settings.torch_device
    return phase.located(module.to(device), cells.to(device), learn_prior).to("cpu")


def _first_guess(
    cells: Cells, rhythm: Rhythm, markers: dict[str, np.ndarray], modality: str, seed: int
) -> tuple[Cells, Tensor]:
    """Say by the markers, or without any, where cells are; those that lack the modality could be anywhere."""
    has_c = cells.has(modality).numpy()
    counts_cf = to_csr(cells.counts[modality])[has_c].astype(np.float64)
    library_size_c = cells.library_size[modality].numpy()[has_c].astype(np.float64)
    logged_cf = periodic.log_normalized(counts_cf, library_size_c)
    if markers:
        active_c = periodic.first_activity(counts_cf, library_size_c, markers)
        place, heard_f = periodic.first_places(logged_cf, active_c, markers, rhythm)
    else:
        batch_c = np.unique(cells.category_ck.numpy()[has_c], axis=0, return_inverse=True)[1].ravel()
        place, heard_f, roundness = unmarked.first_places(logged_cf, batch_c, seed)
        if roundness < unmarked.MIN_ROUNDNESS:
            warnings.warn(NO_CIRCLE, stacklevel=4)
    angle_c, length_c, all_active_c = (np.full(len(cells), value) for value in (0.0, 0.0, place.active_c.mean()))
    angle_c[has_c], length_c[has_c], all_active_c[has_c] = place.angle_c, place.length_c, place.active_c
    told = (torch.from_numpy(part).float() for part in (angle_c, length_c, all_active_c))
    return replace(cells, belief_cq=phase.belief(*told)), torch.from_numpy(heard_f)
