"""The dial page as a file: reproducible, small, safe with any names, and its errors."""

import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from celldial import pl
from helpers.dial import HOSTILE, decode_integers, dial_cells, names_in, payload_of, with_hostile_names
from helpers.figures import traversal
from helpers.raises import raises


@pytest.fixture
def cells() -> AnnData:
    return dial_cells()


def test_the_same_cells_give_the_same_page(cells, tmp_path):
    options = {"color": "cell_type", "max_cells": 100}
    first = pl.dial(cells, "cell_cycle", path=tmp_path / "first.html", **options).read_bytes()
    np.random.default_rng().random()
    assert pl.dial(cells, "cell_cycle", path=tmp_path / "second.html", **options).read_bytes() == first
    del cells.uns["latent_traverse"]["CD4 T to CD8 T"]["axis"]  # not used by the other traversal
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = read_h5ad(tmp_path / "cells.h5ad")
    assert pl.dial(read, "cell_cycle", path=tmp_path / "third.html", **options).read_bytes() == first


def test_the_cells_are_unchanged(cells, tmp_path):
    kept = cells.copy()
    pl.dial(cells, "cell_cycle", color="cell_type", path=tmp_path / "dial.html")
    assert repr(cells.uns) == repr(kept.uns)
    assert cells.obs.equals(kept.obs)
    assert list(cells.obsm) == list(kept.obsm)


@pytest.mark.slow
def test_a_million_cells_make_a_small_page(tmp_path):
    n_cells = 1_000_000
    angle_c = np.random.default_rng(0).uniform(0, 2 * np.pi, n_cells)
    cells = AnnData(
        np.zeros((n_cells, 1), dtype=np.float32),
        obs=pd.DataFrame(
            {"type": pd.Categorical.from_codes(np.arange(n_cells) % 50, [f"type {k}" for k in range(50)])},
            index=np.arange(n_cells).astype(str),
        ),
        obsm={"X_umap": np.column_stack([np.cos(angle_c), np.sin(angle_c)])},
        uns={"latent_traverse": {"path": traversal("path", n_steps=9)}},
    )
    cells.obsm["X_celldial"] = np.column_stack([cells.obsm["X_umap"], np.zeros(n_cells)]).astype(np.float32)
    page = pl.dial(cells, color="type", path=tmp_path / "dial.html")
    assert page.stat().st_size < 300_000
    drawn = payload_of(page)["map"]
    assert len(decode_integers(drawn["x"])) == 20_000
    assert drawn["caption"].startswith("20,000 of 1,000,000 cells")


def test_very_many_features(cells, tmp_path):
    stored = traversal("direction", {"rna": 30_000, "atac": 50_000}, n_steps=5)
    stored["path"] = cells.uns["latent_traverse"]["interferon"]["path"][:5]
    cells.uns["latent_traverse"]["wide"] = stored
    page = pl.dial(cells, "wide", path=tmp_path / "dial.html")
    assert page.stat().st_size < 100_000
    assert len(names_in(payload_of(page))) == 20
    kept = page.read_bytes()
    with raises(ValueError, naming=["5 MB", "80,000 features", "5 steps", "240 cells"]):
        pl.dial(cells, "wide", n_features=60_000, path=page)
    assert page.read_bytes() == kept
    assert os.listdir(tmp_path) == ["dial.html"]


def test_names_are_data(cells, tmp_path):
    page = pl.dial(with_hostile_names(cells), "CD4 T to CD8 T", color=HOSTILE, path=tmp_path / "dial.html")
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Reader().feed(page.read_text(encoding="utf-8"))
    assert tags.count("script") == 2
    assert "img" not in tags
    assert f"{HOSTILE}7" in names_in(payload_of(pl.dial(cells, "CD4 T to CD8 T", n_features=40, path=page)))


def test_the_page_runs_nothing_but_its_own_script(cells, tmp_path):
    text = pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", text)


def test_missing_names_are_reported(cells, tmp_path):
    path = tmp_path / "dial.html"
    with raises(KeyError, naming=["'cell_cyle'", "did you mean 'cell_cycle'"]):
        pl.dial(cells, "cell_cyle", path=path)
    with raises(KeyError, naming=["'X_tsne'", "adata.obsm", "sc.pp.neighbors", "sc.tl.umap"]):
        pl.dial(cells, "cell_cycle", "X_tsne", path=path)
    with raises(KeyError, naming=["color", "'celltype'", "'cell_type'"]):
        pl.dial(cells, "cell_cycle", color="celltype", path=path)
    with raises(KeyError, naming=["'cell_cycle'", "'gene7'", "did you mean 'GENE7'"]):
        pl.dial(cells, "cell_cycle", features=["gene7"], path=path)
    with raises(ValueError, naming=["features", "'GENE7', 'GENE7'"]):
        pl.dial(cells, "cell_cycle", features=["GENE7", "GENE7"], path=path)
    with raises(ValueError, naming=["n_features=0", "max_cells=20000"]):
        pl.dial(cells, "cell_cycle", n_features=0, path=path)
    with raises(ValueError, naming=["max_cells=0"]):
        pl.dial(cells, "cell_cycle", max_cells=0, path=path)
    with raises(ValueError, naming=["n_neighbors=0"]):
        pl.dial(cells, "cell_cycle", n_neighbors=0, path=path)
    del cells.uns["latent_traverse"]
    with raises(KeyError, naming=["uns['latent_traverse']", "model.latent_traverse"]):
        pl.dial(cells, path=path)
    assert os.listdir(tmp_path) == []


def test_a_page_that_cannot_be_written(cells, tmp_path, monkeypatch):
    with raises(FileNotFoundError, naming=[tmp_path / "nowhere"]):
        pl.dial(cells, path=tmp_path / "nowhere" / "dial.html")
    with raises(IsADirectoryError, naming=[tmp_path, "folder"]):
        pl.dial(cells, path=tmp_path)
    page = tmp_path / "dial.html"
    page.write_text("as it was")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with raises(OSError, naming=["no space left"]):
        pl.dial(cells, path=page)
    assert os.listdir(tmp_path) == ["dial.html"]
    assert page.read_text() == "as it was"
