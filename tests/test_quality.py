import numpy as np
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from recording import quality
from preprocess import bandpass

FS = 250
MISSING, FLAT, SATURATED, NOISE = range(1, 5)
NARROW = ((-0.18, 0.025, 0.12), (0.0, 0.010, 1.2), (0.025, 0.010, -0.25), (0.26, 0.045, 0.3))   # P, R, S, T
WIDE = ((0.0, 0.040, -1.0), (0.055, 0.030, 1.6), (0.30, 0.060, -0.5))
ECTOPIC = ((-0.16, 0.020, -0.1), *NARROW[1:])


def ecg(rr_s, kinds, seed=0):
    """(signal (n,) in mV with 10 uV of noise, R peaks (k,)) of beats `rr_s` apart, each a tuple of waves."""
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
    """As a caller would: gaps bridged, then band-passed."""
    known = np.isfinite(signal)
    bridged = np.interp(np.arange(len(signal)), np.flatnonzero(known), signal[known])
    return bandpass(bridged, FS, (0.5, 40), 3)


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
    """White, muscle-like (15-110 Hz) or like electrode motion (power falling with the square of frequency)."""
    white = np.random.default_rng(seed).standard_normal(n)
    source, band = {"white": (white, (0.1, 120)), "muscle": (white, (15, 110)),
                    "electrode": (np.cumsum(white), (0.3, 120))}[kind]
    return sosfiltfilt(butter(2, band, "bandpass", fs=FS, output="sos"), source)


