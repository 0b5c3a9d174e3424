"""Damage of files: bytes that change, are lost or added, and changes of JSON and tensors behind a valid checksum."""

import json
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

from celldial.io.model_file import digest

KINDS = ["shorter", "longer", "flat", "empty", "double", "int", "complex", "nan", "inf", "gone"]
ODD_VALUES = [None, True, -1, 0, 1, 2**40, 1e300, "", "a", "rna", [], [1], ["a"], {}, {"a": 1}]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip bits, or remove, repeat, zero or insert some bytes; the header is as likely to be hit as the rest."""
    header = min(len(content), 8 + int.from_bytes(content[:8], "little") % 2**20)
    at = draw(st.integers(0, 7) | st.integers(0, max(0, header - 1)) | st.integers(0, len(content) - 1))
    at = min(at, len(content) - 1)
    n = draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["bit", "bit", "bit", "byte", "truncate", "remove", "repeat", "zero", "insert"]))
    if kind == "bit":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if kind == "byte":
        return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    part = content[at : at + n]
    return {
        "truncate": content[:at],
        "remove": content[:at] + content[at + n :],
        "repeat": content[:at] + part + content[at:],
        "zero": content[:at] + bytes(len(part)) + content[at + n :],
        "insert": content[:at] + draw(st.binary(min_size=1, max_size=16)) + content[at:],
    }[kind]


def seal(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """Return a file with a valid checksum."""
    about = json.dumps(metadata)
    return save(tensors, {"celldial": about, "sha256": digest(save(tensors, {"celldial": about}))})


def unseal(content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the metadata and the tensors of a file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["celldial"]), load(content)


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all entries of nested JSON; of lists, the first and the last."""
    if isinstance(value, dict):
        entries = list(value)
    elif isinstance(value, list):
        entries = sorted({0, len(value) - 1}) if value else []
    else:
        entries = []
    return [found for key in entries for found in [(*path, key), *fields(value[key], (*path, key))]]


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Change, remove or add one field of the metadata, and renew the checksum."""
    metadata, tensors = unseal(content)
    path = draw(st.sampled_from(fields(metadata)))
    parent = metadata
    for key in path[:-1]:
        parent = parent[key]
    kind = draw(st.sampled_from(["value", "value", "value", "remove", "repeat"]))
    if kind == "value":
        parent[path[-1]] = draw(st.sampled_from(ODD_VALUES))
    elif kind == "remove":
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.append(parent[path[-1]])
    else:
        parent["another"] = parent[path[-1]]
    return seal(metadata, tensors)


@st.composite
def changed_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Change the shape, the type or the values of one tensor, or remove it, and renew the checksum."""
    metadata, tensors = unseal(content)
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    kind = draw(
        st.sampled_from(["shorter", "longer", "flat", "empty", "double", "int", "complex", "nan", "inf", "gone"])
    )
    random = np.random.default_rng(0)
    if kind == "gone":
        del tensors[name]
    elif kind in ("nan", "inf") and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, float(kind))
    else:
        tensors[name] = {
            "shorter": lambda: tensor[:-1].clone() if tensor.ndim else tensor[None],
            "longer": lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None].repeat(2),
            "flat": lambda: tensor.reshape(-1).clone(),
            "empty": lambda: torch.zeros(0),
            "double": tensor.double,
            "int": tensor.int,
            "complex": lambda: tensor.to(torch.complex64),
        }.get(kind, lambda: torch.from_numpy(random.normal(size=tuple(tensor.shape))))()
    return seal(metadata, {key: value.contiguous() for key, value in tensors.items()})
