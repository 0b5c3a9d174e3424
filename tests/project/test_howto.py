"""The Python examples in the documentation use names that exist, and those of the how-to pages run."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy

import celldial as cd

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[ah]*/*.md"))]
RUN = ["quickstart", *(f"howto/{path.stem}" for path in sorted((ROOT / "docs/howto").glob("*.md")))]


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def calls(source: str) -> Iterator[tuple[Any, ast.Call, str]]:
    """Yield the function, the call and its text for each call of `cd` or of a model in an example."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            holder, _, rest = name.partition(".")
            # `VAE(...).fit` and `model.fit` are methods of the estimator.
            method = re.fullmatch(r"(?:model|default|small|cd\.VAE\(.*\))\.(\w+)", name, re.DOTALL)
            if method is not None:
                yield getattr(cd.VAE, method[1]), node, name
            elif holder == "cd" and "(" not in rest:
                value: Any = cd
                for part in rest.split("."):
                    value = getattr(value, part)
                yield value, node, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_examples_exist(path: Path) -> None:
    for source in blocks(path):
        for function, call, name in calls(source):
            parameters = inspect.signature(function).parameters
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            for keyword in call.keywords:
                assert keyword.arg in parameters, f"{name} has no argument {keyword.arg}"


def write_files() -> None:
    """Write the files that the page on large data reads."""
    adata = cd.datasets.simulate_multiome(600, 100, 300)
    adata = adata[:, adata.var["feature_types"] == "Gene Expression"].copy()
    adata.obs["donor"] = adata.obs["batch"]
    adata.write_h5ad("atlas.h5ad")
    adata[:300].write_h5ad("liver.h5ad")
    adata[300:].write_h5ad("lung.h5ad")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # two epochs fit badly, and scanpy warns of what is not ours
@pytest.mark.parametrize("page", RUN)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page runs from top to bottom, with short trainings."""
    fit = cd.VAE.fit

    def fit_briefly(self: cd.VAE, adata: Any, **options: Any) -> cd.VAE:
        options.pop("devices", None)
        return fit(self, adata, **{"max_epochs": 2, "progress": False, **options})

    monkeypatch.setattr(cd.VAE, "fit", fit_briefly)
    monkeypatch.setattr(cd, "settings", SimpleNamespace(torch_device=cd.settings.torch_device))
    monkeypatch.chdir(tmp_path)
    write_files()
    names = {"cd": cd, "sc": sc, "np": np, "pd": pd, "scipy": scipy, "__name__": "__main__"}
    for number, source in enumerate(blocks(ROOT / f"docs/{page}.md")):
        if "seurat_v3" in source:  # needs scikit-misc
            continue
        exec(compile(source, f"{page}, example {number}", "exec"), names)
        plt.close("all")
