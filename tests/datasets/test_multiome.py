"""Simulated multiome cells: properties in the documentation, mostly tested against the true means."""

import runpy

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from celldial.datasets import simulate_multiome
from celldial.datasets._regulation import CELL_CYCLE_GENES
from celldial.datasets.multiome import _sparse_poisson
from helpers.raises import raises

N_GENES = 200
HOUR = 2 * np.pi / 24


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return simulate_multiome(n_cells=3000, n_genes=N_GENES, n_peaks=1000, truth=True)


@pytest.fixture(scope="module")
def log_mean(adata) -> pd.DataFrame:
    """Return true log means minus the log library size."""
    size_c2 = adata.obs[["rna_library_size", "atac_library_size"]].to_numpy()
    log_cf = np.log(adata.layers["mean"]) - np.repeat(np.log(size_c2), [N_GENES, adata.n_vars - N_GENES], axis=1)
    return pd.DataFrame(log_cf, adata.obs_names, adata.var_names)


def identical(one: AnnData, two: AnnData) -> bool:
    same_counts = one.shape == two.shape and (one.X != two.X).nnz == 0
    return same_counts and one.obs.equals(two.obs) and one.var.equals(two.var)


def turn(angle: np.ndarray) -> np.ndarray:
    """Return differences of angles, wrapped to between -π and π."""
    return np.angle(np.exp(1j * np.asarray(angle)))


def first_harmonic(angle_c: np.ndarray, value_cf: np.ndarray) -> np.ndarray:
    """Return the angle of each column's maximum, by regression on cosine and sine."""
    design = np.column_stack([np.ones_like(angle_c), np.cos(angle_c), np.sin(angle_c)])
    _, cosine, sine = np.linalg.lstsq(design, value_cf, rcond=None)[0]
    return np.arctan2(sine, cosine) % (2 * np.pi)


# Shape and counts


def test_defaults():
    adata = simulate_multiome()
    assert adata.shape == (2000, 3500)
    assert list(adata.obs["cell_type"].cat.categories) == ["type1", "type2", "type3", "type4", "type5"]
    assert list(adata.obs["batch"].cat.categories) == ["batch1", "batch2"]
    assert list(adata.obs_names[[0, -1]]) == ["cell_0001", "cell_2000"]
    assert adata.obs[["has_rna", "has_atac"]].all(axis=None)
    assert not adata.layers


