"""Shared by the tests of plots: comparing and reading figures, and cells with numbers made by hand."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy import sparse

FIGURES = Path(__file__).resolve().parents[1] / "figures"
# Root mean square difference, on a scale to 255. Without text, other versions of matplotlib stay far below it, and a
# missing curve is far above it: each plot has a test that removes something.
TOLERANCE = 1.5

TWO_PI = 2 * np.pi
PHASES = ("G1", "S", "G2M")
PHASE_START = np.array([0, 2.6, 4.3])


# --- Figures ----------------------------------------------------------------------------------------------------------


def difference(figure: Figure, name: str, folder: Path) -> str | None:
    """Compare a figure with the reference image in tests/figures; text is removed, because fonts differ.

    To accept a change: inspect the new image, in the folder that the message names, and copy it to tests/figures.
    """
    if mpl.__version_info__ < (3, 11):
        pytest.skip("before matplotlib 3.11, text is measured differently, and some panels are a pixel smaller")
    for legend in figure.findobj(Legend):
        legend.remove()  # an invisible legend would still take up space
    for text in figure.findobj(Text):
        text.set_visible(False)
        text.set_in_layout(False)
    for panel in figure.findobj(Axes):
        panel.tick_params(labelbottom=False, labelleft=False, labelright=False)
    figure.savefig(folder / name, dpi=50)
    return compare_images(str(FIGURES / name), str(folder / name), tol=TOLERANCE)


def texts(figure: Figure) -> set[str]:
    """Return all texts of a figure; tick labels only after it was drawn."""
    return {text.get_text() for text in figure.findobj(Text) if text.get_visible()}


def shows(figure: Figure, *facts: str) -> bool:
    """Return whether one text of the figure contains all facts, ignoring case."""
    return any(all(fact.lower() in text.lower() for fact in facts) for text in texts(figure))


def lay_out(figure: Figure) -> None:
    """Give all texts and panels their places, unless nothing has changed since."""
    if figure.stale:
        figure.draw_without_rendering()


def all_inside(figure: Figure) -> bool:
    """Return whether nothing is cut off."""
    lay_out(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    slack = 0.5 / figure.dpi  # half a pixel
    return bool(min(box.x0, box.y0) >= -slack and box.x1 <= width + slack and box.y1 <= height + slack)


def ink(text: Text) -> Any:
    """Return the bounding box of a text, without an empty line at its top."""
    box = text.get_window_extent()
    return Bbox.from_bounds(box.x0, box.y0, box.width, box.height * (0.45 if text.get_text().startswith("\n") else 1))


def overlapping(figure: Figure) -> list[str]:
    """Return the tick labels that overlap another label of their axis."""
    lay_out(figure)
    touching = []
    for panel in figure.findobj(Axes):
        for axis in (panel.xaxis, panel.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            inside = [ink(label) for label in labels]
            touching += [
                labels[i].get_text()
                for i in range(len(inside))
                for j in range(i)
                if inside[i].overlaps(inside[j]) and panel.axison
            ]
    return touching


def rows_of(panel: Axes) -> list[str]:
    """Return the labels of the rows, from top to bottom."""
    return [label.get_text() for label in panel.get_yticklabels()]


def bars_of(figure: Figure) -> list[Colorbar]:
    """Return the color bars of a figure."""
    return [panel._colorbar for panel in figure.findobj(Axes) if hasattr(panel, "_colorbar")]


# --- Cells ------------------------------------------------------------------------------------------------------------


def names_of(modality: str, n: int) -> list[str]:
    """Return feature names as they are usual for a modality."""
    write = {"rna": "GENE{}", "atac": "chr1:{}00-{}50", "protein": "CD{}"}.get(modality, modality + "_{}")
    return [write.format(*[index] * write.count("{}")) for index in range(n)]


def traversal(kind: str = "coordinate", n_features: dict[str, int] | None = None, n_steps: int = 25) -> dict[str, Any]:
    """Return a traversal as `VAE.latent_traverse` stores it; features peak one after the other at various heights."""
    n_features = n_features or {"rna": 40}
    position_s = {
        "coordinate": np.linspace(-2, 2, n_steps),
        "direction": np.linspace(-0.2, 1.3, n_steps),
        "periodic": np.linspace(0, TWO_PI, n_steps),
        "path": np.linspace(0, 1, n_steps),
    }[kind]
    share_s1 = np.linspace(0, 1, n_steps)[:, None]
    blocks = []
    for n in n_features.values():
        peak_f, height_f = np.linspace(-0.1, 1.1, n), 5 + np.arange(n) * 7 % 40
        if kind == "periodic":
            blocks.append(height_f * np.exp(2 * np.cos(TWO_PI * (share_s1 - peak_f)) - 2))
        else:
            blocks.append(0.5 + height_f * np.exp(-((4 * (share_s1 - peak_f)) ** 2)))
    for modality, block in zip(n_features, blocks, strict=True):
        if modality == "atac":
            block /= 100
    mean_sf = np.concatenate(blocks, axis=1)
    names = [name for modality, n in n_features.items() for name in names_of(modality, n)]
    log2_sf = np.log2(mean_sf / mean_sf[0])
    effect_f = np.ptp(log2_sf, axis=0)
    score_f = np.ptp(np.log1p(np.concatenate(blocks, axis=1)), axis=0)
    stored = {
        "axis": {
            "coordinate": "latent coordinate 3",
            "direction": "interferon",
            "periodic": "cell cycle",
            "path": "from CD4 T to CD8 T",
        }[kind],
        "kind": kind,
        "position": position_s,
        "position_label": {
            "coordinate": "latent coordinate 3",
            "direction": "interferon score",
            "periodic": "cell cycle angle (rad)",
            "path": "way from CD4 T to CD8 T",
        }[kind],
        "path": np.outer(share_s1, [1, -1, 0]).astype(np.float32),
        "feature_names": np.array(names, dtype=object),
        "modality": np.array([modality for modality, n in n_features.items() for _ in range(n)], dtype=object),
        "likelihood": {name: "bernoulli" if name == "atac" else "negative_binomial" for name in n_features},
        "library_size": {name: {"rna": 1e4, "atac": 900.0}.get(name, 500.0) for name in n_features},
        "mean": mean_sf,
        "lower": 0.8 * mean_sf,
        "upper": 1.3 * mean_sf + 0.005,
        "log2_fold_change": log2_sf,
        "effect_size": effect_f,
        "change": np.zeros(len(names)) if kind == "periodic" else log2_sf[-1],
        "peak_step": mean_sf[: n_steps - 1 if kind == "periodic" else n_steps].argmax(0),
        "lfsr": np.where(np.arange(len(names)) % 5 == 0, 0.2, 0.001),
        "fdr": np.full(len(names), 0.01),
        "rank": np.argsort(np.argsort(-score_f, kind="stable"), kind="stable"),
        "interval": 0.9,
        "n_cells": 500,
        "n_samples": 2,
        "at": "500 of all cells",
        "covariates": {},
    }
    if kind == "periodic":
        stored["phases"] = {"names": np.array(PHASES, dtype=object), "start": PHASE_START}
    return stored


def fitted() -> AnnData:
    """Return cells as after `fit` and `latent_traverse`, with numbers that do not depend on a model."""
    epoch_e = np.arange(30)
    elbo_e = -650 - 3000 * np.exp(-1.5 * epoch_e) - 60 * np.exp(-0.2 * epoch_e)
    history = {
        "elbo_train": elbo_e + 5,
        "elbo_validation": elbo_e - 0.03 * np.maximum(epoch_e - 20, 0) ** 2,
        "kl_validation": 12 - 8 * np.exp(-0.3 * epoch_e),
        "kl_weight": np.minimum(1, (epoch_e + 1) / 5),
        "seconds": 0.5 * (epoch_e + 1),
    }
    history["kept"] = (epoch_e == history["elbo_validation"].argmax()).astype(float)
    return AnnData(
        np.zeros((2, 40), dtype=np.float32),
        uns={"celldial": {"history": history}, "latent_traverse": {"axis_3": traversal()}},
    )


def stored_in(**traversals: dict[str, Any]) -> AnnData:
    """Return cells that have only traversals."""
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"latent_traverse": dict(traversals)})


def coordinates(n: int = 6, modalities: tuple[str, ...] = ("rna",)) -> pd.DataFrame:
    """Return coordinates as `VAE.axes` stores them: not sorted by rank, the last two unused."""
    size_z = np.array([0.5 ** (1 + (k + 2) % n) for k in range(n)])
    size_z[size_z < 0.5 ** (n - 1.5)] = 0.001
    table = pd.DataFrame({"kl": 3 * size_z, "variance": 20 * size_z, "share": size_z / size_z.sum()})
    table.index = pd.Index([*(f"axis_{k}" for k in range(n - 1)), "cell_cycle"])
    for turn, modality in enumerate(modalities):
        shifted = np.roll(table["share"], turn) if len(modalities) > 1 else table["share"]
        table[f"share_{modality}"] = np.asarray(shifted)
    table["used"] = size_z > 0.01
    table["rank"] = np.argsort(np.argsort(-size_z, kind="stable"), kind="stable")
    return table


def ranked(n: int = 6, modalities: tuple[str, ...] = ("rna",)) -> AnnData:
    """Return cells that have only a table of coordinates."""
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"celldial": {"coordinates": coordinates(n, modalities)}})


def checked(batches: tuple[str, ...] = ("all", "b1", "b2"), modality: str = "rna") -> AnnData:
    """Return cells that have only a table of checks, of which the last batch fails two."""
    rows = [
        (check, modality, batch, center + (4 if fails else 0.5) * width, center - width, center + width, 0.5, fails)
        for check, center, width in (
            *(("zeros", 0.0, 0.01), ("library_size", 0.0, 0.02), ("correlations", 0.03, 0.03)),
            *(("dispersion", 1.0, 0.05), ("coverage", 0.9, 0.01)),
        )
        for batch in batches
        for fails in [batch == batches[-1] and check in ("zeros", "dispersion")]
    ]
    rows += [("doublets", modality, "all", 0.2, -0.3, 0.3, 0.4, False)]
    rows += [("importance_weights", "all", "all", 0.1, 0.0, 0.5, np.nan, False)]
    columns = ["check", "modality", "batch", "observed", "lower", "upper", "p_value", "failed"]
    table = pd.DataFrame(rows, columns=columns).assign(advice="")
    table.index = table.index.astype(str)
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"celldial": {"check": table}})


def integrated(types: bool = True) -> AnnData:
    """Return cells that have only a report on an integration, in which a type of a single batch was lost."""
    table = pd.DataFrame(
        {"embedding": [0.8, 0.6], "unintegrated": [0.1, 0.05], "shuffled": [0.95, 0.9]}, index=["iLISI", "kBET"]
    )
    report = {
        "over_correction": "Over-correction was not checked.",
        "batch_key": "donor",
        "n_cells": 300,
        "n_batches": 3,
    }
    if types:
        of_types = {"graph connectivity": (0.9, 0.7), "cLISI": (0.99, 0.98), "NMI": (0.75, 0.7), "ARI": (0.6, 0.65)}
        rows = pd.DataFrame.from_dict(of_types, orient="index", columns=["embedding", "unintegrated"])
        table = pd.concat([table, rows])
        report["label_key"] = "cell_type"
        report["over_correction"] = "Signs of over-correction: 'NK', found only in batch 'donor 2', was mixed."
        report["types"] = pd.DataFrame(
            {
                "n_cells": [100, 150, 50],
                "batch": ["", "", "donor 2"],
                "embedding": [0.95, 0.9, 0.4],
                "unintegrated": [0.9, 0.85, 0.95],
                "standard_error": 0.01,
            },
            index=["B", "CD4 T", "NK"],
        )
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"celldial": {"integration": {**report, "table": table}}})


def sweep(parameters: tuple[str, ...] = ("mu", "sigma")) -> pd.DataFrame:
    """Return a table as of `tl.sweep_gradients`: powers of the width, and averages slightly off their line."""
    estimators = ["score_function + learned", "reparameterized", "score_function"]
    if "cluster" in parameters:
        estimators = ["enumerate", "gumbel_softmax", "straight_through", *estimators[::2]]
    rows = []
    for turn, parameter in enumerate(parameters):
        for height, estimator in enumerate(estimators):
            height = min(height, 1) if estimator == "straight_through" else height
            power = 2 if estimator in ("reparameterized", "enumerate") else -2
            level = 10.0 ** (2 * height + turn)
            rows += [(parameter, estimator, width, 1, level * width**power) for width in (0.1, 1.0, 3.0)]
            rows += [(parameter, estimator, 1.0, k, level / k * (1 + 0.03 * k)) for k in (4, 16)]
    return pd.DataFrame(rows, columns=["parameter", "estimator", "width", "n_averaged", "variance"])


def kinetic(groups: tuple[str, ...] = ("control", "treated")) -> AnnData:
    """Return cells that have only the kinetics of three genes, with a bin that has no cells."""
    angle_j = np.arange(64) * TWO_PI / 64
    rate_g1 = np.arange(1, len(groups) + 1)[:, None] / 2
    speed_gj = rate_g1 * np.exp(0.3 * np.cos(angle_j - 4))
    lag_g11 = 0.3 + 0.4 * rate_g1[..., None]
    peak_f = np.array([3.0, 5.0, 5.3])
    spliced_gjf = 2 + 1.5 * np.cos(angle_j[:, None] - peak_f - lag_g11)
    unspliced_gjf = (0.8 + 0.6 * np.cos(angle_j[:, None] - peak_f)) * np.ones((len(groups), 1, 1))
    noise_j1 = 1 + 0.1 * np.cos(7 * np.arange(16))[:, None]
    observed = [curve_gjf[:, ::4] * noise_j1 for curve_gjf in (unspliced_gjf, spliced_gjf)]
    for curve_gjf in observed:
        curve_gjf[-1, 0] = np.nan
    stored = {
        "name": "cell_cycle",
        "groups": np.array(groups, dtype=object),
        "unit": "hours",
        "angle": angle_j,
        "speed": speed_gj,
        "speed_lower": 0.85 * speed_gj,
        "speed_upper": 1.15 * speed_gj,
        "unspliced": unspliced_gjf,
        "spliced": spliced_gjf,
        "observed_unspliced": observed[0],
        "observed_spliced": observed[1],
        "genes": np.array(["MCM5", "TOP2A", "CDK1"], dtype=object),
        "n_genes": 3,
        "n_cells": 400,
    }
    periodic = {"name": "cell_cycle", "phases": np.array(PHASES, dtype=object), "phase_start": PHASE_START}
    return AnnData(np.zeros((2, 1), dtype=np.float32), uns={"celldial": {"kinetics": stored, "periodic": periodic}})


def cycling(n_cells: int = 240, phases: bool = True) -> AnnData:
    """Return cells on a circle, every fourth of them without a phase, with markers, a map and traversals."""
    turn_c = np.arange(n_cells) / n_cells
    angle_c = TWO_PI * (turn_c + 0.12 * np.sin(TWO_PI * turn_c)) % TWO_PI
    active_c = np.arange(n_cells) % 4 != 0
    names = ["MCM5", "MCM6", "PCNA", "GINS2", "TOP2A", "CDK1", "UBE2C", "MKI67", "ACTB", "GAPDH"]
    peak_f = np.array([3.0, 3.2, 2.9, 3.1, 5.2, 5.0, 5.4, 5.3, 0, 0])
    height_f = np.array([30, 25, 20, 2, 30, 25, 20, 2, 0, 0])
    rate_cf = 2 + height_f * np.exp(2 * np.cos(angle_c[:, None] - peak_f) - 2) * active_c[:, None]
    counts_cf = np.floor(rate_cf + np.arange(n_cells)[:, None] * 7 % 11 / 11).astype(np.float32)
    phase_c = np.array(PHASES, dtype=object)[np.searchsorted(PHASE_START, angle_c, side="right") - 1]
    obs = pd.DataFrame(
        {
            "cell_cycle_angle": angle_c,
            "cell_cycle_active": active_c,
            "cell_cycle_phase": pd.Categorical(np.where(active_c, phase_c, np.nan), PHASES),
            "cell_type": pd.Categorical(np.array(["T cell", "B cell", "monocyte"])[np.arange(n_cells) % 3]),
            "score": np.cos(angle_c),
        },
        index=[f"cell_{c}" for c in range(n_cells)],
    )
    around_c2 = np.column_stack([np.cos(angle_c), np.sin(angle_c)]) * (1 + 0.2 * np.sin(np.arange(n_cells)))[:, None]
    around_c2[~active_c] = [4, 1] + 0.3 * around_c2[~active_c]
    stored = traversal("periodic", {"rna": len(names)})
    curve_sf = 2 + height_f * np.exp(2 * np.cos(stored["position"][:, None] - peak_f) - 2)
    curve_sf *= 60 / curve_sf.sum(1, keepdims=True)
    stored |= {"feature_names": np.array(names, dtype=object), "mean": curve_sf, "lower": 0.9 * curve_sf}
    stored |= {"upper": 1.1 * curve_sf, "library_size": {"rna": 60.0}, "path": np.zeros((25, 4), dtype=np.float32)}
    path = traversal("path", {"rna": len(names)})
    path["path"] = np.linspace([0.5, 1, 0], [4, 1, 0], 25).astype(np.float32)
    about = {
        "key_added": "X_celldial",
        "parameters": {"layer": None},
        "schema": {
            "modalities": ["rna"],
            "feature_names": {"rna": names},
            "likelihood": {"rna": "negative_binomial"},
        },
        "periodic": {"name": "cell_cycle"},
    }
    if phases:
        markers = {"S": np.array([*names[:4], "NOT_THERE"]), "G2M": np.array(names[4:8])}
        about["periodic"] |= {"phases": np.array(PHASES), "phase_start": PHASE_START, "markers": markers}
    else:
        del obs["cell_cycle_phase"], stored["phases"]
    return AnnData(
        sparse.csr_matrix(counts_cf),
        obs=obs,
        var=pd.DataFrame(index=names),
        obsm={"X_umap": around_c2, "X_celldial": np.column_stack([around_c2, np.zeros(n_cells)]).astype(np.float32)},
        uns={"celldial": about, "latent_traverse": {"CD4 T to CD8 T": path, "cell_cycle": stored}},
    )
