"""The model file: a safetensors file whose header holds everything but the tensors as JSON. Reading it runs no code."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from celldial.io.atomic import atomic_write

__all__ = ["FORMAT_VERSION", "read_file", "read_model", "wrap_file_errors", "write"]

# Increase it when earlier versions of celldial cannot read the files of this one. `read_model` must keep reading the
# files of all earlier versions.
FORMAT_VERSION = 6

# Prior standard deviation of effects of categories on features, for models that were trained without them.
NARROW_SCALE = 0.01

# Patterns of tensor names in format versions 1 to 4, and the names since version 5.
RENAMED_TENSORS = {
    r"(modalities\.[^.]+\.decoder)\.curves\.bend\.": r"\1.units.shift.",
    r"(modalities\.[^.]+\.decoder)\.curves\.alone\.": r"\1.units.covariate_units.",
    r"(modalities\.[^.]+\.decoder)\.curves\.": r"\1.units.",
    r"(modalities\.[^.]+\.decoder)\.cycles_f": r"\1.angle_feature_mask_f",
    r"(modalities\.[^.]+\.decoder)\.tilt_kz": r"\1.angle_offset_kz",
    r"(modalities\.[^.]+\.loadings)\.centre_h": r"\1.center_h",
    r"(learned_prior|clusters)\.": "coordinates.prior.",
    r"flow\.": "coordinates.posterior_flow.",
    r"(baselines\.[^.]+)\.n_seen": r"\1.n_updates",
    r"n_trained": "n_training_cells",
}

# What Python and other libraries raise for content that is not as it was written.
FILE_ERRORS = (
    *(SafetensorError, AttributeError, LookupError, TypeError, ValueError, RuntimeError),
    *(ArithmeticError, StopIteration),
)


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file in one step: a failure leaves the previous file as it was.

    Parameters
    ----------
    path
        The file to write or replace.
    metadata
        Everything but the tensors, in JSON types.
    tensors
        Tensors by name.
    """
    header = json.dumps({"format_version": FORMAT_VERSION, **metadata}, allow_nan=False)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(on_cpu, {"celldial": header, "sha256": digest(save(on_cpu, {"celldial": header}))})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_file(path: Path, needs_checksum: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the tensors of a file as they were written.

    Parameters
    ----------
    path
        The file.
    needs_checksum
        Whether a file without a checksum is damaged; models of earlier versions have none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not a celldial file, is damaged, or has a later format version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with wrap_file_errors(path):
        content = path.read_bytes()  # once: the file may be replaced or truncated at any time
        found = split_header(content)[0].get("__metadata__", {})
        metadata = json.loads(found["celldial"])
        version = operator.index(metadata["format_version"])
        has_checksum = needs_checksum or "sha256" in found
        if version <= FORMAT_VERSION and has_checksum and found["sha256"] != digest(content):
            raise ValueError("its checksum differs from the one that was written")
        tensors = load(content)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format version {version}, and this version of celldial reads up to {FORMAT_VERSION}: "
            "install a newer celldial"
        )
    return metadata, tensors


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and the bytes of its tensors."""
    n_header = int.from_bytes(content[:8], "little")
    if len(content) < 8 + n_header:
        raise ValueError(f"it has {len(content)} bytes, which is less than its header")
    header = json.loads(content[8 : 8 + n_header])
    if not isinstance(header, dict):
        raise TypeError("its header is not an object")
    return header, content[8 + n_header :]


def digest(content: bytes) -> str:
    """Return the SHA-256 checksum of everything in a file except the checksum itself."""
    header, data = split_header(content)
    metadata = {name: value for name, value in header.pop("__metadata__", {}).items() if name != "sha256"}
    described = json.dumps([metadata, header], sort_keys=True).encode()
    return hashlib.sha256(len(described).to_bytes(8, "little") + described + data).hexdigest()


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the tensors of a model as the current format has them; raises as `read_file`."""
    metadata, tensors = read_file(path)
    with wrap_file_errors(path):
        if metadata["format_version"] < 5:
            tensors = {current_name(name): tensor for name, tensor in tensors.items()}
        _add_missing_metadata(metadata)
        if metadata["format_version"] < 6:
            tensors |= zero_feature_effects(metadata["schema"])
    return metadata, tensors


def zero_feature_effects(schema: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the effects of categories on features for a model without such effects: zeros, with a narrow prior."""
    n_categories = [len(names) for names in schema["categories"].values()]
    found: dict[str, Tensor] = {}
    for modality, features in schema["feature_names"].items() if n_categories else ():
        prefix = f"modalities.{modality}.decoder.feature_effects"
        found[f"{prefix}.scale_k"] = torch.full((len(n_categories),), NARROW_SCALE)
        for k, n in enumerate(n_categories):
            found[f"{prefix}.categorical.{k}.weight"] = torch.zeros(n, len(features))
    return found


def current_name(name: str) -> str:
    """Return the current name of a tensor in a file of format version 1 to 4."""
    for pattern, replacement in RENAMED_TENSORS.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name


@contextmanager
def wrap_file_errors(path: str | Path) -> Iterator[None]:
    """Raise any failure to interpret a file as a ValueError that names the file."""
    try:
        yield
    except FILE_ERRORS as error:
        raise ValueError(f"{str(path)!r} is not a celldial file, or is damaged: {error}") from error


def _add_missing_metadata(metadata: dict[str, Any]) -> None:
    """Add the metadata that a file of an earlier format version does not have."""
    version, schema = metadata["format_version"], metadata["schema"]
    modalities = schema["modalities"]
    if version < 2:
        # One modality, which had all features of adata.var.
        schema["sources"] = dict.fromkeys(modalities, "")
        schema["likelihood"] = dict.fromkeys(modalities, metadata["parameters"]["likelihood"])
        schema["presence_keys"] = {}
        metadata["library_size_quantiles"] = dict.fromkeys(modalities, metadata["library_size_quantiles"])
    if version < 3:
        metadata["periodic"] = None
    if version < 4:
        metadata["clusters"] = None
    if version < 5:
        schema["binary"] = {modality: name == "bernoulli" for modality, name in schema["likelihood"].items()}
    if version < 6:
        metadata["parameters"]["integration"] = 0.0
