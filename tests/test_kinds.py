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
