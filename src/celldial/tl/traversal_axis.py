"""The axis of a traversal: a coordinate, a named axis, the periodic coordinate or a path between groups."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from celldial.utils.messages import listing

__all__ = ["Dial", "check_traversal", "find_dial"]


# The p-value from which on an axis may be one by chance.
BY_CHANCE = 0.05


@dataclass(frozen=True)
class Dial:
    """What is turned.

    Parameters
    ----------
    kind
        ``"coordinate"``, ``"direction"``, ``"periodic"`` or ``"path"``.
    name
        Under which the traversal is stored.
    title
        For people.
    label
        What the positions are.
    coordinate
        Which, where it is one.
    direction
        Origin, filter and direction of a named axis.
    ends
        Of a path.
    phases
        Names of the phases of a periodic axis, and the angles where they start.
    """

    kind: str
    name: str
    title: str
    label: str
    coordinate: int = 0
    direction: tuple[np.ndarray, ...] = ()
    ends: tuple[Any, Any] = ("", "")
    phases: dict[str, np.ndarray] = field(default_factory=dict)


def check_traversal(span: Any, covariates: Any, key_added: Any) -> None:
    """Raise where an argument of a traversal makes no sense by itself."""
    try:
        low, high = span
        good = bool(0 <= low < high <= 1)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"span is {span!r}: it must be two quantiles, from low to high, such as (0.01, 0.99)")
    if not isinstance(covariates, Mapping | None):
        raise TypeError(f'covariates is {covariates!r}: it must be a dict from covariate to value, {{"batch": "b2"}}')
    if key_added is not None and (not isinstance(key_added, str) or "/" in key_added or not key_added):
        raise ValueError(f"key_added is {key_added!r}: it must be a name without a slash, such as 'response'")


def find_dial(
    axis: Any,
    n_latent: int,
    named: Mapping[str, Any],
    periodic: Mapping[str, Any] | None,
    topics: bool = False,
) -> Dial:
    """Find out what is to be turned.

    Parameters
    ----------
    axis
        As the user named it.
    n_latent
        Number of latent coordinates.
    named
        Name to what is stored of each named axis.
    periodic
        What is stored of the periodic axis, where there is one.
    topics
        Whether the coordinates are topics.

    Raises
    ------
    ValueError
        There is no such coordinate; or a named axis is not of this model.
    KeyError
        There is no axis of this name.
    TypeError
        `axis` is nothing of all this.
    """
    if isinstance(axis, tuple):
        if len(axis) != 2:
            raise ValueError(
                f"axis is {axis!r}: a path goes from one group or cell to another, so that it has two ends"
            )
        name = f"{axis[0]} to {axis[1]}".replace("/", "-")
        title = f"from {axis[0]} to {axis[1]}"
        return Dial("path", name, title, f"way {title}", ends=axis)
    if isinstance(axis, str):
        if axis in named:
            return _direction(axis, named[axis], n_latent)
        if periodic is not None and axis == periodic["name"]:
            title = axis.replace("_", " ")
            phases = {}
            if "phases" in periodic:
                phases = {
                    "names": np.array(periodic["phases"]),
                    "start": np.array(periodic["phase_start"], dtype=float),
                }
            return Dial("periodic", axis, title, f"{title} angle (rad)", phases=phases)
        found = re.fullmatch(r"(?:axis|topic)_(\d+)" if topics else r"axis_(\d+)", axis)
        if found is None:
            known = [*named, *([] if periodic is None else [periodic["name"]])]
            raise KeyError(
                f"there is no axis {axis!r}: give the number of a latent coordinate, a pair of cells or groups, or a "
                f"named axis (there are: {listing(known)}; find_axis finds others)"
            )
        axis = int(found[1])
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(
            f"axis is {axis!r}: it must be the number of a latent coordinate, the name of an axis, or a pair of cells "
            "or groups"
        )
    if not 0 <= axis < n_latent:
        raise ValueError(f"axis is {axis}: it must be from 0 to {n_latent - 1}, the model's latent coordinates")
    if topics:
        title = f"topic {axis}"
        return Dial("coordinate", f"topic_{axis}", title, f"share of {title}", coordinate=int(axis))
    title = f"latent coordinate {axis}"
    return Dial("coordinate", f"axis_{axis}", title, title, coordinate=int(axis))


def _direction(name: str, stored: Mapping[str, Any], n_latent: int) -> Dial:
    """Read a named axis."""
    parts = tuple(np.asarray(stored[part], dtype=np.float32) for part in ("origin", "filter", "direction"))
    _, filter_z, direction_z = parts
    if any(part.shape != (n_latent,) for part in parts) or not filter_z @ direction_z:
        raise ValueError(
            f"axis {name!r} is not of this model, which has {n_latent} latent coordinates: call find_axis(adata, "
            f"{name!r}, ...) with it"
        )
    if stored.get("p_value", 0) >= BY_CHANCE:
        warnings.warn(
            f"what the axis {name!r} is to tell, cells tell no better than by chance (p = {stored['p_value']:.2g}): "
            "intervals, lfsr and fdr take its direction as given, and do not know that there may be none",
            stacklevel=4,
        )
    return Dial("direction", name, name, f"{name} score", direction=parts)
