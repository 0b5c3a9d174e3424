"""`Checkpoint`: the file from which an interrupted training resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from celldial.io import model_file

__all__ = ["Checkpoint"]

MAX_VALUE_LENGTH = 60


@dataclass(frozen=True)
class Checkpoint:
    """The file to which a training writes its state, and from which a later call resumes.

    Parameters
    ----------
    folder
        Folder of the files, one for each stage of training. It is created if it does not exist.
    identity
        What the state depends on, in JSON types: parameters, options and cells. Only a training with the same identity
        can resume.
    minutes
        Minutes between writes; None to write after each epoch.
    stage
        Stage of training, which names the file.
    """

    folder: Path
    identity: Mapping[str, Any]
    minutes: float | None = None
    stage: str = "training"

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / f"{self.stage}.checkpoint"

    def for_stage(self, stage: str) -> Checkpoint:
        """Return the checkpoint of another stage of the same training."""
        return replace(self, stage=stage)

    def write(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the file in one step, so that a complete file exists at all times.

        Raises
        ------
        OSError
            The file could not be written. The previous file is still there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            model_file.write(self.path, {"identity": dict(self.identity), **metadata}, tensors)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint {str(self.path)!r} could not be written ({error.strerror}). Free disk space or change "
                "the permissions of the folder, and repeat the call: training resumes from the previous checkpoint",
            ) from error

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return the metadata and the tensors of the file, or None if there is no file.

        Raises
        ------
        ValueError
            The file belongs to another training or another format version, or is not a checkpoint.
        """
        if not self.path.exists():
            return None
        metadata, tensors = model_file.read_file(self.path, needs_checksum=True)
        identity = {"format_version": model_file.FORMAT_VERSION, **self.identity}
        # A model file has no identity.
        written = metadata.pop("identity", {})
        found = {"format_version": metadata["format_version"], **(written if isinstance(written, dict) else {})}
        for name in {**identity, **found}:
            before, now = found.get(name), identity.get(name)
            if before != now:
                raise ValueError(
                    f"{str(self.path)!r} is the checkpoint of another training: "
                    f"{describe_mismatch(name, before, now)}. Repeat the call that wrote it, or choose another folder"
                )
        return metadata, tensors


def describe_mismatch(name: str, before: Any, now: Any) -> str:
    """Describe the first difference between two values, down to an entry of nested dicts."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return describe_mismatch(key, before.get(key), now.get(key))
    return f"its {name} is {truncate(before)}, not {truncate(now)}"


def truncate(value: Any) -> str:
    """Return the representation of a value, at most `MAX_VALUE_LENGTH` characters long."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."
