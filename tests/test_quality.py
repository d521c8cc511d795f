"""What cannot be read: each reason at its window, arrhythmia never, whatever gain or blocks."""

import numpy as np
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from preprocess import bandpass, fill_gaps
from recording import quality

FS = 250
MISSING, FLAT, SATURATED, NOISE = range(1, 5)
NARROW = ((-0.18, 0.025, 0.12), (0.0, 0.010, 1.2), (0.025, 0.010, -0.25),
          (0.26, 0.045, 0.3))   # P, R, S, T
WIDE = ((0.0, 0.040, -1.0), (0.055, 0.030, 1.6), (0.30, 0.060, -0.5))
ECTOPIC = ((-0.16, 0.020, -0.1), *NARROW[1:])


def ecg(rr_s, kinds, seed=0):
    """(signal (n,) in mV, R peaks (k,)) of beats `rr_s` apart, each a tuple of waves."""
    times = np.cumsum(rr_s)
    t = np.arange(int((times[-1] + 1) * FS)) / FS
    signal = np.random.default_rng(seed).normal(0, 0.01, len(t))
    for at, waves in zip(times, kinds):
        for centre, width, height in waves:
            near = np.abs(t - at - centre) < 6 * width
            signal[near] += height * np.exp(-0.5 * ((t[near] - at - centre) / width) ** 2)
    return signal, np.round(times * FS).astype(int)


def sinus(duration_s, seed=0):
    rr = 0.8 + 0.03 * np.random.default_rng(seed).standard_normal(int(duration_s / 0.8))
    return ecg(rr, [NARROW] * len(rr), seed)


def filtered(signal):
    return bandpass(fill_gaps(signal), FS, (0.5, 40), 3)


def detected(signal):
    """What a simple detector finds, in noise too: the highest peaks 0.3 s apart."""
    height = np.abs(filtered(signal))
    return find_peaks(height, distance=int(0.3 * FS), height=0.4 * np.percentile(height, 99))[0]


def verdicts(signal, beats):
    return quality.unreadable(signal, filtered(signal), FS, beats)


def window(k, offset_s=0.0):
    """First sample of window k, moved."""
    return int((k * quality.VERDICT_S + offset_s) * FS)


def noise(kind, n, seed=1):
    """White, muscle-like (15-110 Hz) or electrode motion (power falls with frequency squared)."""
    white = np.random.default_rng(seed).standard_normal(n)
    source, band = {"white": (white, (0.1, 120)), "muscle": (white, (15, 110)),
                    "electrode": (np.cumsum(white), (0.3, 120))}[kind]
    return sosfiltfilt(butter(2, band, "bandpass", fs=FS, output="sos"), source)


# --- missing, flat, saturated ---------------------------------------------------------------------

def constant(value):
    return lambda part: np.full(len(part), value)


def dither(part):
    return 0.3 + 0.005 * np.random.default_rng(5).integers(-2, 3, len(part))


@pytest.mark.parametrize("change, length_s, expected", [
    (np.copy, 10, 0), (constant(np.nan), 0.4, 0), (constant(np.inf), 0.7, MISSING),
    (constant(np.nan), 10, MISSING),
    (constant(0.05), 0.9, 0), (constant(0.05), 1.1, FLAT), (constant(0.05), 10, FLAT),
    (dither, 10, FLAT),                                # a disconnected lead
    (lambda part: np.round(part / 0.04) * 0.04, 10, 0),  # coarse steps of a converter
    (lambda part: part.clip(-9, 0.5), 10, SATURATED),
    (lambda part: part.clip(-0.02, 9), 10, SATURATED)])
