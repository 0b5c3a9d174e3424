"""The file of a model: loading, errors, and that reading a file runs no code."""

import copy
import json
import os
import pickle
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from celldial import VAE
from celldial.io.model_file import FORMAT_VERSION
from helpers.make_golden import SHOWN, TEXT, golden_paths, read_cells
from helpers.raises import raises, warns
from helpers.simulate import COVARIATES, simulate


def make_model(adata: AnnData, **parameters: Any) -> VAE:
    return VAE(2, 8, **parameters).fit(adata, max_epochs=2, progress=False)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate()


@pytest.fixture(scope="module")
def model(adata: AnnData) -> VAE:
    return make_model(adata, **COVARIATES)


@pytest.fixture(scope="module")
def content(model: VAE, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a good file."""
    path = tmp_path_factory.mktemp("model") / "good.celldial"
    model.save(path)
    return path.read_bytes()


# --- Loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariates", [{}, COVARIATES], ids=["no covariates", "covariates"])
def test_round_trip(adata: AnnData, tmp_path: Path, covariates: dict[str, Any]) -> None:
    model = make_model(adata.copy(), n_layers=2, seed=7, **covariates)
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_array_equal(loaded.transform(adata), model.transform(adata))
    np.testing.assert_array_equal(
        loaded.latent_posterior(adata).standard_deviation, model.latent_posterior(adata).standard_deviation
    )
    np.testing.assert_array_equal(loaded.denoise(adata), model.denoise(adata))
    assert loaded.score(adata) == model.score(adata)
    assert loaded.schema_ == model.schema_
    assert loaded.history_ == model.history_
    values = {"batch": "b0", "donor": "x", "age": 30.0} if covariates else {}
    drawn, expected = loaded.sample(20, values), model.sample(20, values)
    assert (drawn.X != expected.X).nnz == 0


def test_an_additive_decoder_is_restored(adata: AnnData, tmp_path: Path) -> None:
    model = make_model(adata.copy(), decoder="additive", **COVARIATES)
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    assert loaded.get_params()["decoder"] == "additive"
    np.testing.assert_array_equal(loaded.denoise(adata), model.denoise(adata))
    for one in (model, loaded):
        one.partial_fit(adata.copy(), max_epochs=1, progress=False)
    np.testing.assert_array_equal(loaded.denoise(adata), model.denoise(adata))


def test_parameters_are_restored(model: VAE, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    found = VAE.load(tmp_path / "model.celldial").get_params()
    expected = model.get_params()
    assert found == {name: list(v) if isinstance(v, tuple) else v for name, v in expected.items()}
    assert clone(VAE.load(tmp_path / "model.celldial")).get_params() == found


def test_numpy_parameters_are_saved_as_plain_numbers(adata: AnnData, tmp_path: Path) -> None:
    parameters = {"n_latent": np.int64(2), "n_hidden": np.int32(8), "learning_rate": np.float32(0.25)}
    model = VAE(**parameters).fit(adata.copy(), max_epochs=1, progress=False)
    model.save(tmp_path / "model.celldial")
    found = VAE.load(tmp_path / "model.celldial").get_params()
    assert {name: found[name] for name in parameters} == {"n_latent": 2, "n_hidden": 8, "learning_rate": 0.25}


def test_a_loaded_model_trains_like_the_saved_one(adata: AnnData, tmp_path: Path) -> None:
    model = make_model(adata.copy())
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    for one in (model, loaded):
        one.partial_fit(adata.copy(), max_epochs=2, progress=False)
    np.testing.assert_array_equal(loaded.transform(adata), model.transform(adata))
    assert len(loaded.history_["elbo_train"]) == 4


def test_loading_does_not_change_random_numbers(model: VAE, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    state = torch.get_rng_state()
    VAE.load(tmp_path / "model.celldial")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_path_may_be_a_string(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    path = str(tmp_path / "any name.bin")
    model.save(path)
    np.testing.assert_array_equal(VAE.load(path).transform(adata), model.transform(adata))


def test_the_file_is_safetensors_with_json(model: VAE, tmp_path: Path) -> None:
    """Other programs can read it: the weights as safetensors, everything else as JSON."""
    model.save(tmp_path / "model.celldial")
    with safe_open(tmp_path / "model.celldial", framework="pt") as file:
        metadata = json.loads(file.metadata()["celldial"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = model.module_.state_dict()
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["parameters"]["n_latent"] == 2
    assert metadata["schema"]["feature_names"]["rna"][:2] == ["g0", "g1"]


def test_an_unfitted_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        VAE().save(tmp_path / "model.celldial")
    assert not list(tmp_path.iterdir())


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_saving_replaces_a_file(model: VAE, adata: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "model.celldial"
    path.write_text("something else")
    model.save(path)
    np.testing.assert_array_equal(VAE.load(path).transform(adata), model.transform(adata))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(
    model: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "model.celldial"
    path.write_bytes(b"old")

    def fail(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, fail)
    with raises(OSError, naming=["no space left"]):
        model.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_default_permissions(model: VAE, tmp_path: Path) -> None:
    model.save(tmp_path / "model.celldial")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "model.celldial").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


# --- Rejected files ---------------------------------------------------------------------------------------------------


def reseal(content: bytes, change: Callable[[dict[str, Any]], Any], **tensors: torch.Tensor) -> bytes:
    """Write a good file again with something changed."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["celldial"])
    metadata = copy.deepcopy(metadata)
    change(metadata)
    return save(load(content) | tensors, {"celldial": json.dumps(metadata)})


def assert_rejected(path: Path, content: bytes, *facts: Any) -> None:
    """Check that a file is rejected by an error that names it."""
    path.write_bytes(content)
    with raises(ValueError, naming=[repr(str(path)), *facts]):
        VAE.load(path)


def test_an_unchanged_file_is_loaded(content: bytes, tmp_path: Path) -> None:
    """`reseal` alone does not damage the file."""
    (tmp_path / "model.celldial").write_bytes(reseal(content, lambda metadata: None))
    VAE.load(tmp_path / "model.celldial")


FOREIGN = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"model: best one so far\n" * 40,
    "random bytes": np.random.default_rng(0).bytes(5000),
    "other safetensors": save({"weight": torch.ones(3)}),
    "other metadata": save({"weight": torch.ones(3)}, {"format": "pt"}),
    "no JSON": save({"weight": torch.ones(3)}, {"celldial": "{"}),
    "a list": save({"weight": torch.ones(3)}, {"celldial": "[1, 2]"}),
    "deep JSON": save({"weight": torch.ones(3)}, {"celldial": "[" * 100_000}),
    "no version": save({"weight": torch.ones(3)}, {"celldial": "{}"}),
    "nothing else": save({"weight": torch.ones(3)}, {"celldial": '{"format_version": 1}'}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_are_not_models_are_rejected(kind: str, tmp_path: Path) -> None:
    assert_rejected(tmp_path / "model.celldial", FOREIGN[kind])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_rejected(content: bytes, tmp_path: Path, share: float) -> None:
    assert_rejected(tmp_path / "model.celldial", content[: int(share * len(content))])


def test_a_file_with_additional_bytes_is_rejected(content: bytes, tmp_path: Path) -> None:
    assert_rejected(tmp_path / "model.celldial", content + b"\0" * 8)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version is text": lambda metadata: metadata.update(format_version="one"),
    "version is null": lambda metadata: metadata.update(format_version=None),
    "no parameters": lambda metadata: metadata.pop("parameters"),
    "parameters are a list": lambda metadata: metadata.update(parameters=[]),
    "unknown parameter": lambda metadata: metadata["parameters"].update(evil=1),
    "unknown likelihood": lambda metadata: metadata["schema"]["likelihood"].update(rna="os.system"),
    "likelihood is a list": lambda metadata: metadata["schema"].update(likelihood=[]),
    "likelihood of no modality": lambda metadata: metadata["schema"].update(likelihood={}),
    "parameter of an unknown likelihood": lambda metadata: metadata["parameters"].update(likelihood="os.system"),
    "unknown fusion": lambda metadata: metadata["parameters"].update(fusion="sum"),
    "weights are a number": lambda metadata: metadata["parameters"].update(modality_weights=3),
    "another modality": lambda metadata: metadata["schema"]["modalities"].append("atac"),
    "modality with a dot": lambda metadata: metadata["schema"].update(
        modalities=["a.b"], feature_names={"a.b": ["g0"]}
    ),
    "no quantiles of a modality": lambda metadata: metadata.update(library_size_quantiles={"atac": [1.0]}),
    "n_latent is another": lambda metadata: metadata["parameters"].update(n_latent=3),
    "n_latent is gigantic": lambda metadata: metadata["parameters"].update(n_latent=10**15),
    "n_latent is more than gigantic": lambda metadata: metadata["parameters"].update(n_latent=10**25),
    "n_latent is text": lambda metadata: metadata["parameters"].update(n_latent="2"),
    "n_layers is negative": lambda metadata: metadata["parameters"].update(n_layers=-1),
    "no schema": lambda metadata: metadata.pop("schema"),
    "features are a number": lambda metadata: metadata["schema"]["feature_names"].update(rna=5),
    "a feature less": lambda metadata: metadata["schema"]["feature_names"]["rna"].pop(),
    "modalities are null": lambda metadata: metadata["schema"].update(modalities=None),
    "a category more": lambda metadata: metadata["schema"]["categories"]["batch"].append("b2"),
    "no mean of a covariate": lambda metadata: metadata["schema"]["continuous"].update(age=[]),
    "no history": lambda metadata: metadata.pop("history"),
    "no library sizes": lambda metadata: metadata.pop("library_size_quantiles"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_inconsistent_contents_are_rejected(kind: str, content: bytes, tmp_path: Path) -> None:
    assert_rejected(tmp_path / "model.celldial", reseal(content, CHANGES[kind]))


def test_additional_or_wrong_weights_are_rejected(content: bytes, tmp_path: Path) -> None:
    assert_rejected(tmp_path / "model.celldial", reseal(content, lambda metadata: None, extra=torch.ones(2)))
    name = sorted(load(content))[0]
    wrong = {name: torch.ones(1, 2, 3)}
    assert_rejected(tmp_path / "model.celldial", reseal(content, lambda metadata: None, **wrong))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_flipped_byte_is_rejected_or_harmless(
    data: st.DataObject, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For any damage, the error is a ValueError that names the file."""
    length = int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, 7) | st.integers(8, 7 + length) | st.integers(8 + length, len(content) - 1))
    broken = bytearray(content)
    broken[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "model.celldial"
    path.write_bytes(bytes(broken))
    try:
        VAE.load(path)
    except ValueError as error:
        message = str(error)
    else:
        return
    assert repr(str(path)) in message


def test_a_later_format_is_rejected(content: bytes, tmp_path: Path) -> None:
    later = reseal(content, lambda metadata: metadata.update(format_version=FORMAT_VERSION + 1))
    assert_rejected(tmp_path / "model.celldial", later, FORMAT_VERSION + 1, FORMAT_VERSION)


@pytest.mark.parametrize("name", ["missing.celldial", "folder"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with raises(FileNotFoundError, naming=[name]):
        VAE.load(tmp_path / name)


class Payload:
    """When unpickled, creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
def test_a_pickle_is_rejected_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.celldial"
    with path.open("wb") as file:
        if kind == "pickle":
            pickle.dump(Payload(marker), file)
        elif kind == "torch":
            torch.save({"weight": Payload(marker)}, file)
        else:
            np.savez(file, weight=np.array([Payload(marker)], dtype=object))
    assert_rejected(path, path.read_bytes())
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_payload_of_this_test_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


# --- Files of earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_golden_file(version: int) -> None:
    """A model of an earlier version returns the same results."""
    model_path, cells_path = golden_paths(version)
    adata, model = read_cells(cells_path), VAE.load(model_path)
    with np.load(cells_path, allow_pickle=False) as stored:
        expected = dict(stored)
    assert np.ptp(expected["embedding"], axis=0).min() > 0.01
    mean, standard_deviation = model.latent_posterior(adata)
    np.testing.assert_allclose(mean, expected["embedding"], atol=1e-5)
    np.testing.assert_allclose(standard_deviation, expected["standard_deviation"], atol=1e-5)
    expression = model.denoise(adata, transform_batch="b1").to_numpy()
    np.testing.assert_allclose(expression, expected["expression"], rtol=1e-4)
    if version == 1:
        assert model.schema_.modalities == ("rna",)
        assert list(model.library_size_quantiles_) == ["rna"]
        return
    for modality in model.schema_.modalities:
        embedding = model.transform(adata[expected[f"has_{modality}"]], modality=modality)
        np.testing.assert_allclose(embedding, expected[f"embedding_{modality}"], atol=1e-5)
    probability = model.impute(adata[expected["has_rna"]].copy(), "atac", from_="rna").to_numpy()
    np.testing.assert_allclose(probability, expected["probability"], rtol=1e-4)
    if version == 2:
        return
    if version >= 4:
        check_clusters_and_loadings(model, adata, expected)
        return
    states = model.transform(adata, include_periodic=True)
    # The point on the circle is found by optimization, and depends more on the rounding of the processor.
    np.testing.assert_allclose(states, expected["states"], atol=1e-4)
    phase = model.phase(adata)
    np.testing.assert_array_equal(phase["rhythm_phase"].to_numpy(str), expected["rhythm_phase"])
    np.testing.assert_allclose(phase["rhythm_angle"], expected["rhythm_angle"], atol=1e-4)
    np.testing.assert_allclose(phase["rhythm_concentration"], expected["rhythm_concentration"], rtol=1e-3)
    np.testing.assert_allclose(phase["rhythm_active_probability"], expected["rhythm_active_probability"], atol=1e-4)


def check_clusters_and_loadings(model: VAE, adata: AnnData, expected: dict[str, np.ndarray]) -> None:
    """Check the contents of versions 4 and 5: clusters, topics, a flow and latent loadings."""
    np.testing.assert_allclose(model.transform(adata), expected["states"], atol=1e-5)
    assert model.clusters_["names"] == ["A", "B", "0"]
    np.testing.assert_allclose(model.clusters(adata), expected["cluster_probability"], atol=1e-4)
    assert adata.obs["celldial_cluster"].tolist() == expected["cluster"].tolist()
    assert model.score(adata) == pytest.approx(float(expected["score"]), rel=1e-2)  # at draws of this torch
    for name, table in (("loadings", model.loadings()), ("topics", model.topics(covariates=SHOWN))):
        key = ["coordinate" if name == "loadings" else "topic", "modality", "feature"]
        stored = pd.DataFrame({column: expected[f"{name}_{column}"] for column in table})
        # In the same order, because ranks may be tied.
        found, wanted = (part.sort_values(key).reset_index(drop=True) for part in (table, stored))
        assert found[key].astype(str).to_numpy().tolist() == wanted[key].to_numpy().tolist()
        for column in set(table) - {*TEXT, "rank"}:
            np.testing.assert_allclose(found[column], wanted[column], rtol=1e-3, atol=1e-5)
    assert set(model.module_.baselines) == {"cluster"}
    assert model.module_.coordinates.posterior_flow is not None


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_golden_model_can_be_trained_and_saved(version: int, tmp_path: Path) -> None:
    """It can be trained further, and is saved in the current format."""
    model_path, cells_path = golden_paths(version)
    adata, model = read_cells(cells_path), VAE.load(model_path)
    model.partial_fit(adata, max_epochs=1, progress=False)
    model.latent_traverse(adata, n_steps=2)
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_array_equal(loaded.transform(adata), adata.obsm["X_celldial"])
    assert loaded.sample(3, {"batch": "b0", "age": 30.0}).shape == (3, adata.n_vars)
    # The periodic process of version 3 has two phases, which do not determine a direction.
    with warns(naming=["rhythm"]) if version == 3 else nullcontext():
        fitted = clone(loaded).fit(adata, max_epochs=1, progress=False)
    assert fitted.schema_ == model.schema_


def test_parameters_set_after_fit_apply_to_the_next_fit(adata: AnnData, tmp_path: Path) -> None:
    model = make_model(adata.copy())
    embedding = model.transform(adata)
    model.set_params(n_latent=5, n_hidden=4)
    model.save(tmp_path / "model.celldial")
    loaded = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_array_equal(loaded.transform(adata), embedding)
    assert model.decode(embedding, adata.obs).shape == adata.shape
    model.partial_fit(adata.copy(), max_epochs=1, progress=False)
    assert model.transform(adata).shape == embedding.shape
    assert model.fit(adata.copy(), max_epochs=1, progress=False).transform(adata).shape == (adata.n_obs, 5)


# --- Damage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(content: bytes, tmp_path_factory: pytest.TempPathFactory, position: float, bit: int):
    changed = bytearray(content)
    changed[int(position * len(changed))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "m.celldial"
    path.write_bytes(changed)
    with raises(ValueError, naming=[str(path)]):
        VAE.load(path)


def test_a_loaded_model_does_not_depend_on_its_file(model: VAE, adata: AnnData, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.celldial"
    path.write_bytes(content)
    loaded = VAE.load(path)
    with path.open("r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(loaded.transform(adata), model.transform(adata))


@pytest.mark.parametrize("name", ["n_hidden", "n_latent", "n_layers"])
def test_a_small_file_does_not_ask_for_much_memory(content: bytes, tmp_path: Path, name: str) -> None:
    """The shapes are compared before the network is created, which would take terabytes."""
    n_header = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + n_header])["__metadata__"]
    header = json.loads(metadata["celldial"])
    header["parameters"][name] = 10**7
    path = tmp_path / "m.celldial"
    path.write_bytes(save(load(content), {"celldial": json.dumps(header)}))
    with raises(ValueError, naming=[str(path)]):
        VAE.load(path)


def test_infinite_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    tensors = load(content)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    path = tmp_path / "m.celldial"
    path.write_bytes(save(tensors, {"celldial": metadata["celldial"]}))
    with raises(ValueError, naming=[str(path), name]):
        VAE.load(path)
