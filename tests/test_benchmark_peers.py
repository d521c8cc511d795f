"""Other detectors: each is what its library gives, on the beats and features of the baselines."""

import builtins
import statistics

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scoring import baselines
from studies import benchmark_peers
from studies import benchmark_report
import config
from pipeline import errors


def test_detectors_reach_what_the_baselines_reach(evaluated):
    import dataset
    segments = dataset.load_segments(evaluated)
    rows = benchmark_peers.detectors(evaluated, "beat", segments, 2)
    found = {r["name"]: r for r in rows}
    assert rows[0]["library"] == "this project" and not rows[0]["fit_s"] and len(rows[0]["score_s"]) == 2
    assert all(len(r["fit_s"]) == len(r["score_s"]) == 2 for r in rows[1:])
    train, validation = segments.part("beat", "train"), segments.part("beat", "validation")
    expected = baselines.score_all(segments, train, validation, config.QRS_SIGMA_S * config.FS_HZ, list)
    y = segments.rows["y"][validation]
    for name, title in (("pca_error", "PCA reconstruction error"), ("knn", "kNN"), ("lof", "local outlier factor"),
                        ("isolation_forest", "isolation forest")):
        assert found[title]["auroc"] == pytest.approx(roc_auc_score(y, expected[name]), abs=1e-3), name
    if benchmark_peers.of_pyod():
        assert {"ECOD", "KNN", "IForest"} <= {r["name"] for r in rows if r["library"] == "PyOD"}


def test_both_libraries_scores_point_the_same_way():
    rng = np.random.default_rng(0)
    train, x = rng.normal(size=(300, 4)), np.concatenate([rng.normal(size=(50, 4)), rng.normal(size=(50, 4)) + 6])
    for made in (benchmark_peers.of_sklearn(), benchmark_peers.of_pyod()):
        for name, (make, *_) in made.items():
            if name in ("PCA reconstruction error", baselines.BASELINES["one_class_svm"]):
                continue  # need as many columns as components
            detector = benchmark_peers._fitted(make(), train)
            assert roc_auc_score([0] * 50 + [1] * 50, benchmark_peers.scores_of(detector, x)) > 0.9, name


def test_without_pyod_its_rows_stay_out(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: (_ for _ in ()).throw(ImportError(name))
                        if name.startswith("pyod") else real(name, *rest))
    assert benchmark_peers.of_pyod() == {}


def test_qrs_detectors_find_the_simulated_beats(small):
    rows = benchmark_peers.qrs_detectors(small, 1)
    assert [r["name"] for r in rows] == list(benchmark_peers.QRS)
    for row in rows:
        assert row["sensitivity"] > 0.9 and row["ppv"] > 0.9 and row["hours"] == pytest.approx(2 * 90 / 3600)
        assert statistics.median(row["seconds"]) > 0


# --- tables and picture ---------------------------------------------------------------------------

RATES = [{"what": "training step", "name": "ours", "rate": 1000.0}, {"what": "training step", "name": "plain, recipe",
                                                                     "rate": 500.0}]


def saved_runs(folder):
    from pipeline.artefacts import write_json
    figures = {"auroc": 0.99, "auprc": 0.9, "mse_auroc": 0.8, "n": 100}
    for protocol in config.PROTOCOLS:
        history = [{"epoch": k + 1, "validation_loss": 1 / (k + 1)} for k in range(4)]
        write_json(folder / "results" / protocol / "recipe.json", {
            "shipped": {**figures, "segments": 6000, "validation_loss": 0.4}, "history": history, "n_train": 3000,
            "finished": False, "epochs": 100, "equal_epoch": 3, "quality": {"best": figures, "equal": figures}})
        write_json(folder / "results" / protocol / "full.json", {
            "history": history, "n_train": 3000, "quality": {**figures, "auroc": 0.991}})


def test_trainings_take_their_segments_at_the_measured_rates(small):
    saved_runs(small.root)
    rows = [r for r in benchmark_report.trainings({"rows": RATES}, small) if r["protocol"] == "beat"]
    assert [r["seconds"] for r in rows] == [6.0, 12.0, 18.0, 24.0, 600.0]
    assert [r["validation_loss"] for r in rows] == [0.4, 0.25, 1 / 3, 0.25, None]
    table = benchmark_report.training_rows(rows)
    assert table[3][1] == "recipe, to the loss of shipped: 3 epochs" and table[3][4] == "3.0"


def test_picture_has_a_point_a_method(small):
    saved_runs(small.root)
    detectors = [{"protocol": p, "library": "PyOD", "name": "ECOD", "fit_s": [1.0], "score_s": [1.0], "auroc": 0.9,
                  "auprc": 0.8, "n": 100} for p in config.PROTOCOLS]
    picture = benchmark_report.figure({"rows": RATES, "detectors": detectors}, small)
    for ax in picture.axes[:2]:
        assert [line.get_label().split("  ")[1] for line in ax.lines] == [
            "this project: 2 times as long", "this project: shipped", "recipe: to the loss of shipped: 3 epochs",
            "recipe: 4 epochs", "PyOD: ECOD"]
        assert [round(float(line.get_ydata()[0]), 3) for line in ax.lines] == [0.9, 1, 1, 1, 10]


def test_summary_compares_with_each_row_of_the_run(small):
    saved_runs(small.root)
    row = lambda what, name, *times: {"what": what, "name": name, "times_s": times, "rate": 60 / statistics.median(times),
                                      "median_s": statistics.median(times), "unit": "x/s"}
    rows = [row("training step", "ours", 1, 2, 4), row("training step", "plain", 2, 4, 6), row("training step", "plain, recipe", 1),
            row("inference", "ours, batch 64", 9, 9, 9), row("inference", "ours, batch 512 (used)", 1, 1, 2),
            row("inference", "plain", 3, 3, 3), row("inference", "matrix product", 0.5, 0.8, 0.8)]
    rows += [row("building the segments", name, time) for name, time in (
        ("ours", 4), ("one loop", 16), ("decoding and filtering alone", 5))]
    table = benchmark_report.summary_rows({"rows": rows}, small)
    assert [line[-1] for line in table[1:6]] == ["2.00", "3.00", "0.50", "4.00", "1.25"]
    assert table[6][-1] == "2.0" and table[7][2].startswith("recipe, to the loss")


def test_missing_long_runs_are_told_of_before_anything_is_timed(evaluated, monkeypatch):
    from studies import benchmark
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(errors.UserError, match=r"recipe.json: missing.*benchmark_training.py --protocol beat"):
        benchmark.main(["--simulated", "--threads", "1"])
