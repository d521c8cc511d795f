"""Whole recordings against the clock: what is written, run in turn, and said of it."""

import numpy as np
import pytest
import wfdb

from pipeline import simulated_ecg
from pipeline.errors import UserError
from studies import benchmark_detect, benchmark_report, report

TIMINGS = {
    "threads": 2, "hours": 24.0, "beats": 100000, "bytes_read": 48e6, "bytes_written": 12e6,
    "gflop": 1600.0, "products_s": [10, 12, 8], "strips": 200, "days": 7, "cluster_hours": 6.0,
    "before": "abc",
    "rows": [
        {"case": "a day", "version": "now", "seconds": [20, 18, 16], "peak_mb": 650},
        {"case": "a day", "version": "before", "seconds": [40, 45, 24], "peak_mb": 900},
        {"case": "200 strips", "version": "now", "seconds": [20, 10, 40], "peak_mb": 700},
        {"case": "7 days", "version": "now", "seconds": [126], "peak_mb": 715},
        {"case": "cluster of 1", "version": "now", "seconds": [60], "peak_mb": None},
        {"case": "cluster of 2", "version": "now", "seconds": [40], "peak_mb": None}]}


def test_ratios_are_medians_over_the_turns():
    found = benchmark_report.whole_recordings(TIMINGS)
    assert found["of_product"] == 2                       # 2, 1.5, 2
    assert found["rows"][0] | {"turns": 3} == {
        "case": "a day", "version": "now", "turns": 3, "seconds": 18, "peak_mb": 650,
        "times_as_fast": 2}                               # 2, 2.5, 1.5
    assert found["rows"][1]["times_as_fast"] is None and found["gflop_per_s"] == 160
    assert found["days_in_days"] == 7 and found["days_memory"] == pytest.approx(1.1)
    assert found["strips_per_s"] == 10
    assert [row["hours_an_hour"] for row in found["workers"]] == pytest.approx([360, 540])
    assert [row["times_one"] for row in found["workers"]] == [1, 1.5]
    assert found["core_hours"] == pytest.approx(18 * 2 * 1e6 / 3600)
    assert found["terabytes"] == pytest.approx(12)        # 12 MB a day
    assert found["hours_an_hour"] == pytest.approx(24 * 3600 / 36)
    assert found["read_mb_per_core_s"] == pytest.approx(48 / 36)


def test_what_was_measured_is_printed():
    text = report.render("detect.md", detect=TIMINGS,
                         whole=benchmark_report.whole_recordings(TIMINGS))
    assert "| a day | now | 3 | 18.0 | 650 | 2.00 |" in text
    assert "| cluster of 2 | now | 1 | 40.0 |  |  |" in text
    assert "takes 2.00 times that" in text and "10.0 a second" in text


def test_recordings_are_the_records_bytes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_detect, "STRIPS", 8)
    day, days, strips = benchmark_detect.write_recordings(small, tmp_path)
    known = [wfdb.rdrecord(str(small.records_dir() / name), physical=False).d_signal
             for name in small.records]

    def signal(path):
        return wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal

    np.testing.assert_array_equal(signal(day), np.concatenate(known))
    assert len(signal(days)) == 7 * len(signal(day)) and len(strips) == 8
    length = 30 * 360
    np.testing.assert_array_equal(signal(strips[1]), known[1][length:2 * length])
    assert wfdb.rdheader(str(day.with_suffix(""))).sig_name == list(simulated_ecg.LEADS)


def test_versions_take_turns(small, tmp_path, monkeypatch):
    done, watched = [], []

    def command(folder, script, *words, look_s=None):
        case = str(words[0]).rpartition("/")[2]
        version = "before" if "before" in str(folder) else "now"
        (watched if look_s else done).append((case, version))
        return {"seconds": 9.0 if look_s else 1.0, "peak_mb": 100 if look_s else 0}

    monkeypatch.setattr(benchmark_detect, "time_command", command)
    monkeypatch.setattr(benchmark_detect, "on_cluster", lambda *_: {})
    monkeypatch.setattr(benchmark_detect, "STRIPS", 2)
    monkeypatch.setattr(benchmark_detect, "encoder_gflop", lambda _, beats: beats)
    monkeypatch.setattr(benchmark_detect, "found_of",
                        lambda folder: ({"scored": 20, "duration_s": 3600}, 99))
    found = benchmark_detect.measure(small, 1, 2, None)
    cases = ["day.hea", "s01.hea", "strip000.hea"]
    assert done == [(case, "now") for case in ["day.hea", *cases, *cases, "days.hea"]]
    assert watched == [(case, "now") for case in [*cases, "days.hea"]]
    assert len(found["products_s"]) == 2 and found["bytes_written"] == 99
    assert [row["seconds"] for row in found["rows"]] == [[1.0] * 2] * 3 + [[1.0]]
    assert [row["peak_mb"] for row in found["rows"]] == [100] * 4


def test_a_commit_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--before no-such: .*Name a commit"):
        with benchmark_detect.earlier_version("no-such"):
            pass
