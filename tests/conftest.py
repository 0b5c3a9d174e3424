"""Fixtures and rules for all tests."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Before anything imports matplotlib: figures need no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
# Before anything imports Triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No example fails because the machine is busy.
hypothesis.settings.register_profile("celldial", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("celldial")

pytest.register_assert_rewrite("helpers")
pytest_plugins = ("helpers.fixtures",)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets, which is no part of the package; skip where it is absent."""
    folder = Path(os.environ.get("CELLDIAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder of real data sets at {folder} (CELLDIAL_DATA points elsewhere)")
    return folder
