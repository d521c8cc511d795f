"""What the benchmark compares does the same work, and what it measures is there."""

import json
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from studies import benchmark
from studies import benchmark_stages
import config
from pipeline import settings
import dataset
from pipeline.errors import UserError
from models import ConvAutoencoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, 80.0).eval()


def test_plain_form_gives_the_same_outputs(model):
    x = torch.randn(3, 1, config.WINDOW_SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(benchmark.PlainAutoencoder(model).eval()(x * model.taper), model(x),
                                   rtol=1e-4, atol=1e-5)


def test_operations_are_those_that_torch_counts(model):
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        benchmark.PlainAutoencoder(model).eval()(torch.randn(1, 1, config.WINDOW_SIZE))
    assert benchmark.flop_per_segment(model) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_one_loop_makes_the_segments_of_the_pipeline(small):
    database = small
    ours, (x, labels) = dataset.read_records(database), benchmark.plain_building(1, database)()
    np.testing.assert_array_equal(labels, ours["symbol"])
    assert np.abs(x - ours["x"]).max() < 0.05  # another form of the same filter


def sleeping(seconds):
    return lambda: time.sleep(seconds)


def failing():
    raise ValueError("no work")


def test_candidates_take_turns_in_processes_of_their_own():
    times = benchmark.alternating({"slow": (sleeping, (0.1,)), "fast": (sleeping, (0.02,))}, 3)
    assert all(len(t) == 3 for t in times.values())
    rows = benchmark.rows_of("sleep", times, {"slow": (1, "nap"), "fast": (1, "nap")}, "slow")
    assert rows[0]["times_as_fast"] == 1 and 3 < rows[1]["times_as_fast"] < 6
    assert rows[0]["unit"] == "nap/s" and 5 < rows[0]["rate"] < 10.1


def test_a_candidate_that_dies_ends_the_run():
    with pytest.raises(EOFError):
        benchmark.alternating({"none": (failing, ())}, 1)


def test_memory_of_a_stage_is_that_of_all_its_processes(tmp_path):
    child = "import time; a = bytearray(150 << 20); time.sleep(0.7)"
    (tmp_path / "two.py").write_text("import subprocess, sys\n"
                                     f"subprocess.run([sys.executable, '-c', {json.dumps(child)}])\n")
    found = benchmark_stages.stage(tmp_path, "two.py")
    assert 155 < found["peak_mb"] < 260 and found["seconds"] > 0.7


def test_a_stage_that_fails_is_named_with_its_command_and_its_error():
    with pytest.raises(UserError, match=r"(?s)dataset.py --source x: exit status 2.*--download"):
        benchmark_stages.stage(settings.ROOT, "dataset.py", "--source", "x")