def test_counts_are_canonical_sparse_rows_of_integers(adata):
    assert isinstance(adata.X, csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    np.testing.assert_array_equal(adata.X.data, adata.X.data.round())
    assert adata.X.data.min() == 1


def test_sparsity_is_that_of_real_data(adata):
    genes, peaks = adata.X[:, :N_GENES], adata.X[:, N_GENES:]
    assert 0.7 < 1 - genes.nnz / np.prod(genes.shape) < 0.9
    assert 0.03 < peaks.nnz / np.prod(peaks.shape) < 0.05
    assert (peaks.data == 1).mean() > 0.85


def test_features_lie_on_chromosomes(adata):
    genes, peaks = adata.var.iloc[:N_GENES], adata.var.iloc[N_GENES:]
    assert (genes["feature_types"] == "Gene Expression").all()
    assert (peaks["feature_types"] == "Peaks").all()
    place = peaks["chrom"].astype(str) + ":" + peaks["start"].astype(str) + "-" + peaks["end"].astype(str)
    assert list(place) == list(peaks.index)
    assert (peaks["end"] - peaks["start"] == 500).all()
    assert (genes["end"] > genes["start"]).all()
    for _, on_one in peaks.groupby("chrom", observed=True):
        assert (on_one["start"].to_numpy()[1:] >= on_one["end"].to_numpy()[:-1]).all()
    assert adata.var_names.is_unique
    assert set(CELL_CYCLE_GENES) <= set(genes.index)
    assert genes.index.drop(list(CELL_CYCLE_GENES)).str.fullmatch(r"GENE\d{4}").all()


def test_same_seed_same_data(adata):
    sizes = {"n_cells": 3000, "n_genes": N_GENES, "n_peaks": 1000}
    assert identical(adata, simulate_multiome(**sizes))
    assert not identical(adata, simulate_multiome(**sizes, seed=1))


def test_the_global_random_state_is_unchanged():
    np.random.seed(0)  # noqa: NPY002 - the legacy stream is the one that could be touched
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_multiome(10, 60, 60)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# Counts around their means


def test_counts_average_to_their_means(adata):
    difference_f = np.asarray(adata.X.sum(0)).ravel() - adata.layers["mean"].sum(0)
    mean_cf = adata.layers["mean"].astype(float)
    dispersion_f = 1 / adata.var["inverse_dispersion"].fillna(np.inf).to_numpy()
    z_f = difference_f / np.sqrt((mean_cf + mean_cf**2 * dispersion_f).sum(0))
    assert np.abs(z_f).max() < 5
    assert 0.9 < z_f.std() < 1.1
    assert abs(z_f[:N_GENES].mean()) < 0.25


def test_totals_average_to_library_sizes(adata):
    np.testing.assert_allclose(adata.layers["mean"][:, :N_GENES].sum(1), adata.obs["rna_library_size"], rtol=1e-4)
    np.testing.assert_allclose(adata.layers["mean"][:, N_GENES:].sum(1), adata.obs["atac_library_size"], rtol=1e-4)
    totals_c = np.asarray(adata.X[:, N_GENES:].sum(1)).ravel()
    assert np.corrcoef(totals_c, adata.obs["atac_library_size"])[0, 1] > 0.9


def test_genes_vary_as_negative_binomials_and_peaks_as_poissons(adata):
    mean_cf = adata.layers["mean"].astype(float)
    excess_f = ((adata.X.toarray() - mean_cf) ** 2 - mean_cf).mean(0)
    expected_g = (mean_cf**2).mean(0)[:N_GENES] / adata.var["inverse_dispersion"].to_numpy()[:N_GENES]
    expressed = mean_cf.mean(0)[:N_GENES] > 1
    assert expressed.sum() > 20
    assert 0.85 < np.median(excess_f[:N_GENES][expressed] / expected_g[expressed]) < 1.15
    assert abs((excess_f[N_GENES:] / mean_cf.mean(0)[N_GENES:]).mean()) < 0.01


def test_sparse_poisson_has_the_right_distribution():
    rate_f = np.array([0.0, 0.3, 0.0, 2.0, 0.05, 0.0])
    counts_cf = _sparse_poisson(np.random.default_rng(0), np.tile(rate_f, (20_000, 1))).toarray()
    np.testing.assert_allclose(counts_cf.mean(0), rate_f, atol=0.05)
    np.testing.assert_allclose(np.cov(counts_cf.T), np.diag(rate_f), atol=0.1)
    np.testing.assert_allclose((counts_cf == 0).mean(0), np.exp(-rate_f), atol=0.02)
    assert not counts_cf[:, rate_f == 0].any()


# Types


def test_markers_are_higher_in_their_type(adata, log_mean):
    markers = adata.var["is_marker_of"].dropna()
    assert (markers.index.isin(adata.var_names[:N_GENES])).sum() >= 15
    assert set(markers) == set(adata.obs["cell_type"].cat.categories)
    level = log_mean[markers.index].groupby(adata.obs["cell_type"], observed=True).mean()
    own = np.array([level.loc[type_, feature] for feature, type_ in markers.items()])
    others = (level.sum() - own) / (len(level) - 1)
    assert (own - others > 0.2).mean() > 0.95
    assert np.median(own - others) > 0.7


def test_types_with_a_common_branch_are_closer(adata, log_mean):
    programs = adata.uns["simulation"]["programs"]
    assert programs.shape == (5, 8)
    assert (programs.sum() <= 4).all()
    level = log_mean.groupby(adata.obs["cell_type"], observed=True).mean().to_numpy()
    distance_kk = ((level[:, None] - level[None]) ** 2).mean(-1)
    on = programs.to_numpy().astype(int)
    different_kk = (on[:, None] != on[None]).sum(-1)
    pairs = np.triu_indices(5, 1)
    assert np.corrcoef(distance_kk[pairs], different_kk[pairs])[0, 1] > 0.6


def test_abundances_and_proliferation_differ_between_types(adata):
    share = adata.obs["cell_type"].value_counts(normalize=True)
    assert share.max() > 1.5 * share.min()
    cycling = adata.obs.groupby("cell_type", observed=True)["is_cycling"].mean()
    assert cycling.min() < 0.3
    assert cycling.max() > 0.6


def test_chromatin_opens_before_genes_respond(adata, log_mean):
    type_, feature_types = adata.obs["cell_type"], adata.var["feature_types"]
    halfway = []
    for kind in ("Peaks", "Gene Expression"):
        level = np.zeros(adata.n_obs)
        for name in type_.cat.categories:
            markers = adata.var_names[(feature_types == kind) & (adata.var["is_marker_of"] == name)]
            level[type_ == name] = log_mean.loc[type_ == name, markers].mean(axis=1)
        bins = pd.cut(adata.obs["differentiation"], np.linspace(0, 1, 11))
        curve = pd.Series(level, adata.obs_names).groupby(bins, observed=True).mean()
        curve = (curve - curve.iloc[0]) / (curve.iloc[-1] - curve.iloc[0])
        halfway.append(np.interp(0.5, curve, np.arange(10)))
    assert halfway[1] - halfway[0] > 0.7  # tenths of differentiation


# Links


def test_links_are_local_and_few(adata):
    links = adata.uns["simulation"]["links"]
    per_gene = links.groupby("gene").size()
    assert len(per_gene) == N_GENES
    assert per_gene.between(1, 5).all()
    assert 2 < per_gene.mean() < 3.2
    assert not links.duplicated(["gene", "peak"]).any()
    gene, peak = adata.var.loc[links["gene"]], adata.var.loc[links["peak"]]
    assert (gene["chrom"].astype(str).to_numpy() == peak["chrom"].astype(str).to_numpy()).all()
    distance = (peak["start"] + peak["end"]).to_numpy() / 2 - gene["start"].to_numpy()
    np.testing.assert_array_equal(distance, links["distance"])
    assert np.abs(distance).max() <= 100_000
    assert (links["distance"] == 0).sum() == N_GENES
    assert links["lag_hours"].between(0.5, 2).all()
    distal = links[links["distance"] != 0]
    assert 0.04 < (distal["weight"] < 0).mean() < 0.2
    assert (links.loc[links["distance"] == 0, "weight"] > 0).all()
    assert np.corrcoef(distal["distance"].abs(), distal["weight"].abs())[0, 1] < -0.7


def test_linked_peaks_and_genes_go_together(adata, log_mean):
    links = adata.uns["simulation"]["links"]
    cells = log_mean[(adata.obs["batch"] == "batch1").to_numpy()]
    cells = (cells - cells.mean()) / cells.std()
    regulated = adata.var["is_marker_of"].notna() | (adata.var["cell_cycle_amplitude"] > 0.3)
    links = links[regulated[links["gene"]].to_numpy()]
    gene = cells[links["gene"]].to_numpy()
    linked = (gene * cells[links["peak"]].to_numpy()).mean(0)
    peaks = np.random.default_rng(0).choice(adata.var_names[N_GENES:], len(links))
    unlinked = (gene * cells[peaks].to_numpy()).mean(0)
    assert (linked * np.sign(links["weight"])).mean() > 0.6
    assert abs(unlinked.mean()) < 0.2
    assert np.median(np.abs(linked)) > 3 * np.median(np.abs(unlinked))


def test_genes_follow_their_peaks():
    """Without cell cycle and in mature cells, a gene's log fold change is the weighted sum of those of its peaks."""
    adata = simulate_multiome(1500, 100, 400, n_batches=1, cell_cycle=False, truth=True)
    adata = adata[adata.obs["differentiation"] > 0.98]
    changes = []
    for features in (slice(100), slice(100, None)):
        log_cf = np.log(adata.layers["mean"][:, features].astype(float))
        log_cf -= np.median(log_cf, axis=0)
        # Library size and normalization are the same for all features of a cell, and most features are not regulated.
        changes.append(log_cf - np.median(log_cf, axis=1, keepdims=True))
    change_cg, change_cp = changes
    links = adata.uns["simulation"]["links"]
    gene, peak = adata.var_names.get_indexer(links["gene"]), adata.var_names.get_indexer(links["peak"]) - 100
    weight_pg = csr_matrix((links["weight"], (peak, gene)), shape=(400, 100))
    error_cg = change_cg - change_cp @ weight_pg
    assert len(adata) > 30
    assert (error_cg - np.median(error_cg, axis=0)).std() < 0.05 * change_cg.std()


# Cell cycle


def test_angles_and_phases(adata):
    angle, phase = adata.obs["true_cell_cycle_angle"], adata.obs["phase"]
    assert angle.between(0, 2 * np.pi, inclusive="left").all()
    assert list(phase.cat.categories) == ["G1", "S", "G2M"]
    assert list(np.digitize(angle / HOUR, [12, 20])) == list(phase.cat.codes)
    cycling = adata.obs["is_cycling"]
    assert (phase[~cycling] == "G1").mean() > 0.999
    share = phase[cycling].value_counts(normalize=True)
    # The shares of a growing population: 2 - 2^(1 - t/24) up to hour t.
    np.testing.assert_allclose(share[["G1", "S", "G2M"]], [0.586, 0.292, 0.122], atol=0.04)


def test_library_sizes_rise_over_the_cycle(adata):
    size = adata.obs.groupby("phase", observed=True)[["rna_library_size", "atac_library_size"]].median()
    ratio = size.loc["G2M"] / size.loc["G1"]
    assert ratio.between(1.4, 2.2).all()
    assert np.corrcoef(np.log(adata.obs[["rna_library_size", "atac_library_size"]].T))[0, 1] > 0.4


def test_cycling_features_peak_at_their_phase(adata, log_mean):
    cycling_c = adata.obs["is_cycling"].to_numpy()
    features = adata.var.index[adata.var["cell_cycle_amplitude"] > 0.5]
    angle_c = adata.obs["true_cell_cycle_angle"].to_numpy()[cycling_c]
    found = first_harmonic(angle_c, log_mean.loc[cycling_c, features].to_numpy())
    error = np.abs(turn(found - adata.var.loc[features, "cell_cycle_phase"]))
    assert len(features) > 60
    assert np.median(error) < 0.5 * HOUR
    assert np.quantile(error, 0.95) < 1.5 * HOUR


def test_known_genes_peak_where_they_should(adata):
    known = adata.var.loc[list(CELL_CYCLE_GENES)]
    assert (known["cell_cycle_amplitude"] > 0).all()
    error = np.abs(turn(known["cell_cycle_phase"] - HOUR * np.array(list(CELL_CYCLE_GENES.values()))))
    assert np.median(error) < 0.1 * HOUR
    assert np.mean(error < 1 * HOUR) > 0.85
    assert adata.var["cell_cycle_phase"].isna().equals(adata.var["cell_cycle_amplitude"] == 0)


def test_peaks_lead_the_genes_they_drive(adata):
    links = adata.uns["simulation"]["links"]
    links = links[links["gene"].isin(CELL_CYCLE_GENES) & (links["weight"] > 0)]
    phase = adata.var["cell_cycle_phase"]
    lead = turn(phase[links["gene"]].to_numpy() - phase[links["peak"]].to_numpy()) / HOUR
    lead = lead[~np.isnan(lead)]
    assert len(lead) > 80
    assert 0.8 < np.median(lead) < 1.7
    assert np.mean((lead > 0.3) & (lead < 2.2)) > 0.85


def test_silencers_have_the_opposite_effect():
    leads = []
    for seed in range(5):
        adata = simulate_multiome(1, 51, 300, seed=seed)
        links, phase = adata.uns["simulation"]["links"].query("weight < 0"), adata.var["cell_cycle_phase"]
        leads.append(turn(phase[links["gene"]].to_numpy() - phase[links["peak"]].to_numpy() + np.pi) / HOUR)
    lead = np.concatenate(leads)
    assert len(lead) > 25
    assert 0.5 < np.median(lead) < 2


def test_angle_can_be_read_from_the_counts(adata):
    cycling_c = adata.obs["is_cycling"].to_numpy()
    angle_c = adata.obs["true_cell_cycle_angle"].to_numpy()[cycling_c]
    counts_cg = adata[cycling_c, list(CELL_CYCLE_GENES)].X.toarray()
    x_cg = np.log1p(counts_cg * (100 / adata.obs["rna_library_size"].to_numpy()[cycling_c, None]))
    x_cg = np.column_stack([x_cg, np.ones(len(x_cg))])
    target_c2 = np.column_stack([np.cos(angle_c), np.sin(angle_c)])
    train = np.arange(len(x_cg)) % 2 == 0
    effect = np.linalg.lstsq(x_cg[train], target_c2[train], rcond=None)[0]
    cosine, sine = (x_cg[~train] @ effect).T
    error = np.abs(turn(np.arctan2(sine, cosine) - angle_c[~train]))
    assert 0.3 * HOUR < np.median(error) < 2 * HOUR  # by chance: 6 hours


def test_without_a_cell_cycle():
    adata = simulate_multiome(50, 20, 40, cell_cycle=False)
    assert adata.obs[["true_cell_cycle_angle", "phase"]].isna().all(axis=None)
    assert not adata.obs["is_cycling"].any()
    assert (adata.var["cell_cycle_amplitude"] == 0).all()
    assert adata.var["cell_cycle_phase"].isna().all()
    assert adata.var_names[0] == "GENE0001"


def test_angles_multiply_features():
    """Amplitudes, phases and means follow from the stored effects of the angle."""
    adata = simulate_multiome(300, 60, 200, n_types=1, n_batches=1, truth=True, seed=3)
    effect_f4 = adata.varm["cell_cycle_effect"]
    grid = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    curve_sf = np.stack([np.cos(grid), np.sin(grid), np.cos(2 * grid), np.sin(2 * grid)], 1) @ effect_f4.T
    np.testing.assert_allclose(np.ptp(curve_sf, axis=0) / 2, adata.var["cell_cycle_amplitude"], atol=1e-9)
    # After removing the effect, the ratio of two genes that only the angle affects is constant.
    angle_c = adata.obs["true_cell_cycle_angle"].to_numpy()
    log_cf = np.log(adata.layers["mean"][:, :60].astype(float))
    turned_cf = np.stack([np.cos(angle_c), np.sin(angle_c), np.cos(2 * angle_c), np.sin(2 * angle_c)], 1) @ effect_f4.T
    rest_cf = (log_cf - turned_cf[:, :60])[:, effect_f4[:60].any(1)]
    assert np.median((rest_cf - rest_cf[:, :1]).std(0)) < 1e-4  # some genes are also linked to a peak with a program
    assert rest_cf.shape[1] > 40
    assert not simulate_multiome(20, 30, 40, cell_cycle=False).varm["cell_cycle_effect"].any()


# Batches


def test_batches_multiply_features(adata, log_mean):
    effect_fb = adata.varm["batch_effect"]
    np.testing.assert_allclose(effect_fb.sum(1), 0, atol=1e-12)
    level = log_mean.groupby(adata.obs["batch"], observed=True).mean()
    difference_f = (level.loc["batch2"] - level.loc["batch1"]).to_numpy()
    for part in (slice(N_GENES), slice(N_GENES, None)):
        expected_f = effect_fb[part, 1] - effect_fb[part, 0]
        assert expected_f.std() > 0.15
        assert np.corrcoef(difference_f[part], expected_f)[0, 1] > 0.95


def test_one_batch_has_no_effect():
    adata = simulate_multiome(20, 60, 80, n_batches=1, n_types=1)
    assert not adata.varm["batch_effect"].any()
    assert list(adata.uns["simulation"]["programs"]) == ["type1"]


# Depth


def test_depth_multiplies_expected_counts_and_nothing_else():
    usual, deep = (simulate_multiome(300, 60, 200, depth=depth, truth=True) for depth in (1, 6.0))
    np.testing.assert_allclose(deep.layers["mean"], 6 * usual.layers["mean"], rtol=1e-5)
    sizes = ["rna_library_size", "atac_library_size"]
    np.testing.assert_allclose(deep.obs[sizes], 6 * usual.obs[sizes])
    pd.testing.assert_frame_equal(deep.obs.drop(columns=sizes), usual.obs.drop(columns=sizes))
    pd.testing.assert_frame_equal(deep.var, usual.var)
    for part in (slice(60), slice(60, None)):
        assert 5.5 < deep.X[:, part].sum() / usual.X[:, part].sum() < 6.5
    assert identical(usual, simulate_multiome(300, 60, 200))
    assert deep.uns["simulation"]["depth"] == 6


# Mosaic


def test_mosaic():
    adata = simulate_multiome(400, 60, 200, mosaic=(0.5, 0.2, 0.3), truth=True)
    has_rna, has_atac = adata.obs["has_rna"].to_numpy(), adata.obs["has_atac"].to_numpy()
    assert ((has_rna & has_atac).sum(), (has_rna & ~has_atac).sum(), (has_atac & ~has_rna).sum()) == (200, 80, 120)
    rna_c, atac_c = (np.asarray(part.sum(1)).ravel() for part in (adata.X[:, :60], adata.X[:, 60:]))
    assert not rna_c[~has_rna].any()
    assert not atac_c[~has_atac].any()
    assert (rna_c[has_rna] > 0).mean() > 0.98
    # The truth includes modalities that were not measured, and equals that of the same cells with both.
    assert (adata.layers["mean"] > 0).all()
    paired = simulate_multiome(400, 60, 200, truth=True)
    np.testing.assert_array_equal(paired.layers["mean"], adata.layers["mean"])


# Files


def test_h5ad_round_trip(tmp_path):
    adata = simulate_multiome(40, 60, 100, mosaic=(0.5, 0.25, 0.25), truth=True)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    assert identical(adata, back)
    np.testing.assert_array_equal(back.layers["mean"], adata.layers["mean"])
    np.testing.assert_array_equal(back.varm["batch_effect"], adata.varm["batch_effect"])
    for key, value in adata.uns["simulation"].items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(back.uns["simulation"][key], value)
        else:
            np.testing.assert_array_equal(back.uns["simulation"][key], value)


def test_the_stored_copy_equals_the_output_of_its_script(root):
    folder = root / "data"
    if not (folder / "simulated_multiome.h5ad").exists():
        pytest.skip("no data/ here; it is not a part of the source distribution")
    stored = read_h5ad(folder / "simulated_multiome.h5ad")
    fresh = simulate_multiome(**runpy.run_path(str(folder / "make_simulated_multiome.py"))["ARGUMENTS"])
    assert (stored.X != fresh.X).nnz == 0
    # Logarithms and cosines may differ in the last digit between machines.
    pd.testing.assert_frame_equal(stored.obs, fresh.obs)
    pd.testing.assert_frame_equal(stored.var, fresh.var)
    pd.testing.assert_frame_equal(stored.uns["simulation"]["links"], fresh.uns["simulation"]["links"])


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"n_cells": 0}, ["n_cells", "1", "0"]),
        ({"n_types": -1}, ["n_types", "1", "-1"]),
        ({"seed": -1}, ["seed", "0", "-1"]),
        ({"n_genes": 30}, ["n_genes", "30", "51", "cell_cycle=False"]),
        ({"n_genes": 100, "n_peaks": 99}, ["n_peaks", "99", "n_genes", "100"]),
        ({"mosaic": (0.5, 0.4, 0.2)}, ["mosaic", "(0.5, 0.4, 0.2)"]),
        ({"mosaic": (1.2, -0.2, 0.0)}, ["mosaic", "-0.2"]),
        ({"mosaic": (0.5, 0.5)}, ["mosaic", "(0.5, 0.5)"]),
        ({"mosaic": (np.nan, 0.5, 0.5)}, ["mosaic", "nan"]),
        ({"depth": 0.0}, ["depth", "0.0"]),
        ({"depth": -2}, ["depth", "-2"]),
        ({"depth": np.nan}, ["depth", "nan"]),
        ({"depth": np.inf}, ["depth", "inf"]),
    ],
)
def test_bad_values_are_named(arguments, facts):
    with raises(ValueError, naming=facts):
        simulate_multiome(**arguments)


