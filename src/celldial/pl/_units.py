"""The unit of a modality's values: counts, or the probability of being detected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["COUNTS", "PROBABILITY", "modality_units"]

COUNTS, PROBABILITY = "counts", "probability"
# Results that were stored without "unit" have the name of the likelihood.
UNIT_OF_LIKELIHOOD = {"bernoulli": PROBABILITY}


def modality_units(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return "counts" or "probability" for each modality of a traversal or schema that a model stored."""
    units = stored.get("unit")
    if units is not None:
        return {str(modality): str(unit) for modality, unit in units.items()}
    likelihoods = stored.get("likelihood", {})
    return {str(modality): UNIT_OF_LIKELIHOOD.get(str(name), COUNTS) for modality, name in likelihoods.items()}
