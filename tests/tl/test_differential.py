"""`differential` and `markers`: known effects, nulls, the layout of scanpy, and bad input."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import celldial as cd
from celldial import VAE
from celldial.io import results
from celldial.tl import fold_changes
from helpers.axes import assert_same_snapshot, snapshot
from helpers.fit import fit, without_loadings
from helpers.raises import raises, warns
from helpers.simulate import RESPONSE, simulate, simulate_response, simulate_two, write

COLUMNS = ["group", "feature", "log2_fold_change", "lower", "upper", "mean_group", "mean_reference"]
COLUMNS += ["share_group", "share_reference", "p_value", "lfsr", "fdr"]
N_EFFECTS = 20


def simulate_donors(
    n_donors: int = 8, n_cells: int = 40, n_genes: int = 120, effect: float = 1.5, seed: int = 0
) -> AnnData:
    """Draw donors with an expression of their own, each in two conditions; the first genes respond by ±`effect`."""
    random = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "donor": np.repeat([f"d{donor}" for donor in range(n_donors)], n_cells),
            "condition": np.tile(["ctrl", "stim"], n_donors * n_cells // 2),
            "type": np.where(random.random(n_donors * n_cells) < 0.5, "A", "B"),
            "age": np.repeat(random.uniform(20, 60, n_donors), n_cells),
        },
        index=[f"c{cell}" for cell in range(n_donors * n_cells)],
    )
    level_df = random.normal(0, 0.8, n_genes) + random.normal(0, 0.4, (n_donors, n_genes))
    type_f = random.normal(0, 0.7, n_genes)
    effect_f = np.zeros(n_genes)
    effect_f[:N_EFFECTS] = effect * np.log(2) * np.where(np.arange(N_EFFECTS) % 2, 1, -1)
    response_df = effect_f + np.where(effect_f != 0, 0.1, 0.0) * random.normal(size=(n_donors, n_genes))
    donor_c = np.repeat(np.arange(n_donors), n_cells)
    log_cf = level_df[donor_c] + np.outer(obs["type"] == "B", type_f)
    log_cf += (obs["condition"] == "stim").to_numpy()[:, None] * response_df[donor_c]
    rate_cf = np.exp(log_cf)
    mean_cf = 600 * rate_cf / rate_cf.sum(1, keepdims=True) * random.gamma(4, 1 / 4, rate_cf.shape)
    x = sparse.csr_matrix(random.poisson(mean_cf), dtype=np.float32)
    return AnnData(x, obs, pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)]))


@pytest.fixture(scope="module")
def donors() -> AnnData:
    return simulate_donors()


@pytest.fixture(scope="module")
def model(donors: AnnData) -> VAE:
    return fit(donors, VAE(4, 16, categorical_covariate_keys=["type"]), max_epochs=8)


@pytest.fixture(scope="module")
def response() -> tuple[AnnData, VAE]:
    adata = simulate_response()
    return adata, fit(adata, VAE(4, 16), max_epochs=5)


def by_feature(table: pd.DataFrame, adata: AnnData) -> pd.DataFrame:
    """Return the rows of one group in the order of the features."""
    return table.set_index("feature").loc[adata.var_names]


def observed_change(adata: AnnData, column: str, group: str, reference: str) -> np.ndarray:
    """Return the log2 fold change of the mean of normalized counts."""
    share_cf = adata.X.toarray() / adata.X.sum(1)
    mean = {
        name: np.asarray(share_cf[(adata.obs[column] == name).to_numpy()].mean(0)).ravel()
        for name in (group, reference)
    }
    return np.log2(mean[group] / mean[reference])


# --- The model --------------------------------------------------------------------------------------------------------


def test_known_effects_are_found(response: tuple[AnnData, VAE]) -> None:
    adata, model = response
    table = model.differential(adata, "condition", ["stimulated"], "control", method="model")
    assert list(table.columns) == COLUMNS
    assert set(table["feature"][:2]) == {"g0", "g1"}
    change = table.set_index("feature")["log2_fold_change"]
    assert abs(change["g0"] - RESPONSE) < 0.4
    assert abs(change["g1"] + RESPONSE) < 0.4
    assert (table["fdr"][:2] < 1e-6).all()
    assert table["p_value"].isna().all()
    assert ((table["lower"] < table["log2_fold_change"]) & (table["log2_fold_change"] < table["upper"])).all()
    shift_f = table["log2_fold_change"] - np.log2(table["mean_group"] / table["mean_reference"])
    np.testing.assert_allclose(shift_f, shift_f.mean())
    assert 0.05 < abs(shift_f.mean()) < 0.5


def test_what_the_network_shrinks_away_is_not_lost(response: tuple[AnnData, VAE]) -> None:
    """A network that predicts the same for all cells still leads to the observed fold changes."""
    adata, _ = response
    model = fit(adata, VAE(2, 8), max_epochs=1)
    for modality in model.module_.modalities.values():
        modality.decoder.rate_head.weight.data.zero_()
    decoded = model.denoise(adata).to_numpy()
    assert np.ptp(decoded, axis=0).max() < 1e-3
    table = by_feature(model.differential(adata, "condition", ["stimulated"], "control", method="model"), adata)
    expected_f = observed_change(adata, "condition", "stimulated", "control")
    assert np.corrcoef(table["log2_fold_change"], expected_f)[0, 1] > 0.98
    assert abs(table["log2_fold_change"]["g0"] / expected_f[0] - 1) < 0.1


def test_shares_and_means_are_those_of_the_cells(response: tuple[AnnData, VAE]) -> None:
    adata, model = response
    table = by_feature(model.differential(adata, "type", ["A"], method="model"), adata)
    is_a = (adata.obs["type"] == "A").to_numpy()
    np.testing.assert_allclose(
        table["share_group"],
        (adata.X[is_a] > 0).mean(0).A1 if hasattr((adata.X[is_a] > 0).mean(0), "A1") else (adata.X[is_a] > 0).mean(0),
    )
    np.testing.assert_allclose(table["share_reference"], np.asarray((adata.X[~is_a] > 0).mean(0)).ravel())
    observed_f = np.asarray((adata.X[is_a] / adata.X[is_a].sum(1)).mean(0)).ravel() * 1e4
    np.testing.assert_allclose(table["mean_group"], observed_f, rtol=0.1)


def test_random_halves_of_a_type_do_not_differ(response: tuple[AnnData, VAE]) -> None:
    adata, model = response
    cells = adata[(adata.obs["type"] == "A") & (adata.obs["condition"] == "control")].copy()
    found = []
    for seed in range(5):
        cells.obs["half"] = np.random.default_rng(seed).permutation(np.arange(cells.n_obs) % 2).astype(str)
        table = model.differential(cells, "half", ["0"], "1", method="model", key_added=None)
        found.append((table["fdr"] < 0.05).mean())
        assert (np.abs(table["log2_fold_change"]) < 1).all()
    assert np.mean(found) < 0.001


def test_intervals_cover_the_truth() -> None:
    """The truth is the difference between many cells of the same simulation, of which the model has a part."""
    cells = simulate_donors(n_donors=1, n_cells=2000, seed=3)
    cells.obs["stimulated"] = cells.obs["condition"]
    part = cells[np.random.default_rng(0).permutation(2000)[:200]].copy()
    model = fit(part, VAE(4, 16), max_epochs=8)
    table = by_feature(model.differential(part, "condition", ["stim"], "ctrl", method="model"), part)
    truth_f = observed_change(cells, "condition", "stim", "ctrl")
    truth_f -= np.median(truth_f[N_EFFECTS:])
    covered = ((table["lower"] < truth_f) & (truth_f < table["upper"])).mean()
    assert 0.8 < covered


def test_the_correction_is_as_precise_as_the_model_is_right() -> None:
    """Ratios of observed to expected counts around 1 with a known variance."""
    from celldial.inference.group_sums import DecodedSums

    random = np.random.default_rng(0)
    for precision in (5.0, 50.0):
        expected_gf = random.uniform(50, 500, (4, 500))
        count_gf = random.poisson(expected_gf * random.gamma(precision, 1 / precision, (4, 500))).astype(float)
        zero_gf, one_g = np.zeros((4, 500)), np.ones(4)
        sums = DecodedSums(
            n_cells_g=one_g * 1000,
            library_size_g=one_g,
            count_gf=count_gf,
            expressing_gf=zero_gf,
            count_square_gf=zero_gf,
            expected_gf=expected_gf,
            expected_square_gf=zero_gf,
            count_expected_gf=zero_gf,
            variance_gf=expected_gf,
            level_gf=zero_gf,
            level_square_gf=zero_gf,
            input_gh=zero_gf,
        )
        assert abs(np.log(fold_changes.correction_precision(sums) / precision)) < 0.15


def test_a_covariate_is_averaged_over(donors: AnnData, model: VAE) -> None:
    """The types are unevenly distributed over the groups, and the difference between types is not one of groups."""
    random = np.random.default_rng(5)
    is_b = (donors.obs["type"] == "B").to_numpy()
    cells = donors.copy()
    cells.obs["group"] = np.where(random.random(donors.n_obs) < np.where(is_b, 0.8, 0.2), "x", "y")
    settings = {"groups": ["x"], "reference": "y", "method": "model", "key_added": None}
    plain = by_feature(model.differential(cells, "group", **settings), cells)["log2_fold_change"]
    adjusted = by_feature(model.differential(cells, "group", covariates="type", **settings), cells)["log2_fold_change"]
    between_f = observed_change(cells, "type", "B", "A")
    assert np.polyfit(between_f, plain, 1)[0] > 0.4
    assert abs(np.polyfit(between_f, adjusted, 1)[0]) < 0.25


def test_delta_asks_for_larger_effects(response: tuple[AnnData, VAE]) -> None:
    adata, model = response
    settings = {"groups": ["stimulated"], "reference": "control", "method": "model", "key_added": None}
    found = [by_feature(model.differential(adata, "condition", delta=delta, **settings), adata) for delta in (0, 1, 4)]
    assert (found[1]["fdr"][["g0", "g1"]] < 0.05).all()
    assert (found[2]["fdr"] > 0.5).all()
    assert (found[2]["lfsr"] >= found[1]["lfsr"]).all()
    pd.testing.assert_series_equal(found[0]["log2_fold_change"], found[2]["log2_fold_change"])


def test_the_result_depends_on_the_seed_alone(response: tuple[AnnData, VAE]) -> None:
    adata, model = response
    first, again, other = (
        model.differential(adata, "type", method="model", seed=seed, key_added=None) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not np.array_equal(first["lower"], other["lower"])


def test_peaks_and_genes() -> None:
    adata = simulate_two(n_cells=120)
    model = fit(adata, max_epochs=5)
    peaks = model.differential(adata, "type", ["A"], modality="atac", method="model")
    assert list(peaks["feature"].sort_values()) == sorted(name for name in adata.var_names if name[0] == "p")
    assert (peaks["mean_group"] <= 1).all()
    rate = observed_change(adata[:, [f"p{i}" for i in range(30)]], "type", "A", "B")
    change = peaks.set_index("feature").loc[[f"p{i}" for i in range(30)], "log2_fold_change"]
    assert np.corrcoef(change, rate)[0, 1] > 0.9
    genes = model.differential(adata, "type", ["A"], method="model")
    assert set(genes["feature"]) == {f"g{i}" for i in range(20)}


# --- Replicates -------------------------------------------------------------------------------------------------------


def test_effects_between_donors_are_found(donors: AnnData, model: VAE) -> None:
    table = by_feature(model.differential(donors, "condition", ["stim"], replicate_key="donor"), donors)
    found = set(donors.var_names[table["fdr"] < 0.05])
    effects = {f"g{i}" for i in range(N_EFFECTS)}
    assert len(found & effects) >= 18
    assert len(found - effects) <= 4
    up = [f"g{i}" for i in range(1, N_EFFECTS, 2)]
    assert (table.loc[up, "log2_fold_change"] > 0.5).all()
    assert (table["lower"] < table["log2_fold_change"]).all()


def test_donors_compared_with_themselves_and_with_others(donors: AnnData, model: VAE) -> None:
    """Without pairs, differences between donors are noise: fewer effects are found."""
    cells = donors.copy()
    cells.obs["other"] = cells.obs["donor"].str.cat(cells.obs["condition"])
    settings = {"groups": ["stim"], "reference": "ctrl", "key_added": None}
    paired = model.differential(cells, "condition", replicate_key="donor", **settings)
    unpaired = model.differential(cells, "condition", replicate_key="other", **settings)
    assert paired["fdr"].lt(0.05).sum() > unpaired["fdr"].lt(0.05).sum()
    assert np.corrcoef(*(by_feature(table, cells)["log2_fold_change"] for table in (paired, unpaired)))[0, 1] > 0.95


def test_splits_of_donors_do_not_differ_more_than_chance(model: VAE) -> None:
    shares = []
    for seed in range(3):
        cells = simulate_donors(seed=10 + seed, effect=0)
        for split in (("d0", "d1", "d2", "d3"), ("d0", "d2", "d4", "d6"), ("d0", "d3", "d5", "d6")):
            cells.obs["half"] = np.where(cells.obs["donor"].isin(split), "x", "y")
            table = model.differential(cells, "half", ["x"], "y", replicate_key="donor", key_added=None)
            shares.append((table["p_value"] < 0.05).mean())
            assert (table["fdr"] < 0.05).sum() <= 2
    assert 0.02 < np.mean(shares) < 0.08


def test_covariates_of_donors_are_adjusted_for(donors: AnnData, model: VAE) -> None:
    """A batch of half of the donors, which changes expression, is not a difference between groups."""
    cells = donors[donors.obs["condition"] == "ctrl"].copy()
    number_c = cells.obs["donor"].str[1:].astype(int)
    cells.obs["batch"] = np.where(number_c % 2, "b0", "b1")
    cells.obs["half"] = np.where(number_c.isin([0, 2, 4, 1]), "x", "y")
    x = cells.X.toarray()
    x[(number_c % 2 == 0).to_numpy(), :40] *= 3
    cells.X = sparse.csr_matrix(x)
    settings = {"groups": ["x"], "reference": "y", "replicate_key": "donor", "key_added": None}
    plain = by_feature(model.differential(cells, "half", **settings), cells)["log2_fold_change"][:40]
    adjusted = by_feature(model.differential(cells, "half", covariates=["batch", "age"], **settings), cells)
    assert abs(adjusted["log2_fold_change"][:40].mean()) < 0.5 * abs(plain.mean())


def test_rare_features_are_not_tested(donors: AnnData, model: VAE) -> None:
    x = donors.X.toarray()
    x[:, 5], x[0, 5] = 0, 3
    cells = AnnData(sparse.csr_matrix(x), donors.obs.copy(), donors.var.copy())
    table = by_feature(model.differential(cells, "condition", ["stim"], replicate_key="donor"), cells)
    assert table.loc["g5", ["p_value", "fdr", "lfsr", "log2_fold_change"]].isna().all()
    assert table.drop("g5").notna().all(axis=None)
    assert not np.isnan(cells.uns["rank_genes_groups"]["pvals"]["stim"]).any()


def test_one_donor_is_compared_by_the_model_with_a_warning(donors: AnnData, model: VAE) -> None:
    cells = donors[donors.obs["donor"] == "d1"].copy()
    with warns(naming=["donor", "method='model'"]):
        table = model.differential(cells, "condition", replicate_key="donor")
    assert table["p_value"].isna().all()
    with warns(naming=["replicate_key"]):
        model.differential(donors, "condition", key_added=None)


# --- Groups -----------------------------------------------------------------------------------------------------------


def test_rest_is_all_other_cells(donors: AnnData, model: VAE) -> None:
    cells = donors.copy()
    cells.obs["three"] = np.array(["x", "y", "z"])[np.arange(cells.n_obs) % 3]
    cells.obs["is_x"] = np.where(cells.obs["three"] == "x", "x", "other")
    cells.obs.loc[cells.obs_names[:9], ["three", "is_x"]] = None
    first = by_feature(model.differential(cells, "three", "x", method="model", key_added=None), cells)
    second = by_feature(model.differential(cells, "is_x", "x", "other", method="model", key_added=None), cells)
    pd.testing.assert_frame_equal(first[["share_reference"]], second[["share_reference"]])
    np.testing.assert_allclose(first["log2_fold_change"], second["log2_fold_change"], atol=0.1)
    every = model.differential(cells, "three", method="model", key_added=None)
    assert list(every["group"].unique()) == ["x", "y", "z"]


def test_a_comparison_within_a_group_of_cells(donors: AnnData, model: VAE) -> None:
    cells = donors[donors.obs["type"] == "B"].copy()
    for options in ({"method": "model"}, {"replicate_key": "donor"}):
        part = by_feature(model.differential(donors, "condition", "stim", at={"type": "B"}, **options), donors)
        alone = by_feature(model.differential(cells, "condition", "stim", **options), cells)
        np.testing.assert_allclose(part["share_group"], alone["share_group"])
        np.testing.assert_allclose(part["log2_fold_change"], alone["log2_fold_change"], atol=0.15)


def test_groups_of_numbers_and_booleans(donors: AnnData, model: VAE) -> None:
    cells = donors.copy()
    cells.obs["number"] = np.arange(cells.n_obs) % 2
    cells.obs["is_stim"] = cells.obs["condition"] == "stim"
    assert list(model.differential(cells, "number", method="model", key_added=None)["group"].unique()) == ["0", "1"]
    table = model.differential(cells, "is_stim", "True", replicate_key="donor", key_added=None)
    assert set(table["group"]) == {"True"}


# --- The layout of scanpy, and what is written ------------------------------------------------------------------------


def test_scanpy_reads_the_result(donors: AnnData, model: VAE) -> None:
    cells = donors.copy()
    cells.obs["three"] = pd.Categorical(np.array(["x", "y", "z"])[np.arange(cells.n_obs) % 3])
    for options in ({"method": "model"}, {"replicate_key": "donor"}):
        table = model.differential(cells, "three", **options)
        for group in "xyz":
            read = sc.get.rank_genes_groups_df(cells, group=group).set_index("names").loc[cells.var_names]
            ours = by_feature(table[table["group"] == group], cells)
            np.testing.assert_allclose(read["logfoldchanges"], ours["log2_fold_change"], rtol=1e-5)
            np.testing.assert_allclose(read["pvals_adj"], ours["fdr"])
            np.testing.assert_allclose(read["pct_nz_group"], ours["share_group"])
            assert (
                cells.uns["rank_genes_groups"]["scores"][group][0]
                == cells.uns["rank_genes_groups"]["scores"][group].max()
            )
    sc.pl.rank_genes_groups(cells, show=False)
    sc.pl.rank_genes_groups_dotplot(cells, n_genes=2, show=False, dendrogram=False)
    sc.pl.rank_genes_groups_heatmap(cells, n_genes=2, show=False, show_gene_labels=True, dendrogram=False)
    sc.pl.dotplot(cells, list(sc.get.rank_genes_groups_df(cells, group="x")["names"][:3]), groupby="three", show=False)


def test_scanpy_fields_are_as_scanpy_writes_them(donors: AnnData, model: VAE, tmp_path: Path) -> None:
    cells = donors.copy()
    sc.tl.rank_genes_groups(cells, "condition", key_added="scanpy", pts=True, use_raw=False)
    model.differential(cells, "condition", method="model", key_added="ours")
    theirs, ours = cells.uns["scanpy"], cells.uns["ours"]
    assert set(theirs) <= set(ours)
    for name in ("names", "scores", "pvals", "pvals_adj", "logfoldchanges"):
        assert theirs[name].dtype == ours[name].dtype
        assert theirs[name].shape == ours[name].shape
    from anndata import read_h5ad

    again = read_h5ad(write(cells, tmp_path / "cells.h5ad"))
    assert list(again.uns["ours"]["names"]["stim"]) == list(ours["names"]["stim"])


def test_rankings_are_replaced_and_nothing_else(donors: AnnData, model: VAE) -> None:
    cells = donors.copy()
    sc.tl.rank_genes_groups(cells, "condition", use_raw=False)
    model.differential(cells, "condition", method="model")
    assert results.writer_of(cells, "uns", "rank_genes_groups") == model.fingerprint_
    cells.uns["notes"] = "mine"
    before = snapshot(cells)
    with raises(ValueError, naming=["notes"]):
        model.differential(cells, "condition", method="model", key_added="notes")
    assert_same_snapshot(cells, before)
    assert "uns: rank_genes_groups" in cd.tl.remove_results(cells)
    assert "rank_genes_groups" not in cells.uns
    model.differential(cells, "condition", method="model")
    sc.tl.rank_genes_groups(cells, "condition", use_raw=False)
    cd.tl.remove_results(cells)
    assert "rank_genes_groups" in cells.uns


def test_files_give_the_same_result(donors: AnnData, model: VAE, tmp_path: Path) -> None:
    path = write(donors, tmp_path / "cells.h5ad")
    for options in ({"method": "model"}, {"replicate_key": "donor"}):
        table = model.differential(path, "condition", "stim", at={"type": "A"}, **options)
        memory = model.differential(donors.copy(), "condition", "stim", at={"type": "A"}, **options)
        pd.testing.assert_frame_equal(table, memory, rtol=1e-4)


# --- Markers ----------------------------------------------------------------------------------------------------------


def test_markers_are_higher_in_their_group() -> None:
    adata = simulate(200, 30)
    model = fit(adata, max_epochs=5)
    table = model.markers(adata, "type", 4)
    assert list(table.columns) == COLUMNS
    assert table.groupby("group").size().max() <= 4
    assert (table["log2_fold_change"] > 0).all()
    assert (table["fdr"] <= 0.05).all()
    assert len(model.markers(adata, "type", None, max_fdr=1)) > len(table)
    assert list(adata.uns["rank_genes_groups"]["names"].dtype.names) == ["A", "B"]


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"groupby": "conditio"}, KeyError, ["conditio", "condition"]),
        ({"groups": ["stimm"]}, KeyError, ["stimm", "stim"]),
        ({"reference": "control"}, KeyError, ["reference", "control"]),
        ({"groups": ["stim"], "reference": "stim"}, ValueError, ["stim"]),
        ({"groups": ["stim", "stim"]}, ValueError, ["stim"]),
        ({"method": "wilcoxon"}, ValueError, ["wilcoxon", "model", "replicates"]),
        ({"method": "replicates"}, ValueError, ["replicate_key"]),
        ({"replicate_key": "person"}, KeyError, ["person"]),
        ({"replicate_key": "condition"}, ValueError, ["condition"]),
        ({"replicate_key": "donor", "covariates": ["donor"]}, ValueError, ["donor"]),
        ({"replicate_key": "donor", "covariates": ["nothing"]}, KeyError, ["nothing"]),
        ({"replicate_key": "donor", "covariates": ["type"]}, ValueError, ["type", "donor"]),
        ({"method": "model", "covariates": ["age"]}, KeyError, ["age", "type"]),
        ({"method": "model", "at": {"type": "C"}}, KeyError, ["type", "C"]),
        ({"method": "model", "at": "B"}, TypeError, ["B"]),
        ({"method": "model", "delta": -1}, ValueError, ["delta"]),
        ({"method": "model", "modality": "atac"}, KeyError, ["atac", "rna"]),
        ({"groupby": "age", "at": {"donor": "d0"}}, ValueError, ["age"]),
        ({"groupby": "index"}, ValueError, ["index", 320]),
        ({"groupby": "few"}, ValueError, ["few", 2, 3]),
        ({"groupby": "lone", "replicate_key": "donor"}, ValueError, ["one", "d0"]),
        ({"method": "model", "key_added": "a/b"}, ValueError, ["a/b"]),
    ],
)
def test_bad_input(
    donors: AnnData, model: VAE, options: dict[str, Any], error: type[Exception], facts: list[Any]
) -> None:
    cells = donors.copy()
    cells.obs["index"] = cells.obs_names
    cells.obs["few"] = np.where(np.arange(cells.n_obs) < 2, "rare", "common")
    cells.obs["lone"] = np.where(cells.obs["donor"] == "d0", "one", "others")
    before = snapshot(cells)
    with raises(error, naming=facts):
        model.differential(cells, **{"groupby": "condition", **options})
    assert_same_snapshot(cells, before)


def test_groups_that_covariates_determine_are_an_error(donors: AnnData, model: VAE) -> None:
    cells = donors.copy()
    number_c = cells.obs["donor"].str[1:].astype(int)
    cells.obs["half"] = np.where(number_c < 4, "x", "y")
    cells.obs["site"] = np.where(number_c < 4, "s", "t")
    with raises(ValueError, naming=["covariates"]):
        model.differential(cells, "half", replicate_key="donor", covariates=["site"])


def test_models_without_uncertainty_of_loadings_warn(donors: AnnData, model: VAE) -> None:
    with without_loadings(model), warns(naming=["fit"]):
        model.differential(donors, "condition", method="model", key_added=None)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_groups_with_slashes_can_be_written(suffix: str, tmp_path: Path) -> None:
    adata = simulate(60)
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"A": "CD4/CD8", "B": "B"})
    VAE(2, 8).fit(adata, max_epochs=1, progress=False).differential(adata, "type", method="model")
    path = write(adata, tmp_path / f"cells.{suffix}")
    again = anndata.read_h5ad(path) if suffix == "h5ad" else anndata.read_zarr(path)
    table = sc.get.rank_genes_groups_df(again, "CD4/CD8")
    pd.testing.assert_frame_equal(table, sc.get.rank_genes_groups_df(adata, "CD4/CD8"))
