"""Simulation of unspliced and spliced counts along the cell cycle, from the kinetic equations, with known truth.

Axis suffixes: ``c`` cells, ``g`` genes, ``t`` times on a grid of one cycle, ``b`` batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from celldial.datasets._regulation import CELL_CYCLE_GENES, CYCLE_HOURS, make_categorical

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["simulate_kinetics"]

CONDITIONS = ("control", "treated")
TWO_PI = 2 * np.pi
# Starts of S and G2M. They are those of `simulate_multiome`, at hours 12 and 20 of 24.
S_START, G2M_START = np.pi, 5 * np.pi / 3
# Width of the change of speed at both ends of S, in radians.
_EDGE = 0.1
# Points of one cycle at which the equations are solved.
_N_TIMES = 1024
# Medians in hours, and spreads on the log scale.
_HALF_LIFE, _SPLICING_HALF_LIFE, _RATE_SPREAD = 3.0, 1.0, 0.5
# Concentration of the pulse of transcription, and its base level relative to its height.
_CONCENTRATION, _BASE = (1.0, 3.0), (0.02, 0.12)
# Medians and spreads of mean spliced counts of the genes that cycle, and of the others.
_LEVEL, _OTHER_LEVEL = (1.5, 0.6), (0.7, 1.2)
_SIZE_SPREAD, _LAYER_SPREAD, _BATCH_EFFECT, _BATCH_DEPTH = 0.3, 0.1, 0.15, 0.2
_INVERSE_DISPERSION = (3.0, 0.4)


def simulate_kinetics(
    n_cells: int = 3000,
    n_genes: int = 500,
    n_cycling_genes: int = 60,
    n_batches: int = 2,
    *,
    speed_ratio: float = 1.5,
    s_phase_speed: float = 1.0,
    depth: float = 1.0,
    seed: int = 0,
) -> AnnData:
    """Simulate unspliced and spliced RNA along the cell cycle in two conditions, with the truth in the AnnData.

    Each gene is transcribed in a pulse at its own angle, spliced at rate β and degraded at rate γ. The unspliced and
    spliced amounts u and s follow the kinetic equations ``du/dt = α(θ) - β u`` and ``ds/dt = β u - γ s`` while the
    angle θ moves at the speed ω(θ), and are periodic. The two conditions have the same rates and transcription as a
    function of the angle, and differ only in speed. Half of the cells are in each.

    Parameters
    ----------
    n_cells, n_genes
        Numbers of cells and genes.
    n_cycling_genes
        Number of genes with a pulse of transcription. The others are transcribed at a constant rate. The first 51 of
        the cycling genes have the names of known cell-cycle genes, and their spliced RNA peaks at the known time if
        the speed is constant.
    n_batches
        Number of batches. Both conditions have cells of every batch.
    speed_ratio
        Speed in the condition ``"treated"``, relative to ``"control"``, in which a cycle takes 24 hours.
    s_phase_speed
        Speed during S phase relative to the other phases; 2 if the angle moves twice as fast during S.
    depth
        Expected counts of a cell, in both layers, as a multiple of the default, which is about 2 spliced and 1
        unspliced counts of a cycling gene.
    seed
        Random seed. The same seed and arguments give the same data.

    Returns
    -------
    anndata.AnnData
        Cells × genes. ``X`` and ``layers["spliced"]`` have the spliced counts, and ``layers["unspliced"]`` the
        unspliced counts: negative binomial counts, as CSR matrices in float32.

        - ``obs``: ``condition`` and ``batch``; ``true_cell_cycle_angle`` in [0, 2π), in radians, 0 at division;
          ``phase`` is G1 up to π, S up to 5π/3, then G2M; ``true_speed`` in radians per hour, at the angle of the cell;
          ``size`` is the factor of its counts.
        - ``var``: ``is_cycling``; ``true_beta`` and ``true_gamma`` per hour; ``pulse_angle`` in radians, where
          transcription is highest (missing for genes that do not cycle); ``inverse_dispersion``.
        - ``varm["batch_effect"]``: genes × batches, on the scale of natural logarithms, of both layers.
        - ``uns["simulation"]``: the arguments; ``cycle_hours`` of each condition; ``phase_share``, the share of the
          cycle's duration in each phase; ``angle`` and ``speed``, a table of the speed around the circle by condition.

    Raises
    ------
    TypeError
        If a number has the wrong type.
    ValueError
        If a number is out of range, or if more genes cycle than there are.

    Notes
    -----
    Cells are distributed over the time since division as in a growing population, with twice as many newborn as
    dividing cells. The counts of a cell are scaled by a size that does not depend on the angle.

    Examples
    --------
    >>> import celldial as cd
    >>> adata = cd.datasets.simulate_kinetics(200, 80, 60, speed_ratio=2.0)
    >>> sorted(adata.layers)
    ['spliced', 'unspliced']
    >>> adata.uns["simulation"]["cycle_hours"]
    {'control': 24.0, 'treated': 12.0}
    """
    from anndata import AnnData

    sizes = {"n_cells": n_cells, "n_genes": n_genes, "n_cycling_genes": n_cycling_genes, "n_batches": n_batches}
    numbers = {"speed_ratio": speed_ratio, "s_phase_speed": s_phase_speed, "depth": depth}
    _validate(sizes, numbers, seed)
    streams = np.random.SeedSequence(seed).spawn(3)
    gene_rng, cell_rng, count_rng = map(np.random.default_rng, streams)
    speed = SpeedProfile.make(s_phase_speed)
    genes = _draw_genes(gene_rng, n_genes, n_cycling_genes)
    batch_effect_gb = gene_rng.normal(0, _BATCH_EFFECT, (n_genes, n_batches))
    batch_effect_gb -= batch_effect_gb.mean(1, keepdims=True)
    obs, position_c = _draw_cells(cell_rng, n_cells, n_batches, speed, speed_ratio)
    log_size_cl = np.log(depth * obs["size"].to_numpy())[:, None] + cell_rng.normal(0, _LAYER_SPREAD, (n_cells, 2))

    transcription_tg = _transcription(genes, speed)
    beta_g, gamma_g = genes["true_beta"].to_numpy(), genes["true_gamma"].to_numpy()
    mean = {layer: np.empty((n_cells, n_genes)) for layer in ("unspliced", "spliced")}
    grid_t = np.arange(_N_TIMES + 1) / _N_TIMES
    for condition, ratio in zip(CONDITIONS, (1.0, speed_ratio), strict=True):
        own_c = np.flatnonzero(obs["condition"] == condition)
        solved = solve(transcription_tg, beta_g, gamma_g, CYCLE_HOURS / ratio)
        for column, (layer, value_tg) in enumerate(zip(mean, solved, strict=True)):
            closed_tg = np.vstack([value_tg, value_tg[:1]])
            for gene in range(n_genes):
                mean[layer][own_c, gene] = np.interp(position_c[own_c], grid_t, closed_tg[:, gene])
            effect_cg = batch_effect_gb.T[obs["batch"].cat.codes.to_numpy()[own_c]]
            mean[layer][own_c] *= np.exp(effect_cg + log_size_cl[own_c, column, None])
    inverse_dispersion_g = genes["inverse_dispersion"].to_numpy()
    layers = {
        layer: csr_matrix(count_rng.poisson(count_rng.gamma(inverse_dispersion_g, mean_cg / inverse_dispersion_g)))
        for layer, mean_cg in mean.items()
    }
    layers = {layer: counts_cg.astype(np.float32) for layer, counts_cg in layers.items()}
    simulation = {**sizes, **numbers, "seed": seed, **speed.describe(speed_ratio)}
    return AnnData(
        layers["spliced"].copy(),
        obs=obs,
        var=genes.drop(columns=["concentration", "base", "level"]),
        uns={"simulation": simulation},
        varm={"batch_effect": batch_effect_gb},
        layers=layers,
    )


@dataclass(frozen=True)
class SpeedProfile:
    """Angle as a function of time over one cycle of duration 1, on a fine grid.

    Parameters
    ----------
    angle_i
        Angles, from 0 to 2π.
    time_i
        Share of the cycle that has passed at each angle.
    relative_i
        Speed at each angle relative to that outside of S phase.
    """

    angle_i: np.ndarray
    time_i: np.ndarray
    relative_i: np.ndarray

    @staticmethod
    def make(s_phase_speed: float) -> SpeedProfile:
        """Return the profile with this relative speed during S phase."""
        angle_i = np.linspace(0, TWO_PI, 4097)
        inside_i = 1 / (1 + np.exp((S_START - angle_i) / _EDGE)) - 1 / (1 + np.exp((G2M_START - angle_i) / _EDGE))
        relative_i = np.exp(np.log(s_phase_speed) * inside_i)
        step_i = (1 / relative_i[1:] + 1 / relative_i[:-1]) / 2
        time_i = np.concatenate([[0], np.cumsum(step_i)])
        return SpeedProfile(angle_i, time_i / time_i[-1], relative_i)

    def angle_at(self, time: np.ndarray) -> np.ndarray:
        """Return the angle after a share of the cycle."""
        angle: np.ndarray = np.interp(time, self.time_i, self.angle_i) % TWO_PI
        return angle

    def speed_at(self, angle: np.ndarray, hours: float) -> np.ndarray:
        """Return the speed in radians per hour if a cycle takes `hours`."""
        # The mean of the reciprocal speed gives the duration of the cycle.
        duration = np.trapezoid(1 / self.relative_i, self.angle_i)
        speed: np.ndarray = np.interp(angle, self.angle_i, self.relative_i) * duration / hours
        return speed

    def describe(self, speed_ratio: float) -> dict[str, Any]:
        """Return the truth about the speed, for ``uns["simulation"]``."""
        hours = dict(zip(CONDITIONS, (CYCLE_HOURS, CYCLE_HOURS / speed_ratio), strict=True))
        ends = np.interp([0, S_START, G2M_START, TWO_PI], self.angle_i, self.time_i)
        grid = np.arange(64) * TWO_PI / 64
        speed = pd.DataFrame({name: self.speed_at(grid, hour) for name, hour in hours.items()})
        speed.index = speed.index.astype(str)
        share = dict(zip(("G1", "S", "G2M"), np.diff(ends).tolist(), strict=True))
        return {"cycle_hours": hours, "phase_share": share, "angle": grid, "speed": speed}


def solve(
    transcription_tg: np.ndarray, beta_g: np.ndarray, gamma_g: np.ndarray, duration: float
) -> tuple[np.ndarray, np.ndarray]:
    """Solve the kinetic equations for their periodic solution at evenly spaced times of one cycle.

    Parameters
    ----------
    transcription_tg
        Rate of transcription at each time.
    beta_g, gamma_g
        Rates of splicing and of degradation, per unit of time.
    duration
        Duration of a cycle in the same unit.

    Returns
    -------
    tuple[numpy.ndarray, numpy.ndarray]
        Unspliced and spliced amounts, shape ``(t, g)``.
    """
    n_times = len(transcription_tg)
    frequency_k1 = 1j * TWO_PI * np.fft.rfftfreq(n_times, duration / n_times)[:, None]
    unspliced_kg = np.fft.rfft(transcription_tg, axis=0) / (beta_g + frequency_k1)
    spliced_kg = beta_g * unspliced_kg / (gamma_g + frequency_k1)
    return np.fft.irfft(unspliced_kg, n_times, axis=0), np.fft.irfft(spliced_kg, n_times, axis=0)


def _validate(sizes: dict[str, int], numbers: dict[str, float], seed: int) -> None:
    """Raise if an argument is invalid."""
    for name, value in {**sizes, "seed": seed}.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, not {value!r}.")
        minimum = 0 if name in ("seed", "n_cycling_genes") else 1
        if int(value) < minimum:
            raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    if sizes["n_cycling_genes"] > sizes["n_genes"]:
        raise ValueError(f"n_cycling_genes is {sizes['n_cycling_genes']}, more than n_genes, {sizes['n_genes']}.")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{name} must be a number, not {number!r}.")
        if not 0 < number < np.inf:
            raise ValueError(f"{name} must be positive and finite, not {number}.")


def _draw_genes(rng: np.random.Generator, n_genes: int, n_cycling_genes: int) -> pd.DataFrame:
    """Draw rates, pulses of transcription and levels of the genes; those that cycle come first."""
    cycles_g = np.arange(n_genes) < n_cycling_genes
    width = max(4, len(str(n_genes)))
    names = [f"GENE{number:0{width}}" for number in range(1, n_genes + 1)]
    hour_g = rng.uniform(0, CYCLE_HOURS, n_genes)
    # In an order by chance, so that a small number of cycling genes still covers the phases.
    known = rng.permutation(np.array(list(CELL_CYCLE_GENES), dtype=object))[:n_cycling_genes]
    names[: len(known)] = known
    hour_g[: len(known)] = [CELL_CYCLE_GENES[name] for name in known]
    genes = pd.DataFrame(index=pd.Index(names, dtype=object))
    genes["is_cycling"] = cycles_g
    genes["true_beta"] = np.log(2) / (_SPLICING_HALF_LIFE * rng.lognormal(0, _RATE_SPREAD, n_genes))
    genes["true_gamma"] = np.log(2) / (_HALF_LIFE * rng.lognormal(0, _RATE_SPREAD, n_genes))
    genes["concentration"] = np.where(cycles_g, rng.uniform(*_CONCENTRATION, n_genes), 0.0)
    genes["base"] = np.where(cycles_g, rng.uniform(*_BASE, n_genes), 1.0)
    median_g, spread_g = np.where(cycles_g, np.array(_LEVEL)[:, None], np.array(_OTHER_LEVEL)[:, None])
    genes["level"] = median_g * np.exp(spread_g * rng.normal(size=n_genes))
    # Spliced RNA peaks later than transcription, by this delay at constant speed.
    time_t = np.arange(_N_TIMES) / _N_TIMES * TWO_PI
    pulse_tg = _pulse(time_t, genes, np.zeros(n_genes))
    spliced_tg = solve(pulse_tg, genes["true_beta"].to_numpy(), genes["true_gamma"].to_numpy(), CYCLE_HOURS)[1]
    delay_g = time_t[spliced_tg.argmax(0)]
    angle_g = (hour_g / CYCLE_HOURS * TWO_PI - delay_g) % TWO_PI
    genes["pulse_angle"] = np.where(cycles_g, angle_g, np.nan)
    genes["inverse_dispersion"] = _INVERSE_DISPERSION[0] * rng.lognormal(0, _INVERSE_DISPERSION[1], n_genes)
    return genes


def _pulse(angle_t: np.ndarray, genes: pd.DataFrame, pulse_g: np.ndarray) -> np.ndarray:
    """Return a base level plus a von Mises pulse of height 1 at the angles `pulse_g`, shape ``(t, g)``."""
    height_tg = np.exp(genes["concentration"].to_numpy() * (np.cos(angle_t[:, None] - pulse_g) - 1))
    base_g = genes["base"].to_numpy()
    pulse_tg: np.ndarray = base_g + (1 - base_g) * height_tg
    return pulse_tg


def _transcription(genes: pd.DataFrame, speed: SpeedProfile) -> np.ndarray:
    """Return the rate of transcription over one cycle, so that the mean spliced count is the level of the gene."""
    angle_t = speed.angle_at(np.arange(_N_TIMES) / _N_TIMES)
    pulse_tg = _pulse(angle_t, genes, genes["pulse_angle"].fillna(0).to_numpy())
    scale_g = genes["level"].to_numpy() * genes["true_gamma"].to_numpy() / pulse_tg.mean(0)
    transcription_tg: np.ndarray = pulse_tg * scale_g
    return transcription_tg


def _draw_cells(
    rng: np.random.Generator, n_cells: int, n_batches: int, speed: SpeedProfile, speed_ratio: float
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw condition, batch, size and position of each cell; the position is the share of the cycle that has passed."""
    width = max(4, len(str(n_cells)))
    obs = pd.DataFrame(index=[f"cell_{number:0{width}}" for number in range(1, n_cells + 1)])
    condition_c = rng.permutation(np.arange(n_cells) % 2)
    batch_c = rng.integers(n_batches, size=n_cells)
    obs["condition"] = make_categorical(condition_c, list(CONDITIONS))
    obs["batch"] = make_categorical(batch_c, [f"batch{number}" for number in range(1, n_batches + 1)])
    # A growing population has twice as many newborn cells as dividing cells: density 2^(-t), drawn by inversion.
    position_c = -np.log2(1 - rng.random(n_cells) / 2)
    angle_c = speed.angle_at(position_c)
    obs["true_cell_cycle_angle"] = angle_c
    phase_c = np.searchsorted([S_START, G2M_START], angle_c, side="right")
    obs["phase"] = make_categorical(phase_c, ["G1", "S", "G2M"])
    hours_c = CYCLE_HOURS / np.where(condition_c == 0, 1.0, speed_ratio)
    obs["true_speed"] = speed.speed_at(angle_c, 1.0) / hours_c
    batch_size_b = rng.lognormal(0, _BATCH_DEPTH, n_batches)
    obs["size"] = batch_size_b[batch_c] * rng.lognormal(0, _SIZE_SPREAD, n_cells)
    return obs, position_c