@pytest.mark.parametrize("name", ["n_cells", "seed", "depth"])
@pytest.mark.parametrize("value", ["2", None, True])
def test_bad_types_are_named(name, value):
    with raises(TypeError, naming=[name, repr(value)]):
        simulate_multiome(**{name: value})
    with raises(TypeError, naming=["n_peaks", "60.0"]):
        simulate_multiome(n_peaks=60.0)


@settings(max_examples=40, deadline=None)
@given(
    n_cells=st.integers(1, 30),
    n_genes=st.integers(1, 70),
    more_peaks=st.integers(0, 60),
    n_types=st.integers(1, 7),
    n_batches=st.integers(1, 4),
    parts=st.tuples(*[st.integers(0, 3)] * 3).filter(any),
    seed=st.integers(0, 2**32),
)
def test_any_size_works(n_cells, n_genes, more_peaks, n_types, n_batches, parts, seed):
    cell_cycle = n_genes >= len(CELL_CYCLE_GENES)
    n_peaks = n_genes + more_peaks
    mosaic = np.array(parts) / sum(parts)
    arguments = {"cell_cycle": cell_cycle, "mosaic": mosaic, "seed": seed}
    adata = simulate_multiome(n_cells, n_genes, n_peaks, n_types, n_batches, truth=True, **arguments)
    assert adata.shape == adata.layers["mean"].shape == (n_cells, n_genes + n_peaks)
    assert adata.X.has_canonical_format
    assert np.isfinite(adata.layers["mean"]).all()
    assert adata.var_names.is_unique
    assert not adata.X[~adata.obs["has_rna"].to_numpy(), :n_genes].nnz
    assert not adata.X[~adata.obs["has_atac"].to_numpy(), n_genes:].nnz
    assert (adata.obs["has_rna"] | adata.obs["has_atac"]).all()
    assert set(adata.uns["simulation"]["links"]["gene"]) == set(adata.var_names[:n_genes])
    assert (adata.var["end"] > adata.var["start"]).all()
