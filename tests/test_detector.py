"""What is fitted on what, alternatives, what a score may depend on, thresholds."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pytest import approx
from scipy.special import logsumexp

import models
from dataset import Segments
from pipeline.errors import UserError
from scoring import detector
from scoring.features import BeatFeatures
from scoring.scores import SCORES, TINY

FS = 360
SETTINGS = {"QRS_SIGMA_S": 0.1, "KNN_NEIGHBOURS": 3, "DENSITY_NEIGHBOURS": 5, "DENSITY_POWER": 0.5,
            "TIMING_WEIGHT": 2.0, "PAUSE_RATIO": 1.2,
            "LOCAL_BEATS": 5, "USUAL_PERCENTILE": 80, "PAUSE_WEIGHT": 0.25, "SPREAD_FLOOR": 0.1,
            "SELF_IRREGULARITY": 0.1, "SELF_NEIGHBOURS": 0.2, "SELF_CAUSAL_S": 20}
WEIGHTS = {"nearest": 1.0, "self_shape": 0.4, "self_reference": 0.5, "rhythm": 0.3,
           "qrs_error": 0.2}
BEATS = 80
ROWS = np.arange(3 * BEATS)


@pytest.fixture
def segments():
    """Three records of 80 beats of noise around a shape, one in eight abnormal and premature."""
    rng = np.random.default_rng(0)
    abnormal = rng.random((3 * BEATS, 1)) < 0.125
    rows = {"record": np.repeat(list("abc"), BEATS), "y": abnormal.ravel().astype(np.int8)}
    rr = rng.uniform(0.7, 0.9, (3, BEATS)) - 0.3 * abnormal.reshape(3, BEATS)
    rows["sample"] = (400 + np.cumsum(rr, axis=1) * FS).astype(int).ravel()
    rows["rr_before_s"] = rr.ravel()
    rows["rr_after_s"] = np.append(rr.ravel()[1:], np.nan)
    x = np.sin(np.arange(160) / 9) * (1 + abnormal) + rng.normal(0, 0.3, (3 * BEATS, 160))
    return Segments(x.astype(np.float32), rows, {})


@pytest.fixture
def parts(segments):
    """(normal training rows, validation rows) of records a and b; c is an unseen patient."""
    known = segments.rows["record"] != "c"
    return (np.flatnonzero(known & (ROWS % 4 > 0) & (segments.rows["y"] == 0)),
            np.flatnonzero(known & (ROWS % 4 == 0)))


@pytest.fixture
def fitted(segments, parts):
    """(model, what is fitted)."""
    torch.manual_seed(0)
    model = models.ConvAutoencoder(160, 4, 30).eval()
    weights = WEIGHTS | {"mse": 0.0}
    return model, detector.fit(model, segments, *parts, weights, SETTINGS, FS, "cpu")


def score(fitted, segments, names, rows=ROWS):
    return detector.score(*fitted, segments, rows, names, FS, "cpu")


# --- what is fitted -------------------------------------------------------------------------------

def test_references_are_timing_and_latents_in_units_of_their_spread_within_records(
        segments, parts, fitted):
    model, stored = fitted
    train, _ = parts
    z = models.reconstruct(model, segments.x[train], 64, "cpu")[1].numpy()
    times = BeatFeatures.of(model, segments, train, SETTINGS, FS, "cpu").times
    record = segments.rows["record"][train]
    away = [z[record == name] - np.median(z[record == name], axis=0) for name in "ab"]
    expected = np.hstack([z / np.concatenate(away).std(), times])
    assert_allclose(stored["references"].float(), expected, rtol=2e-3, atol=1e-3)
    names = np.take(stored["reference_records"], stored["reference_record"])
    assert_array_equal(names, segments.rows["record"][train])


def test_standard_is_of_normal_validation_beats_only(segments, parts, fitted):
    _, validation = parts
    standard = fitted[1]["standard"]
    scores, _ = score(fitted, segments, ("nearest", "self_reference", "same_patient"), validation)
    normal = segments.rows["y"][validation] == 0
    for name, values in scores.items():
        assert standard[name] == approx((values[normal].mean(), values[normal].std()), rel=1e-6)
    assert "mse" not in standard  # its weight is 0


# --- alternatives ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name, causal, first", [
    ("combined", False, "nearest"), ("combined_causal", True, "nearest"),
    ("combined_same_patient", False, "same_patient")])
def test_combined_is_the_soft_maximum_of_standardised_parts(segments, fitted, name, causal, first):
    scores, found = score(fitted, segments, (name, "mse"))
    expected = []
    weights = WEIGHTS if first == "nearest" else WEIGHTS | {first: 1}
    for part, weight in weights.items():
        if part == "nearest" != first:
            continue
        values = SCORES[part].values(found, fitted[1], causal)
        if part == "qrs_error":
            values = np.log(values + TINY)
        mean, std = fitted[1]["standard"][part + " causal" if causal else part]
        expected.append(weight * (values - mean) / std)
    assert_allclose(scores[name], logsumexp(expected, axis=0), rtol=1e-6, atol=1e-6)


# --- what a score may depend on -------------------------------------------------------------------

def test_rows_in_another_order_have_the_same_scores(segments, fitted):
    order = np.random.default_rng(0).permutation(ROWS)
    scores, _ = score(fitted, segments, SCORES)
    again, _ = score(fitted, segments, SCORES, order)
    for name in SCORES:
        assert_allclose(again[name], scores[name][order], rtol=1e-4, atol=1e-4, err_msg=name)


def test_causal_scores_know_no_later_beat(segments, fitted):
    rows = ROWS[2 * BEATS:]  # of record c
    causal = [name for name in SCORES if SCORES[name].causal]
    before, _ = score(fitted, segments, (*causal, "self_reference"), rows)
    later = dataclasses.replace(segments, x=segments.x.copy(), rows=dict(segments.rows))
    later.x[rows[50:]] = np.random.default_rng(0).normal(0, 5, (30, 160))
    # the beat 49 knows when beat 50 comes, and no more
    for name, first in (("rr_before_s", 51), ("rr_after_s", 50)):
        later.rows[name] = np.where(ROWS < rows[first], later.rows[name], ROWS % 7)
    after, _ = score(fitted, later, before, rows)
    assert len(causal) == 2
    for name in causal:
        assert_allclose(after[name][:50], before[name][:50], rtol=1e-6, atol=1e-7, err_msg=name)
        assert not np.allclose(after[name][50:], before[name][50:])
    assert not np.allclose(after["self_reference"][:50], before["self_reference"][:50])


def test_labels_of_scored_beats_have_no_say(segments, fitted):
    before, _ = score(fitted, segments, SCORES)
    segments.rows["y"] = 1 - segments.rows["y"]
    after, _ = score(fitted, segments, SCORES)
    for name in before:
        assert_array_equal(after[name], before[name])


# --- lines ----------------------------------------------------------------------------------------

def test_excess_curve_is_of_means_over_records():
    values = np.array([0.0, 1, 2, 3, 5, 6, 1, 9])
    y = np.array([0, 0, 0, 0, 1, 1, 0, 1])
    curve = detector.excess_curve(values, y, np.array(list("aaaaaabb")))
    at = curve["excess"].index(1.5)
    assert curve["specificity"][at] == approx((2 / 4 + 1) / 2) and curve["sensitivity"][at] == 1
    assert detector.excess_at(curve, "specificity", 0.75) == approx(1.05)
    assert detector.excess_at(curve, "sensitivity", 0.75) == approx(6.0)
    unlabelled = detector.excess_curve(values, 0 * y, np.repeat("a", 8))
    with pytest.raises(UserError, match="no beat to know the sensitivity from"):
        detector.excess_at(unlabelled, "sensitivity", 0.9)


@pytest.mark.parametrize("n, specificity, flagged", [
    (1000, 0.955, 45), (10, 0.9, 1), (1, 0.5, 0)])
def test_threshold_flags_as_many_normals_as_asked(n, specificity, flagged):
    scores = np.random.default_rng(0).normal(size=n)
    assert (scores >= detector.threshold_at_specificity(scores, specificity)).sum() == flagged
    assert detector.threshold_at_specificity(0 * scores, specificity) > 0
    with pytest.raises(ValueError, match="normal beats"):
        detector.threshold_at_specificity(scores[:0], specificity)