def test_a_regular_lead_is_readable_and_each_window_has_a_verdict():
    signal, beats = sinus(95)
    result = verdicts(signal, beats)
    assert result.dtype == np.int8 and not result.any()
    assert len(result) == -(-len(signal) // window(1))
    assert len(quality.REASONS) == 5 and quality.REASONS[0] == ""


@pytest.mark.parametrize("length_s, expected", [(0.4, 0), (0.7, MISSING), (9, MISSING)])
def test_missing_samples_are_found_at_their_window(length_s, expected):
    signal, beats = sinus(80)
    signal[window(3, 0.5):window(3, 0.5 + length_s)] = np.nan
    signal[window(5):window(5, 0.7)] = np.inf
    result = verdicts(signal, beats)
    np.testing.assert_array_equal(np.delete(result, [3, 5]), 0)
    assert (result[3], result[5]) == (expected, MISSING)


def test_missing_throughout_is_missing_without_a_warning(recwarn):
    nothing = np.full(window(3), np.nan)
    np.testing.assert_array_equal(quality.unreadable(nothing, nothing, FS, [500, 900, 1300, 1700]), MISSING)
    assert not len(recwarn)


@pytest.mark.parametrize("length_s, expected", [(0.9, 0), (1.1, FLAT), (10, FLAT)])
def test_a_constant_stretch_is_flat_at_its_window(length_s, expected):
    signal, beats = sinus(80)
    signal[window(4):window(4, length_s)] = 0.05
    result = verdicts(signal, beats)
    assert result[4] == expected and not np.delete(result, 4).any()


def test_a_disconnected_lead_whose_converter_dithers_is_flat():
    signal, beats = sinus(80)
    signal = np.round(signal / 0.005) * 0.005
    signal[window(2):window(3)] = 0.3 + 0.005 * np.random.default_rng(5).integers(-2, 3, window(1))
    result = verdicts(signal, beats)
    assert result[2] == FLAT and not np.delete(result, 2).any()


@pytest.mark.parametrize("low, high", [(-9, 0.5), (-0.02, 9)])
def test_cut_off_peaks_are_saturated_at_their_window(low, high):
    signal, beats = sinus(80)
    cut = slice(window(3), window(5))
    signal[cut] = np.clip(signal[cut], low, high)
    np.testing.assert_array_equal(np.flatnonzero(verdicts(signal, beats) == SATURATED), [3, 4])
    assert not np.delete(verdicts(signal, beats), [3, 4]).any()


def test_coarse_steps_of_a_converter_are_neither_flat_nor_saturated():
    signal, beats = sinus(80)
    assert not verdicts(np.round(signal / 0.04) * 0.04, beats).any()


def test_windows_are_judged_apart_and_extremes_need_runs():
    """Two windows in a row: half a flat run in each, then dither beside a nearby value, then sharp peaks."""
    slope = np.linspace(0, 1, 10 * FS)
    half = np.array([slope, 1 - slope])
    half[0, -int(0.7 * FS):] = half[1, :int(0.7 * FS)] = 2.0
    assert not quality.flat_or_saturated(half, FS)[0].any()
    dither = np.array([np.resize([0.0, 0.005, 0.010], 10 * FS), slope + 0.0001])
    dither[1, 0] += dither[0, -1]
    np.testing.assert_array_equal(quality.flat_or_saturated(dither, FS)[0], [True, False])
    sharp = np.abs(np.resize(np.arange(-12.0, 12), (1, 10 * FS)))
    assert not np.any(quality.flat_or_saturated(sharp, FS))


@pytest.mark.parametrize("low_ratio", [True, False])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("correlation", [0.85, 0.95, 0.98, np.nan])
def test_noise_is_a_bad_match_or_a_fair_one_with_low_ratio_and_moving_baseline(correlation, moving, low_ratio):
    t = np.arange(10 * FS) / FS
    wave = 0.1 * np.sin(2 * np.pi * 10 * t)[None]     # power 0.005
    raw = wave + (0.15 * np.sin(2 * np.pi * 0.4 * t) if moving else 0)
    amplitude = np.array([np.sqrt(8 * 0.005 * 10 ** ((16 if low_ratio else 18) / 10))])
    assert quality.snr_db(wave, FS, amplitude) == pytest.approx(16 if low_ratio else 18, abs=0.1)
    assert quality.baseline_quality(raw, FS) == pytest.approx(0.01 / (0.01 + 0.0225) if moving else 1, abs=0.01)
    expected = correlation < 0.9 or (correlation < 0.97 and low_ratio and moving)
    assert quality.noisy(raw, wave, FS, np.array([correlation]), amplitude) == [expected]


def test_waves_do_not_count_as_noise_floor():
    wave = 0.1 * np.sin(2 * np.pi * 10 * np.arange(10 * FS) / FS)[None]
    with_waves = wave * np.where(np.arange(10 * FS) % (4 * 25) < 2 * 25, 30, 1)
    assert quality.snr_db(with_waves, FS, np.ones(1)) == pytest.approx(quality.snr_db(wave, FS, np.ones(1)), abs=0.01)


def test_correlation_is_that_with_the_most_similar_beat_nearby():
    """Against a plain loop, with beats reported up to 40 ms off their deepest or highest point."""
    rng = np.random.default_rng(4)
    rr = np.append(rng.uniform(0.4, 0.8, 40), rng.uniform(1.2, 1.8, 20))
    signal, beats = ecg(rr, [((0, 0.012, rng.choice([-1, 1])), (rng.uniform(0.05, 0.07), 0.015, rng.uniform(-0.6, 0.6)))
                             for _ in rr])
    shifted = beats + rng.integers(-round(0.04 * FS), round(0.04 * FS), len(beats))
    gap = signal.copy()
    gap[beats[30]] = np.nan
    peaks, correlation, amplitude = quality.beat_quality(gap, signal, FS, shifted)
    expected = [b - 3 + int(np.argmax(np.abs(signal[b - 3:b + 4]))) for b in np.delete(beats, 30)]
    np.testing.assert_array_equal(peaks, expected)
    shape = [signal[p - 25:p + 38] for p in peaks]
    for i, p in enumerate(peaks):
        others = [np.corrcoef(shape[i], shape[j])[0, 1] for j, q in enumerate(peaks)
                  if j != i and abs(i - j) <= 12 and abs(p - q) <= 10 * FS]
        assert correlation[i] == pytest.approx(max(others), abs=1e-5)
        assert amplitude[i] == pytest.approx(np.ptp(signal[p - 12:p + 13]))


@pytest.mark.parametrize("kind", ["white", "muscle", "electrode"])
@pytest.mark.parametrize("seed", [1, 2])
def test_noise_at_minus_6_db_is_found_and_the_rest_stays_readable(kind, seed):
    signal, beats = sinus(200, seed)
    loud = slice(window(6), window(12))
    signal[loud] = quality.mix_noise(signal, noise(kind, len(signal), seed), beats, -6, FS)[loud]
    result = verdicts(signal, detected(signal))
    assert (result[6:12] == NOISE).mean() >= 5 / 6
    assert not result[:5].any() and not result[13:].any()


@pytest.mark.parametrize("kind", ["white", "muscle", "electrode"])
def test_slight_noise_is_readable(kind):
    signal, beats = sinus(120)
    assert not verdicts(quality.mix_noise(signal, noise(kind, len(signal)), beats, 24, FS), beats).any()


def test_noise_without_any_heartbeat_is_found():
    signal = noise("white", window(12))
    assert (verdicts(signal, detected(signal)) == NOISE).all()


def rhythm(name):
    """(RR in s, waves of each beat) of two minutes; a beat of WIDE comes early, with a pause after it."""
    rng = np.random.default_rng(7)
    if name == "single premature":
        wide = np.arange(150) % 9 == 5
    elif name == "bigeminy":
        wide = np.arange(150) % 2 == 1
    elif name == "runs":
        wide = np.arange(150) % 20 < 8
    else:
        wide = np.zeros(150, bool)
    rr = np.where(wide, 0.48, np.where(np.append(False, wide[:-1]), 1.1, 0.8))
    if name == "atrial fibrillation":
        return rng.uniform(0.35, 1.3, 150), [NARROW[1:]] * 150
    if name == "tachycardia":
        return np.full(350, 0.34), [NARROW[1:]] * 350
    if name == "atrial premature":
        early = np.arange(150) % 4 == 2
        return np.where(early, 0.5, 0.85), [ECTOPIC if e else NARROW for e in early]
    if name == "bradycardia with pauses":
        return np.where(np.arange(60) % 5 == 4, 4.5, 1.6), [NARROW] * 60
    return rr, [WIDE if w else NARROW for w in wide]


@pytest.mark.parametrize("wander_mv", [0, 1])
@pytest.mark.parametrize("name", ["single premature", "bigeminy", "runs", "atrial fibrillation", "tachycardia",
                                  "atrial premature", "bradycardia with pauses"])
def test_arrhythmia_is_not_noise(name, wander_mv):
    signal, beats = ecg(*rhythm(name))
    t = np.arange(len(signal)) / FS
    signal += wander_mv * np.sin(2 * np.pi * 0.2 * t)
    if name == "atrial fibrillation":
        signal += 0.08 * np.sin(2 * np.pi * 6.3 * t + 2 * np.sin(1.1 * t))
    assert not verdicts(signal, beats).any()


def test_a_pause_without_beats_is_not_noise():
    signal, beats = sinus(60)
    later, more = sinus(60, 1)
    quiet = np.random.default_rng(2).normal(0, 0.01, window(2))
    whole = np.concatenate([signal, quiet, later])
    assert not verdicts(whole, np.concatenate([beats, more + len(signal) + len(quiet)])).any()


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


@pytest.mark.parametrize("gain", [1e-6, 0.37, 200, 1e7, -1])
def test_the_gain_of_the_recorder_does_not_matter(gain):
    signal, beats = bad_recording()
    smooth = filtered(signal)
    expected = quality.unreadable(signal, smooth, FS, beats)
    assert set(expected) == {0, MISSING, FLAT, SATURATED, NOISE}
    np.testing.assert_array_equal(quality.unreadable(gain * signal, gain * smooth, FS, beats), expected)


def rare_twins():
    """Six kinds of beats in turn, 1.6 s apart: the next of a kind is 9.6 s away, mostly in another window."""
    rng = np.random.default_rng(8)
    kinds = [[(at, 0.015, rng.normal()) for at in np.linspace(-0.06, 0.12, 7)] for _ in range(6)]
    return ecg(np.full(180, 1.6), [kinds[k % 6] for k in range(180)])


@pytest.mark.parametrize("recording", [bad_recording, rare_twins])
@pytest.mark.parametrize("block", [1, 7, 13])
def test_blocks_with_margin_equal_the_whole(block, recording):
    signal, beats = recording()
    smooth, margin = filtered(signal), int(quality.MARGIN_S / quality.VERDICT_S)
    expected, result = quality.unreadable(signal, smooth, FS, beats), []
    for k in range(0, len(expected), block):
        first = max(k - margin, 0)
        low, high = window(first), min(window(k + block + margin), len(signal))
        inside = beats[(beats >= low) & (beats < high)] - low
        result.extend(quality.unreadable(signal[low:high], smooth[low:high], FS, inside)[k - first:][:block])
    np.testing.assert_array_equal(result, expected)


def test_what_lies_beyond_the_margin_does_not_matter():
    signal, beats = bad_recording()
    smooth = filtered(signal)
    expected = quality.unreadable(signal, smooth, FS, beats)
    far = window(12) + window(1) + int(quality.MARGIN_S * FS)
    smooth[far:], signal[far:] = 50 * noise("electrode", len(signal) - far), np.nan
    np.testing.assert_array_equal(quality.unreadable(signal, smooth, FS, beats)[:13], expected[:13])


def test_batches_do_not_matter(monkeypatch):
    signal, beats = bad_recording()
    expected = verdicts(signal, beats)
    monkeypatch.setattr(quality, "BATCH_WINDOWS", 4)
    np.testing.assert_array_equal(verdicts(signal, beats), expected)


@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_a_signal_shorter_than_a_window_has_one_verdict(n):
    signal, beats = sinus(30)
    result = quality.unreadable(signal[:n], signal[:n], FS, beats[beats < n])
    np.testing.assert_array_equal(result, np.zeros(min(n, 1)))


@pytest.mark.parametrize("beats", [[-1, 5], [5, 5], [9, 4], [5, 1000]])
def test_beats_outside_or_out_of_order_are_refused(beats):
    with pytest.raises(ValueError, match="rise and lie inside"):
        quality.unreadable(np.zeros(1000), np.zeros(1000), FS, beats)


def test_signals_of_different_length_are_refused():
    with pytest.raises(ValueError, match="same length"):
        quality.unreadable(np.zeros(1000), np.zeros(999), FS, [])


@pytest.mark.parametrize("snr_db", [24, 6, -6])
def test_mixed_noise_has_the_ratio_asked_for(snr_db):
    """Measured by a plain loop: QRS peak-to-peak amplitude 1.4 mV is a sine's power of 1.4^2 / 8."""
    signal, beats = sinus(120)
    rng = np.random.default_rng(3)
    source = 3.7 * rng.standard_normal(30 * FS) + 40   # shorter than the signal, with an offset
    added = quality.mix_noise(signal, source, beats, snr_db, FS) - signal
    half = round(0.05 * FS)
    heights = sorted(max(signal[b - half:b + half + 1]) - min(signal[b - half:b + half + 1]) for b in beats)
    cut = len(heights) // 20
    height = np.mean(heights[cut:-cut])
    seconds = added[:len(added) // FS * FS].reshape(-1, FS)
    power = np.mean((seconds - seconds.mean(axis=1, keepdims=True)) ** 2)
    assert height == pytest.approx(1.4, abs=0.05)
    assert 10 * np.log10(height ** 2 / 8 / power) == pytest.approx(snr_db, abs=0.1)
    assert added[0] == 0
    np.testing.assert_allclose(added[30 * FS:60 * FS], added[:30 * FS], atol=1e-9)


def test_the_ratio_does_not_depend_on_rare_beats_or_a_burst():
    signal, beats = sinus(300)
    source = noise("white", 300 * FS)
    plain = quality.mix_noise(signal, source, beats, 6, FS) - signal
    odd, burst = signal.copy(), source.copy()
    odd[beats[::40]] += 20
    burst[5 * FS:10 * FS] *= 30
    other = quality.mix_noise(odd, burst, beats, 6, FS) - odd
    quiet = slice(20 * FS, None)
    assert np.std(other[quiet]) == pytest.approx(np.std(plain[quiet]), rel=0.02)


@pytest.mark.parametrize("source, beats", [(np.ones(100), [500]), (np.ones(5000), [500]), (np.arange(5000.0), [])])
def test_noise_or_beats_that_cannot_be_measured_are_refused(source, beats):
    with pytest.raises(ValueError, match="beats inside the signal|no power"):
        quality.mix_noise(np.arange(1000.0), source, beats, 6, FS)
