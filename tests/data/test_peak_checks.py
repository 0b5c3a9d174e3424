"""Counts of peaks that are read as 1, and peaks that would be read as genes."""

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from celldial import VAE
from celldial.data.peak_checks import MAX_LOST, share_above_one
from helpers.raises import warns
from helpers.simulate import simulate_two

# --- Counts above 1 ---------------------------------------------------------------------------------------------------


def with_fragments(rate: float, seed: int = 0, cut_sites: bool = False) -> AnnData:
    """Return genes and peaks, with Poisson counts of fragments or of their cut sites in place of open peaks."""
    adata = simulate_two(n_cells=100, n_peaks=60)
    random = np.random.default_rng(seed)
    counts_cf = adata.X.toarray()
    peaks_cf = counts_cf[:, 20:]
    fragments_cf = random.poisson(rate * random.gamma(2, 0.5, peaks_cf.shape))
    if cut_sites:  # a few fragments have one end outside of the peak
        fragments_cf = 2 * fragments_cf - random.binomial(fragments_cf, 0.2)
    counts_cf[:, 20:] = fragments_cf
    counts_cf[np.arange(100), 20 + np.arange(100) % 60] = np.maximum(
        counts_cf[:, 20:][np.arange(100), np.arange(100) % 60], 1
    )
    adata.X = sparse.csr_matrix(counts_cf)
    return adata


