"""Stored named axes."""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

# --- VAE.latent_traverse ----------------------------------------------------------------------------------------------


AXIS = {
    "kind": "direction",
    "description": "type: A → B",
    "origin": np.array([0.1, 0.2, 0.3], dtype=np.float32),
    "direction": np.array([1.0, 0.5, 0.0], dtype=np.float32),
    "filter": np.array([0.8, 0.4, 0.0], dtype=np.float32),
}


def with_axis(adata: AnnData, name: str = "response") -> AnnData:
    adata.uns["celldial"] = {"axes": {name: AXIS}}
    return adata


# --- As users meet it -------------------------------------------------------------------------------------------------


def snapshot(axis_adata: AnnData) -> dict[str, Any]:
    return {
        "obs": axis_adata.obs.copy(),
        "obsm": sorted(axis_adata.obsm),
        "uns": sorted(axis_adata.uns),
        "celldial": sorted(axis_adata.uns.get("celldial", {})),
        "axes": sorted(axis_adata.uns.get("celldial", {}).get("axes", {})),
    }


def assert_same_snapshot(adata: AnnData, before: dict[str, Any]) -> None:
    """Assert that `adata` is as it was when `before` was recorded."""
    after = snapshot(adata)
    pd.testing.assert_frame_equal(after.pop("obs"), before.pop("obs"))
    assert after == before
