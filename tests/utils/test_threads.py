"""Threads: a step of usual size uses one, the number of the process is restored, and fits in threads do not mix."""

import os
import select
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import celldial as cd
from celldial.utils.threads import limit_threads
from helpers.simulate import simulate


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_depends_on_the_size_and_is_restored(two_threads: None) -> None:
    for product, expected in ((1e6, 1), (1e10, 2)):
        with limit_threads(product):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyboardInterrupt), limit_threads(1e6):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


def test_a_given_number_is_used(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cd.settings, "n_threads", 1)
    with limit_threads(1e10):
        assert torch.get_num_threads() == 1


def test_a_fit_does_not_depend_on_the_threads_of_the_process(two_threads: None) -> None:
    embeddings = []
    for n in (1, 2):
        torch.set_num_threads(n)
        embeddings.append(cd.VAE(2, 8, seed=0).fit_transform(simulate(), max_epochs=2, progress=False))
        assert torch.get_num_threads() == n
    np.testing.assert_array_equal(*embeddings)


def test_fits_in_several_threads_are_those_alone() -> None:
    def run(seed: int) -> np.ndarray:
        return cd.VAE(2, 8, seed=seed).fit_transform(simulate(), max_epochs=2, progress=False)

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_uses_one_thread_and_answers(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = simulate()
    monkeypatch.setattr(cd.settings, "n_threads", 2)
    model = cd.VAE(2, 8).fit(adata, max_epochs=1, progress=False)
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # starts the threads of the parent
    expected = model.transform(adata)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        torch.ones(2000, 2000) @ torch.ones(2000, 2000)
        same = np.allclose(model.transform(adata), expected)
        os.write(write_end, bytes([torch.get_num_threads(), same]))
        os._exit(0)
    os.close(write_end)
    ready, _, _ = select.select([read_end], [], [], 60)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert ready, "the forked process does not answer"
    assert os.read(read_end, 2) == bytes([1, 1])
    os.close(read_end)
