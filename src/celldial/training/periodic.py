"""Training of a module with a periodic coordinate: its weights and the angles of the cells are updated alternately.

Expectation maximization: `celldial.periodic` returns initial angles, `celldial.training.loop` trains the module with
these angles, and `celldial.model.angle_posterior` infers them again.

Axis suffixes: ``c`` cells, ``f`` features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import expit
from torch import Tensor

from celldial.data.cells import Cells, to_csr_matrix
from celldial.data.in_memory import InMemorySource
from celldial.model import angle_posterior
from celldial.model.module import Module
from celldial.model.networks import Modality
from celldial.periodic import initial_angles, unsupervised
from celldial.periodic.direction import DirectionEstimate, GenePeaks, estimate_peaks, infer_direction
from celldial.periodic.expression import log_normalize
from celldial.periodic.markers import PeriodicProcess
from celldial.training.plan import Stage, StagePlan, TrainingPlan
from celldial.utils.settings import settings
from celldial.utils.warnings import warn

__all__ = [
    "PeriodicTarget",
    "direction_of",
    "first_stages",
    "further_stages",
    "logged_counts",
    "mapping_stages",
    "observed_peaks",
]

# Fraction of the epochs before angles are inferred for the first time.
FIRST_STAGE_FRACTION = 2 / 3
# The peak learning rate of the later epochs is lower by this factor.
LR_DIVISOR = 2.0
NO_CIRCLE_WARNING = (
    "periodic=True: the cells show no clear periodic process. The best candidate was used, but it is likely to be "
    "something else: do not rely on its angle. If the cells have a periodic process, name its markers, as in "
    "periodic='cell_cycle'; otherwise leave periodic out"
)


@dataclass(frozen=True)
class PeriodicTarget:
    """The periodic process to infer, and its markers among the features.

    Parameters
    ----------
    process
        Names, markers and order of the phases.
    markers
        Phase to the columns of its markers; empty to infer the angle without markers.
    modality
        The modality that has the markers.
    reference_f, reference_angle_f
        Columns of the features whose peak is known, and the angles at which they should peak.
    """

    process: PeriodicProcess
    markers: Mapping[str, np.ndarray]
    modality: str
    reference_f: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    reference_angle_f: np.ndarray = field(default_factory=lambda: np.zeros(0))


def first_stages(plan: TrainingPlan, seed: int, target: PeriodicTarget) -> StagePlan:
    """Return the stages that train a new module; parameters as in `celldial.training.stages`."""
    n_first = math.ceil(FIRST_STAGE_FRACTION * plan.max_epochs)
    n_rest = plan.max_epochs - n_first
    initialize = partial(initialize_angles, target=target, seed=seed)
    stages = [Stage("turn-1", replace(plan, max_epochs=n_first), before=initialize, after=infer_angles)]
    if n_rest > 0:
        rest = replace(plan, max_epochs=n_rest, learning_rate=plan.learning_rate / LR_DIVISOR, kl_warmup=False)
        stages.append(Stage("turn-2", rest, after=infer_angles))
    return StagePlan(tuple(stages), finish=partial(orient_circle, target=target))


def further_stages(plan: TrainingPlan) -> StagePlan:
    """Return the stages that continue training; the circle keeps its orientation and the features it is inferred from.

    A few new cells may not suffice to select features; those selected from all earlier cells are kept.
    """
    stage = Stage("turn-1", plan, before=start_from_model, after=partial(infer_angles, select_features=False))
    return StagePlan((stage,), finish=decorrelate)


def mapping_stages(plan: TrainingPlan) -> StagePlan:
    """Return the stages that map new cells: their angles are inferred once, and the circle stays as it is."""
    return StagePlan((Stage("mapping", plan, before=start_from_angles),))


def start_from_angles(module: Module, source: InMemorySource) -> InMemorySource:
    """Infer the angles with the fitted module."""
    return replace(source, cells=update_angles(module, source.cells))


def initialize_angles(module: Module, source: InMemorySource, target: PeriodicTarget, seed: int) -> InMemorySource:
    """Estimate initial angles from the counts, and initialize the decoder's harmonics from them."""
    cells, feature_f = first_angles(source.cells, target, seed)
    assert module.circle is not None
    training_cells, columns = cells.select(source.train_c), {target.modality: feature_f}
    angle_posterior.initialize_harmonics(dict(module.by_modality()), module.circle, training_cells, columns)
    return replace(source, cells=cells)


def start_from_model(module: Module, source: InMemorySource) -> InMemorySource:
    """Infer the angles with the fitted module, and undo the correction that `decorrelate` makes again at the end."""
    source = replace(source, cells=update_angles(module, source.cells))
    for _, modality in module.by_modality():
        modality.decoder.angle_offset_kz.zero_()
    return source


def infer_angles(module: Module, source: InMemorySource, select_features: bool = True) -> InMemorySource:
    """Infer the angles and their distribution, after selecting the features that depend on the angle."""
    if select_features:
        angle_posterior.select_angle_features(*_for_update(module, source))
    return replace(source, cells=update_angles(module, source.cells, learn_prior=True))


