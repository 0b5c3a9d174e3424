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
    model = VAE(3, 32, **keys).fit(response.copy(), max_epochs=40, progress=False)
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
    model = VAE(1, 32, batch_key="condition").fit(adata, max_epochs=40, progress=False)
    path = model.latent_traverse(adata, 0)
    shares = pd.DataFrame(adata.X.toarray() / adata.X.sum(1)).groupby(adata.obs["type"].to_numpy()).mean()
    known_f = np.log2(shares.loc["B"] / shares.loc["A"])
    found_f = path.layers["log2_fold_change"][-1]
    assert abs(np.corrcoef(found_f, known_f)[0, 1]) > 0.95
    assert np.abs(found_f).mean() == pytest.approx(known_f.abs().mean(), rel=0.5)
