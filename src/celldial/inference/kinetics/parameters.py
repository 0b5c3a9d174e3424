"""Parameters of the kinetic model: their layout, priors, expected counts, and derivatives.

The speed of each group is shared by all genes. Every other parameter belongs to one gene, so the precision matrix of
the posterior has the form of an arrow: a block for the speed, a block for each gene, and the blocks between them.

Axis suffixes: ``b`` bins of group and batch, ``d`` parameters of a gene, ``f`` genes, ``g`` groups, ``h`` Fourier
features, ``j`` angles, ``l`` layers (unspliced, spliced), ``m`` parameters of the speed, ``n`` samples, ``p`` all
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from celldial.inference.kinetics.counts import N_BINS, SPLICED, UNSPLICED, BinnedCounts
from celldial.inference.kinetics.equations import N_ANGLES, TimeBasis, positive, solve_in_time
from celldial.utils.fourier import fourier_features

__all__ = ["Arrow", "Layout"]

# Standard deviations of the priors of natural logarithms. Harmonics have that of the first divided by their number.
SPEED_SD, SPEED_HARMONIC_SD = 1.0, 0.5
GAMMA_SD, BETA_SD, BATCH_SD = 0.7, 1.5, 0.3
BETA_MEAN = 1.0
ALPHA_SD, ALPHA_HARMONIC_SD = 3.0, 1.5
# Columns of the parameters of a gene.
LOG_GAMMA, LOG_BETA, FIRST_ALPHA = 0, 1, 2


@dataclass(frozen=True)
class Layout:
    """Layout of the parameters.

    Parameters
    ----------
    n_groups, n_batches, n_genes
        Sizes of the data.
    n_speed_harmonics, n_alpha_harmonics
        Numbers of harmonics of the log speed and of the log rate of transcription.
    """

    n_groups: int
    n_batches: int
    n_genes: int
    n_speed_harmonics: int
    n_alpha_harmonics: int

    @property
    def n_speed(self) -> int:
        """Number of parameters of the speed."""
        return self.n_groups * (1 + 2 * self.n_speed_harmonics)

    @property
    def n_alpha(self) -> int:
        """Number of parameters of a gene's transcription in one group."""
        return 1 + 2 * self.n_alpha_harmonics

    @property
    def n_local(self) -> int:
        """Number of parameters of a gene."""
        return FIRST_ALPHA + self.n_groups * self.n_alpha + 2 * (self.n_batches - 1)

    @property
    def n_parameters(self) -> int:
        """Number of all parameters."""
        return self.n_speed + self.n_genes * self.n_local

    def split(self, parameter_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parameters of the speed, shape ``(..., m)``, and of the genes, shape ``(..., f, d)``."""
        speed_m, local_fd = parameter_p.split([self.n_speed, self.n_genes * self.n_local], -1)
        return speed_m, local_fd.unflatten(-1, (self.n_genes, self.n_local))

    def join(self, speed_m: Tensor, local_fd: Tensor) -> Tensor:
        """Return all parameters in one vector."""
        return torch.cat([speed_m, local_fd.flatten(-2)], -1)

    def prior(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of the normal priors, shape ``(p,)``."""
        speed_m = torch.tensor([SPEED_SD, *_harmonic_scale(SPEED_HARMONIC_SD, self.n_speed_harmonics)])
        alpha = torch.tensor([ALPHA_SD, *_harmonic_scale(ALPHA_HARMONIC_SD, self.n_alpha_harmonics)])
        n_batch_effects = self.n_local - FIRST_ALPHA - self.n_groups * self.n_alpha
        parts = [
            torch.tensor([GAMMA_SD, BETA_SD]),
            alpha.repeat(self.n_groups),
            torch.full((n_batch_effects,), BATCH_SD),
        ]
        scale_p = self.join(speed_m.repeat(self.n_groups).double(), torch.cat(parts).double().repeat(self.n_genes, 1))
        mean_fd = torch.zeros(self.n_genes, self.n_local, dtype=torch.float64)
        mean_fd[:, LOG_BETA] = BETA_MEAN
        return self.join(torch.zeros(self.n_speed, dtype=torch.float64), mean_fd), scale_p

    def log_speed(self, speed_m: Tensor, n_angles: int = N_ANGLES) -> Tensor:
        """Return the log speed of each group around the circle, shape ``(..., g, j)``."""
        return speed_m.unflatten(-1, (self.n_groups, -1)) @ _basis(self.n_speed_harmonics, n_angles).T

    def log_curves(self, speed_m: Tensor, local_fd: Tensor) -> Tensor:
        """Return log amounts of both layers in each group and bin of the angle, shape ``(l, g, j, f)``."""
        speed_gj = self.log_speed(speed_m).exp()
        alpha_basis_jh = _basis(self.n_alpha_harmonics, N_ANGLES)
        gamma_f, beta_f = local_fd[:, LOG_GAMMA].exp(), local_fd[:, LOG_BETA].exp()
        groups = []
        for g in range(self.n_groups):
            first = FIRST_ALPHA + g * self.n_alpha
            alpha_jf = (alpha_basis_jh @ local_fd[:, first : first + self.n_alpha].T).exp()
            solved = solve_in_time(speed_gj[g], alpha_jf, beta_f, gamma_f)
            groups.append(torch.stack([value_jf[:: N_ANGLES // N_BINS].log() for value_jf in solved]))
        return torch.stack(groups, 1)

    def log_mean(self, speed_m: Tensor, local_fd: Tensor) -> Tensor:
        """Return log means of a cell of size 1 in each bin of group and batch, shape ``(l, b, j, f)``."""
        curve_lgjf = self.log_curves(speed_m, local_fd)
        if self.n_batches == 1:
            return curve_lgjf
        contrast_flk = local_fd[:, FIRST_ALPHA + self.n_groups * self.n_alpha :].unflatten(-1, (2, self.n_batches - 1))
        effect_flb = contrast_flk @ _contrasts(self.n_batches).T
        log_mean_lgbjf = curve_lgjf[:, :, None] + effect_flb.permute(1, 2, 0)[:, None, :, None]
        return log_mean_lgbjf.flatten(1, 2)

    def log_mean_and_jacobian(self, parameter_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log means, and their derivatives in the parameters of the speed and in those of the gene.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor]
            Shapes ``(l, b, j, f)``, ``(m, l, b, j, f)`` and ``(d, l, b, j, f)``.
        """
        speed_m, local_fd = self.split(parameter_p)
        shape = (2, self.n_groups, self.n_batches, N_BINS, self.n_genes)
        of_speed = parameter_p.new_zeros(self.n_speed, *shape)
        of_local = parameter_p.new_zeros(self.n_local, *shape)
        n_each = self.n_speed // self.n_groups
        for g in range(self.n_groups):
            first = FIRST_ALPHA + g * self.n_alpha
            speed_hljf, rate_2ljf, alpha_hljf = self._derivatives(speed_m, local_fd, g)
            of_speed[g * n_each : (g + 1) * n_each, :, g] = speed_hljf[:, :, None]
            of_local[:FIRST_ALPHA, :, g] = rate_2ljf[:, :, None]
            of_local[first : first + self.n_alpha, :, g] = alpha_hljf[:, :, None]
        if self.n_batches > 1:
            contrast_bk = _contrasts(self.n_batches)
            first = FIRST_ALPHA + self.n_groups * self.n_alpha
            for layer in (UNSPLICED, SPLICED):
                for k in range(self.n_batches - 1):
                    of_local[first + layer * (self.n_batches - 1) + k, layer] = contrast_bk[:, k, None, None]
        return self.log_mean(speed_m, local_fd), of_speed.flatten(2, 3), of_local.flatten(2, 3)

    def _derivatives(self, speed_m: Tensor, local_fd: Tensor, g: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return derivatives of the log curves of a group in log speed, log rates γ and β, and log transcription.

        A change of a parameter changes the sources of the equations, and the changes of u and s solve the same linear
        equations with the changed sources.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor]
            Shapes ``(h, l, j, f)``, ``(2, l, j, f)`` and ``(h, l, j, f)``.
        """
        basis = TimeBasis.of_speed(self.log_speed(speed_m)[g].exp())
        gamma_f, beta_f = local_fd[:, LOG_GAMMA].exp(), local_fd[:, LOG_BETA].exp()
        first = FIRST_ALPHA + g * self.n_alpha
        feature_hj1 = _basis(self.n_alpha_harmonics, N_ANGLES).T[..., None]
        alpha_jf = (feature_hj1[..., 0].T @ local_fd[:, first : first + self.n_alpha].T).exp()
        speed_hj1 = _basis(self.n_speed_harmonics, N_ANGLES).T[..., None]
        u_jf = positive(basis.relax(beta_f, alpha_jf))
        s_jf = positive(basis.relax(gamma_f, beta_f * u_jf))
        # Sources of the changes of u: of the speed, of γ, of β and of transcription.
        source_hjf = torch.cat(
            [
                -speed_hj1 * (alpha_jf - beta_f * u_jf),
                torch.zeros_like(u_jf)[None],
                -(beta_f * u_jf)[None],
                feature_hj1 * alpha_jf,
            ]
        )
        of_u_hjf = basis.relax(beta_f, source_hjf)
        source_hjf = beta_f * of_u_hjf
        n_speed = len(speed_hj1)
        source_hjf[:n_speed] -= speed_hj1 * (beta_f * u_jf - gamma_f * s_jf)
        source_hjf[n_speed + LOG_GAMMA] -= gamma_f * s_jf
        source_hjf[n_speed + LOG_BETA] += beta_f * u_jf
        of_s_hjf = basis.relax(gamma_f, source_hjf)
        step = N_ANGLES // N_BINS
        both = torch.stack([(of_u_hjf / u_jf)[:, ::step], (of_s_hjf / s_jf)[:, ::step]], 1)
        of_speed, of_rates, of_alpha = both.split([n_speed, FIRST_ALPHA, self.n_alpha])
        return of_speed, of_rates, of_alpha

    def initial(self, data: BinnedCounts) -> Tensor:
        """Return initial parameters: unit speed, equal degradation rates, and rates that fit the mean counts."""
        total_lgf = data.total_lbjf.sum(2).unflatten(1, (self.n_groups, -1)).sum(2)
        size_lg1 = data.size_lbj.sum(2).unflatten(1, (self.n_groups, -1)).sum(2)[..., None]
        mean_lgf = (total_lgf + 1) / (size_lg1 + 1)
        mean_p, _ = self.prior()
        speed_m, local_fd = self.split(mean_p.clone())
        ratio_f = mean_lgf[SPLICED].mean(0).log() - mean_lgf[UNSPLICED].mean(0).log()
        local_fd[:, LOG_BETA] = ratio_f
        for g in range(self.n_groups):
            local_fd[:, FIRST_ALPHA + g * self.n_alpha] = mean_lgf[UNSPLICED, g].log() + ratio_f
        return self.join(speed_m, local_fd)


def _harmonic_scale(first: float, n_harmonics: int) -> list[float]:
    """Return the prior standard deviation of cosine and sine of each harmonic."""
    return [first / harmonic for harmonic in range(1, n_harmonics + 1) for _ in range(2)]


@cache
def _contrasts(n_batches: int) -> Tensor:
    """Return orthonormal contrasts of batches, shape ``(batches, batches - 1)``: effects of batches sum to 0."""
    return torch.from_numpy(np.linalg.svd(np.eye(n_batches) - 1 / n_batches)[0][:, : n_batches - 1].copy())


@cache
def _basis(n_harmonics: int, n_angles: int) -> Tensor:
    """Return the Fourier features of the grid after a column of ones, shape ``(j, h)``."""
    features_jh = fourier_features(np.arange(n_angles) * (2 * np.pi / n_angles), n_harmonics)
    return torch.from_numpy(np.column_stack([np.ones(n_angles), features_jh]))


@dataclass(frozen=True)
class Arrow:
    """A positive definite matrix over all parameters in the form of an arrow.

    Parameters
    ----------
    speed_mm
        Block of the speed.
    cross_fdm
        Blocks between each gene and the speed.
    local_fdd
        Block of each gene.
    """

    speed_mm: Tensor
    cross_fdm: Tensor
    local_fdd: Tensor

    def add_diagonal(self, speed_m: Tensor, local_fd: Tensor) -> Arrow:
        """Return the matrix plus a diagonal matrix."""
        return Arrow(self.speed_mm + torch.diag(speed_m), self.cross_fdm, self.local_fdd + torch.diag_embed(local_fd))

    def scale_diagonal(self, factor: float) -> Arrow:
        """Return the matrix with its diagonal multiplied by a factor."""
        return self.add_diagonal(
            (factor - 1) * self.speed_mm.diagonal(), (factor - 1) * self.local_fdd.diagonal(dim1=1, dim2=2)
        )

    def solve(self, speed_m: Tensor, local_fd: Tensor) -> tuple[Tensor, Tensor]:
        """Return the product of the inverse with a vector."""
        factor_fdd = torch.linalg.cholesky(self.local_fdd)
        both = torch.cholesky_solve(torch.cat([self.cross_fdm, local_fd[..., None]], -1), factor_fdd)
        reduced_fdm, own_fd = both[..., :-1], both[..., -1]
        schur_mm = self.speed_mm - torch.einsum("fdm,fdn->mn", self.cross_fdm, reduced_fdm)
        right_m = speed_m - torch.einsum("fdm,fd->m", reduced_fdm, local_fd)
        step_m = torch.cholesky_solve(right_m[:, None], torch.linalg.cholesky(schur_mm))[:, 0]
        return step_m, own_fd - torch.einsum("fdm,m->fd", reduced_fdm, step_m)

    def to_dense(self) -> Tensor:
        """Return the whole matrix, shape ``(p, p)``."""
        n_genes, n_local, n_speed = self.cross_fdm.shape
        result_pp = self.speed_mm.new_zeros(n_speed + n_genes * n_local, n_speed + n_genes * n_local)
        result_pp[:n_speed, :n_speed] = self.speed_mm
        result_pp[n_speed:, :n_speed] = self.cross_fdm.flatten(0, 1)
        result_pp[:n_speed, n_speed:] = self.cross_fdm.flatten(0, 1).T
        result_pp[n_speed:, n_speed:] = torch.block_diag(*self.local_fdd)
        return result_pp
