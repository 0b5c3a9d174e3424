"""Fixtures for the tests of plots."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from anndata import AnnData

from helpers.figures import fitted


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
    return fitted()
