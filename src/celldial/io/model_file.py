"""The file of a model: one safetensors file, whose header carries everything else as JSON. Reading it runs no code."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from celldial.io.atomic import written_whole

__all__ = ["FORMAT_VERSION", "damaged_if_this_fails", "read", "write"]

# Raise it when a file written by this version cannot be read by earlier ones; `read` must go on reading earlier files.
FORMAT_VERSION = 4


def write(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model file, whole or not at all.

    Parameters
    ----------
    path
        Where to. What is there is replaced.
    about
        All but the weights, in JSON types.
    tensors
        The weights.
    """
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, allow_nan=False)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"celldial": header})
    with written_whole(path) as meanwhile:
        meanwhile.write_bytes(content)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model file: everything but the weights, and the weights.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no model file, is damaged, or is of a later format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with damaged_if_this_fails(path), safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["celldial"])
        version = operator.index(about["format_version"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has the format version {version}, and this celldial reads up to {FORMAT_VERSION}: "
            "install a newer celldial"
        )
    return about, tensors


@contextmanager
def damaged_if_this_fails(path: str | Path) -> Iterator[None]:
    """Say of any failure to make sense of a file that the file is at fault."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} is no celldial file, or is damaged: {error}") from error
