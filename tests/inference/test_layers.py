"""Counts in another layer than that of the fit, for every method that reads counts."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from celldial import VAE
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate_modalities

FEATURES = {"up": ["g1", "g2", "g3"]}
READERS: dict[str, Callable[..., Any]] = {
    "sample": lambda model, *cells, **layer: model.sample(adata=cells[0], **layer).X.toarray(),
    "check": lambda model, *cells, **layer: model.check(*cells, n_samples=10, n_cells=50, **layer),
    "axes": lambda model, *cells, **layer: model.axes(*cells, gene_sets={"up": FEATURES["up"]}, **layer),
    "clusters": lambda model, *cells, **layer: model.clusters(*cells, **layer),
    "compare_gradients": lambda model, *cells, **layer: model.compare_gradients(
        *cells, "enumerate", n_samples=4, n_cells=4, n_reference=4, **layer
    ).drop(columns="microseconds"),
    "denoise": lambda model, *cells, **layer: model.denoise(*cells, **layer),
    "find_axis": lambda model, *cells, **layer: model.find_axis(*cells, "up", features=FEATURES, **layer).weight_z,
    "impute": lambda model, *cells, **layer: model.impute(*cells, "rna", **layer),
    "latent_posterior": lambda model, *cells, **layer: model.latent_posterior(*cells, **layer).mean,
    "latent_traverse": lambda model, *cells, **layer: model.latent_traverse(*cells, 0, n_steps=3, **layer).X,
    "posterior_predictive": lambda model, *cells, **layer: model.posterior_predictive(*cells, **layer)[0].toarray(),
    "name_axes": lambda model, *cells, **layer: model.name_axes(*cells, {"up": FEATURES["up"]}, **layer).iloc[:, :-1],
    "score": lambda model, *cells, **layer: model.score(*cells, **layer),
    "sweep_gradients": lambda model, *cells, **layer: model.sweep_gradients(
        *cells, "enumerate", widths=[1], n_averaged=[1], n_samples=4, n_cells=4, **layer
    ),
    "transform": lambda model, *cells, **layer: model.transform(*cells, **layer),
}


@pytest.fixture(scope="module")
def clustered() -> VAE:
    """Return a model of genes with batches and clusters."""
    return fit(simulate_modalities("rna"), VAE(2, 8, batch_key="batch", n_clusters=2))


def normalize(adata: AnnData) -> AnnData:
    """Move the counts to a layer, and log-normalize X."""
    normalized = adata.copy()
    normalized.layers["counts"] = adata.X.copy()
    normalized.X = normalized.X.log1p()
    return normalized


def test_every_method_that_reads_counts_has_a_layer() -> None:
    methods = dict(inspect.getmembers(VAE, inspect.isfunction))
    readers = {
        name: inspect.signature(method).parameters
        for name, method in methods.items()
        if "adata" in inspect.signature(method).parameters and not name.startswith(("_", "fit", "set_"))
    }
    assert readers.keys() >= READERS.keys()
    # `kinetics` reads two layers, which have arguments of their own.
    assert [name for name, parameters in readers.items() if "layer" not in parameters] == ["kinetics"]


@pytest.mark.parametrize("name", READERS)
def test_counts_come_from_the_layer(name: str, clustered: VAE) -> None:
    adata = simulate_modalities("rna")
    normalized = normalize(adata)
    # The error names the layer that has counts.
    with raises(ValueError, naming=["adata.X", "not a whole number", 'layer="counts"']):
        READERS[name](clustered, normalized)
    expected, found = READERS[name](clustered, adata), READERS[name](clustered, normalized, layer="counts")
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    else:
        np.testing.assert_array_equal(found, expected)
    # The model still reads X.
    assert clustered.schema_.layer is None
    assert clustered.parameters_["layer"] is None


def test_the_default_is_the_layer_of_the_fit(tmp_path: Path) -> None:
    adata = simulate_modalities("rna")
    normalized = normalize(adata)
    model = fit(normalized, VAE(2, 8, layer="counts"))
    expected = model.transform(normalized)
    np.testing.assert_array_equal(model.transform(adata, layer="X"), expected)
    with raises(KeyError, naming=["'counts'", 'layer="X"']):
        model.transform(adata)
    with raises(KeyError, naming=["'raw'", "'counts'"]):
        model.transform(normalized, layer="raw")
    with raises(TypeError, naming=["layer", 3]):
        model.transform(normalized, layer=3)
    # In files and through a saved model, too.
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(loaded.transform(tmp_path / "cells.h5ad", layer="X"), expected)
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(loaded.transform(backed, layer="X"), expected)
    backed.file.close()


def test_counts_in_files_come_from_the_layer(clustered: VAE, tmp_path: Path) -> None:
    adata = simulate_modalities("rna")
    normalize(adata).write_h5ad(tmp_path / "cells.h5ad")
    path = tmp_path / "cells.h5ad"
    np.testing.assert_array_equal(clustered.transform(path, layer="counts"), clustered.transform(adata))
    expected = clustered.denoise(adata)
    for write in (
        clustered.denoise_to_file,
        lambda cells, to, layer: clustered.impute_to_file(cells, "rna", to, layer=layer),
    ):
        write(path, tmp_path / "written.h5ad", layer="counts")
        pd.testing.assert_frame_equal(read_h5ad(tmp_path / "written.h5ad").to_df(), expected)
    with raises(ValueError, naming=["not a whole number"]):
        clustered.transform(path)


@pytest.mark.filterwarnings("ignore:From 0.4 :FutureWarning")
@pytest.mark.filterwarnings("ignore:Cannot join columns with the same name")
def test_counts_of_a_mudata_come_from_the_layer(bimodal: VAE, multiome: AnnData) -> None:
    mudata = pytest.importorskip("mudata")
    parts = {
        name: normalize(multiome[:, multiome.var["feature_types"] == kind].copy())
        for name, kind in (("rna", "Gene Expression"), ("atac", "Peaks"))
    }
    data = mudata.MuData(parts)
    data.obs = multiome.obs.copy()
    np.testing.assert_array_equal(bimodal.transform(data, layer="counts"), bimodal.transform(multiome))
    with raises(ValueError, naming=["not a whole number"]):
        bimodal.transform(data)


def test_new_batches_are_mapped_with_the_counts_of_a_layer(clustered: VAE) -> None:
    adata = simulate_modalities("rna")
    adata.obs["batch"] = "b2"
    normalized = normalize(adata)
    expected = clustered.map_query(adata, max_epochs=2, progress=False)
    mapped = clustered.map_query(normalized, max_epochs=2, progress=False, layer="counts")
    assert mapped.schema_ == expected.schema_
    np.testing.assert_array_equal(mapped.transform(adata), expected.transform(adata))
    np.testing.assert_array_equal(normalized.obsm["X_celldial"], adata.obsm["X_celldial"])


def test_training_continues_with_the_counts_of_a_layer(clustered: VAE, tmp_path: Path) -> None:
    clustered.save(tmp_path / "model.celldial")
    adata = simulate_modalities("rna")
    normalized = normalize(adata)
    expected, found = (VAE.load(tmp_path / "model.celldial") for _ in range(2))
    expected.partial_fit(adata, max_epochs=1, progress=False)
    found.partial_fit(normalized, max_epochs=1, progress=False, layer="counts")
    np.testing.assert_array_equal(found.transform(adata), expected.transform(adata))
    np.testing.assert_array_equal(normalized.obsm["X_celldial"], adata.obsm["X_celldial"])
    with raises(ValueError, naming=["'counts'", "not fitted"]):
        VAE().partial_fit(normalized, layer="counts")
