"""The file by which a training that was cut short goes on: what is in it, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from celldial.io import model_file

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where training writes its state, and looks for that of an earlier call.

    Parameters
    ----------
    folder
        For the files, one a stage of training; it is made if it is not there.
    identity
        What the state hangs on, in JSON types: parameters, options, cells. Another training finds no use for it.
    minutes
        How often to write; None for after each epoch.
    stage
        Of the training, which names the file.
    """

    folder: Path
    identity: Mapping[str, Any]
    minutes: float | None = None
    stage: str = "training"

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.stage}.checkpoint"

    def for_stage(self, stage: str) -> Checkpoint:
        """Give that of another stage of the same training."""
        return replace(self, stage=stage)

    def write(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file in one step, so that there always is a whole one.

        Raises
        ------
        OSError
            There is no room for it, or no permission. The file before is still there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            model_file.write(self.path, {"identity": dict(self.identity), **about}, tensors)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint {str(self.path)!r} could not be written ({error.strerror}). Make room, or see that "
                "the folder can be written to, and call again: training goes on from the checkpoint before",
            ) from error

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Read the file if there is one: all but the tensors, and the tensors.

        Raises
        ------
        ValueError
            It is of another training, or no such file at all.
        """
        if not self.path.exists():
            return None
        about, tensors = model_file.read(self.path)
        found = about.pop("identity", {})  # a model has none
        for name in {**self.identity, **found}:
            before, now = found.get(name), self.identity.get(name)
            if before != now:
                raise ValueError(
                    f"{str(self.path)!r} is the checkpoint of another training: {difference(name, before, now)}. Call "
                    "fit as before to go on with that one, or name another folder"
                )
        return about, tensors


def difference(name: str, before: Any, now: Any) -> str:
    """Say by what two trainings differ, down to the entry of a dict."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return difference(key, before.get(key), now.get(key))
    return f"its {name} is {shortened(before)}, and now it is {shortened(now)}"


def shortened(value: Any) -> str:
    """Write a value, or the start of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
