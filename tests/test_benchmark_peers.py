"""Other detectors: each is what its library gives, on the beats and features of the baselines."""

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
    sigma = config.QRS_SIGMA_S * config.FS_HZ
    expected = baselines.score_all(segments, train, validation, sigma, list)
    y = segments.rows["y"][validation]
    for name in ("pca_error", "knn", "lof", "isolation_forest"):
        found = peers[baselines.BASELINES[name].title.removesuffix(" on principal components")]
        assert found["auroc"] == pytest.approx(roc_auc_score(y, expected[name]), abs=1e-3), name
    if benchmark_peers.of_pyod():  # the same method, higher is more abnormal in both
        assert peers["LOF"]["auroc"] == pytest.approx(peers["local outlier factor"]["auroc"])


def test_qrs_detectors_find_the_simulated_beats(small):
    rows = benchmark_peers.time_qrs_detectors(small, 1)
    assert [row["name"] for row in rows] == ["sleepecg (used)", "wfdb XQRS"]
    for row in rows:
        assert row["sensitivity"] > 0.9 and row["ppv"] > 0.9 and row["seconds"][0] > 0
        assert row["hours"] == pytest.approx(2 * 90 / 3600)
