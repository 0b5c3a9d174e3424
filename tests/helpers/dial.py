"""Shared by the tests of the dial page: cells with traversals, and reading what a page contains."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from helpers.figures import cycling, traversal

# HTML that would run a script if a name were not escaped.
HOSTILE = '</script><img src=x onerror="window.hostile=1"><script>window.hostile=1</script>'


def dial_cells() -> AnnData:
    """Return cells with traversals of genes and peaks: along a path, an axis and a circle."""
    cells = cycling()
    stored = cells.uns["latent_traverse"]
    path_sz = stored["CD4 T to CD8 T"]["path"]
    for name, kind in (("CD4 T to CD8 T", "path"), ("interferon", "direction"), ("cell_cycle", "periodic")):
        stored[name] = traversal(kind, {"rna": 24, "atac": 16}) | {"path": path_sz}
    return cells


def with_hostile_names(cells: AnnData) -> AnnData:
    """Replace all names by HTML, or by text like a placeholder of the template."""
    stored = cells.uns["latent_traverse"]["CD4 T to CD8 T"]
    stored["axis"] = f"from {HOSTILE} to {{{{script}}}}"
    stored["position_label"] = f"way {HOSTILE}"
    stored["feature_names"][:] = [f"{HOSTILE}{index}" for index in range(40)]
    stored["feature_names"][np.argmin(stored["rank"])] = "{{payload}} \ud800 & <b>"
    stored["at"] = HOSTILE
    stored["covariates"] = {HOSTILE: HOSTILE}
    cells.obs[HOSTILE] = pd.Categorical([HOSTILE] * 120 + ["<b>bold</b>"] * 120)
    return cells


def payload_of(page: Path) -> dict[str, Any]:
    """Return the data that Python wrote into a page."""
    return json.loads(re.search(r'id="payload">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1])


def names_in(payload: dict[str, Any]) -> list[str]:
    """Return the names of the features, in order."""
    return [feature["name"] for modality in payload["modalities"] for feature in modality["features"]]


def decode_floats(payload: dict[str, Any], name: str) -> np.ndarray:
    """Return values, steps × features."""
    values = np.frombuffer(base64.b64decode(payload[name]), "<f4")
    return values.reshape(len(payload["positions"]), -1)


def decode_integers(text: str) -> np.ndarray:
    """Return the numbers of cells: positions, or indices of colors."""
    return np.frombuffer(base64.b64decode(text), "<u2")
