"""The printed tables are those of the saved results, and their numbers are computed as they say."""

import json
import re
import statistics

import numpy as np
import pytest

import config
from pipeline import settings
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from studies import benchmark_report, report

README = (settings.ROOT / "README.md").read_text()
DOCUMENTS = {"docs/results.md": report.results_document, "docs/scaling.md": report.scaling_document}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_of_the_saved_results(name):
    text = DOCUMENTS[name](settings.database())
    assert (settings.ROOT / name).read_text() == text, "run: python -m studies.report --write"
    assert not [line for line in text.splitlines() if line.startswith("|") and len(line) > 120]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (settings.ROOT / "docs" / target).exists(), target


def test_block_of_the_readme_is_of_the_saved_results():
    block = report.readme_block(settings.database())
    assert block in README, "run: python -m studies.report --write"
    assert max(map(len, block.splitlines())) <= 110
    values = []
    for seed in config.SEEDS:
        path = settings.database().results_dir("patient", seed) / "metrics.json"
        values.append(json.loads(path.read_text())["scores"]["combined"]["auroc"]["value"])
    middle, low, high = (f"{100 * f(values):.2f}" for f in (np.median, min, max))
    assert f"| this project | unseen patients | {middle} ({low} to {high}) |" in block


def test_block_replaces_what_stands_between_the_markers():
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb"
    assert report.insert_block(text, "NEW") == "a\nNEW\nb"
    with pytest.raises(UserError, match="README.md: expected one line"):
        report.insert_block("no markers", "NEW")


def test_study_of_other_settings_is_not_printed(monkeypatch):
    monkeypatch.setattr(config, "LATENT_DIM", 8)
    with pytest.raises(UserError, match="LATENT_DIM: 32 then, 8 now.*python -m studies"):
        report.results_document(settings.database())


# --- rows and picture of the benchmarks -----------------------------------------------------------

RATES = [{"what": "training step", "name": "ours", "rate": 1000.0},
         {"what": "training step", "name": "plain, recipe", "rate": 500.0}]


@pytest.fixture
def long_runs(small):
    """The database with recipe.json and full.json of four epochs each."""
    quality = {"auroc": 0.99, "auprc": 0.9, "n": 100}
    history = [{"validation_loss": 1 / k} for k in range(1, 5)]
    for protocol in config.PROTOCOLS:
        folder = small.results_dir(protocol, config.SEED)
        write_json(folder / "recipe.json", {
            "shipped": {**quality, "segments": 6000, "validation_loss": 0.4}, "history": history, "n_train": 3000,
            "finished": False, "epochs": 100, "equal_epoch": 3, "quality": {"best": quality, "equal": quality}})
        write_json(folder / "full.json", {"history": history, "n_train": 3000, "quality": {**quality, "auroc": 0.991}})
    return small


def test_trainings_take_their_segments_at_the_measured_rates(long_runs):
    rows = [row for row in benchmark_report.trainings(RATES, long_runs) if row["protocol"] == "patient"]
    assert [row["seconds"] for row in rows] == [6.0, 12.0, 18.0, 24.0, 600.0]
    assert [row["times_as_long"] for row in rows] == [1, 2, 3, 4, 100]
    assert [row["validation_loss"] for row in rows] == [0.4, 0.25, 1 / 3, 0.25, None]
    assert rows[2]["name"] == "to the loss of shipped: 3 epochs"


def test_picture_has_a_point_a_method(long_runs):
    detectors = [{"protocol": protocol, "library": "PyOD", "name": "ECOD", "fit_s": [1.0], "auroc": 0.9, "n": 100}
                 for protocol in config.PROTOCOLS]
    figure = benchmark_report.quality_figure({"rows": RATES, "detectors": detectors}, long_runs)
    for ax in figure.axes:
        np.testing.assert_allclose([line.get_ydata()[0] for line in ax.lines], [0.9, 1, 1, 1, 10])
        assert ax.lines[0].get_label() == "1  this project: 2 times as long"


def test_summary_compares_turn_by_turn_with_each_row():
    def row(what, name, *times):
        median = statistics.median(times)
        return {"what": what, "name": name, "times_s": times, "rate": 60 / median, "median_s": median}

    rows = [row("training step", "ours", 1, 2, 4), row("training step", "plain", 2, 4, 6),
            row("inference", "ours, batch 64", 9), row("inference", "ours, batch 512 (used)", 1),
            row("inference", "plain", 3), row("inference", "matrix product", 0.5),
            row("building the segments", "ours", 4), row("building the segments", "one loop", 16),
            row("building the segments", "decoding and filtering alone", 5)]
    assert [ratio for *_, ratio in benchmark_report.summary(rows)] == [2, 3, 0.5, 4, 1.25]
