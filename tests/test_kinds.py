"""Kinds of beats by how early they are and how foreign their QRS complex is; doubts about flags."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from recording import kinds, trust

FS = 360


def segments(*widths, n=720):
    """Beats as the network sees them: a Gaussian of each width (s), and offset and scale behind."""
    t = (np.arange(n) - n // 2) / FS
    return np.array([np.append(np.exp(-0.5 * (t / width) ** 2), [0, 1]) for width in widths])


@pytest.mark.parametrize("r", [1, 2, 20, 60])
def test_quantile_is_numpys(r):
    values = np.random.default_rng(r).normal(size=(50, r)).astype(np.float32)
    for q in (0.0, 0.5, 0.95, 1.0):
        assert_allclose(kinds.quantile(values, q), np.quantile(values, q, axis=1), atol=1e-6)


def test_qrs_distance_is_one_less_the_correlation_with_the_nearest_regular_beats():
    beats = segments(0.01, 0.01, 0.012, 0.04)
    found = kinds.qrs_distance(beats, np.array([0, 1]), FS)
    part = slice(360 - 30, 360 + 36)
    expected = [1 - np.corrcoef(beat[part], beats[0][part])[0, 1] for beat in beats]
    assert_allclose(found, expected, atol=0.003)
    assert found[3] > 0.3 and found[0] == pytest.approx(0, abs=1e-6)


def test_neither_a_peak_off_by_three_samples_nor_what_is_around_makes_a_beat_foreign():
    beats = segments(0.02, 0.02, 0.02)
    beats[1, :720] = np.roll(beats[1, :720], 3)
    beats[2, :250] += 5    # the beat before it
    assert kinds.qrs_distance(beats, np.array([0]), FS).max() < 1e-6


def test_a_second_usual_shape_is_not_foreign():
    beats = segments(*[0.01] * 50, *[0.03] * 10, 0.06)
    found = kinds.qrs_distance(beats, np.arange(60), FS)
    assert found[55] < 0.01 < 0.05 < found[60]


def test_kinds():
    rhythm = np.array([0, 3, 0, 0, 3, 0, 1])
    distance = np.array([0.01, 0.01, 0.03, 0.1, 0.1, 0.5, 0.1])
    assert "".join(kinds.kinds(rhythm, distance)) == "QSFFVVV"


def test_a_regular_beat_soon_after_an_interpolated_one_comes_in_time():
    """Regular, foreign between two, regular; the same with the pause of a beat that is not."""
    rr_s = np.array([0.9, 0.5, 0.4, 0.9, 0.5, 1.3])
    distance = np.array([0, 1, 0, 0, 1, 0])
    found = kinds.after_interpolated(rr_s, np.full(6, 0.9), distance)
    assert_array_equal(np.flatnonzero(found), [2])
    assert not kinds.after_interpolated(rr_s, np.full(6, 0.9), 0 * distance).any()


@pytest.mark.parametrize("change, said", [
    ({}, []), ({"n": 20}, ["few beats"]), ({"unreadable": 4}, ["much is unreadable"]),
    ({"near": 30}, ["no clear line"]), ({"jitter": 0.2}, ["irregular rhythm"])])
def test_what_speaks_against_the_flags_is_said(change, said):
    given = {"n": 200, "unreadable": 0, "near": 0, "jitter": 0.02} | change
    rng = np.random.default_rng(0)
    rr_s = 0.8 * np.exp(rng.normal(0, given["jitter"] / 2 ** 0.5, given["n"]))
    beats = SimpleNamespace(time_s=np.cumsum(rr_s), unreadable=np.arange(16) < given["unreadable"])
    over = np.where(np.arange(given["n"]) < given["near"], 1.6, 0.0)
    found = trust.warnings(beats, over, np.full(given["n"], "N"), 1.5)
    assert [sentence.split(":")[0] for sentence in found] == said


def test_ectopy_is_no_irregular_rhythm():
    """Every third beat early and flagged, with a pause after it."""
    rr_s = np.tile([0.8, 0.5, 1.1], 100)
    kind = np.tile(["N", "V", "N"], 100)
    assert trust.irregularity(np.cumsum(rr_s), kind == "N") == 0
    assert trust.irregularity(np.cumsum(rr_s), kind != "") > 0.3


def test_a_fast_rhythm_with_a_shape_of_its_own_is_said():
    time_s = np.cumsum(np.repeat([0.7, 0.45], 400))
    group = np.repeat([2, 1], 400)
    scored = np.ones(800, bool)
    fast = [{"start_s": time_s[400], "end_s": time_s[-1], "rate_per_min": 133.0}]
    said, = trust.of_its_own(scored, group, time_s, fast)
    assert said.startswith("another rhythm: 400 beats at about 133/min")

    # the same shape before it, beats that stand alone, or nothing but it: no doubt
    assert trust.of_its_own(scored, np.ones(800, int), time_s, fast) == []
    assert trust.of_its_own(scored, np.zeros(800, int), time_s, fast) == []
    assert trust.of_its_own(scored, group, time_s, [fast[0] | {"start_s": 0.0}]) == []


@pytest.mark.parametrize("rr_s, said", [(0.8, False), (1.6, True), (0.38, True), (0.42, False)])
def test_a_rate_that_hardly_a_person_has_is_said(rr_s, said):
    time_s = rr_s * np.arange(100)
    assert bool(trust.rate_doubt(time_s, np.ones(99, bool))) == said
    assert trust.rate_doubt(time_s[:20], np.ones(19, bool)) == []
