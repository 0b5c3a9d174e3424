"""Names of axes by gene sets: which latent coordinate or named axis follows which known program.

Axis suffixes: ``b`` random sets, the first row being the observed set, ``c`` cells, ``f`` features, ``i`` bins of
features, ``q`` axes, ``u`` columns of one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from celldial.data import cell_checks
from celldial.data.cells import Cells, to_csr_matrix
from celldial.inference import posterior
from celldial.inference.fitted_model import FittedModel, coordinate_names, get_modality, read_cells, read_from
from celldial.io import results
from celldial.tl.axis_targets import PER_TEN_THOUSAND, match_features
from celldial.utils.argument_types import validate_types
from celldial.utils.messages import feature_noun
from celldial.utils.validation import check_integer

__all__ = ["SetTester", "name_axes", "nearest_sets"]

# Cells to correlate on, at random: more do not change a correlation noticeably.
MAX_CELLS = 5_000
# Features are matched within bins of similar mean expression, as in the scores of Tirosh et al. (2016).
MAX_BINS, MIN_BIN_SIZE = 25, 20
# Random sets to score at once.
BLOCK = 100


@validate_types
def name_axes(
    model: FittedModel,
    adata: AnnData,
    gene_sets: Mapping[str, Sequence[str]],
    *,
    modality: str | None = None,
    n_permutations: int = 999,
    layer: str | None = None,
) -> pd.DataFrame:
    """Test which latent coordinates and named axes follow known gene sets.

    The score of a cell for a gene set is the mean standardized log-normalized expression of its genes, minus that of
    all genes of similar mean expression [1]_. An axis follows the set if its correlation with the score is larger than
    that with the scores of random sets, which have the same number of genes with similar mean expression.

    Parameters
    ----------
    model
        A fitted `VAE`; omitted in the method call ``model.name_axes(adata, gene_sets)``.
    adata
        Cells; those without any count are not used.
    gene_sets
        Name to genes, ``{"S": ["MCM5", ...], "G2M": [...]}``. Names of genes are matched exactly, then without regard
        to case.
    modality
        Modality of the genes; by default ``"rna"``, or the first modality of a model without RNA.
    n_permutations
        Number of random sets for each gene set. The smallest possible p-value is 1 / (1 + `n_permutations`).
    layer
        As in `transform`.

    Returns
    -------
    pandas.DataFrame
        One row per gene set and axis, for each set the axis with the largest correlation first. Written: the same to
        ``adata.uns["celldial"]["gene_sets"]``.

        - ``gene_set``, ``n_genes``: name of the set, and the number of its genes in the model that vary.
        - ``axis``: name of a latent coordinate, of the periodic coordinate, or of a named axis of this model.
        - ``correlation``: of the score with the axis. For the periodic coordinate the multiple correlation with cosine
          and sine, at least 0.
        - ``p_value``: permutation p-value, adjusted for the number of axes. It is not adjusted for the number of sets.
        - ``description``: the same in words, such as ``"axis_4 follows G2M (r = 0.71, p = 0.001)"``.

    Raises
    ------
    NotFittedError
        The model is not fitted yet.
    TypeError
        `gene_sets` is not a dict of lists.
    ValueError
        A set has fewer than 3 genes in the model (a shorter set must be complete), or its genes do not vary.
    ValueError, TypeError, KeyError, FloatingPointError
        As `transform`.

    Warns
    -----
    UserWarning
        Fewer than half of the genes of a set are in the model.

    Notes
    -----
    If the set is itself a random one, the p-value is uniform. The largest correlation over axes, each standardized by
    its random sets, is compared with the same in the random sets (the maxT method [2]_), which accounts for the choice
    among axes. The genes of a program vary together and random genes do not. A small p-value therefore means that the
    axis follows this set more than it follows unrelated genes, not that the axis is this program only. If the model has
    a `batch_key`, differences between batches are removed first.

    References
    ----------
    .. [1] Tirosh et al. (2016), Dissecting the multicellular ecosystem of metastatic melanoma by single-cell RNA-seq,
       Science 352, 189-196. doi:10.1126/science.aad0501
    .. [2] Westfall and Young (1993), Resampling-Based Multiple Testing, Wiley.

    Examples
    --------
    >>> import celldial
    >>> adata = celldial.datasets.pbmc68k_reduced()
    >>> model = celldial.VAE(n_latent=3).fit(adata, max_epochs=5, progress=False)
    >>> table = model.name_axes(adata, {"B cell": ["CD79A", "CD79B", "MS4A1", "HLA-DRA"]}, n_permutations=99)
    >>> table.columns.tolist()
    ['gene_set', 'n_genes', 'axis', 'correlation', 'p_value', 'description']
    >>> sorted(table["axis"])
    ['axis_0', 'axis_1', 'axis_2']
    """
    model = read_from(model, layer)
    check_integer("n_permutations", n_permutations)
    modality = get_modality(model, "rna" if modality is None and "rna" in model.schema_.modalities else modality)
    names = model.schema_.feature_names[modality]
    _check_gene_sets(gene_sets)
    nouns = f"{feature_noun(modality)}s"
    columns = {
        str(name): match_features(genes, f"gene_sets[{str(name)!r}]", names, nouns) for name, genes in gene_sets.items()
    }
    _, cells = read_cells(model, adata)
    cell_checks.check_has_counts(cells)
    random = np.random.default_rng(model.seed)
    measured_c = np.flatnonzero((cells.library_size[modality] > 0).numpy())
    chosen_c = np.sort(random.choice(measured_c, min(MAX_CELLS, len(measured_c)), replace=False))
    cells = cells.select(torch.from_numpy(chosen_c))
    batch_c = None if model.schema_.batch_key is None else cells.category_ck[:, 0].numpy()
    tester = SetTester(
        log_normalized(to_csr_matrix(cells.counts[modality]), cells.library_size[modality].numpy()),
        _axis_values(model, adata, cells),
        batch_c,
    )
    tables = [tester.test(name, column_f, n_permutations, random) for name, column_f in columns.items()]
    table = pd.concat(tables, ignore_index=True)
    table.index = table.index.astype(str)  # files of cells need names of rows
    results.write_gene_sets(adata, model.fingerprint_, table)
    return table


def _check_gene_sets(gene_sets: Any) -> None:
    """Raise unless gene sets are a dict."""
    if not isinstance(gene_sets, Mapping) or not gene_sets:
        raise TypeError(f"gene_sets is {gene_sets!r}: it must be a dict of lists of names, {{'S': [...]}}")


def nearest_sets(table: pd.DataFrame) -> pd.DataFrame:
    """Return the nearest gene set of each axis, by p-value and then by correlation; rows are axes."""
    order = np.lexsort([-table["correlation"].abs(), table["p_value"]])
    nearest = table.iloc[order].drop_duplicates("axis").set_index("axis")
    return nearest[["gene_set", "correlation", "p_value"]]


def _axis_values(model: FittedModel, adata: AnnData, cells: Cells) -> dict[str, np.ndarray]:
    """Return the values of each axis in each cell, float64: one column, or cosine and sine of the angle."""
    latent_state = posterior.infer(model.module_, cells)
    embedding_cz = latent_state.embedding.astype(np.float64)
    values = {name: embedding_cz[:, [z]] for z, name in enumerate(coordinate_names(model.module_))}
    if model.periodic_ is not None:
        values[model.periodic_["name"]] = latent_state.state_cz[:, -2:].astype(np.float64)
    for name, stored in results.read_axes(adata).items():
        if stored.get("model") == model.fingerprint_:
            score_c = (latent_state.mean - np.asarray(stored["origin"])) @ np.asarray(stored["filter"])
            values[name] = score_c[:, None].astype(np.float64)
    return values


def log_normalized(counts: sparse.csr_matrix, library_size_c: np.ndarray) -> sparse.csr_matrix:
    """Return log(1 + count · 10,000 / library size), shape ``(c, f)``."""
    scaled = sparse.diags(PER_TEN_THOUSAND / library_size_c.astype(np.float64)) @ counts
    return sparse.csr_matrix(scaled).log1p()


class SetTester:
    """Test of gene sets against axes, by random sets of genes with similar mean expression.

    Parameters
    ----------
    level_cf
        Log-normalized expression, sparse.
    values
        Name of each axis to its values, shape ``(c, u)``.
    batch_c
        Codes of the batches, or None. Differences between batches are removed.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from celldial.tl.name_axes import SetTester
    >>> random = np.random.default_rng(0)
    >>> z_c = random.normal(size=300)
    >>> level_cf = random.normal(size=(300, 100))
    >>> level_cf[:, :10] += z_c[:, None]
    >>> tester = SetTester(sparse.csr_matrix(level_cf), {"z": z_c[:, None]}, None)
    >>> tester.test("program", np.arange(10), 99, random)["p_value"].tolist()
    [0.01]
    """

    def __init__(
        self, level_cf: sparse.csr_matrix, values: Mapping[str, np.ndarray], batch_c: np.ndarray | None
    ) -> None:
        n_cells, n_features = level_cf.shape
        mean_f = np.asarray(level_cf.mean(0)).ravel()
        variance_f = np.asarray(level_cf.multiply(level_cf).mean(0)).ravel() - mean_f**2
        varies_f = variance_f > 1e-12
        weight_f = np.where(varies_f, 1 / np.sqrt(np.where(varies_f, variance_f, 1)), 0)
        bin_f = np.full(n_features, -1)  # features that do not vary are in no bin
        order_f = np.flatnonzero(varies_f)[np.argsort(mean_f[varies_f], kind="stable")]
        n_bins = int(np.clip(len(order_f) // MIN_BIN_SIZE, 1, MAX_BINS))
        bin_f[order_f] = np.arange(len(order_f)) * n_bins // max(len(order_f), 1)
        self.bin_f = bin_f
        self.members = [np.flatnonzero(bin_f == i) for i in range(n_bins)]
        self.scaled_cf = sparse.csr_matrix(level_cf @ sparse.diags(weight_f))
        member_fi = sparse.csr_matrix(bin_f[:, None] == np.arange(n_bins), dtype=np.float64)
        size_i = np.maximum(np.asarray(member_fi.sum(0)).ravel(), 1)
        self.control_ci = (self.scaled_cf @ member_fi).toarray() / size_i
        self.code_c = np.zeros(n_cells, int) if batch_c is None else np.unique(batch_c, return_inverse=True)[1]
        self.basis = {name: _orthonormal(_within(value_cu, self.code_c)) for name, value_cu in values.items()}

    def test(self, name: str, column_f: np.ndarray, n_permutations: int, random: np.random.Generator) -> pd.DataFrame:
        """Return correlation and adjusted p-value of each axis with one set; see `celldial.tl.name_axes`."""
        column_f = column_f[self.bin_f[column_f] >= 0]
        if len(column_f) == 0:
            raise ValueError(f"the expression of gene_sets[{name!r}] is the same in all cells: choose other genes")
        sets = [column_f, *(self._matched(column_f, random) for _ in range(n_permutations))]
        control_c = self.control_ci[:, self.bin_f[column_f]].mean(1)
        blocks = [self._correlations(sets[start : start + BLOCK], control_c) for start in range(0, len(sets), BLOCK)]
        correlation_bq = np.concatenate(blocks)
        size_bq = np.abs(correlation_bq)
        deviation_q = size_bq.std(0)
        standard_bq = (size_bq - size_bq.mean(0)) / np.where(deviation_q > 0, deviation_q, np.inf)
        largest_b = standard_bq.max(1)
        p_value_q = (largest_b[:, None] >= standard_bq[0] - 1e-9).mean(0)
        axes = list(self.basis)
        order_q = np.argsort(-size_bq[0], kind="stable")
        rows: list[dict[str, Any]] = [
            {
                "gene_set": name,
                "n_genes": len(column_f),
                "axis": axes[q],
                "correlation": correlation_bq[0, q],
                "p_value": p_value_q[q],
                "description": _describe(axes[q], name, correlation_bq[0, q], p_value_q[q]),
            }
            for q in order_q
        ]
        return pd.DataFrame(rows)

    def _matched(self, column_f: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Draw a random set that has as many features of each bin as `column_f`."""
        counts_i = np.bincount(self.bin_f[column_f])
        return np.concatenate(
            [random.choice(self.members[i], counts_i[i], replace=False) for i in np.flatnonzero(counts_i)]
        )

    def _correlations(self, sets: Sequence[np.ndarray], control_c: np.ndarray) -> np.ndarray:
        """Return the correlation of the score of each set with each axis, shape ``(sets, q)``."""
        size = len(sets[0])
        ends = np.arange(0, size * len(sets) + 1, size)
        n_features = self.scaled_cf.shape[1]
        member_fb = sparse.csc_matrix(
            (np.full(size * len(sets), 1 / size), np.concatenate(sets), ends), shape=(n_features, len(sets))
        )
        score_cb = _within((self.scaled_cf @ member_fb).toarray() - control_c[:, None], self.code_c)
        norm_b = np.linalg.norm(score_cb, axis=0)
        score_cb /= np.where(norm_b > 0, norm_b, np.inf)
        parts = [basis_cu.T @ score_cb for basis_cu in self.basis.values()]
        return np.stack([part[0] if len(part) == 1 else np.linalg.norm(part, axis=0) for part in parts], axis=1)


def _within(value_ck: np.ndarray, code_c: np.ndarray) -> np.ndarray:
    """Subtract the mean of its batch from each row."""
    member_cb = sparse.csr_matrix((np.ones(len(code_c)), (np.arange(len(code_c)), code_c)))
    mean_bk = (member_cb.T @ value_ck) / np.asarray(member_cb.sum(0)).T
    within_ck: np.ndarray = value_ck - mean_bk[code_c]
    return within_ck


def _orthonormal(value_cu: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns, with the sign of a single column; zeros if they do not vary."""
    if value_cu.shape[1] == 1:
        norm = np.linalg.norm(value_cu)
        return value_cu / norm if norm > 1e-9 else np.zeros_like(value_cu)
    basis_cu, size_u, _ = np.linalg.svd(value_cu, full_matrices=False)
    return basis_cu * (size_u > 1e-9)


def _describe(axis: str, gene_set: str, correlation: float, p_value: float) -> str:
    """Return what was found about an axis and a set, in words."""
    verb = "follows" if p_value < 0.05 else "does not follow"
    return f"{axis} {verb} {gene_set} (r = {correlation:.2f}, p = {p_value:.2g})"
