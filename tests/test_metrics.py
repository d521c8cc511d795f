import numpy as np
import pytest
from sklearn import metrics as reference

from scoring import metrics


@pytest.fixture
def beats():
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.2).astype(np.int8)
    scores = np.round(rng.normal(y * 1.2, 1), 1)  # rounded: many ties
    record = rng.choice(["100", "101", "102", "103"], 600)
    return scores, y, record


def test_areas_equal_scikit_learn_with_ties_and_weights(beats):
    scores, y, record = beats
    weights = np.random.default_rng(1).integers(0, 4, len(y)).astype(float)
    for w in (None, weights):
        tp, fp = metrics.Ranking(scores, y).counts(w)
        assert metrics.auroc(tp, fp) == pytest.approx(reference.roc_auc_score(y, scores, sample_weight=w), abs=1e-12)
        assert metrics.auprc(tp, fp) == pytest.approx(
            reference.average_precision_score(y, scores, sample_weight=w), abs=1e-12)


def test_one_class_has_no_area():
    assert np.isnan(metrics.auroc(*metrics.Ranking(np.arange(5.0), np.zeros(5)).counts()))
    assert np.isnan(metrics.auprc(*metrics.Ranking(np.arange(5.0), np.ones(5)).counts()))


def test_rates_of_the_published_confusion_matrix():
    """TN 12,983 FP 611 FN 276 TP 2,537 are the published counts, and give four of its figures."""
    got = metrics.rates(12983, 611, 276, 2537)
    assert got["accuracy"] == pytest.approx(0.9459, abs=5e-5)
    assert got["sensitivity"] == pytest.approx(0.9019, abs=5e-5)
    assert got["specificity"] == pytest.approx(0.9551, abs=5e-5)
    assert got["f1"] == pytest.approx(0.8512, abs=5e-5)


def test_confusion_equals_scikit_learn(beats):
    scores, y, _ = beats
    flagged = scores >= 0.8
    assert list(metrics.confusion(y, flagged).values()) == reference.confusion_matrix(y, flagged).ravel().tolist()


def test_curves_on_the_grid_equal_scikit_learn(beats):
    scores, y, _ = beats
    counts = metrics.Ranking(scores, y).counts()
    fpr, tpr, _ = reference.roc_curve(y, scores, drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc_at(*counts), np.interp(metrics.GRID, fpr, tpr), atol=1e-12)


def test_record_areas_need_five_beats_of_each_class(beats):
    scores, y, record = beats
    record = record.copy()
    record[np.flatnonzero(y == 1)[:4]] = "few"
    record[np.flatnonzero(y == 0)[:20]] = "few"
    own = metrics.auroc_by_record(scores, y, record)
    assert own["few"] is None
    rows = record == "101"
    assert own["101"] == pytest.approx(reference.roc_auc_score(y[rows], scores[rows]))


def test_intervals_equal_a_plain_bootstrap_over_records(beats):
    scores, y, record = beats
    got, bands = metrics.with_intervals(scores, y, record, 0.8, 200, seed=3)
    names = np.unique(record)
    draws = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=200)
    areas, f1s = [], []
    for times in draws:
        rows = np.concatenate([np.flatnonzero(record == n) for n, k in zip(names, times) for _ in range(k)])
        areas.append(reference.roc_auc_score(y[rows], scores[rows]))
        f1s.append(reference.f1_score(y[rows], scores[rows] >= 0.8))
    for key, values in (("auroc", areas), ("f1", f1s)):
        low, high = np.percentile(values, (2.5, 97.5))
        assert (got[key]["low"], got[key]["high"]) == pytest.approx((low, high))
    assert got["auroc"]["value"] == pytest.approx(reference.roc_auc_score(y, scores))
    own = [reference.roc_auc_score(y[record == n], scores[record == n]) for n in names]
    assert got["auroc_record_mean"]["value"] == pytest.approx(np.mean(own))
    inside = (bands["roc_tpr_low"] <= bands["roc_tpr_high"]).all()
    assert inside and bands["roc_tpr_low"].shape == (101,)


def test_a_beat_at_the_threshold_is_flagged():
    got, _ = metrics.with_intervals(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1]), np.array(list("abab")),
                                    3.0, 100, 0)
    assert got["sensitivity"]["value"] == 1 and got["specificity"]["value"] == 1


def test_one_class_gives_no_areas_and_no_bands():
    got, bands = metrics.with_intervals(np.arange(4.0), np.zeros(4), np.array(list("abab")), 3.0, 100, 0)
    assert np.isnan(got["auroc"]["value"]) and np.isnan(bands["roc_tpr_low"]).all()
    assert got["specificity"]["value"] == 0.75
