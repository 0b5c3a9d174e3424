"""Fixtures and rules for all tests."""

import functools
import gc
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports matplotlib: figures need no screen.
os.environ.setdefault("MPLBACKEND", "Agg")

# Lightning Fabric reads the metadata of all installed packages for each training: a fifth of the time of a short fit.
# They do not change during the tests.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

# No example fails because the machine is busy, and each run has the same examples.
hypothesis.settings.register_profile(
    "celldial", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("celldial")

pytest.register_assert_rewrite("helpers")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests; the one that only distributes them imports neither torch nor the package."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    import torch

    # Before anything imports Triton: without a GPU its kernels are interpreted.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    config.pluginmanager.import_plugin("helpers.fixtures")


# Groups of files that run in one process. The neighbor graph of scanpy imports umap-learn, which compiles functions for
# half a minute: only one process should. Files with few, long tests would run last, when the other process has nothing
# left to do.
GROUPS = {
    "umap": ("metrics/test_embedding.py", "project/test_examples.py"),
    "long": (
        "cli/test_process.py",
        "estimator/test_real_data.py",
        "model/test_ppca.py",
        "tl/test_known_response.py",
        "training/test_checkpoint.py",
        "training/test_distributed.py",
    ),
}
GROUP_OF = {f"tests/{file}": name for name, files in GROUPS.items() for file in files}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope``, run the tests of a file in one process, so that they share its fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return GROUP_OF.get(file, file)

    return ByFile(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    import torch

    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Exempt what exists before the first test from garbage collection, which would examine it many times."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seed before a fixture of several tests: it must not depend on the test that uses it first."""
    import torch

    if fixturedef.scope != "function":
        torch.manual_seed(0)


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