def orient_circle(module: Module, source: InMemorySource, target: PeriodicTarget) -> InMemorySource:
    """Turn the circle to where genes should peak, if any are known, and decorrelate the other coordinates."""
    if target.markers:
        modalities = dict(module.by_modality())
        direction = direction_of(observed_peaks(source.cells, target), target.process)
        if direction.is_reflected:
            angle_posterior.reflect(modalities)
        angle_posterior.rotate(modalities, direction.rotation)
        source = replace(source, cells=update_angles(module, source.cells, learn_prior=True))
    return decorrelate(module, source)


def observed_peaks(cells: Cells, target: PeriodicTarget) -> GenePeaks:
    """Return where the genes of the reference peak on the circle of cells with `angle_params_cq`."""
    assert cells.angle_params_cq is not None
    x_c, y_c, _, logit_c = cells.angle_params_cq.double().numpy()[cells.mask_with(target.modality).numpy()].T
    logged_cg, batch_c = logged_counts(cells, target.modality, target.reference_f)
    return estimate_peaks(logged_cg.toarray(), target.reference_angle_f, np.arctan2(y_c, x_c), expit(logit_c), batch_c)


def direction_of(peaks: GenePeaks, process: PeriodicProcess) -> DirectionEstimate:
    """Return direction and rotation of the circle."""
    return infer_direction(peaks, process.knots, process.has_direction)


def logged_counts(cells: Cells, modality: str, column_f: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """Return log-normalized counts of some features, and batch codes, of the cells that have a modality."""
    has_c = cells.mask_with(modality).numpy()
    counts_cf = to_csr_matrix(cells.counts[modality])[has_c][:, column_f].astype(np.float64)
    library_size_c = cells.library_size[modality].numpy()[has_c].astype(np.float64)
    batch_c = np.unique(batch_codes(cells)[has_c], return_inverse=True)[1]
    return log_normalize(counts_cf, library_size_c), batch_c


def batch_codes(cells: Cells) -> np.ndarray:
    """Return a code for each combination of categorical covariates."""
    codes_c: np.ndarray = np.unique(cells.category_ck.numpy(), axis=0, return_inverse=True)[1].ravel()
    return codes_c


def decorrelate(module: Module, source: InMemorySource) -> InMemorySource:
    """Remove the dependence of the other coordinates on the angle."""
    angle_posterior.decorrelate_from_angle(*_for_update(module, source))
    return source


def update_angles(module: Module, cells: Cells, learn_prior: bool = False) -> Cells:
    """Return the cells, on the CPU, with angles inferred by the module on the device."""
    device = settings.torch_device
    params_cq = module.to(device).eval().infer_angles(cells.to(device), learn_prior)
    return replace(cells, angle_params_cq=params_cq.cpu())


def _for_update(module: Module, source: InMemorySource) -> tuple[dict[str, Modality], Cells, Tensor]:
    """Return the modalities, the training cells and the means of their coordinates, all on the device."""
    device = settings.torch_device
    cells = source.cells.select(source.train_c).to(device)
    return dict(module.to(device).by_modality()), cells, module.eval().encode_means(cells)


def first_angles(cells: Cells, target: PeriodicTarget, seed: int) -> tuple[Cells, Tensor]:
    """Return the cells with initial angles, and the columns of the features these were inferred from.

    Angles come from the markers, or without markers from the roundest pattern among the cells. The angles of cells that
    lack the modality have concentration 0.
    """
    has_c = cells.mask_with(target.modality).numpy()
    counts_cf = to_csr_matrix(cells.counts[target.modality])[has_c].astype(np.float64)
    library_size_c = cells.library_size[target.modality].numpy()[has_c].astype(np.float64)
    logged_cf = log_normalize(counts_cf, library_size_c)
    if target.markers:
        markers = dict(target.markers)
        active_c = initial_angles.initial_activity(counts_cf, library_size_c, markers)
        estimate, feature_f = initial_angles.initial_angles(logged_cf, active_c, markers, target.process)
    else:
        batch_c = np.unique(batch_codes(cells)[has_c], return_inverse=True)[1]
        estimate, feature_f, circularity = unsupervised.discover_angles(logged_cf, batch_c, seed)
        if circularity < unsupervised.MIN_CIRCULARITY:
            warn(NO_CIRCLE_WARNING)
    angle_c, length_c, active_c = (np.full(len(cells), value) for value in (0.0, 0.0, estimate.active_c.mean()))
    angle_c[has_c], length_c[has_c], active_c[has_c] = estimate.angle_c, estimate.resultant_length_c, estimate.active_c
    packed = angle_posterior.pack_angle_posterior(
        *(torch.from_numpy(part).float() for part in (angle_c, length_c, active_c))
    )
    return replace(cells, angle_params_cq=packed), torch.from_numpy(feature_f)
