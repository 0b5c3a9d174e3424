"""Links of peaks to genes: known links of simulated cells, calibration, positions, and bad input."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import roc_auc_score

from celldial import VAE
from celldial.data.positions import positions_from_names, positions_from_table, read_gtf
from celldial.inference.decoded_correlation import correlate
from celldial.inference.fitted_model import read_cells
from celldial.inference.posterior import Covariates, infer
from helpers.fit import fit, without_loadings
from helpers.raises import raises, warns

COLUMNS = ["gene", "peak", "distance", "correlation", "lower", "upper", "p_value", "fdr"]
N_GENES, N_PEAKS = 30, 240


def draw(n_cells: int = 300, seed: int = 0, linked: bool = True) -> AnnData:
    """Draw genes on as many chromosomes, each with eight peaks nearby; the first follows the gene if it is `linked`.

    Other peaks, and every third gene, change in the direction of one of three programs or do not change.
    """
    random = np.random.default_rng(seed)
    state_ck = random.normal(size=(n_cells, 3))
    effect_kg = np.eye(3)[random.integers(3, size=N_GENES)].T * (np.arange(N_GENES) % 3 > 0)
    effect_kp = np.eye(3)[random.integers(3, size=N_PEAKS)].T * (random.random(N_PEAKS) < 0.25)
    if linked:
        effect_kp[:, ::8] = effect_kg
    counts = []
    for effect_kf, depth in ((effect_kg, 400), (effect_kp, 150)):
        rate_cf = np.exp(random.normal(0, 0.3, effect_kf.shape[1]) + state_ck @ effect_kf)
        counts.append(random.poisson(depth * rate_cf / rate_cf.sum(1, keepdims=True)))
    counts[1] = np.minimum(counts[1], 1)
    chrom_p = np.repeat([f"chr{number}" for number in range(N_GENES)], 8)
    start_p = np.tile(100_000 + 20_000 * np.arange(8), N_GENES)
    peaks = [f"{chrom}:{start}-{start + 500}" for chrom, start in zip(chrom_p, start_p, strict=True)]
    var = pd.DataFrame(
        {
            "feature_types": ["Gene Expression"] * N_GENES + ["Peaks"] * N_PEAKS,
            "chrom": [*(f"chr{number}" for number in range(N_GENES)), *chrom_p],
            "start": [100_250] * N_GENES + list(start_p),
            "end": [150_000] * N_GENES + list(start_p + 500),
        },
        index=[*(f"GENE{number}" for number in range(N_GENES)), *peaks],
    )
    obs = pd.DataFrame(index=[f"c{cell}" for cell in range(n_cells)])
    return AnnData(sparse.csr_matrix(np.hstack(counts), dtype=np.float32), obs, var)


@pytest.fixture(scope="module")
def linked() -> tuple[VAE, AnnData]:
    """Return a model of cells with links; neither may be changed."""
    adata = draw()
    return fit(adata, VAE(4, 32), max_epochs=25), adata


# --- Results ----------------------------------------------------------------------------------------------------------


def test_linked_peaks_rank_first(linked: tuple[VAE, AnnData]) -> None:
    model, adata = linked
    table = model.link_peaks(adata)
    assert list(table) == COLUMNS
    assert len(table) == N_GENES * 6  # those within 100 kb
    changes = table["gene"].str.removeprefix("GENE").astype(int) % 3 > 0
    is_link = (table["distance"] == 0) & changes
    assert roc_auc_score(is_link, table["correlation"].abs()) > 0.8
    called = table["fdr"] <= 0.1
    assert called[is_link].mean() > 0.5
    assert (~is_link[called]).mean() <= 0.2
    assert table["lower"].le(table["correlation"]).all()
    assert table["upper"].ge(table["correlation"]).all()
    assert table[["p_value", "fdr"]].gt(0).all().all()
    assert table["fdr"].is_monotonic_increasing


def test_without_links_p_values_are_uniform(linked: tuple[VAE, AnnData]) -> None:
    """Genes change places with each other, so that near peaks are not theirs."""
    model, adata = linked
    moved = adata.copy()
    moved.var["chrom"] = [*np.roll(adata.var["chrom"][:N_GENES], 7), *adata.var["chrom"][N_GENES:]]
    table = model.link_peaks(moved)
    for level in (0.1, 0.3, 0.6):
        assert (table["p_value"] <= level).mean() == pytest.approx(level, abs=0.12)
    assert (table["fdr"] <= 0.1).mean() < 0.02


def test_a_part_of_the_genes_and_a_window(linked: tuple[VAE, AnnData]) -> None:
    model, adata = linked
    table = model.link_peaks(adata, ["GENE1", "GENE2"], window=20_000)
    assert sorted(table["gene"].unique()) == ["GENE1", "GENE2"]
    assert sorted(table["distance"]) == [0, 0, 20_000, 20_000]
    assert set(model.link_peaks(adata, "GENE4")["gene"]) == {"GENE4"}


def test_the_reverse_strand_starts_at_the_end(linked: tuple[VAE, AnnData]) -> None:
    model, adata = linked
    reverse = adata.copy()
    reverse.var["strand"] = "-"
    table = model.link_peaks(reverse, "GENE1", window=15_000).set_index("peak")
    assert table["distance"].to_dict() == {"chr1:140000-140500": 9_750, "chr1:160000-160500": -10_250}


def test_correlations_are_those_of_decoded_shares(linked: tuple[VAE, AnnData]) -> None:
    """Without the uncertainty of loadings, they equal the correlations of the logs of decoded values."""
    model, adata = linked
    state_cz = infer(model.module_, read_cells(model, adata)[1]).state_cz
    covariates = Covariates(np.zeros((len(state_cz), 0), dtype=np.int64), np.zeros((len(state_cz), 0), np.float32))
    with without_loadings(model):
        found = correlate(model.module_, ("rna", "atac"), state_cz, covariates, np.array([1, 5]))
    genes = np.log(model.denoise(adata, modality="rna").to_numpy(dtype=float))[:, [1, 5]]
    exposure = 20.0  # probabilities of few fragments are proportional to shares
    peaks = model.denoise(adata, modality="atac", library_size=exposure).to_numpy(dtype=float)
    expected = np.corrcoef(genes.T, np.log(-np.log1p(-peaks)).T)[:2, 2:]
    np.testing.assert_allclose(found.mean_gf, expected, atol=2e-3)
    assert (found.deviation_gf == 0).all()
    uncertain = correlate(model.module_, ("rna", "atac"), state_cz, covariates, np.array([1, 5]))
    assert (np.abs(uncertain.mean_gf) < np.abs(expected) + 1e-3).all()
    assert (uncertain.deviation_gf > 0).all()


# --- Positions --------------------------------------------------------------------------------------------------------


def write_gtf(path: Path, *genes: tuple[str, str, int, int, str]) -> Path:
    lines = ["#!genome-build test"]
    for name, chrom, start, end, strand in genes:
        attributes = f'gene_id "ENSG_{name}.3"; gene_name "{name}";'
        lines += ["\t".join([chrom, "x", kind, str(start), str(end), ".", strand, ".", attributes]) for kind in KINDS]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


KINDS = ("gene", "exon")


@pytest.mark.parametrize("name", ["genes.gtf", "genes.gtf.gz"])
def test_positions_from_a_gtf_file(linked: tuple[VAE, AnnData], tmp_path: Path, name: str) -> None:
    model, adata = linked
    path = write_gtf(tmp_path / name, ("GENE1", "1", 100_251, 150_000, "+"), ("GENE2", "2", 1, 100_250, "-"))
    without = adata.copy()
    without.var = without.var[["feature_types"]]
    table = model.link_peaks(without, ["GENE1", "GENE2"], gtf=path)
    pd.testing.assert_frame_equal(
        table[table["gene"] == "GENE1"][COLUMNS[:3]].sort_values("peak", ignore_index=True),
        model.link_peaks(adata, "GENE1")[COLUMNS[:3]].sort_values("peak", ignore_index=True),
    )
    table = read_gtf(path, ["ENSG_GENE1", "ENSG_GENE2.3", "other"])
    assert table.loc["ENSG_GENE1"].to_list() == ["1", 100_250, 150_000, "+"]
    assert list(table.index) == ["ENSG_GENE1", "ENSG_GENE2.3"]


def test_names_of_peaks_may_have_any_separator() -> None:
    table = positions_from_names(["chr1:100-200", "chrX-5-10", "GL000194.1_3_9", "chrUn_KI:7-8"])
    assert table["chrom"].to_list() == ["1", "X", "GL000194.1", "Un_KI"]
    assert table["start"].to_list() == [100, 5, 3, 7]
    assert table["end"].to_list() == [200, 10, 9, 8]


def test_names_without_a_position_are_named() -> None:
    with raises(ValueError, naming=["'peak_7'", 1, 2]):
        positions_from_names(["chr1:1-2", "peak_7"])


def test_features_without_a_position_are_left_out() -> None:
    var = pd.DataFrame({"chrom": ["chr1", None], "start": [1, 2], "end": [3.0, 4.0]}, index=["a", "b"])
    table = positions_from_table(var, ["b", "a", "c"])
    assert table is not None
    assert list(table.index) == ["a"]
    assert positions_from_table(var[["chrom"]], ["a"]) is None
    with raises(ValueError, naming=["'a'", "end"]):
        positions_from_table(var.assign(end=0), ["a"])


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_unknown_genes_are_named(linked: tuple[VAE, AnnData]) -> None:
    model, adata = linked
    with raises(KeyError, naming=["'GENEX'"]):
        model.link_peaks(adata, ["GENE1", "GENEX"])
    with raises(ValueError, naming=["genes"]):
        model.link_peaks(adata, [])


def test_missing_positions_are_named(linked: tuple[VAE, AnnData], tmp_path: Path) -> None:
    model, adata = linked
    without = adata.copy()
    without.var = without.var[["feature_types"]]
    with raises(ValueError, naming=["'chrom'", "gtf="]):
        model.link_peaks(without)
    path = write_gtf(tmp_path / "genes.gtf", ("GENE1", "chr1", 1, 9, "+"))
    with warns(UserWarning, naming=[1, "'GENE2'"]):
        model.link_peaks(adata, ["GENE1", "GENE2"], gtf=path, window=200_000)
    with raises(ValueError, naming=["'GENE2'", path]):
        model.link_peaks(adata, "GENE2", gtf=path)
    with raises(ValueError, naming=["window", 5]):
        model.link_peaks(adata, "GENE1", gtf=path, window=5)
    path.write_text("chr1\tgene\n")
    with raises(ValueError, naming=[path, 1, 2]):
        model.link_peaks(adata, "GENE1", gtf=path)
    path.write_text("# nothing\n")
    with raises(ValueError, naming=[path]):
        model.link_peaks(adata, "GENE1", gtf=path)


def test_far_peaks_are_needed(linked: tuple[VAE, AnnData]) -> None:
    model, adata = linked
    together = adata.copy()
    together.var["chrom"] = "chr1"
    with raises(ValueError, naming=["chromosome", 50]):
        model.link_peaks(together)


@pytest.mark.parametrize("options", [{"window": 0}, {"n_far": 10}, {"n_cells": 1}])
def test_numbers_that_are_too_small_are_named(linked: tuple[VAE, AnnData], options: dict[str, int]) -> None:
    model, adata = linked
    with raises(ValueError, naming=list(options)):
        model.link_peaks(adata, **options)


def test_a_model_of_genes_alone_has_no_peaks(model: VAE, adata: AnnData) -> None:
    with raises(KeyError, naming=["'atac'"]):
        model.link_peaks(adata)
