"""Training of a model with a periodic coordinate: angles, selected features, continued training."""

import copy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad

from celldial import VAE
from celldial.data.schema import Schema
from celldial.metrics import knn_f1
from celldial.metrics.circular import cyclic_order, fisher_lee
from celldial.periodic.direction import DirectionEstimate
from celldial.training import periodic
from helpers.periodic import COLUMNS, OPTIONS, TURN, fit_once, genes_of, make_cells, make_model
from helpers.raises import warns
from helpers.simulate import COVARIATES, simulate


@pytest.fixture
def model() -> VAE:
    return copy.deepcopy(fit_once()[0])


@pytest.fixture
def adata() -> AnnData:
    return fit_once()[1].copy()


@pytest.fixture(scope="module")
def new() -> AnnData:
    """Return cells of the same kind that the model was not fitted to."""
    return make_cells(500)[400:].copy()


def test_the_angle_is_that_of_the_simulation(adata: AnnData) -> None:
    cycling = adata.obs["is_cycling"].to_numpy()
    angle, truth = (adata.obs[name].to_numpy()[cycling] for name in ("cell_cycle_angle", "truth"))
    assert fisher_lee(angle, truth) > 0.6
    # Not only the order of the cells is right, but also origin and direction of the circle.
    assert np.abs(np.angle(np.exp(1j * (angle - truth)))).mean() < 0.7
    assert (adata.obs["cell_cycle_phase"].astype(str) == adata.obs["phase"].astype(str))[cycling].mean() > 0.6


def test_the_circle_is_turned_by_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = []
    for probability, by in ((1.0, 0.0), (0.0, 2.0)):
        adata = make_cells(200)
        found = DirectionEstimate(probability, by, 20)
        with (
            monkeypatch.context() as patch,
            warns(naming=["cell_cycle", f"{probability:.2f}"]) if by else nullcontext(),
        ):
            patch.setattr(periodic, "direction_of", lambda *arguments, found=found: found)
            make_model().fit(adata, **OPTIONS)
        angles.append(adata.obs["cell_cycle_angle"].to_numpy())
    by = np.angle(np.exp(1j * (angles[1] + angles[0])))
    assert np.median(by) == pytest.approx(2, abs=0.1)


def test_angles_are_inferred_from_features_that_cycle(model: VAE, adata: AnnData) -> None:
    selected = model.module_.modalities["rna"].decoder.angle_feature_mask_f.numpy()
    cycles = (genes_of(adata).var["cell_cycle_amplitude"] > 0.3).to_numpy()
    assert selected[cycles].mean() > 0.6
    assert selected[~cycles].mean() < 0.3


def test_other_coordinates_are_uncorrelated_with_the_angle(adata: AnnData) -> None:
    active, angle = adata.obs["cell_cycle_active_probability"], adata.obs["cell_cycle_angle"]
    for column in adata.obsm["X_celldial"].T:
        for wave in (np.cos(angle), np.sin(angle)):
            assert abs(np.corrcoef(column, active * wave)[0, 1]) < 0.15


def test_the_same_seed_gives_the_same_result() -> None:
    tables, embeddings = [], []
    for _ in range(2):
        cells = make_cells(150)
        make_model().fit(cells, max_epochs=2, progress=False)
        tables.append(cells.obs[COLUMNS])
        embeddings.append(cells.obsm["X_celldial"])
    pd.testing.assert_frame_equal(*tables)
    np.testing.assert_array_equal(*embeddings)


def test_continued_training_keeps_the_angle(model: VAE, adata: AnnData) -> None:
    before = adata.obs["cell_cycle_angle"].to_numpy()
    n_before = len(model.history_["seconds"])
    model.partial_fit(adata, max_epochs=2, progress=False)
    active = adata.obs["cell_cycle_active"].to_numpy()
    after = adata.obs["cell_cycle_angle"].to_numpy()
    assert np.abs(np.angle(np.exp(1j * (after - before))))[active].mean() < 0.5
    assert len(model.history_["seconds"]) == n_before + 2
    np.testing.assert_array_equal(model.transform(adata), adata.obsm["X_celldial"])
    states = model.transform(adata, include_periodic=True)
    angle = np.arctan2(states[:, 5], states[:, 4]) % TURN
    np.testing.assert_allclose(np.cos(angle - after)[active], 1, atol=1e-4)


