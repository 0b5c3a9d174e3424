"""Random AnnData of any shape, type and format, with good and bad counts, names, covariates and modalities."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from hypothesis import strategies as st
from scipy import sparse

DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", "bool"]
FORMATS = ["array", "csr_matrix", "csc_matrix", "csr_array", "csc_array", "unsorted", "stored zeros", "duplicates"]
VALUES = [
    *["counts"] * 12,
    "all zero",
    "empty cells",
    "empty features",
    "one count",
    "large",
    "NaN",
    "inf",
    "-1",
    "0.5",
]
NAMES = [*["plain"] * 6, "numbers", "slashes", "letters", "spaces", "repeated", "empty"]
COLUMNS = [
    "text",
    "categories",
    "unused categories",
    "integers",
    "floats",
    "bool",
    "one value",
    "each its own",
    "missing",
]
NUMBERS = [*["floats"] * 3, "integers", "bool", "constant", "missing", "infinite", "huge", "text"]
TYPES = [None, None, None, "genes", "genes and peaks", "genes and proteins", "all three", "unknown", "missing", "peaks"]
FEATURE_TYPES = {
    "genes": ["Gene Expression"],
    "peaks": ["Peaks"],
    "genes and peaks": ["Gene Expression", "Peaks"],
    "genes and proteins": ["Gene Expression", "Antibody Capture"],
    "all three": ["Gene Expression", "Peaks", "Antibody Capture"],
    "unknown": ["Gene Expression", "Smell"],
    "missing": ["Gene Expression", None],
}


def _matrix(kind: str, dtype: str, form: str, shape: tuple[int, int], random: np.random.Generator) -> Any:
    """Return counts as one of the formats; values that the type cannot hold become what numpy makes of them."""
    x = random.poisson(random.gamma(1, 2, shape[1]), shape).astype(float)
    if kind == "all zero":
        x[:] = 0
    elif kind == "empty cells":
        x[random.random(shape[0]) < 0.5] = 0
    elif kind == "empty features":
        x[:, random.random(shape[1]) < 0.5] = 0
    elif kind == "one count":
        x[:] = 0
        x[random.integers(shape[0]), random.integers(shape[1])] = 1
    elif kind == "large":
        x = np.round(np.exp(random.uniform(0, 15, shape)))
    elif kind != "counts":
        x[random.integers(shape[0]), random.integers(shape[1])] = float(kind)
    with np.errstate(invalid="ignore", over="ignore"):
        x = x.astype(dtype)
    if form == "array":
        return x
    if dtype == "float16":  # scipy has no sparse matrices of this type
        x = x.astype("float32")
    if form in ("csr_matrix", "csc_matrix", "csr_array", "csc_array"):
        return getattr(sparse, form)(x)
    rows = sparse.csr_matrix(x)
    if form == "stored zeros" and rows.nnz:
        rows.data[random.integers(rows.nnz)] = 0
    if form == "unsorted":
        order = np.concatenate(
            [start + random.permutation(end - start) for start, end in zip(rows.indptr, rows.indptr[1:], strict=False)]
        ).astype(int)
        rows = sparse.csr_matrix((rows.data[order], rows.indices[order], rows.indptr), shape=shape)
    if form == "duplicates" and rows.nnz and dtype not in ("bool", "int8", "uint8"):
        found = rows.tocoo()
        indices = (np.append(found.row, found.row[0]), np.append(found.col, found.col[0]))
        built = sparse.coo_matrix((np.append(found.data, found.data[0]), indices), shape=shape)
        order = np.argsort(built.row, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(built.row, minlength=shape[0]))])
        rows = sparse.csr_matrix((built.data[order], built.col[order], indptr), shape=shape)
    return rows


def _names(kind: str, prefix: str, n: int) -> list[str]:
    """Return names of cells or features."""
    names = [f"{prefix}{k}" for k in range(n)]
    if kind == "numbers":
        return [str(k) for k in range(n)]
    if kind == "slashes":
        return [f"{prefix}/{k}" for k in range(n)]
    if kind == "letters":
        return [f"{prefix}é漢{k}" for k in range(n)]
    if kind == "spaces":
        return [f" {prefix} {k}\t" for k in range(n)]
    if kind == "repeated":
        return [names[0], *names[: n - 1]]
    if kind == "empty":
        return ["", *names[1:]]
    return names


def _groups(kind: str, n: int, random: np.random.Generator) -> Any:
    """Return a column of groups."""
    code_c = random.integers(0, 3, n)
    text_c = np.array(["a", "b/c", "é"], dtype=object)[code_c]
    return {
        "text": text_c,
        "categories": pd.Categorical(text_c),
        "unused categories": pd.Categorical(text_c, categories=["z", "é", "a", "b/c", ""]),
        "integers": code_c,
        "floats": code_c.astype(float),
        "bool": code_c > 0,
        "one value": ["same"] * n,
        "each its own": [f"group {k}" for k in range(n)],
        "missing": np.where(np.arange(n) == 0, None, text_c),
    }[kind]


def _numbers(kind: str, n: int, random: np.random.Generator) -> Any:
    """Return a column of numbers."""
    value_c = random.normal(size=n)
    odd = {"missing": np.nan, "infinite": np.inf, "huge": 1e200}
    if kind in odd:
        value_c[0] = odd[kind]
    return {
        "integers": random.integers(-5, 5, n),
        "bool": value_c > 0,
        "constant": np.ones(n),
        "text": ["low"] * n,
    }.get(kind, value_c)


@st.composite
def random_anndata(draw: st.DrawFn) -> tuple[AnnData, dict[str, Any]]:
    """Draw an AnnData, and parameters of a `VAE` for it."""
    n_cells, n_features = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind, dtype, form = (draw(st.sampled_from(options)) for options in (VALUES, DTYPES, FORMATS))
    x = _matrix(kind, dtype, form, (n_cells, n_features), random)
    groups, numbers, labels = (draw(st.sampled_from(options)) for options in (COLUMNS, NUMBERS, COLUMNS))
    obs = pd.DataFrame(
        {
            "batch": _groups(groups, n_cells, random),
            "age": _numbers(numbers, n_cells, random),
            "label": _groups(labels, n_cells, random),
        },
        index=_names(draw(st.sampled_from(NAMES)), "c", n_cells),
    )
    var = pd.DataFrame(index=_names(draw(st.sampled_from(NAMES)), "g", n_features))
    types = draw(st.sampled_from(TYPES))
    if types is not None:
        var["feature_types"] = np.resize(np.array(FEATURE_TYPES[types], dtype=object), n_features)
    if draw(st.booleans()):
        obs.index.name, var.index.name = "batch", "gene"
    layer = draw(st.sampled_from([None, None, "counts"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        adata = AnnData(x if layer is None else np.zeros(x.shape, "float32"), obs, var)
    if layer is not None:
        adata.layers[layer] = x
    parameters = {
        "n_latent": draw(st.integers(1, 4)),
        "n_hidden": 4,
        "layer": layer,
        "batch_key": draw(st.sampled_from([None, "batch"])),
        "continuous_covariate_keys": draw(st.sampled_from([(), (), ("age",)])),
        "labels_key": draw(st.sampled_from([None, None, "label"])),
        "likelihood": draw(st.sampled_from([None, None, None, "poisson", "bernoulli", "negative_binomial"])),
    }
    kept = draw(st.sampled_from(["all", "all", "all", "view", "view of cells", "view of features"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kept == "view":
            adata = adata[:, :]
        elif kept == "view of cells":
            adata = adata[: max(1, n_cells // 2)]
        elif kept == "view of features":
            adata = adata[:, ::2]
    return adata, parameters
