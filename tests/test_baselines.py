import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pytest import approx
from sklearn.metrics import roc_auc_score

import config
import evaluate
from conftest import ON_SIMULATED
from pipeline.artefacts import load_npz
from scoring import baselines

SIGMA = 40.0


def distances(f, row, others):
    """Sorted distances of the components of one beat to those of others."""
    return np.sort(np.linalg.norm(f.components[others].astype(float) - f.components[row], axis=1))


def test_knn_among_all_and_own_beats_equals_its_definition(segments):
    for protocol in config.PROTOCOLS:
        train, rows = segments.part(protocol, "train"), segments.part(protocol, "test")
        f = baselines.Features(segments, train, SIGMA)
        row = rows[3]
        expected = distances(f, row, train)[:3].mean()
        assert baselines.knn(segments, f, train, rows)[3] == approx(expected, rel=1e-3)

        same = np.flatnonzero(segments.rows["record"] == segments.rows["record"][row])
        if protocol == "beat":
            expected = distances(f, row, np.intersect1d(same, train))[:3].mean()
        else:  # an unseen patient refers to its own beats, unlabelled
            expected = distances(f, row, same)[int(0.3 * len(same)) - 1]
        assert baselines.knn_record(segments, f, train, rows)[3] == approx(expected, rel=1e-2)


def test_rr_rule_flags_premature_beats_only(segments):
    score = baselines.rr(segments, None, None, np.arange(len(segments.x)))
    symbol = segments.rows["symbol"]
    assert np.median(score[symbol == "A"]) > 0.15 > 3 * abs(np.median(score[symbol == "N"]))
    assert roc_auc_score(np.isin(segments.rows["aami"], ["S", "V"]), score) > 0.9


def test_no_detector_sees_an_abnormal_or_test_label_or_the_beats_beside(segments):
    train, rows = segments.part("beat", "train"), segments.part("beat", "test")
    before = baselines.score_all(segments, train, rows, SIGMA, list)
    for name in ("y", "symbol", "aami"):
        segments.rows[name] = segments.rows[name][::-1].copy()
    segments.x[:, :200] += 5  # more than 3 sigma from the R peak: the beats beside have no say
    after = baselines.score_all(segments, train, rows, SIGMA, list)
    for name in baselines.BASELINES:
        assert_array_equal(before[name], after[name])
        assert np.ptp(before[name]) > 0


def test_evaluate_reports_them_and_keeps_them(evaluated, capsys, monkeypatch):
    evaluate.main([*ON_SIMULATED, "--baselines"])
    folder = evaluated.results_dir("beat", config.SEED)
    result = evaluate.load_metrics(folder, "")
    table = load_npz(folder / "scores.npz", "")
    default = roc_auc_score(table["label"], table[f"score_{result['default_score']}"])
    for name, entry in result["baselines"].items():
        value = roc_auc_score(table["label"], table[f"baseline_{name}"])
        assert entry["auroc"]["value"] == approx(value, abs=1e-6)
        assert entry["default_minus_it"]["auroc"]["value"] == approx(default - value, abs=1e-6)
    assert "no network: isolation_forest" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "fresh_baselines", lambda *a: pytest.fail("fitted again"))
    evaluate.main([*ON_SIMULATED, "--force"])
    assert evaluate.load_metrics(folder, "")["baselines"] == result["baselines"]
