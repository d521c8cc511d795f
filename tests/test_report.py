"""The printed tables are those of the saved results, and their numbers are computed as they say."""

import json

import numpy as np
import pytest

import config
import evaluate
from pipeline import settings
from pipeline.errors import UserError
from studies import benchmark_report, report

README = (settings.ROOT / "README.md").read_text()
DOCUMENTS = {"docs/results.md": report.results_document, "docs/scaling.md": report.scaling_document}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_of_the_saved_results(name):
    text = DOCUMENTS[name](settings.database())
    assert (settings.ROOT / name).read_text() == text, "run: python -m studies.report --write"


def test_block_of_the_readme_is_of_the_saved_results():
    blocks = report.readme_blocks(settings.database())
    for block in blocks.values():
        assert block in README, "run: python -m studies.report --write"
    block = blocks["results"]
    runs = evaluate.load_seeds(settings.database(), "patient").values()
    values = [run["scores"]["combined"]["auroc"]["value"] for run in runs]
    middle, low, high = (f"{100 * f(values):.2f}" for f in (np.median, min, max))
    assert f"| this project | unseen patients | {middle} ({low} to {high}) |" in block
    ablation = json.loads((settings.ROOT / "results" / "ablation.json").read_text())
    components = ablation["protocols"]["patient"]["checks"][3]
    assert components["title"].startswith("32 principal components")
    assert (f"| no network: 32 principal components, same scores | unseen patients | "
            f"{100 * components['auroc']['value']:.2f} |") in block


def test_best_without_a_network_may_be_a_baseline_or_the_components():
    _, patient = report.protocols_of(settings.database())
    baseline = next(iter(patient.baselines))
    baseline["auroc"]["value"] = patient.check("32 principal")["auroc"]["value"] + 1e-6
    assert patient.best_without_network is baseline
    baseline["auroc"]["value"] -= 2e-6
    assert patient.best_without_network["title"] == "32 principal components, same scores"


def test_block_replaces_what_stands_between_the_markers():
    text = f"a\n{report.BEGIN.format('x')}\nold\n{report.END.format('x')}\nb"
    assert report.insert_block(text, "x", "NEW") == "a\nNEW\nb"
    for text in (text, "no markers"):
        with pytest.raises(UserError, match="README.md: expected one line .*y: "):
            report.insert_block(text, "y", "NEW")


def test_study_of_other_settings_is_not_printed(monkeypatch):
    monkeypatch.setattr(config, "LATENT_DIM", 8)
    with pytest.raises(UserError, match="LATENT_DIM: 32 then, 8 now.*python -m studies"):
        report.results_document(settings.database())


# --- rows and picture of the benchmarks -----------------------------------------------------------

SPEED = json.loads((settings.ROOT / "results" / "benchmark.json").read_text())


def test_trainings_take_their_segments_at_the_measured_rates():
    rates = {row["name"]: row["rate"] for row in SPEED["rows"] if row["what"] == "training step"}
    rows = benchmark_report.trainings(SPEED["rows"], settings.database())
    for row in rows:
        rate = rates["ours" if row["library"] == "this project" else "plain, recipe"]
        assert row["seconds"] == pytest.approx(row["segments"] / rate)
    assert rows[1]["times_as_long"] == pytest.approx(rows[1]["segments"] / rows[0]["segments"])

    folder = settings.database().results_dir("patient", config.SEED)
    recipe, full = (json.loads((folder / f"{run}.json").read_text()) for run in ("recipe", "full"))
    epochs = [recipe["equal_epoch"], len(recipe["history"]), recipe["epochs"]]
    assert [row["segments"] for row in rows if row["protocol"] == "patient"] == [
        recipe["shipped"]["segments"], full["n_train"] * len(full["history"]),
        *(recipe["n_train"] * n for n in epochs)]


def test_picture_has_a_point_a_method_and_names_the_best_of_each_library():
    figure = benchmark_report.quality_figure(SPEED, settings.database())
    peers = [row for row in SPEED["detectors"] if row["fit_s"] and row["protocol"] == "patient"]
    lines = figure.axes[1].lines
    missing = np.concatenate([line.get_ydata() for line in lines])
    assert len(missing) == len(peers) + 4   # shipped, longer, and the recipe twice
    assert missing.max() == pytest.approx(100 - 100 * min(row["auroc"] for row in peers))
    for library in ("scikit-learn", "PyOD"):
        best = max((row for row in peers if row["library"] == library),
                   key=lambda row: row["auroc"])
        named, = [line for line in lines if f"{library}, {best['name']}" in line.get_label()]
        assert named.get_ydata() == pytest.approx([100 - 100 * best["auroc"]])


def test_summary_compares_turn_by_turn():
    rows = [row for row in benchmark_report.summary(SPEED["rows"]) if row[0] == "inference"]
    assert [row[2] for row in rows] == ["plain", "matrix product"]
    for _, ours, _, other, ratio in rows:
        rates = [row["rate"] * row["median_s"] / np.array(row["times_s"]) for row in (ours, other)]
        assert ratio == pytest.approx(np.median(rates[0] / rates[1]))
        assert ours["name"] == "ours, batch 512 (used)"
