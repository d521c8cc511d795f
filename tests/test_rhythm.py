import numpy as np
import pytest

import rhythm


def from_intervals(rr):
    """(before, after) of beats whose RR intervals before them are rr, the next one 0.8 s."""
    return np.array(rr, float), np.append(rr[1:], 0.8)


def window_median(values, beats, causal):
    """Middle value (the upper one of an even number) of `beats` neighbours, ends repeated."""
    first = -(beats - 1) if causal else -(beats // 2)
    rows = [[min(max(k + first + j, 0), len(values) - 1) for j in range(beats)] for k in range(len(values))]
    return np.array([sorted(values[row])[beats // 2] for row in rows])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beats", [3, 4, 5, 21])
def test_local_median_equals_a_plain_loop(beats, causal):
    values = np.random.default_rng(0).uniform(0.4, 1.5, 60)
    np.testing.assert_array_equal(rhythm.local_median(values, beats, causal), window_median(values, beats, causal))


@pytest.mark.parametrize("causal", [False, True])
def test_premature_beat_with_pause_is_positive_and_late_beat_negative(causal):
    rr = np.full(60, 0.8)
    rr[30], rr[31], rr[45] = 0.5, 1.1, 1.2
    times = rhythm.timing(*from_intervals(rr), 11, causal)
    assert times[30] == pytest.approx([np.log(0.8 / 0.5), np.log(1.1 / 0.5)], rel=1e-5)
    assert times[45] == pytest.approx([np.log(0.8 / 1.2), np.log(0.8 / 1.2)], rel=1e-5)
    assert times[20] == pytest.approx([0, 0], abs=1e-6)
    irregular = rhythm.irregularity(times)
    expected = (np.log(0.8 / 0.5) + rhythm.PAUSE_WEIGHT * np.log(1.1 / 0.5)) / rhythm.SPREAD_FLOOR
    assert irregular[30] == irregular.max() == pytest.approx(expected, rel=1e-4)
    assert irregular[45] < irregular[31] < 0 and irregular[20] == pytest.approx(0, abs=1e-4)


def test_premature_beats_stay_above_normal_ones_where_they_are_the_majority():
    """Two of three beats premature, as in record 232: the median RR is then theirs."""
    rr = np.tile([1.6, 0.5, 0.5], 40)
    irregular = rhythm.irregularity(rhythm.timing(*from_intervals(rr), 21))
    premature = rr < 1
    assert premature.mean() > 0.6 and irregular[premature].min() > irregular[~premature].max()


@pytest.mark.parametrize("first_known", [True, False])
def test_causal_timing_knows_no_later_beat_but_the_next(first_known):
    rng = np.random.default_rng(1)
    rr = rng.uniform(0.5, 1.2, 80)
    rr[0] = rr[0] if first_known else np.nan
    other = rr.copy()
    other[50:] = rng.uniform(1.5, 2, 30)
    past, changed = (rhythm.timing(*from_intervals(r), 21, causal=True) for r in (rr, other))
    np.testing.assert_array_equal(past[:49], changed[:49])
    assert past[49, 0] == changed[49, 0] and past[49, 1] != changed[49, 1]  # RR after beat 49 is of beat 50
    centred, changed = (rhythm.timing(*from_intervals(r), 21) for r in (rr, other))
    assert (centred[40:49, 0] != changed[40:49, 0]).any()


def test_irregularity_is_in_units_of_the_spread_of_the_learning_beats():
    rng = np.random.default_rng(2)
    times = rng.normal(0, 0.1, (200, 2)).astype(np.float32)
    times[100:] *= 50
    spread = sorted(abs(times[:100, 0]))[49:51]
    expected = (times[:, 0] + 0.5 * times[:, 1]) / (0.05 + sum(spread) / 2)
    np.testing.assert_allclose(rhythm.irregularity(times, np.arange(200) < 100), expected, rtol=1e-5)
    no_beats = rhythm.irregularity(times, np.zeros(200, bool))
    np.testing.assert_allclose(no_beats, (times[:, 0] + 0.5 * times[:, 1]) / 0.05, rtol=1e-5)


def test_the_same_early_beat_says_less_in_an_irregular_rhythm():
    rng = np.random.default_rng(3)
    values = []
    for spread in (0.01, 0.2):
        rr = 0.8 * np.exp(rng.normal(0, spread, 300))
        rr[150:152] = 0.5, 1.1
        values.append(rhythm.irregularity(rhythm.timing(*from_intervals(rr), 21))[150])
    assert values[0] > 2 * values[1] > 0


def test_missing_intervals_become_the_median_or_one_second():
    np.testing.assert_array_equal(rhythm.filled([np.nan, 0.7, 0.9, 0.8, 0, np.nan]), [0.8, 0.7, 0.9, 0.8, 0.8, 0.8])
    np.testing.assert_array_equal(rhythm.filled([np.nan, np.nan]), [1, 1])
    times = rhythm.timing([np.nan], [np.nan], 21)
    assert times.shape == (1, 2) and times.dtype == np.float32 and np.isfinite(times).all()
