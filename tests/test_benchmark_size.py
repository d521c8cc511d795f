import json

import pytest

from studies import benchmark_size
import config
from pipeline import settings


def rows(seconds_of):
    """Results as measured, with seconds_of(stage, size)."""
    made = []
    for times in benchmark_size.TIMES:
        for stage, size, unit in (("build", 3 * times, "hours"), ("score", 3 * times, "hours"),
                                  ("epoch", 2560 * times, "segments")):
            made.append({"stage": stage, "times": times, "size": size, "unit": unit,
                         "seconds": [seconds_of(stage, size)] * 3, "bytes": 1e6 * size if unit == "hours" else None})
    return made


def test_line_through_times_is_that_of_what_is_fixed_and_what_grows():
    own = [r for r in rows(lambda stage, size: 4 + 0.5 * size) if r["stage"] == "score"]
    fixed, slope = benchmark_size.line_of(own)
    assert fixed == pytest.approx(4) and slope == pytest.approx(0.5)
    table = benchmark_size.table(own)
    assert len(table) == 5 and all(row[4] in ("+0.0 %", "-0.0 %") for row in table[1:])


def test_time_that_grows_faster_than_the_data_is_seen_off_the_line():
    own = [r for r in rows(lambda stage, size: 0.1 * size ** 2) if r["stage"] == "score"]
    assert any(abs(float(row[4].split()[0])) > 10 for row in benchmark_size.table(own)[1:])


def test_document_computes_a_million_days_from_the_slopes():
    seconds = {"build": 0.2, "score": 0.5, "epoch": 0.001}
    size = {"cores": 2, "rows": rows(lambda stage, size: 3 + seconds[stage] * size), "read_bytes_per_hour": 4e6,
            "beats_per_hour": 4500}
    streamed = {"threads": 2, "rows": [{"source": "memory", "gigabytes": 0.0, "segments_per_s": 800, "share_of_memory": 1,
                                        "timings": [{"peak_mb": 900}]}]}
    text = benchmark_size.document(size, streamed)
    core_hours = 0.5 * 24e6 * 2 / 3600
    assert f"| {core_hours:,.0f} | 24 |" in text          # 1 MB an hour written: 24 TB
    assert "96 TB more" in text and "108 billion" in text
    assert len(benchmark_size.figure(size["rows"]).axes) == 3


def test_the_document_is_that_of_the_saved_results():
    size, streamed = (json.loads((settings.ROOT / "results" / name).read_text()) for name in ("size.json", "scaling.json"))
    assert (settings.ROOT / "SCALING.md").read_text() == benchmark_size.document(size, streamed)
