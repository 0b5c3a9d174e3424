"""Bases of continuous covariates: values, interpolation, bad input."""

import json
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy.interpolate import CubicSpline

from celldial import VAE
from celldial.data.basis import Fourier, Spline, basis_from_dict, parse_bases
from celldial.data.schema import Schema
from helpers.fit import fit
from helpers.raises import raises
from helpers.simulate import simulate

VALUES = np.random.default_rng(0).gamma(2, 3, 200)


@pytest.mark.parametrize("n_knots", [2, 3, 4, 6])
def test_a_spline_has_columns_of_the_same_scale(n_knots: int) -> None:
    columns_ck = Spline.fit(VALUES, n_knots).columns(VALUES)
    assert columns_ck.shape == (200, n_knots - 1)
    np.testing.assert_allclose(columns_ck.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(columns_ck.T @ columns_ck / 200, np.eye(n_knots - 1), atol=1e-6)
    np.testing.assert_allclose(columns_ck[:, 0], (VALUES - VALUES.mean()) / VALUES.std())


def test_a_spline_spans_the_natural_cubic_splines() -> None:
    basis = Spline.fit(VALUES, 4)
    knot_j = np.array(basis.knots) * basis.std + basis.mean
    natural = CubicSpline(knot_j, [1.0, -2.0, 0.5, 3.0], bc_type="natural")
    inside_c = np.linspace(knot_j[0], knot_j[-1], 50)
    design_ck = np.column_stack([np.ones(50), basis.columns(inside_c)])
    weight_k, residual, _, _ = np.linalg.lstsq(design_ck, natural(inside_c), rcond=None)
    assert residual[0] < 1e-16
    # Beyond the knots, it continues as a line.
    for end, sign in ((knot_j[-1], 1), (knot_j[0], -1)):
        outside_c = end + sign * np.linspace(0, 20, 9)
        curve_c = np.column_stack([np.ones(9), basis.columns(outside_c)]) @ weight_k
        np.testing.assert_allclose(np.diff(curve_c, 2), 0, atol=1e-8)


@pytest.mark.parametrize(("values", "n_columns"), [([5.0] * 4, 1), ([0.0, 0, 0, 3], 1), ([0.0, 1, 3, 3], 2)])
def test_a_spline_has_no_more_columns_than_the_values_determine(values: list[float], n_columns: int) -> None:
    columns_ck = Spline.fit(np.array(values), 4).columns(np.array([*values, 100.0, -100.0]))
    assert columns_ck.shape == (len(values) + 2, n_columns)
    assert np.isfinite(columns_ck).all()


def test_a_fourier_basis_is_periodic() -> None:
    basis = Fourier(24.0)
    hours = np.array([0.0, 3.0, 11.5, 23.9])
    np.testing.assert_allclose(basis.columns(hours + 24 * 1000), basis.columns(hours), atol=1e-9)
    np.testing.assert_allclose(basis.columns(hours)[:, 3], np.sin(2 * hours * 2 * np.pi / 24), atol=1e-12)


@pytest.mark.parametrize("basis", [Spline.fit(VALUES), Spline.fit(np.array([1.0, 2.0])), Fourier(7.0)])
def test_bases_are_stored_as_json(basis: Any) -> None:
    assert basis_from_dict(json.loads(json.dumps(basis.to_dict()))) == basis


def test_a_schema_encodes_a_basis_beside_other_covariates(adata: AnnData) -> None:
    adata = adata.copy()
    adata.obs["hour"] = np.arange(adata.n_obs) % 24
    adata.obs["size"] = np.linspace(1, 2, adata.n_obs)
    keys = ["age", "hour", "size"]
    basis = {"hour": ("fourier", 24), "age": ("spline", 5)}
    schema = Schema.from_anndata(adata, continuous_covariate_keys=keys, basis=basis)
    continuous_ck = schema.encode_covariates(adata)[1]
    assert continuous_ck.shape == (adata.n_obs, 4 + 4 + 1)
    assert schema.n_continuous == 9
    columns = schema.continuous_columns()
    np.testing.assert_allclose(
        continuous_ck[:, columns["hour"]][:, 0], np.cos(adata.obs["hour"] * np.pi / 12), rtol=1e-5
    )
    plain = Schema.from_anndata(adata, continuous_covariate_keys=keys)
    np.testing.assert_array_equal(plain.encode_covariates(adata)[1][:, 2], continuous_ck[:, 8])
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_a_model_with_a_basis_is_saved_and_loaded(adata: AnnData, tmp_path: Any) -> None:
    adata = adata.copy()
    adata.obs["hour"] = np.arange(adata.n_obs) % 24
    model = VAE(2, 8, continuous_covariate_keys=["age", "hour"], basis={"hour": ("fourier", 24), "age": "spline"})
    fit(adata, model)
    model.save(tmp_path / "model.celldial")
    again = VAE.load(tmp_path / "model.celldial")
    np.testing.assert_array_equal(again.transform(adata), model.transform(adata))
    at = {"age": 33.0, "hour": 5.0}
    np.testing.assert_array_equal(again.decode(np.zeros((1, 2)), at), model.decode(np.zeros((1, 2)), at))
    np.testing.assert_allclose(
        model.decode(np.zeros((1, 2)), at | {"hour": 29.0}), model.decode(np.zeros((1, 2)), at), rtol=1e-5
    )


def test_differences_at_a_value_of_a_basis(adata: AnnData) -> None:
    """`transform_batch` sets all columns of the basis."""
    model = fit(adata.copy(), VAE(2, 8, continuous_covariate_keys=["age"], basis={"age": "spline"}))
    same = adata.copy()
    same.obs["age"] = 30.0
    options = {"groupby": "type", "method": "model", "seed": 0}
    one = model.differential(adata.copy(), transform_batch={"age": 30.0}, **options)
    other = model.differential(adata.copy(), transform_batch={"age": 55.0}, **options)
    assert (one["log2_fold_change"] != other["log2_fold_change"]).any()
    assert np.isfinite(model.denoise(same, transform_batch={"age": 30.0}).to_numpy()).all()


@pytest.mark.slow
def test_a_time_left_out_is_predicted() -> None:
    """The expression of a gene rises and falls with time; the time of its peak is left out."""
    adata = simulate(600, 20)
    random = np.random.default_rng(1)
    adata.obs["time"] = random.choice(np.arange(9.0), 600)
    curve_c = np.exp(1.5 * np.sin(np.pi * adata.obs["time"].to_numpy() / 8))
    x_cf = adata.X.toarray()
    x_cf[:, 0] = random.poisson(5 * curve_c)
    adata.X = x_cf.astype(np.float32)
    kept = adata[adata.obs["time"] != 4].copy()
    model = VAE(2, 32, continuous_covariate_keys=["time"], basis={"time": "spline"})
    fit(kept, model, max_epochs=80)
    cells = model.sample(800, {"time": 4.0}, adata=kept)
    share = np.asarray(cells.X[:, 0].sum()) / cells.X.sum()
    left_out = adata[adata.obs["time"] == 4]
    assert share == pytest.approx(left_out.X[:, 0].sum() / left_out.X.sum(), rel=0.15)


def test_invalid_bases_are_named() -> None:
    keys = ["time", "hour"]
    assert parse_bases(None, keys) == {}
    with raises(KeyError, naming=["'tme'", "'time'", "'hour'"]):
        parse_bases({"tme": "spline"}, keys)
    for value in ("cubic", "fourier", ("fourier", 0), ("fourier", "day"), ("spline", 3, 4), 5):
        with raises(ValueError, naming=["'hour'"]):
            parse_bases({"time": "spline", "hour": value}, keys)
    with raises(ValueError, naming=["'time'", 1]):
        parse_bases({"time": ("spline", 1)}, keys)
    with raises(TypeError, naming=["'spline'"]):
        parse_bases("spline", keys)
