"""The plot of RNA kinetics: which groups, genes and phases it draws."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from celldial import pl
from helpers.figures import kinetic, shows
from helpers.raises import raises


def test_speeds_have_their_groups_and_bands():
    adata = kinetic()
    panel = pl.kinetics(adata, show=False)["speed"]
    stored = adata.uns["celldial"]["kinetics"]
    for g, group in enumerate(("control", "treated")):
        line = next(line for line in panel.lines if line.get_label() == group)
        np.testing.assert_allclose(line.get_ydata()[:-1], stored["speed"][g])
        assert line.get_ydata()[-1] == line.get_ydata()[0]
    assert "hour" in panel.get_ylabel()
    assert shows(plt.gcf(), "G2M")
    assert shows(plt.gcf(), "400")


def test_portraits_have_model_and_cells():
    adata = kinetic()
    panel = pl.kinetics(adata, "TOP2A", show=False)["TOP2A"]
    stored = adata.uns["celldial"]["kinetics"]
    loop, dots = panel.lines[:2]
    np.testing.assert_allclose(loop.get_xdata()[:-1], stored["spliced"][0, :, 1])
    np.testing.assert_allclose(loop.get_ydata()[:-1], stored["unspliced"][0, :, 1])
    np.testing.assert_allclose(dots.get_xdata(), stored["observed_spliced"][0, :, 1])


def test_one_group_needs_no_legend():
    assert pl.kinetics(kinetic(("all",)), show=False)["speed"].get_legend() is None


@pytest.mark.parametrize(("gene", "facts"), [("TOP2B", ["TOP2B", "TOP2A"]), ("ACTB", ["ACTB", "MCM5"])])
def test_genes_that_were_not_used(gene, facts):
    with raises(KeyError, naming=facts):
        pl.kinetics(kinetic(), [gene], show=False)
