"""What the benchmark compares does the same work, and what it measures is there."""

import json
import sys
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

import config
import dataset
import train_mitbih
from models import ConvAutoencoder
from pipeline import settings
from pipeline.errors import UserError
from studies import benchmark, benchmark_report, stopwatch


def test_plain_network_gives_the_same_outputs():
    torch.manual_seed(0)
    model = ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, 80.0).eval()
    x = torch.randn(3, 1, config.WINDOW_SIZE)
    plain = benchmark.plain_of(model).eval()
    assert not [m for m in plain.modules() if type(m).__module__ == "pipeline.strided_convolution"]
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


def test_one_loop_makes_the_segments_of_the_pipeline(small):
    ours = dataset.read_records(small)
    x, labels = benchmark.plain_building(1, small)()
    np.testing.assert_array_equal(labels, ours["symbol"])
    assert np.abs(x - ours["x"]).max() < 0.05  # another form of the same filter


def test_a_whole_run_times_every_candidate(evaluated, monkeypatch, capsys):
    flags = ["--database", "simulated", "--threads", "1"]
    train_mitbih.main([*flags, "--protocol", "patient"])
    monkeypatch.setattr(benchmark_report, "long_runs", lambda database: {})

    def once(candidates, repeats):
        for make, args in candidates.values():
            make(*args)()
        return dict.fromkeys(candidates, [1.0])

    monkeypatch.setattr(stopwatch, "alternate", once)
    monkeypatch.setattr(benchmark, "time_commands", lambda database: [])
    monkeypatch.setattr(benchmark.benchmark_detect, "write", lambda *_: None)
    monkeypatch.setitem(sys.modules, "pyod.models", None)
    for name, value in (("SEGMENTS", 64), ("STEPS", 2), ("PEER_REPEATS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(stopwatch, "MATRIX", 64)
    monkeypatch.setattr(benchmark, "PRODUCT_GFLOP", 2 * 64 ** 3 / 1e9)
    benchmark.main([*flags, "--repeats", "1"])

    saved = json.loads((evaluated.out / "results/benchmark.json").read_text())
    assert list(Counter(row["what"] for row in saved["rows"]).values()) == [4, 7, 3, 3]
    assert saved["rows"][0]["rate"] == 2 * config.BATCH_SIZE
    assert "PyOD is not installed" in capsys.readouterr().out


def test_missing_long_runs_are_told_of_before_anything_is_timed(evaluated, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="recipe.json: missing.*-m studies.benchmark_training"):
        benchmark.main(["--database", "simulated", "--threads", "1"])


# --- the stopwatch --------------------------------------------------------------------------------

def test_candidates_take_turns_in_processes_of_their_own():
    candidates = {"slow": (partial, (time.sleep, 0.1)), "fast": (partial, (time.sleep, 0.02))}
    slow, fast = stopwatch.time_group("sleep", candidates, (1, "nap"), "slow", 3)
    assert len(slow["times_s"]) == 3 and slow["times_as_fast"] == 1
    assert 3 < fast["times_as_fast"] < 6 and 5 < slow["rate"] < 10.1


def test_memory_of_a_command_is_that_of_all_its_processes(tmp_path):
    child = "import time; a = bytearray(150 << 20); time.sleep(0.7)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {json.dumps(child)}])"
    (tmp_path / "two.py").write_text(parent)
    found = stopwatch.time_command(tmp_path, "two.py", look_s=0.05)
    assert 155 < found["peak_mb"] < 260 and found["seconds"] > 0.7


def test_nobody_looks_at_the_memory_of_what_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(stopwatch, "resident_mb", lambda pid: pytest.fail("looked"))
    (tmp_path / "nap.py").write_text("import time; time.sleep(0.2)")
    found = stopwatch.time_command(tmp_path, "nap.py")
    assert found["command"] == "nap.py" and found["seconds"] > 0.2 and found["peak_mb"] == 0


def test_a_command_that_fails_is_named_with_its_error():
    with pytest.raises(UserError, match=r"(?s)dataset.py --source x: exit status 2.*--download"):
        stopwatch.time_command(settings.ROOT, "dataset.py", "--source", "x")
