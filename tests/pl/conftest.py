"""Fixtures for the tests of plots."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from anndata import AnnData

from helpers.figures import traversal


@pytest.fixture(autouse=True)
def _figures_in_default_style():
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
    plt.close("all")


@pytest.fixture
def adata() -> AnnData:
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
