import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scoring import baselines
import config
import dataset
import evaluate
from studies import report
import train_mitbih

SIGMA = 40.0


@pytest.fixture
def features(segments):
    train = segments.part("beat", "train")
    return baselines.Features(segments, train, SIGMA), train, segments.part("beat", "test")


def test_knn_equals_its_definition(segments, features):
    f, train, rows = features
    got = baselines.knn(segments, f, train, rows)
    distance = np.linalg.norm(f.components[rows][:, None].astype(float) - f.components[train][None], axis=2)
    np.testing.assert_allclose(got, np.sort(distance, axis=1)[:, :3].mean(1), rtol=1e-3, atol=1e-3)


def test_knn_record_uses_own_normal_training_beats_or_own_beats(segments, features):
    f, train, rows = features
    record = segments.rows["record"]
    got = baselines.knn_record(segments, f, train, rows)
    k = 3
    own = train[record[train] == record[rows[k]]]
    distance = np.sort(np.linalg.norm(f.components[own].astype(float) - f.components[rows[k]], axis=1))
    assert got[k] == pytest.approx(distance[:3].mean(), rel=1e-3)
    train, rows = segments.part("patient", "train"), segments.part("patient", "test")
    got = baselines.knn_record(segments, f, train, rows)
    own = np.flatnonzero(record == record[rows[k]])
    distance = np.sort(np.linalg.norm(f.components[own].astype(float) - f.components[rows[k]], axis=1))
    assert got[k] == pytest.approx(distance[int(0.3 * len(own)) - 1], rel=1e-2)


def test_window_hides_the_neighbours(segments, features):
    """A change more than 3 sigma from the R peak changes no score of shape."""
    f, train, rows = features
    changed = dataclasses.replace(segments, x=segments.x.copy())
    changed.x[:, :200] += 5
    other = baselines.Features(changed, train, SIGMA)
    np.testing.assert_array_equal(f.components, other.components)


def test_rr_rule_flags_premature_beats_only(segments):
    rows = np.arange(len(segments.x))
    score = baselines.rr(segments, None, None, rows)
    symbol = segments.rows["symbol"]
    assert np.median(score[symbol == "A"]) > 0.15 and abs(np.median(score[symbol == "N"])) < 0.05
    early = np.isin(segments.rows["aami"], ["S", "V"])
    assert roc_auc_score(early, score) > 0.9


def test_no_detector_sees_an_abnormal_or_test_label(segments):
    train, rows = segments.part("beat", "train"), segments.part("beat", "test")
    before = baselines.score_all(segments, train, rows, SIGMA, list)
    for name in ("y", "symbol", "aami"):
        segments.rows[name] = segments.rows[name][::-1].copy()
    after = baselines.score_all(segments, train, rows, SIGMA, list)
    assert set(before) == set(baselines.BASELINES)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_evaluate_reports_them_keeps_them_and_prints_the_differences(small, segments, capsys, monkeypatch):
    train_mitbih.main(["--simulated"])
    evaluate.main(["--simulated", "--baselines"])
    folder = small.results_dir("beat", config.SEED)
    result = report.load_metrics(folder)
    table = dataset.load_npz(folder / "scores.npz", "")
    for name, entry in result["baselines"].items():
        value = roc_auc_score(table["label"], table[f"baseline_{name}"])
        assert entry["auroc"]["value"] == pytest.approx(value, abs=1e-6)
        default = roc_auc_score(table["label"], table[f"score_{result['default_score']}"])
        assert entry["default_minus_it"]["auroc"]["value"] == pytest.approx(default - value, abs=1e-6)
    assert "isolation forest" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "fresh_baselines", lambda *a: pytest.fail("fitted again"))
    evaluate.main(["--simulated", "--force"])
    assert report.load_metrics(folder)["baselines"] == result["baselines"]
