"""Parameters of the kinetic model: derivatives, and matrices in the form of an arrow."""

import pytest
import torch

from celldial.inference.kinetics.parameters import Arrow, Layout


@pytest.fixture
def layout() -> Layout:
    return Layout(n_groups=2, n_batches=3, n_genes=2, n_speed_harmonics=1, n_alpha_harmonics=2)


def draw(layout: Layout) -> torch.Tensor:
    mean_p, scale_p = layout.prior()
    return mean_p + 0.2 * scale_p * torch.randn(
        len(mean_p), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_derivatives_are_those_of_automatic_differentiation(layout):
    parameter_p = draw(layout)
    log_mean_lbjf, of_speed, of_local = layout.log_mean_and_jacobian(parameter_p)
    jacobian = torch.autograd.functional.jacobian(lambda p: layout.log_mean(*layout.split(p))[:, :, ::16], parameter_p)
    torch.testing.assert_close(log_mean_lbjf, layout.log_mean(*layout.split(parameter_p)))
    speed, local = layout.split(jacobian)
    torch.testing.assert_close(of_speed[:, :, :, ::16].movedim(0, -1), speed, rtol=1e-5, atol=1e-5)
    for gene in range(layout.n_genes):
        torch.testing.assert_close(
            of_local[:, :, :, ::16, gene].movedim(0, -1), local[:, :, :, gene, gene], rtol=1e-5, atol=1e-5
        )
        assert not local[:, :, :, gene, 1 - gene].any()


def test_effects_of_batches_sum_to_zero(layout):
    speed_m, local_fd = layout.split(draw(layout))
    log_mean = layout.log_mean(speed_m, local_fd).unflatten(1, (2, 3))
    torch.testing.assert_close(log_mean.mean(2), layout.log_curves(speed_m, local_fd))


def test_an_arrow_matrix_is_solved_as_the_dense_matrix(layout):
    random = torch.Generator().manual_seed(1)
    n_rows = layout.n_parameters
    root = torch.randn(n_rows, 2 * n_rows, dtype=torch.float64, generator=random)
    speed_2m, local_2fd = layout.split(root.T)
    arrow = Arrow(
        speed_2m.T @ speed_2m + 1e3 * torch.eye(layout.n_speed, dtype=torch.float64),
        torch.einsum("xfd,xm->fdm", local_2fd, speed_2m),
        torch.einsum("xfd,xfe->fde", local_2fd, local_2fd),
    ).add_diagonal(torch.ones(layout.n_speed), torch.ones(layout.n_genes, layout.n_local))
    right_p = torch.randn(n_rows, dtype=torch.float64, generator=random)
    solution_p = layout.join(*arrow.solve(*layout.split(right_p)))
    torch.testing.assert_close(arrow.to_dense() @ solution_p, right_p)
    torch.testing.assert_close(arrow.scale_diagonal(1.5).to_dense().diagonal(), 1.5 * arrow.to_dense().diagonal())