def test_continued_training_on_few_cells_keeps_the_selected_features(model: VAE, new: AnnData) -> None:
    few = new[:40].copy()
    before = model.phase(few)["cell_cycle_angle"]
    selected_f = model.module_.modalities["rna"].decoder.angle_feature_mask_f.clone()
    model.partial_fit(few, max_epochs=1, progress=False)
    assert torch.equal(model.module_.modalities["rna"].decoder.angle_feature_mask_f, selected_f)
    assert fisher_lee(few.obs["cell_cycle_angle"], before) > 0.7


def test_the_stages_have_one_history(model: VAE) -> None:
    lengths = {name: len(values) for name, values in model.history_.items()}
    assert len(set(lengths.values())) == 1, lengths
    assert lengths["seconds"] <= 12
    assert (np.diff(model.history_["seconds"]) > 0).all()
    assert sum(model.history_["kept"]) == 1
    assert np.isfinite(model.history_["elbo_train"]).all()


def test_angles_of_cells_without_rna_are_inferred_from_peaks() -> None:
    cells = make_cells(300, mosaic=(0.5, 0.25, 0.25))
    model = make_model().fit(cells, **OPTIONS)
    assert np.isfinite(cells.obs[["cell_cycle_angle", "cell_cycle_concentration"]]).all(axis=None)
    known = cells.obs["has_rna"].to_numpy()
    concentration = cells.obs["cell_cycle_concentration"]
    assert concentration[known].median() > concentration[~known].median()
    by_rna = cells.obs[known & cells.obs["is_cycling"]]
    assert fisher_lee(by_rna["cell_cycle_angle"], by_rna["truth"]) > 0.4
    assert np.isfinite(model.score(cells))


def test_empty_cells_are_not_trained_on() -> None:
    cells = genes_of(make_cells(150))
    del cells.obs["has_rna"], cells.obs["has_atac"]  # these columns would contradict the counts
    counts = cells.X.toarray()
    counts[:5] = 0
    cells.X = counts
    with warns(naming=["5 of 150 cells"]):
        make_model().fit(cells, max_epochs=2, progress=False)
    assert np.isfinite(cells.obs["cell_cycle_angle"]).all()
    assert np.isfinite(cells.obsm["X_celldial"]).all()


def test_an_additive_decoder_adds_the_same_effect_of_the_angle_everywhere() -> None:
    cells = make_cells(300)
    model = make_model(decoder="additive", n_latent=6).fit(cells, **OPTIONS)
    assert set(COLUMNS) <= set(cells.obs.columns)
    cycling = cells.obs[cells.obs["is_cycling"]]
    assert fisher_lee(cycling["cell_cycle_angle"], cycling["truth"]) > 0.4
    states = model.transform(cells, include_periodic=True)
    np.testing.assert_allclose(model.decode(states), model.denoise(cells), rtol=1e-4, atol=1e-4)
    # The angle adds the same to log rates for any other coordinates, up to normalization.
    moved = np.zeros((4, 8), dtype=np.float32)
    moved[:, 6:] = [[1, 0], [-1, 0], [1, 0], [-1, 0]]
    moved[2:, 0] = 2.0
    for _, modality in model.module_.by_modality():
        modality.decoder.angle_offset_kz.zero_()
    log_f = np.log(model.decode(moved))
    difference = (log_f[0] - log_f[1]) - (log_f[2] - log_f[3])
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-3)


def test_covariates() -> None:
    cells = genes_of(make_cells(200))
    others = simulate(200)
    for name in ("batch", "donor", "age"):
        cells.obs[name] = others.obs[name].to_numpy()
    model = make_model(**COVARIATES).fit(cells, max_epochs=2, progress=False)
    assert Schema.from_dict(cells.uns["celldial"]["schema"]).batch_key == "batch"
    values = {"batch": "b0", "donor": "x", "age": 30.0}
    assert model.sample(5, values).obsm["z"].shape == (5, 6)
    path = model.latent_traverse(cells, "cell_cycle", n_steps=3, n_cells=8, transform_batch={"batch": "b1"})
    assert path.n_obs == 3


@pytest.mark.slow
def test_sorted_stem_cells_are_in_the_right_order(shared_data: Path) -> None:
    """Mouse ES cells, sorted by DNA content: angles separate the phases, in the right order."""
    cells = read_h5ad(shared_data / "mesc_cell_cycle.h5ad")
    VAE(periodic="cell_cycle").fit(cells, progress=False)
    angle, phase = cells.obs["cell_cycle_angle"].to_numpy(), cells.obs["phase"].to_numpy()
    position = np.column_stack([np.cos(angle), np.sin(angle)])
    assert knn_f1(position, phase, n_neighbors=15) >= 0.7
    assert cyclic_order(angle, phase, ["G1", "S", "G2M"]) >= 0.75
