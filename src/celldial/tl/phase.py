"""Angle, activity and phase of cells on the periodic coordinate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celldial.inference.fitted_model import FittedModel, infer_all, is_file_path, read_from
from celldial.inference.posterior import LatentState
from celldial.io import results
from celldial.periodic.phases import assign_phases
from celldial.utils.argument_types import validate_types

__all__ = ["phase", "phase_table"]

# A cell is active if that is more probable than not. It gets no phase if its angle is almost unknown (mean resultant
# length below 1/2), for example because the informative features were not measured.
MIN_ACTIVE, MIN_CONCENTRATION = 0.5, 1.0


@validate_types
def phase(model: FittedModel, adata: AnnData, *, modality: str | None = None, layer: str | None = None) -> pd.DataFrame:
    r"""Infer angle, activity and phase of cells on the periodic coordinate, and write them to ``adata.obs``.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.phase(adata)``.
    adata, modality, layer
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        One row per cell. Column names start with the name of the periodic coordinate, such as ``"cell_cycle_angle"``.
        The same columns are written to ``adata.obs``.

        - ``_angle`` in [0, 2π), conditional on the cell being active. For the cell cycle 0 is the start of G1, and the
          angle increases from G1 through S and G2 to M.
        - ``_concentration``: certainty of the angle, κ of a power spherical distribution. If κ is large, the standard
          deviation of the angle is about :math:`\sqrt{2 / κ}` rad; 0 means that the angle is unknown.
        - ``_active_probability``: probability that the cell is on the circle at all, if there is such a process;
          ``_active``: whether it is 1/2 or more, and the process was found.
        - ``_phase``, if the model has phases and the direction of the angle is known: the phase that contains the
          angle. Missing for cells that are not active, or that have a concentration below 1.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    ValueError
        The model has no periodic coordinate, or ``adata.obs`` has a column of this name that no model wrote.
    ValueError, TypeError, KeyError, FloatingPointError, OSError
        As `transform`.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.simulate_multiome(600, 100, 200, depth=6)
    >>> model = celldial.VAE(periodic="cell_cycle", likelihood={"atac": "poisson"})
    >>> model = model.fit(adata, max_epochs=8, progress=False)
    >>> model.phase(adata)["cell_cycle_phase"].cat.categories.tolist()
    ['G1', 'S', 'G2M']
    """
    model = read_from(model, layer)
    if model.periodic_ is None:
        raise ValueError("this model has no periodic coordinate: fit one with VAE(periodic='cell_cycle')")
    if not is_file_path(adata):
        results.check_periodic_columns(adata, model.periodic_["name"])
    latent_state, obs = infer_all(model, adata, modality)
    table = phase_table(latent_state, model.periodic_, obs.index)
    if not is_file_path(adata):
        results.write_phase(adata, model.fingerprint_, table, model.periodic_)
    return table


def phase_table(latent_state: LatentState, periodic: Mapping[str, Any], names: pd.Index) -> pd.DataFrame:
    """Return angle, concentration, activity and phase of cells as a table; see `celldial.tl.phase`."""
    assert latent_state.circle is not None
    angle_c, concentration_c, active_c, _ = latent_state.circle
    columns: dict[str, Any] = {
        "angle": angle_c,
        "concentration": concentration_c,
        "active_probability": active_c,
        "active": (active_c >= MIN_ACTIVE) & periodic.get("is_found", True),
    }
    if "phases" in periodic:
        assigned_c = columns["active"] & (concentration_c >= MIN_CONCENTRATION)
        codes_c = np.where(assigned_c, assign_phases(angle_c, periodic["phase_start"]), -1)
        columns["phase"] = pd.Categorical.from_codes(codes_c.tolist(), pd.Index(periodic["phases"]))
    return pd.DataFrame({f"{periodic['name']}_{part}": values for part, values in columns.items()}, index=names)
