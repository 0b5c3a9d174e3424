"""Plans of training: epochs, batch size and rates of a stage, and the stages of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from celldial.model.module import Module
    from celldial.training.trainable import TrainableRows

__all__ = [
    "History",
    "Stage",
    "StagePlan",
    "StageResult",
    "TrainingPlan",
]

# Quantity to its value after each epoch.
History = dict[str, list[float]]
# Takes a module and a source, and returns the source to use from then on. The source is the one that `fit` was given:
# a stage may need more of it than every `celldial.data.source.Source` has.
Hook = Callable[["Module", Any], Any]


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of one stage of training.

    Parameters
    ----------
    max_epochs
        Maximum number of passes over the training cells.
    batch_size
        Cells in a minibatch, summed over all devices.
    learning_rate
        Peak learning rate.
    weight_decay
        Decay of the weight matrices. The last layer of the decoder has a prior instead; biases and dispersions do not
        decay.
    early_stopping
        Whether to stop if the validation ELBO has not improved for a quarter of the epochs, at least 10.
    kl_warmup
        Whether the weight of the KL term starts near 0 and rises to 1.
    progress
        Whether to show a progress bar on stderr.
    trainable
        The only values that training changes; None to train the whole module.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float = 8e-3
    weight_decay: float = 0.3
    early_stopping: bool = True
    kl_warmup: bool = True
    progress: bool = False
    trainable: TrainableRows | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Parameters
    ----------
    name
        Name of the stage's checkpoint file.
    plan
        How to train.
    before, after
        Called with the module and the source before and after training; they return the source to use from then on.
        `after` is also called if Ctrl-C ended the stage.
    """

    name: str
    plan: TrainingPlan
    before: Hook | None = None
    after: Hook | None = None


@dataclass(frozen=True)
class StagePlan:
    """The stages of a training.

    Parameters
    ----------
    stages
        In the order in which they run, at least one. If Ctrl-C ends one, the later ones are skipped.
    finish
        Called once after the last stage that ran.
    """

    stages: tuple[Stage, ...]
    finish: Hook | None = None


class StageResult(NamedTuple):
    """History of one stage, and whether Ctrl-C ended it."""

    history: History
    interrupted: bool
