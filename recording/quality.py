"""Which stretches of one lead cannot be read: missing, flat, saturated, or drowned in noise.

Pure functions over arrays: no files, no settings of the pipeline. Every measure is a ratio or an equality of
samples, so the gain of the recorder does not matter. The window of 10 s is that of the papers below.

Noise is judged by what makes a heartbeat a heartbeat: it resembles its neighbours. Template matching after
Orphanidou et al. 2015 (IEEE J Biomed Health Inform 19:832), with one change: their template is the mean of all
beats and they ask for plausible, even RR intervals, which calls bigeminy and fibrillation noise. Here a beat is
compared with its most similar neighbour, and intervals are not looked at: a premature beat of any shape needs
one more of its kind nearby, or regular beats around it.

What electrode motion adds are slow, smooth waves that resemble one another. They are told by three signs
together, so that a fast rhythm (no quiet stretch), baseline wander (filtered away) and doubtful beats alone are
not noise: beats that match only fairly, a low local signal-to-noise ratio (the idea of Smital et al. 2020, IEEE
Trans Biomed Eng 67:2721; signal power as in `mix_noise`), and a raw baseline with much of the power (basSQI of
Li, Mark & Clifford 2008, Physiol Meas 29:15, as in Zhao & Zhang 2018, Front Physiol 9:727).
"""

import numpy as np

REASONS = ("", "missing", "flat", "saturated", "noise")
VERDICT_S = 10.0
MARGIN_S = 30.0               # a verdict depends on nothing further away than this from its window

MISSING_S = 0.5               # in all, of a window: shorter gaps can be bridged
FLAT_S = 1.0                  # longest constant run: 0.03 s in DS1, but for the amplifier of 116 (0.74 s)
FLAT_LEVELS = 8               # a whole window within so many steps of the converter is a line with dither
CLIP_RUN_S = 0.02             # samples in a row at the window's own extreme: in DS1 only in 116, which is cut off
CLIP_S = 0.2                  # time in such runs, of a window

# Noise: CORRELATION_MIN is the highest hundredth at which, of the clean windows of DS1 (mitdb without expert noise
# marks and flutter), fewer than 0.5 % in all and 1 % of those with V, S or AF are called noise (0.91: V 1.1 %).
CORRELATION_MIN = 0.90
CORRELATION_FAIR = 0.97       # below this a low ratio and a moving baseline are noise too: all three together
SNR_MIN_DB = 17.0             # spare the fast rhythms of DS1: all VT of 223, 12 of 18 windows of flutter in 207;
BASELINE_MIN = 0.75           # the optimum is flat

CORRELATION_QUANTILE = 0.25   # of a window's beats: a few odd beats are no noise
MIN_BEATS = 3                 # fewer judged beats in a window say nothing: a pause must not become noise
ALIKE_WITHIN_S = 10.0            # how far away, and
ALIKE_WITHIN_BEATS = 12               # how many beats away to each side, the most similar beat may be
BEAT_S = (0.1, 0.15)          # before and after the R peak: QRS complex, where beats of one kind agree
EXTREME_S = 0.05                # the extreme of the QRS complex is looked for this far from the detected peak
QRS_S = 0.05                  # `nst` measures the peak-to-peak amplitude this far to both sides
FLOOR_PIECE_S = 0.1                 # the noise floor is the power of the quietest quarter of pieces of this length
FLOOR_QUANTILE = 0.25
BASELINE_HZ = (1.0, 40.0)     # basSQI: 1 - power up to the first / power up to the second

BATCH_WINDOWS = 360           # an hour at a time: bounds the memory


def unreadable(signal_mv, filtered_mv, fs_hz, beats):
    """Why each window of VERDICT_S seconds cannot be read: (n_windows,) int8, index into REASONS, 0 readable.

    signal_mv (n,) raw, NaN where missing; filtered_mv (n,) band-passed 0.5-40 Hz; beats (k,) detected R peaks
    in samples, rising. The unit does not matter. Of several reasons the first in REASONS is given.
    n_windows = ceil(n / window); a last window that is not full is judged by the last VERDICT_S seconds.
    A recording may be cut into blocks at multiples of VERDICT_S with MARGIN_S on both sides: the verdicts
    are the same, where the samples given are.
    Raises ValueError where the two signals differ in length or beats lie outside them or do not rise.
    """
    signal_mv, filtered_mv = np.asarray(signal_mv, float), np.asarray(filtered_mv, float)
    signal_mv, beats = np.where(np.isfinite(signal_mv), signal_mv, np.nan), np.asarray(beats, np.int64)
    if signal_mv.shape != filtered_mv.shape or signal_mv.ndim != 1:
        raise ValueError(f"raw and filtered signal of shapes {signal_mv.shape} and {filtered_mv.shape}: "
                         "expected one lead of the same length")
    if len(beats) and (beats[0] < 0 or beats[-1] >= len(signal_mv) or (np.diff(beats) <= 0).any()):
        raise ValueError("beats must rise and lie inside the signal")
    starts, window = window_starts(len(signal_mv), fs_hz)
    result = np.zeros(len(starts), np.int8)
    if not len(starts):
        return result
    measured = beat_quality(signal_mv, filtered_mv, fs_hz, beats)
    for first in range(0, len(starts), BATCH_WINDOWS):
        part = slice(first, first + BATCH_WINDOWS)
        raw = np.lib.stride_tricks.sliding_window_view(signal_mv, window)[starts[part]]
        filtered = np.lib.stride_tricks.sliding_window_view(filtered_mv, window)[starts[part]]
        verdicts = (missing(raw, fs_hz), *flat_or_saturated(raw, fs_hz),
                    noisy(raw, filtered, fs_hz, *pool_by_window(*measured, starts[part], window)))
        result[part] = np.select(verdicts, np.arange(1, len(REASONS)))
    return result


