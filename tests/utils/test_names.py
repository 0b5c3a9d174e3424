"""Values of columns as names."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from celldial import VAE
from celldial.utils.names import find_name, has_value, to_name
from helpers.simulate import simulate

FORMS = {
    "integers": np.array([0, 1] * 30),
    "floats": np.array([0.0, 1.0] * 30),
    "text": np.array(["0", "1"] * 30, dtype=object),
    "text of floats": np.array(["0.0", "1.0"] * 30, dtype=object),
    "categories": pd.Categorical([0, 1] * 30),
}


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", np.int64(1), np.float32(1)])
def test_one_number_is_one_name(value: object) -> None:
    assert to_name(value) == "1"
    assert find_name(value, ["0", "1"]) == find_name(value, ["0.0", "1.0"]) == 1
    assert has_value(pd.Series([0.0, 1.0, np.nan]), value).tolist() == [False, True, False]


@pytest.mark.parametrize("value", ["01", "1.5", "-", "1e3", "donor 1.0", "1.0.0", True, None])
def test_other_text_stays(value: object) -> None:
    assert to_name(value) == str(value)


def test_an_identical_name_comes_first() -> None:
    assert find_name("1.0", ["1", "1.0"]) == 1
    assert find_name(2, ["0", "1"]) == -1


def with_batches(form: str) -> AnnData:
    adata = simulate()
    adata.obs["number"] = FORMS[form]
    return adata


@pytest.fixture(scope="module")
def model() -> VAE:
    return VAE(2, 8, batch_key="number").fit(with_batches("text"), max_epochs=1, progress=False)


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_found_however_they_are_stored(form: str, model: VAE) -> None:
    expected = model.transform(with_batches("text"))
    np.testing.assert_array_equal(model.transform(with_batches(form)), expected)
    other = VAE(2, 8, batch_key="number").fit(with_batches(form), max_epochs=1, progress=False)
    np.testing.assert_array_equal(other.transform(with_batches("text")), expected)
    np.testing.assert_array_equal(
        other.denoise(with_batches(form), transform_batch=1), model.denoise(with_batches(form), transform_batch="1")
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [(0, 1), ("0", "1"), (0.0, 1.0)])
def test_groups_are_found_however_they_are_stored(form: str, groups: tuple[object, object], model: VAE) -> None:
    adata = with_batches(form)
    path = model.latent_traverse(adata, groups, groupby="number", n_steps=2, n_cells=2)
    assert path.n_obs == 2
    at = model.latent_traverse(adata, 0, at={"number": groups[0]}, n_steps=2, n_cells=2)
    assert at.n_obs == 2
    table = model.differential(adata, "number", groups=[groups[0]], reference=groups[1], method="model")
    assert set(table["group"]) == {str(adata.obs["number"].iloc[0])}


@pytest.mark.parametrize("form", FORMS)
def test_an_axis_finds_its_groups_however_they_are_stored(form: str) -> None:
    adata = with_batches(form)
    plain = VAE(2, 8).fit(adata, max_epochs=1, progress=False)
    axis = plain.find_axis(adata, "axis", obs="number", groups=(0, 1.0), n_permutations=9)
    assert axis.description == "number: 0 → 1"
