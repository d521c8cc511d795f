import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from sklearn import metrics as reference

from scoring import metrics


@pytest.fixture
def beats():
    """(scores with many ties, labels, records)."""
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.2).astype(np.int8)
    scores = np.round(rng.normal(y * 1.2, 1), 1)
    scores[[y.argmin(), y.argmax()]] = 9  # of both classes at the top
    return scores, y, rng.choice(["100", "101", "102", "103"], 600)


def resample(record, n, seed):
    """n times the rows of as many records, drawn with replacement."""
    codes = np.unique(record, return_inverse=True)[1]
    draws = np.random.default_rng(seed).multinomial(4, [0.25] * 4, size=n)
    return [np.repeat(np.arange(len(record)), times[codes]) for times in draws]


def test_areas_and_curves_equal_scikit_learn_with_ties_and_weights(beats):
    scores, y, _ = beats
    weights = np.random.default_rng(1).integers(0, 4, len(y)).astype(float)
    # each beat a group of its own
    counts = metrics.Ranking(scores, y, np.arange(len(y))).counts(weights)
    area = reference.roc_auc_score(y, scores, sample_weight=weights)
    assert metrics.auroc(*counts) == approx(area, abs=1e-12)
    area = reference.average_precision_score(y, scores, sample_weight=weights)
    assert metrics.auprc(*counts) == approx(area, abs=1e-12)
    fpr, tpr, _ = reference.roc_curve(y, scores, sample_weight=weights)
    assert_allclose(metrics.roc_at(*counts), np.interp(metrics.GRID, fpr, tpr), atol=1e-12)

    # of equal recalls the last: the lowest threshold
    precision, recall, _ = reference.precision_recall_curve(y, scores, sample_weight=weights)
    assert_allclose(metrics.precision_at(*counts),
                    np.interp(metrics.GRID, recall[-2::-1], precision[-2::-1]), atol=1e-12)
    assert len(counts[0]) < len(np.unique(scores))


def test_curves_to_draw_are_those_of_scikit_learn_with_fewer_points(beats):
    scores, y, _ = beats
    fpr, tpr, _ = reference.roc_curve(y, scores, drop_intermediate=False)
    x, sensitivity = metrics.roc_curve(scores, y)
    assert (x[0], sensitivity[0], x[-1], sensitivity[-1]) == (0, 0, 1, 1)
    assert_allclose(np.trapezoid(sensitivity, x), np.trapezoid(tpr, fpr), atol=1e-12)
    theirs = list(zip(fpr.round(9), tpr.round(9)))
    assert set(zip(x.round(9), sensitivity.round(9))) <= set(theirs)

    precision, recall, _ = reference.precision_recall_curve(y, scores)
    x, height = metrics.precision_recall_curve(scores, y)
    assert set(zip(x.round(9), height.round(9))) <= set(zip(recall.round(9), precision.round(9)))
    # each recall that they have, from its best to its worst precision
    for value in np.unique(recall):
        ends = precision[np.isclose(recall, value)]
        ours = height[np.isclose(x, value)]
        assert (ours.min(), ours.max()) == approx((ends.min(), ends.max()))


def test_rates_of_the_published_confusion_matrix():
    """TN 12,983 FP 611 FN 276 TP 2,537 are the published counts, and give four of its figures."""
    got = metrics.rates(12983, 611, 276, 2537)
    published = {"accuracy": 0.9459, "sensitivity": 0.9019, "specificity": 0.9551, "f1": 0.8512}
    assert {name: got[name] for name in published} == approx(published, abs=5e-5)


def test_confusion_and_shares_equal_scikit_learn(beats):
    scores, y, record = beats
    flagged = scores >= 0.8
    counts = metrics.confusion(y, flagged)
    assert list(counts.values()) == reference.confusion_matrix(y, flagged).ravel().tolist()
    here = record == "101"
    assert metrics.by_symbol(scores, record, flagged)["101"] == {
        "n": here.sum(), "flagged": approx(flagged[here].mean()), "median": np.median(scores[here])}


def test_record_areas_need_five_beats_of_each_class(beats):
    scores, y, record = beats
    record[np.append(np.flatnonzero(y == 1)[:4], np.flatnonzero(y == 0)[:20])] = "few"
    own = metrics.by_record(scores, y, record)
    assert own["few"] == {"n_normal": 20, "n_abnormal": 4, "auroc": None}
    rows = record == "101"
    assert own["101"]["auroc"] == approx(reference.roc_auc_score(y[rows], scores[rows]))


def with_intervals(scores, y, record, threshold, resamples, seed):
    own = metrics.by_record(scores, y, record)
    drawn, bands = metrics.resampled(scores, y, record, own, threshold, resamples, seed)
    return {name: metrics.interval(values) for name, values in drawn.items()}, bands


def test_intervals_equal_a_plain_bootstrap_over_records(beats):
    scores, y, record = beats
    got, bands = with_intervals(scores, y, record, 0.8, 200, seed=3)
    drawn = resample(record, 200, 3)
    for key, figure, shown in (("auroc", reference.roc_auc_score, scores),
                               ("ppv", reference.precision_score, scores >= 0.8)):
        values = [figure(y[rows], shown[rows]) for rows in drawn]
        assert (got[key]["low"], got[key]["high"]) == approx(np.percentile(values, (2.5, 97.5)))
    own = [reference.roc_auc_score(y[record == n], scores[record == n]) for n in np.unique(record)]
    assert got["auroc_record_mean"]["value"] == approx(np.mean(own))
    curves = [metrics.roc_at(*metrics.Ranking(scores[rows], y[rows]).counts()) for rows in drawn]
    assert_allclose(bands["roc_tpr_low"], np.percentile(curves, 2.5, axis=0), atol=1e-12)


def test_paired_difference_is_of_the_same_resampled_records(beats):
    scores, y, record = beats
    other = np.random.default_rng(2).permutation(scores)
    one, two = (metrics.resampled(values, y, record, metrics.by_record(values, y, record), 0.5, 100,
                                  5)[0]["auroc"] for values in (scores, other))
    got = metrics.interval(one - two)
    area = reference.roc_auc_score
    differences = [area(y[rows], scores[rows]) - area(y[rows], other[rows])
                   for rows in resample(record, 100, 5)]
    assert (got["low"], got["high"]) == approx(np.percentile(differences, (2.5, 97.5)))


@pytest.mark.parametrize("label, specificity", [(0, 0.75), (1, np.nan)])
def test_one_class_gives_no_areas_and_no_bands(label, specificity):
    y = np.full(4, label)
    got, bands = with_intervals(np.arange(4), y, y, 3, 100, seed=0)
    assert np.isnan([got["auroc"]["value"], got["auprc"]["value"], *bands["roc_tpr_low"]]).all()
    assert got["specificity"]["value"] == approx(specificity, nan_ok=True)
