"""Threads, and what is imported without looking for garbage."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_info, threadpool_limits

import detect
from pipeline import runtime, settings


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


TRACING_MODULES = "torch._meta_registrations", "torch._decomp", "torch._prims"
# in a process of its own: the digest of what the network draws, and what was loaded for it
DRAW = """
import hashlib, sys
from pipeline import runtime
if {leave_out}:
    runtime.leave_out_tracing()
import torch
from models import ConvAutoencoder
torch.manual_seed(0)
with torch.inference_mode():
    drawn = ConvAutoencoder(720, 32).eval()(torch.randn(3, 1, 720)).numpy()
print(hashlib.sha256(drawn.tobytes()).hexdigest(), "torch._decomp" in sys.modules)
"""


def test_the_network_draws_the_same_without_what_tracing_needs():
    answers = [subprocess.run([sys.executable, "-c", DRAW.format(leave_out=leave_out)],
                              cwd=settings.ROOT, capture_output=True, text=True, check=True
                              ).stdout.split() for leave_out in (False, True)]
    assert answers[0][0] == answers[1][0]
    assert [loaded for _, loaded in answers] == ["True", "False"]


def test_only_a_process_of_detect_py_leaves_tracing_out(tmp_path):
    assert not detect.parse_args(["--demo"]).own_process
    detect.load(detect.parse_args(["--demo"]))
    runtime.leave_out_tracing()    # too late: torch is there
    assert sys.modules["torch._meta_registrations"].__file__

    np.save(tmp_path / "r.npy", np.exp(-np.square(np.arange(20 * 250) % 210 - 90) / 18))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "detect.py", tmp_path / "r.npy", "--fs", "250"],
        cwd=settings.ROOT, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "torch.nn" in loaded and not loaded & set(TRACING_MODULES)


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
