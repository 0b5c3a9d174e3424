"""Runs of a simulator: cells of each setting, checked and concatenated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from celldial.utils.messages import format_names

__all__ = ["Simulator", "concatenate", "run", "run_all"]

Simulator = Callable[..., AnnData]


def run(simulator: Simulator, setting: pd.Series, n_cells: int | None, random: np.random.Generator) -> AnnData:
    """Return cells of one run, whose ``obs`` has the parameters only.

    Parameters
    ----------
    simulator
        Function of the parameters, which are passed as keywords.
    setting
        The parameters.
    n_cells
        Number of random cells to keep; None for all.
    random
        Source of random numbers.

    Raises
    ------
    TypeError
        The simulator is no function, or does not return an AnnData.
    ValueError
        There are fewer than `n_cells` cells.
    """
    if not callable(simulator):
        raise TypeError(f"simulator must be a function of the parameters, not {type(simulator).__name__}")
    values = {str(key): float(value) for key, value in setting.items()}
    where = ", ".join(f"{key}={value:g}" for key, value in values.items())
    adata: Any = simulator(**values)
    if not isinstance(adata, AnnData):
        raise TypeError(f"simulator({where}) returned {type(adata).__name__}: it must return an AnnData")
    index_c = np.arange(adata.n_obs)
    if n_cells is not None:
        if adata.n_obs < n_cells:
            raise ValueError(
                f"n_cells is {n_cells}, but simulator({where}) returned {adata.n_obs} cells: let it return more, or "
                "lower n_cells"
            )
        index_c = np.sort(random.choice(adata.n_obs, n_cells, replace=False))
    obs = pd.DataFrame(values, index=pd.Index([f"cell_{cell}" for cell in index_c]))
    return AnnData(sparse.csr_matrix(adata.X)[index_c], obs, adata.var.copy())


def run_all(
    simulator: Simulator, settings: pd.DataFrame, n_cells: int | None, random: np.random.Generator
) -> list[AnnData]:
    """Return cells of each setting; raise as `run`, and if the features of two runs differ."""
    runs: list[AnnData] = []
    for _, setting in settings.iterrows():
        runs.append(run(simulator, setting, n_cells, random))
        first, last = runs[0].var_names, runs[-1].var_names
        if not last.equals(first):
            differing = sorted(set(first) ^ set(last)) or ["their order"]
            where = ", ".join(f"{key}={value:g}" for key, value in setting.items())
            raise ValueError(
                f"simulator({where}) returned other features than the first run ({format_names(differing, 3)}): all "
                "runs need the same features in the same order"
            )
    return runs


def concatenate(runs: list[AnnData]) -> AnnData:
    """Return the cells of all runs in one AnnData."""
    obs = pd.concat([each.obs for each in runs])
    obs.index = pd.Index([f"run_{r}_{name}" for r, each in enumerate(runs) for name in each.obs_names])
    return AnnData(sparse.vstack([each.X for each in runs], format="csr"), obs, runs[0].var.copy())
