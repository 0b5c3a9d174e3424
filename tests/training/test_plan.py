"""Defaults of epochs and batch size."""

from hypothesis import given
from hypothesis import strategies as st

from celldial.training.stages import choose_batch_size, choose_max_epochs


@given(n_cells=st.integers(1, 10**7), further=st.integers(0, 10**7))
def test_defaults_depend_on_the_number_of_cells(n_cells: int, further: int) -> None:
    epochs, batch = choose_max_epochs(n_cells), choose_batch_size(n_cells)
    on_gpu = choose_batch_size(n_cells, "cuda")
    assert on_gpu == batch or (128 < on_gpu <= 1024 and n_cells >= 1000 * on_gpu)
    assert type(epochs) is type(batch) is int
    assert epochs >= choose_max_epochs(n_cells + further) >= 1
    assert 1 <= batch <= choose_batch_size(n_cells + further)
