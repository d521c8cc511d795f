"""Other detectors: each is what its library gives, on the beats and features of the baselines."""

import builtins

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import config
import dataset
from scoring import baselines
from studies import benchmark_peers


def test_detectors_reach_what_the_baselines_reach(evaluated):
    segments = dataset.load_segments(evaluated)
    rows = benchmark_peers.time_detectors(evaluated, "beat", segments, 2)
    ours, peers = rows[0], {row["name"]: row for row in rows[1:]}
    assert ours["library"] == "this project" and not ours["fit_s"] and len(ours["score_s"]) == 2
    assert all(len(row["fit_s"]) == len(row["score_s"]) == 2 for row in peers.values())

    train, validation = segments.part("beat", "train"), segments.part("beat", "validation")
    expected = baselines.score_all(segments, train, validation, config.QRS_SIGMA_S * config.FS_HZ, list)
    y = segments.rows["y"][validation]
    for name in ("pca_error", "knn", "lof", "isolation_forest"):
        found = peers[baselines.BASELINES[name].removesuffix(" on principal components")]
        assert found["auroc"] == pytest.approx(roc_auc_score(y, expected[name]), abs=1e-3), name


def test_scores_of_both_libraries_point_the_same_way():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(300, 4))
    x = np.concatenate([rng.normal(size=(50, 4)), rng.normal(size=(50, 4)) + 6])
    detectors = benchmark_peers.of_sklearn() | benchmark_peers.of_pyod()
    for name in ("PCA reconstruction error", baselines.BASELINES["one_class_svm"]):
        del detectors[name]  # need as many columns as components
    for name, make in detectors.items():
        detector = make()
        detector.fit(train)
        assert roc_auc_score([0] * 50 + [1] * 50, benchmark_peers.scores_of(detector, x)) > 0.9, name


def test_without_pyod_its_rows_stay_out(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("pyod"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert benchmark_peers.of_pyod() == {}


def test_qrs_detectors_find_the_simulated_beats(small):
    rows = benchmark_peers.time_qrs_detectors(small, 1)
    assert [row["name"] for row in rows] == ["sleepecg (used)", "wfdb XQRS"]
    for row in rows:
        assert row["sensitivity"] > 0.9 and row["ppv"] > 0.9 and row["seconds"][0] > 0
        assert row["hours"] == pytest.approx(2 * 90 / 3600)
