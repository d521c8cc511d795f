"""Time against size: what is run and measured, and what a line through it says."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import config
from pipeline.errors import UserError
from studies import benchmark_report, benchmark_scaling

FLAGS = ["--database", "simulated", "--threads", "1", "--repeats", "2"]


def test_a_million_days_are_computed_from_the_slopes():
    rows = []
    for size in (3, 6, 12, 24):
        rows.append({"stage": "score", "size": size, "seconds": [3 + size / 2],
                     "bytes": 1e6 * size})
        rows.append({"stage": "epoch", "size": size, "seconds": [size / 1000], "bytes": None})
    size = {"cores": 2, "rows": rows, "read_bytes_per_hour": 4e6, "beats_per_hour": 4500}
    stages = benchmark_report.stages_of(size)
    needs = benchmark_report.needs_of(size, stages)
    score = stages["score"]
    assert (score["fixed"], score["slope"]) == pytest.approx((3, 0.5))
    assert score["core_hours"] == pytest.approx(0.5 * 24e6 * 2 / 3600)
    assert score["terabytes"] == pytest.approx(24)  # 1 MB an hour written
    assert needs["terabytes_read"] == pytest.approx(96) and needs["beats"] == pytest.approx(108e9)
    assert needs["training_core_hours"] == pytest.approx(108e9 / 1000 * 2 / 3600)


@pytest.fixture(autouse=True)
def small_batches(segments, monkeypatch):
    monkeypatch.setattr(config, "BATCH_SIZE", 8)


def test_sizes_are_timed_in_turn(small, monkeypatch):
    made = []

    def command(folder, script, *words):
        words[-1].mkdir()
        (words[-1] / "file").write_bytes(b"1234")
        made.append(script)
        return {"seconds": 1.0}

    monkeypatch.setattr(benchmark_scaling, "time_command", command)
    monkeypatch.setattr(benchmark_scaling, "STEPS_OF_SIZE", 1)
    benchmark_scaling.main(FLAGS)
    rows = json.loads((small.out / "results/size.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["build", "score", "epoch"] * 4
    assert rows[3]["size"] == 3 and rows[0]["bytes"] == 4 and len(rows[0]["seconds"]) == 2
    assert made == ["-m", "detect.py"] * 8


def test_training_from_copies_of_the_records_is_timed(small, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_scaling, "ProcessPoolExecutor",
                        lambda n, context: ThreadPoolExecutor(n))
    monkeypatch.setattr(benchmark_scaling, "TIMES", (1, 2))
    monkeypatch.setattr(benchmark_scaling, "STEPS", 2)
    folder = tmp_path / "shards"
    benchmark_scaling.main([*FLAGS, "--folder", str(folder)])
    rows = json.loads((small.out / "results/scaling.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["memory", "6 shards", "12 shards"]
    assert rows[2]["gigabytes"] == pytest.approx(2 * rows[1]["gigabytes"], rel=0.01)
    assert all(len(row["timings"]) == 2 and row["segments_per_s"] > 0 for row in rows)
    assert not folder.exists()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        benchmark_scaling.main([*FLAGS, "--folder", str(tmp_path)])
    assert tmp_path.exists()
