import numpy as np
import pytest

import preprocess

FS = 360


def tone(f_hz, n=20 * FS):
    return np.sin(2 * np.pi * f_hz * np.arange(n) / FS)


@pytest.mark.parametrize("f_hz, low, high", [(0.05, 0, 0.01), (10, 0.99, 1.01), (25, 0.93, 0.96),
                                             (60, 0, 0.1), (90, 0, 0.005)])
def test_bandpass_gain_by_frequency(f_hz, low, high):
    x = tone(f_hz, 60 * FS)
    middle = slice(20 * FS, 40 * FS)
    gain = preprocess.bandpass(x, FS, (0.5, 40.0), 3)[middle].std() / x[middle].std()
    assert low <= gain <= high


def test_bandpass_does_not_move_the_peak():
    x = np.zeros(4000)
    x[1990:2011] = np.hanning(21)
    assert np.argmax(preprocess.bandpass(x, FS, (0.5, 40.0), 3)) == 2000


def test_cut_segments_puts_the_peak_in_the_middle():
    x = np.arange(5000.0)
    segments = preprocess.cut_segments(x, [360, 2000, 4640], 720)
    assert segments.shape == (3, 720)
    np.testing.assert_array_equal(segments[:, 360], [360, 2000, 4640])
    np.testing.assert_array_equal(segments[1], x[1640:2360])


def test_inside_keeps_exactly_the_whole_windows():
    keep = preprocess.inside([359, 360, 640, 641], 1000, 720)
    np.testing.assert_array_equal(keep, [False, True, True, False])
    with pytest.raises(ValueError, match="over the end"):
        preprocess.cut_segments(np.zeros(1000), [359], 720)


def test_normalise_is_per_segment_and_reversible():
    rng = np.random.default_rng(0)
    segments = rng.normal(3, 2, (5, 720)) * np.arange(1, 6)[:, None]
    x, offset, scale = preprocess.normalise(segments)
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(1), 1, atol=1e-5)
    np.testing.assert_allclose(x * scale[:, None] + offset[:, None], segments, rtol=1e-4, atol=1e-4)
    alone, _, _ = preprocess.normalise(segments[2:3])
    np.testing.assert_array_equal(alone[0], x[2])
    assert np.isfinite(preprocess.normalise(np.zeros((1, 720)))[0]).all()


def test_longest_flat_run():
    x = np.random.default_rng(0).normal(size=100)
    x[40:55] = 1.5
    assert preprocess.longest_flat_run(x) == (40, 15)
    assert preprocess.longest_flat_run(np.zeros(7)) == (0, 7)
    assert preprocess.longest_flat_run(np.full(7, np.nan)) [1] == 1


def test_rr_intervals():
    before, after = preprocess.rr_intervals_s(np.array([0, 360, 540]), FS)
    np.testing.assert_array_equal(before, [np.nan, 1.0, 0.5])
    np.testing.assert_array_equal(after, [1.0, 0.5, np.nan])


def test_gaussian_is_one_on_the_beat_and_everywhere_without_a_width():
    w = preprocess.gaussian(720, 60)
    assert np.argmax(w) == 360 and w[360] == 1
    assert w[300] == w[420] == pytest.approx(np.exp(-0.5)) and w[0] == pytest.approx(np.exp(-18))
    np.testing.assert_array_equal(preprocess.gaussian(720, None), np.ones(720))
