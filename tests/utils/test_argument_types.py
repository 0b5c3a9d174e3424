"""Types of arguments against type hints, and wrong types in every public method."""

import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import celldial
from celldial import VAE
from celldial.utils.argument_types import check_types, validate_types
from helpers.raises import raises
from helpers.simulate import simulate


def example(
    text: str = "a",
    number: float = 1,
    count: int | None = None,
    flag: bool = False,
    names: Sequence[str] = (),
    table: Mapping[str, Sequence[str]] | None = None,
    pair: tuple[float, float] | None = None,
    choice: Literal["auto"] | int = "auto",
    path: str | Path = "a",
    array: np.ndarray | None = None,
    anything: Any = None,
) -> str:
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": np.str_("a"), "number": np.float32(1), "count": np.int64(2), "flag": np.True_},
        {"names": ["a"], "table": {"a": ["b"]}, "pair": [1, 2], "choice": 3, "path": Path("a")},
        {"names": np.array(["a"]), "table": None, "pair": (1, 2), "choice": "auto", "anything": object()},
        {"names": pd.Index(["a"]), "array": [[1, 2]]},
        {"names": pd.Series(["a"])},
    ],
)
def test_arguments_of_the_right_type_pass(arguments: dict[str, Any]) -> None:
    check_types(example, arguments)
    assert validate_types(example)(**arguments) == arguments.get("text", "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", None),
        ("text", ["a"]),
        ("number", "1"),
        ("number", np.ones(2)),
        ("count", "many"),
        ("flag", "yes"),
        ("names", "a"),
        ("names", [1]),
        ("names", np.ones((2, 2))),
        ("table", ["a"]),
        ("pair", 0.5),
        ("choice", None),
        ("path", b"a"),
        ("array", "a"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(name: str, value: Any) -> None:
    with raises(TypeError, naming=[name]):
        validate_types(example)(**{name: value})


def test_the_call_reports_missing_arguments() -> None:
    with pytest.raises(TypeError):
        validate_types(example)(unknown=1)
    assert inspect.signature(validate_types(example)) == inspect.signature(example)


# --- Public methods ---------------------------------------------------------------------------------------------------


class Odd:
    """An object of no type that any argument has."""


METHODS: dict[str, dict[str, Any]] = {
    "axes": {},
    "check": {},
    "decode": {"z": [0.0, 0.0]},
    "denoise": {},
    "differential": {"groupby": "group"},
    "find_axis": {"name": "axis", "obs": "group"},
    "integration_report": {},
    "latent_posterior": {},
    "latent_traverse": {"axis": 0, "n_steps": 2, "n_cells": 2},
    "map_query": {},
    "mapping_quality": {},
    "markers": {"groupby": "group"},
    "name_axes": {"gene_sets": {"one": ["g0", "g1", "g2"]}},
    "partial_fit": {"max_epochs": 1, "progress": False},
    "posterior_predictive": {},
    "sample": {"n": 2},
    "save": {},
    "score": {},
    "transform": {},
}
PACKAGE = str(Path(celldial.__file__).parent)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    adata = simulate(60, 12)
    adata.obs["group"] = pd.Categorical(["a", "b"] * 30)
    return adata


@pytest.fixture(scope="module")
def model(cells: AnnData) -> VAE:
    return VAE(2, 8).fit(cells.copy(), max_epochs=1, progress=False)


def wrong_values(adata: AnnData) -> Iterator[Any]:
    yield from (Odd(), {1, 2}, np.zeros((2, 2)), [Odd()], adata)


def raw_error(error: Exception) -> str:
    """Return a description of an error that the package did not raise itself, empty for one that it did."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, ValueError | TypeError | KeyError | OSError | ImportError) and last.filename.startswith(
        PACKAGE
    ):
        return ""
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def failures(call: Any, parameter: str, adata: AnnData) -> list[str]:
    """Call with each wrong value; return the errors that the package did not raise itself."""
    found = []
    for value in wrong_values(adata):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(**{parameter: value})
        except Exception as error:
            found.append(raw_error(error))
    return [f"{parameter}: {error}" for error in found if error]


def parameters_of(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "y")]


def test_wrong_types_of_parameters_get_a_sentence(cells: AnnData) -> None:
    def call(**changed: Any) -> None:
        VAE(**{"n_latent": 2, "n_hidden": 8, **changed}).fit(cells.copy(), max_epochs=1, progress=False)

    assert not [error for name in parameters_of(VAE) for error in failures(call, name, cells)]


def test_wrong_types_of_arguments_of_fit_get_a_sentence(cells: AnnData, tmp_path: Path) -> None:
    def call(**changed: Any) -> None:
        VAE(2, 8).fit(**{"adata": cells.copy(), "max_epochs": 1, "progress": False, **changed})

    names = [name for name in parameters_of(VAE.fit) if name != "adata"]
    assert not [error for name in names for error in failures(call, name, cells)]


@pytest.mark.parametrize("method", METHODS)
def test_wrong_types_of_arguments_get_a_sentence(method: str, model: VAE, cells: AnnData) -> None:
    names = parameters_of(getattr(model, method))

    def call(**changed: Any) -> None:
        arguments = {**METHODS[method], **({"adata": cells.copy()} if "adata" in names else {}), **changed}
        if "progress" in names:
            arguments.setdefault("progress", False)
        getattr(model, method)(**arguments)

    if method not in ("integration_report", "map_query", "save"):  # an extra, new batches, and a path are missing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()  # the right types work
    assert not [error for name in names for error in failures(call, name, cells)]


def test_cells_as_a_parameter_are_pointed_to_fit(cells: AnnData) -> None:
    with raises(TypeError, naming=["n_latent", "fit"]):
        VAE(cells).fit(cells)
