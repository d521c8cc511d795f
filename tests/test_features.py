"""Rhythm against plain loops, and what the network says of beats against its definition."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pytest import approx
from scipy.stats import median_abs_deviation

import models
from dataset import Segments
from scoring import features
from scoring.features import (fill_missing_rr, irregularity, local_percentile, tightest_quarter,
                              timing, without_pauses)

SETTINGS = {"QRS_SIGMA_S": 0.1, "LOCAL_BEATS": 5, "USUAL_PERCENTILE": 80, "PAUSE_RATIO": 3.1,
            "PAUSE_WEIGHT": 0.25, "SPREAD_FLOOR": 0.1, "SELF_CAUSAL_S": 20, "TIMING_WEIGHT": 1}
FS = 360


def from_intervals(rr):
    """(before, after) of beats whose RR intervals before them are rr, the next one 0.8 s."""
    return np.array(rr, float), np.append(rr[1:], 0.8)


# --- rhythm ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beats", [1, 3, 4, 21, 60, 200])
@pytest.mark.parametrize("percentile", [0, 80, 100])
def test_local_percentile_equals_a_plain_loop(beats, percentile, causal):
    """Windows that would leave the ends are moved inward, causal ones cut."""
    values = np.random.default_rng(0).uniform(0.4, 1.5, 60)
    expected = []
    for k in range(60):
        start = max(k + 1 - beats if causal else min(k - beats // 2, 60 - beats), 0)
        window = sorted(values[start:k + 1 if causal else start + beats])
        expected.append(window[min(int(len(window) * percentile / 100), len(window) - 1)])
    assert_array_equal(local_percentile(values, beats, percentile, causal), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_premature_beat_with_pause_is_positive_and_late_beat_negative(causal):
    rr = np.full(60, 0.8)
    rr[[30, 31, 45]] = 0.5, 1.1, 1.2
    times = timing(*from_intervals(rr), 11, 50, 1.2, causal)
    assert_allclose(times[[30, 45]], np.log([[8 / 5, 11 / 5], [8 / 12, 8 / 12]]), atol=1e-6)
    irregular = irregularity(times, 0.5, 0.05)
    assert irregular.argmax() == 30 and irregular[45] < irregular[31] < 0


@pytest.mark.parametrize("pattern, usual", [
    ([0.8] * 9 + [0.5, 1.1], 0.8),    # premature beats with their compensatory pauses
    ([0.5, 1.1], 0.8),                # bigeminy
    ([0.8, 0.8, 0.4, 0.4], 0.8),      # interpolated: no pause
    ([0.9, 0.5, 0.95], 0.9)])         # the pause of a reset sinus node
def test_a_pause_is_shared_with_the_beat_before_it(pattern, usual):
    before, after = from_intervals(pattern * 60)
    times = timing(before, after, 101, 95, 1.2)
    assert_allclose(times[5:-5, 0], np.log(usual / before[5:-5]), atol=1e-6)


def test_a_pause_is_not_shared_over_beats_that_are_left_out():
    before = np.array([0.5, 1.4, 0.8, 0.5, 1.1])
    after = np.array([1.1, 0.8, 0.8, 1.1, 0.8])
    assert_allclose(without_pauses(before, after, 1.2), [0.8, 1.4, 0.8, 0.8, 0.8])


def test_irregularity_is_in_units_of_the_spread_of_the_learning_beats():
    times = np.random.default_rng(2).normal(0.3, 0.1, (20001, 2)).astype(np.float32)
    times[10001:] *= 50
    raw = times[:, 0] + 0.7 * times[:, 1]
    spread = median_abs_deviation(times[:10001, 0])  # the tightest quarter of a normal one tells it
    for learning, expected in ((slice(10001), raw / (0.2 + spread)), (slice(0), raw / 0.2)):
        assert_allclose(irregularity(times, 0.7, 0.2, learning), expected, rtol=0.1)


@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 1), (7, 2, 1), (2, 3)])
def test_the_spread_is_that_within_a_group_not_between_groups(shares):
    """Bigeminy; trigeminy with pauses; premature beats as the majority."""
    rng = np.random.default_rng(4)
    values = [rng.normal(0.4 * k, 0.02, 1000 * n) for k, n in enumerate(shares)]
    assert tightest_quarter(np.concatenate(values)) < 0.05
    assert tightest_quarter(values[0][:1]) == tightest_quarter(values[0][:0]) == 0


@pytest.mark.parametrize("rr, premature", [
    ([0.5, 1.1] * 150, slice(100, 200, 2)),
    ([0.62, 0.62, 0.62, 1.1] * 75, slice(101, 200, 4))])
def test_premature_beats_do_not_make_each_other_usual(rr, premature):
    """In bigeminy, and as the majority (record 232): their own spread does not hide them."""
    rr = rr * np.random.default_rng(5).normal(1, 0.01, len(rr))
    found = irregularity(timing(*from_intervals(rr), 201, 90, 1.2), 0.25, 0.05)
    assert found[premature].min() > 3


def test_breathing_makes_premature_beats_less_certain():
    """Sinus arrhythmia of 15 %: none of its beats is as irregular as a premature one among steady
    beats."""
    steady = np.full(600, 0.9)
    steady[300:302] = 0.65, 1.1
    breathing = 0.9 * np.exp(0.15 * np.sin(2 * np.pi * np.arange(600) / 5.3))
    single, usual = (irregularity(timing(*from_intervals(rr), 201, 90, 1.2), 0.25, 0.05)
                     for rr in (steady, breathing))
    assert single.argmax() == 300 and single.max() > 2 * usual.max()


def test_missing_intervals_become_the_median_or_one_second():
    gaps = [np.nan, 0.7, 0.9, 0.8, 0]
    assert_array_equal(fill_missing_rr(gaps, False), [0.8, 0.7, 0.9, 0.8, 0.8])
    assert_array_equal(fill_missing_rr(gaps, True), [0.7, 0.7, 0.9, 0.8, 0.7])
    assert_array_equal(timing([np.nan], [np.nan], 21, 80, 1.2), [[0, 0]])


# --- beats ----------------------------------------------------------------------------------------

@pytest.fixture
def beats():
    """(model, Segments of two records of 100 beats in turn, 0.4 to 1.2 s apart)."""
    rng = np.random.default_rng(3)
    torch.manual_seed(0)
    rr = rng.uniform(0.4, 1.2, 200)
    record = np.tile(["a", "b"], 100)
    sample = np.repeat(np.cumsum(rr[::2] * FS), 2).astype(int)
    rows = {"record": record, "sample": sample, "rr_before_s": rr, "rr_after_s": rr[::-1]}
    x = rng.normal(0, 1, (200, 160)).astype(np.float32)
    return models.ConvAutoencoder(160, 4, 30).eval(), Segments(x, rows, {})


def test_errors_equal_their_definition_with_and_without_reconstructions(beats, monkeypatch):
    model, segments = beats
    monkeypatch.setattr(features, "BATCH", 7)
    rows = np.arange(3, 190)
    found = features.BeatFeatures.of(model, segments, rows, SETTINGS, FS, "cpu")
    t = np.arange(160) - 80
    seen = segments.x[rows] * np.exp(-0.5 * (t / 30) ** 2)  # by the tapered network
    error = (seen - found.recon) ** 2
    assert_allclose(found.mse, error.mean(axis=1), rtol=1e-4)
    weights = np.exp(-0.5 * (t / 36) ** 2)
    assert_allclose(found.qrs_error, np.average(error, axis=1, weights=weights), rtol=1e-4)

    # in parts of 112 segments
    lean = features.BeatFeatures.of(model, segments, rows, SETTINGS, FS, "cpu", keep_recon=False)
    assert lean.recon is None
    for name in ("z", "mse", "qrs_error", "times", "past_irregular"):
        assert_allclose(getattr(lean, name), getattr(found, name), rtol=1e-4, atol=1e-5)


def test_timing_of_a_beat_comes_from_all_beats_of_its_record(beats):
    """Not from the scored ones alone: beats left out of a split are neighbours in time too."""
    model, segments = beats
    found = features.BeatFeatures.of(model, segments, [121], SETTINGS, FS, "cpu")
    table = {name: values[1::2] for name, values in segments.rows.items()}  # of record b
    early = table["sample"] < 20 * FS
    for prefix, causal, learning in (("", False, slice(None)), ("past_", True, early)):
        times = timing(table["rr_before_s"], table["rr_after_s"], 5, 80, 3.1, causal)
        assert_array_equal(getattr(found, prefix + "times")[0], times[60])
        expected = irregularity(times, 0.25, 0.1, learning)[60]
        assert getattr(found, prefix + "irregular")[0] == approx(expected, rel=1e-6)
    assert found.learning[0] == early[60] and 5 < early.sum() < 95
