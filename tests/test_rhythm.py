import numpy as np
import pytest

from scoring import rhythm


def from_intervals(rr):
    """(before, after) of beats whose RR intervals before them are rr, the next one 0.8 s."""
    return np.array(rr, float), np.append(rr[1:], 0.8)


def window_percentile(values, beats, percentile, causal):
    """Ranked value of the `beats` neighbours: windows that would leave the ends are moved inward, causal ones cut."""
    result = []
    for k in range(len(values)):
        start = k - beats + 1 if causal else min(max(k - beats // 2, 0), max(len(values) - beats, 0))
        window = sorted(values[max(start, 0):start + beats])
        result.append(window[min(int(len(window) * percentile / 100), len(window) - 1)])
    return np.array(result)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("beats", [1, 3, 4, 21, 60, 200])
@pytest.mark.parametrize("percentile", [0, 50, 80, 100])
def test_local_percentile_equals_a_plain_loop(beats, percentile, causal):
    values = np.random.default_rng(0).uniform(0.4, 1.5, 60)
    np.testing.assert_array_equal(rhythm.local_percentile(values, beats, percentile, causal),
                                  window_percentile(values, beats, percentile, causal))


@pytest.mark.parametrize("causal", [False, True])
def test_premature_beat_with_pause_is_positive_and_late_beat_negative(causal):
    rr = np.full(60, 0.8)
    rr[30], rr[31], rr[45] = 0.5, 1.1, 1.2
    times = rhythm.timing(*from_intervals(rr), 11, 50, causal)
    assert times[30] == pytest.approx([np.log(0.8 / 0.5), np.log(1.1 / 0.5)], rel=1e-5)
    assert times[45] == pytest.approx([np.log(0.8 / 1.2), np.log(0.8 / 1.2)], rel=1e-5)
    assert times[20] == pytest.approx([0, 0], abs=1e-6)
    irregular = rhythm.irregularity(times, 0.5, 0.05)
    expected = (np.log(0.8 / 0.5) + 0.5 * np.log(1.1 / 0.5)) / 0.05
    assert irregular[30] == irregular.max() == pytest.approx(expected, rel=1e-4)
    assert irregular[45] < irregular[31] < 0 and irregular[20] == pytest.approx(0, abs=1e-4)


def test_premature_beats_are_premature_where_they_are_the_majority():
    """Three of four beats premature, as in record 232: the median RR is theirs, a high percentile is not."""
    rr = np.tile([1.6, 0.7, 0.7, 0.7], 40)
    premature, values = rr < 1, {}
    for percentile in (50, 80):
        values[percentile] = rhythm.irregularity(rhythm.timing(*from_intervals(rr), 101, percentile), 0.25, 0.1)
        assert values[percentile][premature].min() > values[percentile][~premature].max()
    assert np.median(values[50][premature]) == pytest.approx(0, abs=1e-5)
    assert values[80][premature].min() > 0.9 * np.log(1.6 / 0.7) / 0.1


@pytest.mark.parametrize("first_known", [True, False])
def test_causal_timing_knows_no_later_beat_but_the_next(first_known):
    rng = np.random.default_rng(1)
    rr = rng.uniform(0.5, 1.2, 80)
    rr[0] = rr[0] if first_known else np.nan
    other = rr.copy()
    other[50:] = rng.uniform(1.5, 2, 30)
    past, changed = (rhythm.timing(*from_intervals(r), 21, 80, causal=True) for r in (rr, other))
    np.testing.assert_array_equal(past[:49], changed[:49])
    assert past[49, 0] == changed[49, 0] and past[49, 1] != changed[49, 1]  # RR after beat 49 is of beat 50
    centred, changed = (rhythm.timing(*from_intervals(r), 21, 80) for r in (rr, other))
    assert (centred[40:49, 0] != changed[40:49, 0]).any()


def test_irregularity_is_in_units_of_the_spread_of_the_learning_beats():
    rng = np.random.default_rng(2)
    times = rng.normal(0.3, 0.1, (201, 2)).astype(np.float32)
    times[101:] *= 50
    early = times[:101, 0].tolist()
    middle = sorted(early)[50]
    spread = sorted(abs(v - middle) for v in early)[50]
    expected = (times[:, 0] + 0.7 * times[:, 1]) / (0.2 + spread)
    np.testing.assert_allclose(rhythm.irregularity(times, 0.7, 0.2, np.arange(201) < 101), expected, rtol=1e-5)
    no_beats = rhythm.irregularity(times, 0.7, 0.2, np.zeros(201, bool))
    np.testing.assert_allclose(no_beats, (times[:, 0] + 0.7 * times[:, 1]) / 0.2, rtol=1e-5)


def test_the_same_early_beat_says_less_in_an_irregular_rhythm():
    rng = np.random.default_rng(3)
    values = []
    for spread in (0.01, 0.2):
        rr = 0.8 * np.exp(rng.normal(0, spread, 300))
        rr[150:152] = 0.5, 1.1
        values.append(rhythm.irregularity(rhythm.timing(*from_intervals(rr), 21, 50), 0.5, 0.1)[150])
    assert values[0] > 2 * values[1] > 0


def test_missing_intervals_become_the_median_or_one_second():
    gaps = [np.nan, 0.7, 0.9, 0.8, 0, np.nan]
    np.testing.assert_array_equal(rhythm.filled(gaps, False), [0.8, 0.7, 0.9, 0.8, 0.8, 0.8])
    np.testing.assert_array_equal(rhythm.filled(gaps, True), [0.7, 0.7, 0.9, 0.8, 0.7, 0.7])
    np.testing.assert_array_equal(rhythm.filled([np.nan, np.nan], False), [1, 1])
    times = rhythm.timing([np.nan], [np.nan], 21, 80)
    assert times.shape == (1, 2) and times.dtype == np.float32 and np.isfinite(times).all()