def fit_quietly(adata: Any, **parameters: Any) -> list[str]:
    """Fit a small model, and return the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VAE(2, 4, **parameters).fit(adata, max_epochs=1, progress=False)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 2.0])
def test_the_share_above_one_is_about_the_information_that_is_lost(rate: float) -> None:
    """Of a Poisson count with mean μ, whether it is above 0 has the information μ / (exp(μ) - 1) about the log rate."""
    counts = np.random.default_rng(0).poisson(rate, 400_000)
    share, paired = share_above_one(counts[counts > 0])
    assert share == pytest.approx(1 - rate / np.expm1(rate), abs=0.01 + rate**2 / 10)
    assert share == pytest.approx(stats.poisson.sf(1, rate) / stats.poisson.sf(0, rate), abs=0.01)
    assert not paired


@given(
    st.lists(st.tuples(st.floats(0.01, 4), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.sampled_from([1.0, 0.3]),
)
@settings(max_examples=30, deadline=None)
def test_no_mixture_of_independent_fragments_is_taken_for_pairs(parts: list[tuple[float, float]], size: float) -> None:
    random = np.random.default_rng(0)
    counts = np.concatenate([random.poisson(rate * size, int(50_000 * weight)) for rate, weight in parts])
    value_n = counts[counts > 0]
    assert share_above_one(value_n) == (pytest.approx((value_n > 1).mean()) if len(value_n) > 99 else 0, False)


@pytest.mark.parametrize("outside", [0.05, 0.2, 0.4])
def test_cut_sites_are_counted_as_fragments(outside: float) -> None:
    random = np.random.default_rng(0)
    fragments = random.poisson(random.gamma(0.5, 0.4, 100_000))
    cut_sites = 2 * fragments - random.binomial(fragments, outside)
    share, paired = share_above_one(cut_sites[cut_sites > 0])
    assert paired
    # Two fragments with one end each in the peak look like one fragment.
    assert share == pytest.approx((fragments[fragments > 0] > 1).mean(), abs=0.02 + outside**2 / 4)


def test_few_counts_have_no_share() -> None:
    assert share_above_one(np.full(99, 5.0)) == (0.0, False)


def test_counts_that_are_read_as_one_are_told() -> None:
    adata = with_fragments(1.0)
    share = (adata.X[:, 20:].data > 1).mean()
    assert share > 2 * MAX_LOST
    (message,) = fit_quietly(adata)
    for fact in (f"{share:.0%}", "atac", "likelihood={'atac': 'poisson'}", "likelihood={'atac': 'bernoulli'}"):
        assert fact in message
    with warns(naming=[f"{share:.0%}"]) as records:
        VAE(2, 4).fit(adata, max_epochs=1, progress=False)
    assert records[0].filename == __file__


@pytest.mark.parametrize(
    "likelihood", [{"atac": "bernoulli"}, {"atac": "poisson"}, {"atac": "negative_binomial"}, "poisson"]
)
def test_a_chosen_likelihood_causes_no_warning(likelihood: Any) -> None:
    assert fit_quietly(with_fragments(1.0), likelihood=likelihood) == []


def test_binary_or_sparse_counts_cause_no_warning() -> None:
    assert fit_quietly(simulate_two()) == []
    sparse_counts = with_fragments(0.05)
    assert (sparse_counts.X[:, 20:].data > 1).any()
    assert fit_quietly(sparse_counts) == []


def test_pairs_of_cut_sites_alone_cause_no_warning() -> None:
    """Most counts are 2, but few peaks have several fragments."""
    adata = with_fragments(0.05, cut_sites=True)
    assert (adata.X[:, 20:].data > 1).mean() > 0.3
    assert fit_quietly(adata) == []
    (message,) = fit_quietly(with_fragments(1.0, cut_sites=True))
    assert "halve" in message
    assert "likelihood={'atac': 'poisson'}" in message


def test_counts_in_files_are_checked(tmp_path: Path) -> None:
    adata = with_fragments(1.0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert fit_quietly(tmp_path / "cells.h5ad") == fit_quietly(adata)


def test_counts_in_obsm_and_layers_are_checked() -> None:
    adata = with_fragments(1.0)
    expected = fit_quietly(adata)
    in_obsm = adata[:, :20].copy()
    in_obsm.obsm["open"] = adata.X[:, 20:]
    assert fit_quietly(in_obsm, modalities={"rna": "Gene Expression", "atac": "obsm/open"}) == expected
    adata.layers["counts"], adata.X = adata.X, adata.X.log1p()
    assert fit_quietly(adata, layer="counts") == expected


# --- Names of intervals -----------------------------------------------------------------------------------------------

NAMES = ["chr{}:{}-{}", "chr{}-{}-{}", "chr{}_{}_{}", "GL000{}.1:{}-{}", "{}:{}-{}"]


@pytest.mark.parametrize("form", NAMES)
def test_peaks_without_a_feature_type_are_told(form: str, tmp_path: Path) -> None:
    adata = simulate_two()
    del adata.var["feature_types"]
    adata.var_names = [*adata.var_names[:20], *(form.format(1, 100 * peak, 100 * peak + 50) for peak in range(30))]
    (message,) = fit_quietly(adata)
    for fact in ("30 of 50", repr(form.format(1, 0, 50)), "'feature_types'", '"Gene Expression"', '"Peaks"'):
        assert fact in message
    if form == NAMES[0]:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        assert fit_quietly(tmp_path / "cells.h5ad") == [message]


def test_the_column_is_lost_by_concatenation() -> None:
    adata = simulate_two()
    adata.var_names = [*adata.var_names[:20], *(f"chr1:{100 * peak}-{100 * peak + 50}" for peak in range(30))]
    parts = [adata[:30].copy(), adata[30:].copy()]
    assert len(fit_quietly(ad.concat(parts))) == 1
    assert fit_quietly(ad.concat(parts, merge="same")) == []


def test_peaks_alone_can_be_named_by_the_likelihood() -> None:
    adata = simulate_two()[:, 20:].copy()
    del adata.var["feature_types"]
    adata.var_names = [f"chr1:{100 * peak}-{100 * peak + 50}" for peak in range(30)]
    (message,) = fit_quietly(adata)
    assert 'adata.var["feature_types"] = "Peaks"' in message
    assert fit_quietly(adata, likelihood="bernoulli") == []


@pytest.mark.parametrize(
    "names",
    [
        ["MT-CO1", "HLA-DRB1", "RP11-34P13.7", "AC012345.1", "TRBV5-1", "IGHV3-30-5", "Nkx2-1"],
        ["ENSG00000243485.5", "ENSMUSG00000051951", "ERCC-00002", "7SK_1", "NM_000014_3"],
        ["chr1:600-100", "chr1", "chr1:100", "chr1:100-200-300"],
    ],
)
def test_names_of_genes_are_no_intervals(names: list[str]) -> None:
    adata = simulate_two()[:, :20].copy()
    del adata.var["feature_types"]
    adata.var_names = [*names, *adata.var_names[len(names) :]]
    assert fit_quietly(adata) == []