def window_starts(n, fs_hz):
    """((n_windows,) first samples, length in samples): the last window is moved inward to be full."""
    window = min(int(round(VERDICT_S * fs_hz)), n)
    return np.minimum(np.arange(0, n, max(window, 1)), n - window), window


def missing(raw, fs_hz):
    """(m,) bool of windows (m, w): more than MISSING_S in all is missing."""
    return np.isnan(raw).sum(axis=1) > MISSING_S * fs_hz


def flat_or_saturated(raw, fs_hz):
    """((m,) flat, (m,) saturated) of windows (m, w).

    Flat: one value for FLAT_S, or the whole window within FLAT_LEVELS of its smallest step. Saturated: for
    CLIP_S in all at the window's own minimum or maximum, in runs of CLIP_RUN_S: peaks cut off.
    """
    m, w = raw.shape
    values = raw.ravel()
    starts = np.ones(m * w, bool)
    starts[1:] = values[1:] != values[:-1]     # NaN differs from NaN: never flat
    starts[::w] = True
    starts = np.flatnonzero(starts)
    lengths, rows, values = np.diff(starts, append=m * w), starts // w, values[starts]
    first_of_row = np.searchsorted(rows, np.arange(m))
    longest = np.maximum.reduceat(lengths, first_of_row)
    low = np.fmin.reduceat(values, first_of_row)
    high = np.fmax.reduceat(values, first_of_row)
    steps = np.abs(np.diff(values, append=np.nan))
    steps[np.append(first_of_row[1:], len(rows)) - 1] = np.nan   # from one window to the next
    step = np.fmin.reduceat(steps, first_of_row)
    flat = (longest >= FLAT_S * fs_hz) | ((w >= FLAT_S * fs_hz) & (high - low < (FLAT_LEVELS - 0.5) * step))
    cut = ((values == low[rows]) | (values == high[rows])) & (lengths >= np.ceil(CLIP_RUN_S * fs_hz))
    return flat, np.bincount(rows[cut], lengths[cut], m) >= CLIP_S * fs_hz


def noisy(raw, filtered, fs_hz, correlation, amplitude):
    """(m,) bool of windows (m, w) with their beats' `pool_by_window` correlation (m,) and amplitude (m,).

    NaN (too few beats) is never noise: where no beat is found, none can be called abnormal.
    """
    doubtful = (correlation < CORRELATION_FAIR) & (snr_db(filtered, fs_hz, amplitude) < SNR_MIN_DB)
    noise = correlation < CORRELATION_MIN
    doubtful &= ~noise
    if doubtful.any():
        noise[doubtful] = baseline_quality(raw[doubtful], fs_hz) < BASELINE_MIN
    return noise


def beat_quality(signal_mv, filtered_mv, fs_hz, beats):
    """Peaks (k,), correlation with the most similar neighbour (k,), peak-to-peak QRS amplitude (k,).

    Peaks are the extremes of the QRS complexes near `beats`. Beats without a whole complex inside the
    signal, or with a missing sample, are left out; correlation is NaN without a neighbour.
    """
    align, before, after, qrs = (int(round(s * fs_hz)) for s in (EXTREME_S, *BEAT_S, QRS_S))
    reach = align + max(before, after, qrs) + 1
    gaps = np.concatenate(([0], np.cumsum(~(np.isfinite(signal_mv) & np.isfinite(filtered_mv)))))
    beats = beats[(beats >= reach) & (beats + reach < len(signal_mv))]
    beats = beats[gaps[beats + reach] == gaps[beats - reach]]
    around = beats[:, None] + np.arange(-align, align + 1)
    peaks = np.unique(beats - align + np.argmax(np.abs(filtered_mv[around]), axis=1))
    amplitude = np.ptp(filtered_mv[peaks[:, None] + np.arange(-qrs, qrs + 1)], axis=1)
    shapes = filtered_mv[peaks[:, None] + np.arange(-before, after)]
    shapes = shapes - shapes.mean(axis=1, keepdims=True)
    size = np.linalg.norm(shapes, axis=1, keepdims=True)
    shapes = np.divide(shapes, size, out=np.zeros_like(shapes), where=size > 0).astype(np.float32)
    best = np.full(len(peaks), -np.inf)
    for lag in range(1, min(ALIKE_WITHIN_BEATS + 1, len(peaks))):
        alike = np.einsum("ij,ij->i", shapes[lag:], shapes[:-lag])
        alike[peaks[lag:] - peaks[:-lag] > ALIKE_WITHIN_S * fs_hz] = -np.inf
        best[lag:] = np.maximum(best[lag:], alike)
        best[:-lag] = np.maximum(best[:-lag], alike)
    return peaks, np.where(np.isfinite(best), best, np.nan), amplitude


