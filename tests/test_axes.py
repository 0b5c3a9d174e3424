"""Traversals of latent space: against decoders whose answer is known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from celldial.axes import coordinate_path, traverse

STATES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.integers(-50, 50))


@given(z_cz=STATES, coordinate=st.integers(0, 2), n_steps=st.integers(2, 7))
def test_path_goes_evenly_from_quantile_to_quantile(z_cz: np.ndarray, coordinate: int, n_steps: int) -> None:
    path_s = coordinate_path(z_cz, coordinate, (0.25, 1.0), n_steps)
    assert path_s.shape == (n_steps,)
    assert path_s[-1] == z_cz[:, coordinate].max()
    np.testing.assert_allclose(path_s[0], np.quantile(z_cz[:, coordinate], 0.25), atol=1e-5)
    np.testing.assert_allclose(np.diff(path_s), (path_s[-1] - path_s[0]) / (n_steps - 1), atol=1e-4)


@given(z_cz=STATES, coordinate=st.integers(0, 2))
def test_traversal_of_a_linear_decoder(z_cz: np.ndarray, coordinate: int) -> None:
    """The mean moves by the coordinate's weights; the band is that of the other coordinates, moved along."""
    weight_zf = np.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
    position_s = np.array([-1.0, 0.0, 2.5])
    result = traverse(z_cz, coordinate, position_s, lambda z: z @ weight_zf)
    others_cf = np.where(np.arange(3) == coordinate, 0, z_cz) @ weight_zf
    moved_sf = position_s[:, None] * weight_zf[coordinate]
    np.testing.assert_array_equal(result.position_s, position_s)
    np.testing.assert_allclose(result.mean_sf, moved_sf + others_cf.mean(0), atol=1e-4)
    np.testing.assert_allclose(result.lower_sf, moved_sf + np.quantile(others_cf, 0.05, axis=0), atol=1e-4)
    np.testing.assert_allclose(result.upper_sf, moved_sf + np.quantile(others_cf, 0.95, axis=0), atol=1e-4)


def test_nine_in_ten_cells_are_in_the_band() -> None:
    z_cz = np.random.default_rng(0).normal(size=(1000, 2))
    result = traverse(z_cz, 0, np.zeros(1), lambda z: z[:, 1:])
    inside_c = (result.lower_sf[0] <= z_cz[:, 1]) & (z_cz[:, 1] <= result.upper_sf[0])
    assert inside_c.sum() == 900
    assert ((z_cz[:, 1] < result.lower_sf[0]).sum(), (z_cz[:, 1] > result.upper_sf[0]).sum()) == (50, 50)


def test_the_states_are_left_as_they_were() -> None:
    z_cz = np.arange(6.0).reshape(3, 2)
    traverse(z_cz, 1, np.array([7.0, 8.0]), lambda z: z)
    np.testing.assert_array_equal(z_cz, np.arange(6.0).reshape(3, 2))
