"""What cannot be read: each reason at its window, arrhythmia never, whatever gain or blocks."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import find_peaks

from preprocess import bandpass, fill_gaps
from recording import quality
from recording.quality import mix_noise, unreadable

FS = 250
MISSING, FLAT, SATURATED, NOISE = range(1, 5)
NARROW = ((-0.18, 0.025, 0.12), (0.0, 0.010, 1.2), (0.025, 0.010, -0.25),
          (0.26, 0.045, 0.3))   # P, R, S, T
K = np.arange(300)
WIDE = ((0.0, 0.040, -1.0), (0.055, 0.030, 1.6), (0.30, 0.060, -0.5))


def ecg(rr_s, kinds):
    """(signal (n,) in mV, R peaks (k,)) of beats `rr_s` apart, each a tuple of waves."""
    times = np.cumsum(rr_s)
    t = np.arange(int((times[-1] + 1) * FS)) / FS
    signal = np.random.default_rng(0).normal(0, 0.01, len(t))
    for at, waves in zip(times, kinds):
        for centre, width, height in waves:
            near = np.abs(t - at - centre) < 6 * width
            signal[near] += height * np.exp(-0.5 * ((t[near] - at - centre) / width) ** 2)
    return signal, np.round(times * FS).astype(int)


def sinus(duration_s):
    rr = 0.8 + 0.03 * np.random.default_rng(0).standard_normal(int(duration_s / 0.8))
    return ecg(rr, [NARROW] * len(rr))


def filtered(signal):
    return bandpass(fill_gaps(signal), FS, (0.5, 40), 3)


def window(k, offset_s=0.0):
    """First sample of window k, moved."""
    return int((k * quality.VERDICT_S + offset_s) * FS)


def noise(kind, n):
    """Muscle artefact, or electrode motion, whose power falls with frequency squared."""
    white = np.random.default_rng(1).standard_normal(n)
    if kind == "muscle":
        return bandpass(white, FS, (15, 110), 2)
    return bandpass(np.cumsum(white), FS, (0.3, 120), 2)


def test_a_windows_beats_are_summed_up_as_numpy_does():
    rng = np.random.default_rng(0)
    peaks = np.sort(rng.choice(40 * FS, 120, replace=False))
    amplitude = rng.random(120)
    correlation = np.where(rng.random(120) < 0.2, np.nan, rng.random(120))
    starts = np.arange(0, 35 * FS, FS)
    found = quality.match_by_window(peaks, correlation, amplitude, starts, 5 * FS)
    for start, values in zip(starts, found.T):
        here = (peaks >= start) & (peaks < start + 5 * FS)
        known = correlation[here & ~np.isnan(correlation)]
        assert len(known) >= quality.MIN_BEATS
        assert tuple(values) == (np.quantile(known, 0.25, method="lower"),
                                 np.median(amplitude[here]))


# --- missing, flat, saturated ---------------------------------------------------------------------

@pytest.mark.parametrize("gain", [1, 1e-6, -1e7])
@pytest.mark.parametrize("change, length_s, expected", [
    (lambda _: np.nan, 0.4, 0), (lambda _: np.inf, 0.7, MISSING),
    (lambda _: 0.05, 0.9, 0), (lambda _: 0.05, 1.1, FLAT),
    (lambda part: np.resize([0.3, 0.305, 0.31], len(part)), 10, FLAT),   # a disconnected lead
    (lambda part: np.round(part / 0.04) * 0.04, 10, 0),  # coarse steps of a converter
    (lambda part: part.clip(-9, 0.5), 10, SATURATED),   # or from below, where the gain is negative
    (lambda part: part + noise("muscle", len(part)), 10, NOISE)])
def test_each_reason_is_found_at_its_window(change, length_s, expected, gain, monkeypatch):
    """Whatever the gain, and however many windows are judged at a time."""
    monkeypatch.setattr(quality, "BATCH_WINDOWS", 4)
    signal, beats = sinus(85)
    part = slice(window(4), window(4, length_s))
    signal[part] = change(signal[part])
    wanted = np.zeros(9, np.int8)
    wanted[4] = expected
    result = unreadable(gain * signal, gain * filtered(signal), FS, beats)
    assert result.dtype == np.int8
    assert_array_equal(result, wanted)


def test_windows_are_judged_apart_and_extremes_need_runs():
    """Two windows in a row: half a flat run in each, dither beside a near value, sharp peaks."""
    slope = np.linspace(0, 1, 10 * FS)
    half = np.array([slope, slope])
    half[0, -175:] = half[1, :175] = 2
    assert not quality.flat_or_saturated(half, FS)[0].any()
    dithered = np.array([np.resize([0, 0.005, 0.01], 10 * FS), slope])
    dithered[1, 0] = dithered[0, -1] + 0.0001
    assert_array_equal(quality.flat_or_saturated(dithered, FS)[0], [True, False])
    sharp = np.abs(np.resize(np.arange(-12.0, 12), (1, 10 * FS)))
    assert not np.any(quality.flat_or_saturated(sharp, FS))


# --- noise ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("snr_db", [16, 18])
def test_noise_is_a_bad_match_or_a_fair_one_with_two_other_signs(snr_db):
    """A low ratio and a moving baseline; four correlations without and with the latter."""
    t = np.arange(10 * FS) / FS
    wave = 0.1 * np.sin(2 * np.pi * 10 * t)     # power 0.005
    amplitude = np.sqrt(8 * 0.005 * 10 ** (snr_db / 10))
    with_waves = wave * np.where(np.arange(10 * FS) % 100 < 50, 30, 1)  # no part of the floor
    ratio = quality.snr_db(np.array([wave, with_waves]), FS, amplitude)
    assert_allclose(ratio, snr_db, atol=0.1)
    raw = np.array([wave, wave + 0.15 * np.sin(2 * np.pi * 0.4 * t)])
    assert_allclose(quality.baseline_quality(raw, FS), [1, 0.01 / (0.01 + 0.0225)], atol=0.01)
    found = quality.noisy(np.repeat(raw, 4, axis=0), np.tile(wave, (8, 1)), FS,
                          np.tile([0.85, 0.95, 0.98, np.nan], 2), np.full(8, amplitude))
    assert_array_equal(found, [1, 0, 0, 0, 1, snr_db == 16, 0, 0])


def test_correlation_is_that_with_the_most_similar_beat_nearby():
    """Against a plain loop, with beats reported up to 40 ms off their deepest or highest point."""
    rng = np.random.default_rng(4)
    rr = np.append(rng.uniform(0.4, 0.8, 40), rng.uniform(1.2, 1.8, 20))
    kinds = [((0, 0.012, rng.choice([-1, 1])), (0.06, 0.015, rng.uniform(-0.6, 0.6))) for _ in rr]
    signal, beats = ecg(rr, kinds)
    gap = signal.copy()
    gap[beats[30]] = np.nan
    shifted = beats + rng.integers(-round(0.04 * FS), round(0.04 * FS), len(beats))
    peaks, correlation, amplitude = quality.beat_quality(gap, signal, FS, shifted)
    expected = [b - 3 + np.argmax(np.abs(signal[b - 3:b + 4])) for b in np.delete(beats, 30)]
    assert_array_equal(peaks, expected)
    alike = np.corrcoef([signal[p - 25:p + 38] for p in peaks])
    k = np.arange(len(peaks))
    far = (np.abs(k[:, None] - k) > 12) | (np.abs(peaks[:, None] - peaks) > 10 * FS)
    alike[far | (k[:, None] == k)] = -1
    assert_allclose(correlation, alike.max(axis=1), atol=1e-5)
    assert_allclose(amplitude, [np.ptp(signal[p - 12:p + 13]) for p in peaks])


@pytest.mark.parametrize("kind", ["muscle", "electrode"])
def test_noise_at_minus_6_db_is_found_and_slight_noise_is_readable(kind):
    """Beats as a simple detector finds them, in noise too: the highest peaks 0.3 s apart."""
    signal, beats = sinus(150)
    loud = slice(window(6), window(12))
    counts = []
    for snr_db in (24, -6):
        mixed = signal.copy()
        mixed[loud] = mix_noise(signal, noise(kind, len(signal)), beats, snr_db, FS)[loud]
        smooth = filtered(mixed)
        found = find_peaks(np.abs(smooth), 0.4, distance=75)[0]
        result = unreadable(mixed, smooth, FS, found)
        counts.append((result[6:12] == NOISE).sum())
    assert counts[0] == 0 and counts[1] >= 5 and not result[:5].any() and not result[13:].any()


@pytest.mark.parametrize("rr_s, wide", [
    (0.8, K % 9 == 5), (0.8, K % 2 == 1),      # single premature beats, bigeminy
    (np.random.default_rng(7).uniform(0.35, 1.3, 300), K < 0),   # atrial fibrillation
    (0.34, K < 0), (np.where(K == 150, 25, 0.8), K < 0)])        # tachycardia, a pause
def test_arrhythmia_is_not_noise(rr_s, wide):
    """Wide beats come early, with a pause after them; the baseline wanders and fibrillates."""
    rr_s = np.where(wide, 0.48, np.where(np.roll(wide, 1), 1.1, rr_s))
    signal, beats = ecg(rr_s, [WIDE if w else NARROW[1:] for w in wide])
    t = np.arange(len(signal)) / FS
    signal += np.sin(2 * np.pi * 0.2 * t) + 0.08 * np.sin(2 * np.pi * 6.3 * t + 2 * np.sin(1.1 * t))
    assert not unreadable(signal, filtered(signal), FS, beats).any()


# --- blocks ---------------------------------------------------------------------------------------

def test_blocks_with_margin_equal_the_whole():
    """Six kinds of beats in turn: the next of a kind is 9.6 s away, mostly in another window."""
    rng = np.random.default_rng(8)
    kinds = [[(at, 0.015, rng.normal()) for at in np.linspace(-0.06, 0.12, 7)] for _ in range(6)]
    signal, beats = ecg(np.full(180, 1.6), kinds * 30)
    smooth = filtered(signal)
    result = []
    for k in range(0, 28, 2):
        first = max(k - 3, 0)
        part = slice(window(first), window(k + 5))
        inside = beats[(beats >= part.start) & (beats < part.stop)] - part.start
        found = unreadable(signal[part], smooth[part], FS, inside)
        result.extend(found[k - first:][:2])
    assert_array_equal(result, unreadable(signal, smooth, FS, beats)[:28])


# --- noise stress test ----------------------------------------------------------------------------

@pytest.mark.parametrize("noise_mv, beats, message", [
    (np.ones(100), [500], "1 beats .* 0 s of noise"),
    (np.arange(1000), [], "0 beats .* 4 s of noise"),
    (np.zeros(1000), [500], "no power")])
def test_what_cannot_be_measured_is_refused(noise_mv, beats, message):
    with pytest.raises(ValueError, match=message):
        mix_noise(np.arange(1000), noise_mv, beats, 6, FS)


def test_mixed_noise_has_the_ratio_asked_for():
    """By a plain loop: a QRS amplitude p, peak to peak, is a power of p^2 / 8."""
    signal, beats = sinus(120)
    # shorter than the signal, with an offset
    source = 3.7 * np.random.default_rng(3).standard_normal(30 * FS) + 40
    added = mix_noise(signal, source, beats, -6, FS) - signal
    heights = np.sort([np.ptp(signal[b - 12:b + 13]) for b in beats])
    cut = len(beats) // 20
    power = added[:120 * FS].reshape(-1, FS).var(axis=1).mean()
    ratio = 10 * np.log10(heights[cut:-cut].mean() ** 2 / 8 / power)
    assert ratio == pytest.approx(-6, abs=0.1) and added[0] == 0
    assert_allclose(added[30 * FS:60 * FS], added[:30 * FS], atol=1e-9)
