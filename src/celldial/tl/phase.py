"""Angles, activity and phases of cells on the periodic coordinate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from celldial.inference.posterior import Inferred
from celldial.periodic.initial_angles import phase_codes

__all__ = ["table"]


# An active cell is more probably on the circle than not. Of one whose angle could be almost anything (a mean resultant
# length below 1/2), as where all that tells it was not measured, no phase is said.
MIN_ACTIVE, MIN_CONCENTRATION = 0.5, 1.0


def table(inferred: Inferred, described: Mapping[str, Any], names: pd.Index) -> pd.DataFrame:
    """Put where cells are on the circle in a table; see `celldial.VAE.phase`."""
    assert inferred.circle is not None
    angle_c, concentration_c, active_c, _ = inferred.circle
    columns: dict[str, Any] = {
        "angle": angle_c,
        "concentration": concentration_c,
        "active_probability": active_c,
        "active": active_c >= MIN_ACTIVE,
    }
    if "phases" in described:
        told_c = columns["active"] & (concentration_c >= MIN_CONCENTRATION)
        codes_c = np.where(told_c, phase_codes(angle_c, described["phase_start"]), -1)
        columns["phase"] = pd.Categorical.from_codes(codes_c.tolist(), pd.Index(described["phases"]))
    return pd.DataFrame({f"{described['name']}_{part}": values for part, values in columns.items()}, index=names)
