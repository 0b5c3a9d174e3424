"""The axis of a traversal: a latent coordinate, a named axis, the periodic coordinate or a path between groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from celldial.inference.fitted_model import FittedModel
from celldial.utils.messages import did_you_mean, format_names
from celldial.utils.warnings import warn

__all__ = ["TraversalAxis", "check_traversal", "resolve_axis"]

# A named axis with a p-value from here on may be due to chance.
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class TraversalAxis:
    """An axis to move cells along.

    Parameters
    ----------
    kind
        ``"coordinate"``, ``"direction"``, ``"periodic"`` or ``"path"``.
    name
        Key that the traversal is stored under.
    title
        Name of the axis in figures.
    label
        Name of the positions in figures.
    coordinate
        Index of a latent coordinate.
    direction
        Origin, weight and direction of a named axis.
    ends
        Groups or cells at the ends of a path.
    phases
        Names of the phases of a periodic axis, and the angles where they start.
    default_span
        First and last score of a traversal of a named axis, if they are not quantiles of the cells.
    """

    kind: str
    name: str
    title: str
    label: str
    coordinate: int = 0
    direction: tuple[np.ndarray, ...] = ()
    ends: tuple[Any, Any] = ("", "")
    phases: dict[str, np.ndarray] = field(default_factory=dict)
    default_span: tuple[float, float] | None = None


def check_traversal(span: Any, key_added: Any) -> None:
    """Raise if an argument of a traversal is invalid by itself."""
    try:
        low, high = (0, 1) if span is None else span
        is_valid = bool(0 <= low < high <= 1)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"span is {span!r}: it must be two quantiles, from low to high, such as (0.01, 0.99)")
    if key_added is not None and (not isinstance(key_added, str) or "/" in key_added or not key_added):
        raise ValueError(f"key_added is {key_added!r}: it must be a name without a slash, such as 'response'")


def resolve_axis(axis: Any, model: FittedModel, named: Mapping[str, Any]) -> TraversalAxis:
    """Return the axis that the user requests.

    Parameters
    ----------
    axis
        A coordinate, a name or a pair of groups or cells.
    model
        A fitted model.
    named
        Stored named axes, by name.

    Raises
    ------
    ValueError
        There is no such coordinate, or a named axis belongs to another model.
    KeyError
        There is no axis of this name.
    TypeError
        `axis` is none of these.
    """
    n_latent, periodic = model.module_.latent.n_latent, model.periodic_
    noun = model.module_.latent.coordinate_noun
    if isinstance(axis, tuple):
        return _path(axis)
    if isinstance(axis, str):
        if axis in named:
            return _named_axis(axis, named[axis], n_latent, model.fingerprint_)
        if periodic is not None and axis == periodic["name"]:
            return _periodic_axis(periodic)
        found = re.fullmatch(rf"(?:axis|{noun})_(\d+)", axis)
        if found is None:
            known = [*named, *([] if periodic is None else [periodic["name"]])]
            raise KeyError(
                f"there is no axis {axis!r}{did_you_mean(axis, known)}: pass the number of a latent coordinate, a "
                f"pair of cells or groups, or a named axis (available: {format_names(known)}; find_axis adds others)"
            )
        axis = int(found[1])
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(
            f"axis is {axis!r}: it must be the number of a latent coordinate, the name of an axis, or a pair of cells "
            "or groups"
        )
    if not 0 <= axis < n_latent:
        raise ValueError(f"axis is {axis}: the latent coordinates of this model are 0 to {n_latent - 1}")
    if noun == "topic":
        title = f"topic {axis}"
        return TraversalAxis("coordinate", f"topic_{axis}", title, f"share of {title}", coordinate=int(axis))
    title = f"latent coordinate {axis}"
    return TraversalAxis("coordinate", f"axis_{axis}", title, title, coordinate=int(axis))


def _path(ends: tuple[Any, ...]) -> TraversalAxis:
    """Return the path between two groups or cells."""
    if len(ends) != 2:
        raise ValueError(f"axis is {ends!r}: a path needs exactly two ends, each a group or a cell")
    name = f"{ends[0]} to {ends[1]}".replace("/", "-")
    title = f"from {ends[0]} to {ends[1]}"
    return TraversalAxis("path", name, title, f"way {title}", ends=(ends[0], ends[1]))


def _periodic_axis(periodic: Mapping[str, Any]) -> TraversalAxis:
    """Return the periodic coordinate of a model, and warn if the cells do not have the process."""
    title = periodic["name"].replace("_", " ")
    if not periodic.get("is_found", True):
        warn(
            f"the model found no {periodic['name']} in its cells, so its circle shows another difference between them: "
            "do not take features with a small lfsr or fdr for features that follow the process"
        )
    phases = {}
    if "phases" in periodic:
        phases = {
            "names": np.array(periodic["phases"]),
            "start": np.array(periodic["phase_start"], dtype=float),
        }
    return TraversalAxis("periodic", periodic["name"], title, f"{title} angle (rad)", phases=phases)


def _named_axis(name: str, stored: Mapping[str, Any], n_latent: int, model: str) -> TraversalAxis:
    """Return a stored named axis; one of an earlier version does not have the identifier of its model."""
    writer = str(stored.get("model", model))
    if writer != model:
        raise ValueError(
            f"axis {name!r} belongs to another model ({writer}; this one is {model}): call find_axis(adata, {name!r}, "
            "...) with this model, or traverse it with the other model"
        )
    parts = tuple(np.asarray(stored[part], dtype=np.float32) for part in ("origin", "filter", "direction"))
    _, weight_z, direction_z = parts
    if any(part.shape != (n_latent,) for part in parts) or not weight_z @ direction_z:
        raise ValueError(
            f"axis {name!r} belongs to another model (this one has {n_latent} latent coordinates): call "
            f"find_axis(adata, {name!r}, ...) with this model"
        )
    if stored.get("p_value", 0) >= SIGNIFICANCE_LEVEL:
        warn(
            f"axis {name!r} predicts its target no better than chance (p = {stored['p_value']:.2g}): intervals, lfsr "
            "and fdr assume that its direction is real",
        )
    # The groups or values of a column have the mean scores 0 and 1; single cells lie farther apart.
    default_span = (0.0, 1.0) if stored.get("from_obs", False) else None
    return TraversalAxis("direction", name, name, f"{name} score", direction=parts, default_span=default_span)