def test_each_reason_is_found_at_its_window(change, length_s, expected):
    signal, beats = sinus(85)
    part = slice(window(4), window(4, length_s))
    signal[part] = change(signal[part])
    wanted = np.zeros(-(-len(signal) // window(1)), np.int8)
    wanted[4] = expected
    result = verdicts(signal, beats)
    assert result.dtype == np.int8
    np.testing.assert_array_equal(result, wanted)


def test_missing_throughout_is_missing_without_a_warning(recwarn):
    nothing = np.full(window(3), np.nan)
    np.testing.assert_array_equal(quality.unreadable(nothing, nothing, FS, [500, 900, 1300, 1700]),
                                  MISSING)
    assert not len(recwarn)


def test_windows_are_judged_apart_and_extremes_need_runs():
    """Two windows in a row: half a flat run in each, dither beside a near value, sharp peaks."""
    slope = np.linspace(0, 1, 10 * FS)
    half = np.array([slope, 1 - slope])
    half[0, -int(0.7 * FS):] = half[1, :int(0.7 * FS)] = 2.0
    assert not quality.flat_or_saturated(half, FS)[0].any()
    dithered = np.array([np.resize([0.0, 0.005, 0.010], 10 * FS), slope + 0.0001])
    dithered[1, 0] += dithered[0, -1]
    np.testing.assert_array_equal(quality.flat_or_saturated(dithered, FS)[0], [True, False])
    sharp = np.abs(np.resize(np.arange(-12.0, 12), (1, 10 * FS)))
    assert not np.any(quality.flat_or_saturated(sharp, FS))


# --- noise ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("low_ratio", [True, False])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("correlation", [0.85, 0.95, 0.98, np.nan])
def test_noise_is_a_bad_match_or_a_fair_one_with_two_other_signs(correlation, moving, low_ratio):
    t = np.arange(10 * FS) / FS
    wave = 0.1 * np.sin(2 * np.pi * 10 * t)[None]     # power 0.005
    raw = wave + (0.15 * np.sin(2 * np.pi * 0.4 * t) if moving else 0)
    snr_db = 16 if low_ratio else 18
    amplitude = np.array([np.sqrt(8 * 0.005 * 10 ** (snr_db / 10))])
    with_waves = wave * np.where(np.arange(10 * FS) % 100 < 50, 30, 1)  # no part of the floor
    for signal in (wave, with_waves):
        assert quality.snr_db(signal, FS, amplitude) == pytest.approx(snr_db, abs=0.1)
    share = 0.01 / (0.01 + 0.0225) if moving else 1
    assert quality.baseline_quality(raw, FS) == pytest.approx(share, abs=0.01)
    expected = correlation < 0.9 or (correlation < 0.97 and low_ratio and moving)
    assert quality.noisy(raw, wave, FS, np.array([correlation]), amplitude) == [expected]


def test_correlation_is_that_with_the_most_similar_beat_nearby():
    """Against a plain loop, with beats reported up to 40 ms off their deepest or highest point."""
    rng = np.random.default_rng(4)
    rr = np.append(rng.uniform(0.4, 0.8, 40), rng.uniform(1.2, 1.8, 20))
    kinds = [((0, 0.012, rng.choice([-1, 1])),
              (rng.uniform(0.05, 0.07), 0.015, rng.uniform(-0.6, 0.6))) for _ in rr]
    signal, beats = ecg(rr, kinds)
    gap = signal.copy()
    gap[beats[30]] = np.nan
    shifted = beats + rng.integers(-round(0.04 * FS), round(0.04 * FS), len(beats))
    peaks, correlation, amplitude = quality.beat_quality(gap, signal, FS, shifted)
    expected = [b - 3 + np.argmax(np.abs(signal[b - 3:b + 4])) for b in np.delete(beats, 30)]
    np.testing.assert_array_equal(peaks, expected)
    alike = np.corrcoef([signal[p - 25:p + 38] for p in peaks])
    k = np.arange(len(peaks))
    far = (np.abs(k[:, None] - k) > 12) | (np.abs(peaks[:, None] - peaks) > 10 * FS)
    alike[far | (k[:, None] == k)] = -1
    np.testing.assert_allclose(correlation, alike.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(amplitude, [np.ptp(signal[p - 12:p + 13]) for p in peaks])


@pytest.mark.parametrize("kind", ["white", "muscle", "electrode"])
def test_noise_at_minus_6_db_is_found_and_slight_noise_is_readable(kind):
    signal, beats = sinus(200)
    added = noise(kind, len(signal))
    assert not verdicts(quality.mix_noise(signal, added, beats, 24, FS), beats).any()
    loud = slice(window(6), window(12))
    signal[loud] = quality.mix_noise(signal, added, beats, -6, FS)[loud]
    result = verdicts(signal, detected(signal))
    assert (result[6:12] == NOISE).mean() >= 5 / 6
    assert not result[:5].any() and not result[13:].any()


def test_noise_without_any_heartbeat_is_found():
    signal = noise("white", window(12))
    assert (verdicts(signal, detected(signal)) == NOISE).all()


def rhythm(name):
    """(RR in s, waves of each beat) of two minutes; WIDE comes early, with a pause after it."""
    k = np.arange(150)
    if name == "atrial fibrillation":
        return np.random.default_rng(7).uniform(0.35, 1.3, 150), [NARROW[1:]] * 150
    if name == "tachycardia":
        return np.full(350, 0.34), [NARROW[1:]] * 350
    if name == "atrial premature":
        early = k % 4 == 2
        return np.where(early, 0.5, 0.85), [ECTOPIC if e else NARROW for e in early]
    if name == "bradycardia with pauses":
        return np.where(np.arange(60) % 5 == 4, 4.5, 1.6), [NARROW] * 60
    if name == "long pause":
        return np.where(k == 75, 25, 0.8), [NARROW] * 150
    wide = {"single premature": k % 9 == 5, "bigeminy": k % 2 == 1, "runs": k % 20 < 8}[name]
    rr = np.where(wide, 0.48, np.where(np.append(False, wide[:-1]), 1.1, 0.8))
    return rr, [WIDE if w else NARROW for w in wide]


@pytest.mark.parametrize("wander_mv", [0, 1])
@pytest.mark.parametrize("name", ["single premature", "bigeminy", "runs", "atrial fibrillation",
                                  "tachycardia", "atrial premature", "bradycardia with pauses",
                                  "long pause"])
def test_arrhythmia_is_not_noise(name, wander_mv):
    signal, beats = ecg(*rhythm(name))
    t = np.arange(len(signal)) / FS
    signal += wander_mv * np.sin(2 * np.pi * 0.2 * t)
    if name == "atrial fibrillation":
        signal += 0.08 * np.sin(2 * np.pi * 6.3 * t + 2 * np.sin(1.1 * t))
    assert not verdicts(signal, beats).any()


# --- whatever the gain or the blocks --------------------------------------------------------------

def bad_recording():
    """Five minutes with each reason to be unreadable, and its beats as detected."""
    signal, beats = sinus(300)
    for kind, k in (("white", 5), ("muscle", 12), ("electrode", 20)):
        part = slice(window(k, 3), window(k + 3, 1))
        signal[part] = quality.mix_noise(signal, noise(kind, len(signal)), beats, 0, FS)[part]
    signal[window(9):window(9, 5)] = 0.02
    signal[window(17):window(18, 3)] = np.nan
    signal[window(25):window(26)] = np.clip(signal[window(25):window(26)], -9, 0.4)
    return signal, detected(signal)


@pytest.mark.parametrize("gain", [1e-6, 0.37, 1e7, -1])
def test_gain_and_batches_do_not_matter(gain, monkeypatch):
    signal, beats = bad_recording()
    expected = verdicts(signal, beats)
    assert set(expected) == {0, MISSING, FLAT, SATURATED, NOISE}
    monkeypatch.setattr(quality, "BATCH_WINDOWS", 4)
    smooth = gain * filtered(signal)
    np.testing.assert_array_equal(quality.unreadable(gain * signal, smooth, FS, beats), expected)


def rare_twins():
    """Six kinds of beats in turn: the next of a kind is 9.6 s away, mostly in another window."""
    rng = np.random.default_rng(8)
    kinds = [[(at, 0.015, rng.normal()) for at in np.linspace(-0.06, 0.12, 7)] for _ in range(6)]
    return ecg(np.full(180, 1.6), [kinds[k % 6] for k in range(180)])


@pytest.mark.parametrize("recording", [bad_recording, rare_twins])
@pytest.mark.parametrize("block", [1, 7])
def test_blocks_with_margin_equal_the_whole(block, recording):
    signal, beats = recording()
    smooth = filtered(signal)
    margin = int(quality.MARGIN_S / quality.VERDICT_S)
    expected = quality.unreadable(signal, smooth, FS, beats)
    result = []
    for k in range(0, len(expected), block):
        first = max(k - margin, 0)
        low = window(first)
        high = min(window(k + block + margin), len(signal))
        inside = beats[(beats >= low) & (beats < high)] - low
        result.extend(quality.unreadable(signal[low:high], smooth[low:high], FS,
                                         inside)[k - first:][:block])
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_a_signal_shorter_than_a_window_has_one_verdict(n):
    signal, beats = sinus(30)
    result = quality.unreadable(signal[:n], signal[:n], FS, beats[beats < n])
    np.testing.assert_array_equal(result, np.zeros(min(n, 1)))


@pytest.mark.parametrize("n, beats, message", [
    (1000, [-1, 5], "rise and lie inside"), (1000, [5, 5], "rise and lie inside"),
    (999, [], "same length"),
    (1000, [5, 1000], "rise and lie inside")])
def test_beats_or_signals_that_do_not_fit_are_refused(n, beats, message):
    with pytest.raises(ValueError, match=message):
        quality.unreadable(np.zeros(1000), np.zeros(n), FS, beats)


# --- noise stress test ----------------------------------------------------------------------------

@pytest.mark.parametrize("snr_db", [24, -6])
def test_mixed_noise_has_the_ratio_asked_for(snr_db):
    """By a plain loop: a QRS amplitude of 1.4 mV, peak to peak, is a power of 1.4^2 / 8."""
    signal, beats = sinus(120)
    # shorter than the signal, with an offset
    source = 3.7 * np.random.default_rng(3).standard_normal(30 * FS) + 40
    added = quality.mix_noise(signal, source, beats, snr_db, FS) - signal
    half = round(0.05 * FS)
    heights = sorted(max(signal[b - half:b + half + 1]) - min(signal[b - half:b + half + 1])
                     for b in beats)
    cut = len(heights) // 20
    height = np.mean(heights[cut:-cut])
    power = added[:len(added) // FS * FS].reshape(-1, FS).var(axis=1).mean()
    assert height == pytest.approx(1.4, abs=0.05)
    assert 10 * np.log10(height ** 2 / 8 / power) == pytest.approx(snr_db, abs=0.1)
    assert added[0] == 0
    np.testing.assert_allclose(added[30 * FS:60 * FS], added[:30 * FS], atol=1e-9)


@pytest.mark.parametrize("source, beats",
                         [(np.ones(100), [500]), (np.ones(5000), [500]), (np.arange(5000.0), [])])
def test_noise_or_beats_that_cannot_be_measured_are_refused(source, beats):
    with pytest.raises(ValueError, match="beats inside the signal|no power"):
        quality.mix_noise(np.arange(1000.0), source, beats, 6, FS)
