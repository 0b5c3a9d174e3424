"""The data of the dial page: positions of the slider, and the values of the features at each step."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from celldial.pl._phases import ANGLE_LABELS, TWO_PI
from celldial.pl._text import format_minus, truncate_middle
from celldial.pl._traversal import LFSR_CUTOFF, ModalityFeatures, StoredTraversal, feature_columns, order_by_peak

__all__ = ["MAX_END_LENGTH", "encode_base64", "feature_data", "select_features", "slider_data"]

MAX_END_LENGTH = 30


def encode_base64(values: np.ndarray, dtype: str) -> str:
    """Return numbers as text: base64 of their bytes, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def slider_data(traversal: StoredTraversal) -> dict[str, Any]:
    """Return the label, tick labels and phases of the slider, and the position at each step as text."""
    position_s, phases = traversal.position_s, traversal.phases
    if traversal.periodic:
        label = traversal.position_label.removesuffix(" (rad)")
        positions = [f"{position:.2f} rad" for position in position_s]
        ticks = [[k / 4, text] for k, text in enumerate(ANGLE_LABELS)]
    else:
        label = traversal.position_label
        if traversal.kind == "path":
            positions = [f"{position:.0%} of the path" for position in position_s]
            start, end = traversal.ends
        else:
            positions = [format_minus(f"{position:.2f}") for position in position_s]
            start, end = f"start: {positions[0]}", f"end: {positions[-1]}"
        ticks = [[0, truncate_middle(start, MAX_END_LENGTH)], [1, truncate_middle(end, MAX_END_LENGTH)]]
    return {
        "label": label,
        "positions": positions,
        "ticks": ticks,
        "periodic": traversal.periodic,
        "phases": None
        if phases is None
        else {
            "names": phases.names,
            "colors": phases.colors,
            "ofStep": phases.index_of(position_s).tolist(),
            "intervals": [[k, low / TWO_PI, high / TWO_PI] for k, low, high in phases.intervals()],
        },
    }


def select_features(
    traversal: StoredTraversal, features: Sequence[str] | str | None, n_features: int
) -> list[tuple[ModalityFeatures, np.ndarray]]:
    """Return the columns of the features of each modality, in the order in which they are shown."""
    if features is None:
        return [
            (modality, order_by_peak(traversal, modality.column_f[:n_features])) for modality in traversal.modalities
        ]
    columns = feature_columns(traversal.feature_names, features, "features", f"the traversal {traversal.name!r}")
    selected = np.array(columns)
    modality_f = traversal.modality_f[selected]
    groups = [(modality, selected[modality_f == modality.name]) for modality in traversal.modalities]
    return [(modality, column_f) for modality, column_f in groups if len(column_f)]


def feature_data(traversal: StoredTraversal, groups: Sequence[tuple[ModalityFeatures, np.ndarray]]) -> dict[str, Any]:
    """Return the values at each step, steps × features, and name, certainty and reference value of each feature."""
    column_f = np.concatenate([column_f for _, column_f in groups])
    mean_sf, change_sf = traversal["mean"][:, column_f], traversal.log2_fold_change(column_f)
    reference_f = mean_sf[0]
    if traversal.periodic:
        # A circle has no start: changes are relative to the average. The last step equals the first and counts once.
        average_f = change_sf[:-1].mean(0)
        change_sf, reference_f = change_sf - average_f, reference_f * 2**average_f
    reference_of = dict(zip(column_f.tolist(), reference_f.tolist(), strict=True))
    return {
        "modalities": [_describe(traversal, modality, column_f, reference_of) for modality, column_f in groups],
        "changeHeading": f"log2 vs. {'average' if traversal.periodic else 'start'}",
        "curveHeading": "full circle" if traversal.periodic else "start to end",
        "interval": traversal.interval,
        "mean": encode_base64(mean_sf, "<f4"),
        "lower": encode_base64(traversal["lower"][:, column_f], "<f4"),
        "upper": encode_base64(traversal["upper"][:, column_f], "<f4"),
        "change": encode_base64(change_sf, "<f4"),
    }


def _describe(
    traversal: StoredTraversal, modality: ModalityFeatures, column_f: np.ndarray, reference_of: dict[int, float]
) -> dict[str, Any]:
    """Return title, unit and style of a modality, and the properties of its features that do not change by step."""
    noun = f"{modality.noun[:1].upper()}{modality.noun[1:]}"
    return {
        "title": f"{noun}s",
        "noun": noun,
        "unit": f"expected {modality.unit}" if modality.unit.startswith("counts") else modality.unit,
        "color": modality.color,
        "italic": modality.font_style == "italic",
        "features": [
            {
                "name": str(traversal.feature_names[column]),
                "lfsr": _format_lfsr(float(traversal["lfsr"][column])),
                "certain": bool(traversal["lfsr"][column] < LFSR_CUTOFF),
                "reference": reference_of[int(column)],
            }
            for column in column_f
        ],
    }


def _format_lfsr(lfsr: float) -> str:
    """Return a local false sign rate with two or three decimals."""
    return "<0.001" if lfsr < 0.001 else f"{lfsr:.3f}" if lfsr < 0.01 else f"{lfsr:.2f}"
