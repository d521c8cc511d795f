"""Threads, and what is imported without looking for garbage."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_info, threadpool_limits

import detect
from pipeline import runtime


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    with threadpool_limits():
        runtime.use_threads(2)
        yield
    torch.set_num_threads(before)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_function_runs_on_as_many_threads_as_are_set(two_threads):
    together = threading.Barrier(2, timeout=10)
    seen = []

    def call(item):
        together.wait()    # neither goes on without the other
        seen.append((item, *blas_threads(), torch.get_num_threads()))

    runtime.in_threads(call, range(4))
    assert sorted(seen) == [(item, 1, 1) for item in range(4)]
    assert blas_threads() == {2}
    # a thread that begins later has as many as before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.parametrize("items", [[0], [0, 1, 2]])
def test_an_error_in_a_thread_comes_out(two_threads, items):
    with pytest.raises(ZeroDivisionError):
        runtime.in_threads(lambda item: 1 / item, items)
    assert blas_threads() == {2}


def test_garbage_is_looked_for_again_after_an_import_that_fails():
    with pytest.raises(ImportError), runtime.importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_memory_does_not_grow_with_the_number_of_recordings(tmp_path):
    """A figure is garbage with circles: 6 MB that nothing may keep."""
    wave = np.exp(-np.square(np.arange(20 * 250) % 210 - 90) / 18)
    for k in range(5):
        np.save(tmp_path / f"r{k}.npy", wave + 0.02 * np.random.default_rng(k).normal(size=5000))
    frozen = gc.get_freeze_count()
    detect.main([str(tmp_path), "--fs", "250", "--out", str(tmp_path / "out"), "--threads", "1"])
    gc.collect()
    assert gc.get_freeze_count() == frozen
    assert not [thing for thing in gc.get_objects() if type(thing) is Figure]