def pool_by_window(peaks, correlation, amplitude, starts, window):
    """Lower quartile of the correlation (m,) and median amplitude (m,) of each window's beats; NaN if few."""
    low, high = np.searchsorted(peaks, starts), np.searchsorted(peaks, starts + window)
    quartile, middle = np.full(len(starts), np.nan), np.full(len(starts), np.nan)
    for k, (a, b) in enumerate(zip(low, high)):
        known = np.sort(correlation[a:b][~np.isnan(correlation[a:b])])
        if len(known) >= MIN_BEATS:
            quartile[k] = known[int(CORRELATION_QUANTILE * (len(known) - 1))]
            middle[k] = np.median(amplitude[a:b])
    return quartile, middle


def snr_db(filtered, fs_hz, amplitude):
    """(m,) signal-to-noise ratio in dB of windows (m, w): QRS power against the floor between the waves."""
    piece = max(int(round(FLOOR_PIECE_S * fs_hz)), 2)
    pieces = filtered[:, :filtered.shape[1] // piece * piece].reshape(len(filtered), -1, piece)
    power = np.sort(pieces.var(axis=2), axis=1)
    floor = power[:, int(FLOOR_QUANTILE * (power.shape[1] - 1))] if power.shape[1] else np.zeros(len(power))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(amplitude ** 2 / 8 / floor)


def baseline_quality(raw, fs_hz):
    """(m,) basSQI of windows (m, w): share of the power up to 40 Hz that is not below 1 Hz."""
    mean = np.nanmean(raw, axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(np.nan_to_num(raw - mean) * np.hanning(raw.shape[1]), axis=1)) ** 2
    hz = np.fft.rfftfreq(raw.shape[1], 1 / fs_hz)
    low, all_of_it = (power[:, hz <= limit].sum(axis=1) for limit in BASELINE_HZ)
    return 1 - low / all_of_it


def mix_noise(signal_mv, noise_mv, beats, snr_db, fs_hz):
    """Signal with noise at a signal-to-noise ratio as `nst` of the WFDB software defines it.

    signal_mv (n,), noise_mv (any length, repeated as needed), beats (k,) R peaks of normal beats -> (n,).
    Moody, Muldrow & Mark 1984 (Comput Cardiol 11:381), nst.c and sigamp.c: SNR = 10 log10(S / N);
    S = p^2 / 8, p the trimmed mean (5 % off at each end) of the peak-to-peak amplitudes within 50 ms of each of
    the first 300 beats; sqrt(N) the trimmed mean of the standard deviations of the first 300 s of noise, a
    second each. The offset of the noise's first sample is taken off, as nst avoids steps.
    Raises ValueError without beats inside the signal, less than a second of noise, or noise without power.
    """
    signal_mv, noise_mv = np.asarray(signal_mv, float), np.asarray(noise_mv, float)
    half, second = int(round(QRS_S * fs_hz)), int(round(fs_hz))
    beats = np.asarray(beats, np.int64)
    beats = beats[(beats >= half) & (beats + half < len(signal_mv))][:300]
    chunks = noise_mv[:len(noise_mv) // second * second].reshape(-1, second)[:300]
    if not len(beats) or not len(chunks):
        raise ValueError(f"{len(beats)} beats inside the signal and {len(chunks)} s of noise: expected at least "
                         "one of each")
    size = trimmed_mean(np.ptp(signal_mv[beats[:, None] + np.arange(-half, half + 1)], axis=1))
    rms = trimmed_mean(chunks.std(axis=1))
    if not rms > 0:
        raise ValueError("the noise has no power")
    gain = size / np.sqrt(8) / rms * 10 ** (-snr_db / 20)
    return signal_mv + gain * (np.resize(noise_mv, len(signal_mv)) - noise_mv[0])


def trimmed_mean(values):
    """Mean of values (k,) without the lowest and the highest twentieth."""
    cut = len(values) // 20
    return np.sort(values)[cut:len(values) - cut].mean()
