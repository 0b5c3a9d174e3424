"""Decoded conditions and traversals recover a known response in simulated cells."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from celldial import VAE
from helpers.simulate import RESPONSE, simulate_response


@pytest.fixture(scope="module")
def response() -> AnnData:
    return simulate_response()


@pytest.mark.parametrize("role", ["batch", "covariate"])
def test_decoding_another_condition_gives_the_known_response(response: AnnData, role: str) -> None:
    keys = {"batch_key": "condition"} if role == "batch" else {"categorical_covariate_keys": ["condition"]}
    model = VAE(3, 32, **keys).fit(response.copy(), max_epochs=40, batch_size=100, progress=False)
    control = response[response.obs["condition"] == "control"].copy()
    as_is = model.denoise(control, transform_batch={"condition": "control"})
    pd.testing.assert_frame_equal(model.denoise(control), as_is)
    stimulated = model.denoise(control, transform_batch={"condition": "stimulated"})
    change_f = np.log2(stimulated.mean() / as_is.mean())
    # Relative to all other genes: shares sum to one.
    change_f -= change_f[2:].median()
    assert change_f["g0"] == pytest.approx(RESPONSE, abs=0.5)
    assert change_f["g1"] == pytest.approx(-RESPONSE, abs=0.7)
    assert change_f[2:].abs().max() < 0.7
    assert change_f[2:].abs().median() < 0.25


def test_a_traversal_goes_from_one_cell_type_to_the_other(response: AnnData) -> None:
    """With one coordinate, and the condition known, there is nothing else for the coordinate to be."""
    adata = response.copy()
    model = VAE(1, 32, batch_key="condition").fit(adata, max_epochs=40, batch_size=100, progress=False)
    path = model.latent_traverse(adata, 0)
    shares = pd.DataFrame(adata.X.toarray() / adata.X.sum(1)).groupby(adata.obs["type"].to_numpy()).mean()
    known_f = np.log2(shares.loc["B"] / shares.loc["A"])
    found_f = path.layers["log2_fold_change"][-1]
    assert abs(np.corrcoef(found_f, known_f)[0, 1]) > 0.95
    assert np.abs(found_f).mean() == pytest.approx(known_f.abs().mean(), rel=0.5)


def test_the_change_of_a_group_axis_is_that_from_group_to_group(response: AnnData) -> None:
    """Single cells lie farther apart on the axis than the means of the groups."""
    adata = response.copy()
    model = VAE(3, 32).fit(adata, max_epochs=40, batch_size=100, progress=False)
    model.find_axis(adata, "axis", obs="type", groups=("B", "A"))
    share_cf = adata.X.toarray() / adata.X.toarray().sum(1, keepdims=True)
    first_c, last_c = ((adata.obs["type"] == group).to_numpy() for group in ("B", "A"))
    observed_f = np.log2(share_cf[last_c].mean(0) / share_cf[first_c].mean(0))
    strong_f = np.abs(observed_f) > 1
    path = model.latent_traverse(adata, "axis", n_steps=3, n_cells=100)
    np.testing.assert_array_equal(path.obs["position"], [0, 0.5, 1])
    ratio_f = path.var["change"].to_numpy()[strong_f] / observed_f[strong_f]
    assert 0.9 < np.median(ratio_f) < 1.1
    wider = model.latent_traverse(adata, "axis", n_steps=3, n_cells=100, span=(0.01, 0.99))
    assert wider.obs["position"].iloc[0] < 0
    assert wider.obs["position"].iloc[-1] > 1
