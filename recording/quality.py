"""Which stretches of one lead cannot be read: missing, flat, saturated, or drowned in noise.

Pure functions over arrays: no files, no settings of the pipeline. Every measure is a ratio or an
equality of samples, so the gain of the recorder does not matter. The window of 10 s is that of the
papers below.

Noise is judged by what makes a heartbeat a heartbeat: it resembles its neighbours. Template
matching after Orphanidou et al. 2015 (IEEE J Biomed Health Inform 19:832), with one change: their
template is the mean of all beats and they ask for plausible, even RR intervals, which calls
bigeminy and fibrillation noise. Here a beat is compared with its most similar neighbour, and
intervals are not looked at: a premature beat of any shape needs one more of its kind nearby, or
regular beats around it.

What electrode motion adds are slow, smooth waves that resemble one another. They are told by three
signs together, so that a fast rhythm (no quiet stretch), baseline wander (filtered away) and
doubtful beats alone are not noise: beats that match only fairly, a low local signal-to-noise ratio
(the idea of Smital et al. 2020, IEEE Trans Biomed Eng 67:2721; signal power as in `mix_noise`), and
a raw baseline with much of the power (basSQI of Li, Mark & Clifford 2008, Physiol Meas 29:15, as in
Zhao & Zhang 2018, Front Physiol 9:727).
"""

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view

REASONS = ("", "missing", "flat", "saturated", "noise", "no QRS complexes")
VERDICT_S = 10.0              # a verdict for each window of this length
MARGIN_S = 30.0               # a verdict depends on nothing further away than this from its window

MISSING_S = 0.5               # in all, of a window: shorter gaps can be bridged
FLAT_S = 1.0                  # longest constant run: 0.03 s in DS1, but for the amplifier of 116
                              # (0.74 s)
FLAT_LEVELS = 8               # a whole window within so many steps of the converter is a line with
                              # dither
CLIP_RUN_S = 0.02             # samples in a row at the window's own extreme: in DS1 only in 116,
                              # which is cut off
CLIP_S = 0.2                  # time in such runs, of a window

# Noise: CORRELATION_MIN is the highest hundredth at which, of the clean windows of DS1 (mitdb
# without expert noise marks and flutter), fewer than 0.5 % in all and 1 % of those with V, S or AF
# are called noise (0.91: V 1.1 %).
CORRELATION_MIN = 0.90
CORRELATION_FAIR = 0.97       # below this a low ratio and a moving baseline are noise too: all
SNR_MIN_DB = 17.0             # three together spare the fast rhythms of DS1: all VT of 223, 12 of
BASELINE_MIN = 0.75           # 18 windows of flutter in 207; the optimum is flat

CORRELATION_QUANTILE = 0.25   # of a window's beats: a few odd beats are no noise
MIN_BEATS = 3                 # fewer judged beats in a window say nothing: a pause is no noise
ALIKE_WITHIN_S = 10.0         # how far away, and
ALIKE_WITHIN_BEATS = 12       # how many beats away to each side, the most similar beat may be
BEAT_S = (0.1, 0.15)          # before and after the R peak: QRS, where beats of a kind agree
EXTREME_S = 0.05              # the extreme of the QRS complex is this near to the detected peak
QRS_HALF_S = 0.05             # `nst` measures the peak-to-peak amplitude this far to both sides
FLOOR_PIECE_S = 0.1           # the noise floor is the power of the quietest quarter of such pieces
FLOOR_QUANTILE = 0.25
BASELINE_HZ = (1.0, 40.0)     # basSQI: 1 - power up to the first / power up to the second

BATCH_WINDOWS = 360           # an hour at a time: bounds the memory


def unreadable(signal_mv, filtered_mv, fs_hz, beats):
    """Why each window of VERDICT_S cannot be read: (n_windows,) int8, index into REASONS, 0
    readable.

    signal_mv (n > 0,) raw, NaN where missing; filtered_mv (n,) band-passed 0.5-40 Hz; beats (k,)
    detected R peaks in samples, rising. The unit does not matter. Of several reasons the first in
    REASONS is given. n_windows = ceil(n / window); a last window that is not full is judged by the
    last VERDICT_S. A recording may be cut into blocks at multiples of VERDICT_S with MARGIN_S on
    both sides: the verdicts are the same, where the samples given are.
    """
    signal_mv = np.where(np.isfinite(signal_mv), signal_mv, np.nan)
    n = len(signal_mv)
    window = min(round(VERDICT_S * fs_hz), n)
    starts = np.minimum(np.arange(0, n, window), n - window)  # the last one moved inward to be full
    match = match_by_window(*beat_quality(signal_mv, filtered_mv, fs_hz, beats), starts, window)

    result = []
    for first in range(0, len(starts), BATCH_WINDOWS):
        part = slice(first, first + BATCH_WINDOWS)
        raw = sliding_window_view(signal_mv, window)[starts[part]]  # (m, window)
        filtered = sliding_window_view(filtered_mv, window)[starts[part]]
        reasons = (np.isnan(raw).sum(axis=1) > MISSING_S * fs_hz, *flat_or_saturated(raw, fs_hz),
                   noisy(raw, filtered, fs_hz, *match[:, part]))
        result.append(np.select(reasons, np.arange(1, 1 + len(reasons))))
    return np.concatenate(result).astype(np.int8)


# --- flat and saturated ---------------------------------------------------------------------------

def flat_or_saturated(raw, fs_hz):
    """((m,) flat, (m,) saturated) of windows (m, w).

    Flat: one value for FLAT_S, or the whole window within FLAT_LEVELS of its smallest step.
    Saturated: for CLIP_S in all at the window's own minimum or maximum, in runs of CLIP_RUN_S:
    peaks cut off.
    """
    m, w = raw.shape

    # runs of one value, of all windows one after another; NaN differs from NaN and is never flat
    values = raw.ravel()
    changes = np.ones(m * w, bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    changes[::w] = True
    starts = np.flatnonzero(changes)
    values = values[starts]
    lengths = np.diff(starts, append=m * w)
    rows = starts // w
    first_of_row = np.searchsorted(rows, np.arange(m))

    low = np.fmin.reduceat(values, first_of_row)
    high = np.fmax.reduceat(values, first_of_row)
    steps = np.abs(np.diff(values, append=np.nan))
    steps[np.append(first_of_row[1:], len(rows)) - 1] = np.nan  # from one window to the next
    step = np.fmin.reduceat(steps, first_of_row)
    flat = np.maximum.reduceat(lengths, first_of_row) >= FLAT_S * fs_hz
    if w >= FLAT_S * fs_hz:
        flat |= high - low < (FLAT_LEVELS - 0.5) * step

    at_extreme = (values == low[rows]) | (values == high[rows])
    cut = at_extreme & (lengths >= np.ceil(CLIP_RUN_S * fs_hz))
    return flat, np.bincount(rows[cut], lengths[cut], m) >= CLIP_S * fs_hz


# --- noise ----------------------------------------------------------------------------------------

def noisy(raw, filtered, fs_hz, correlation, amplitude):
    """(m,) bool of windows (m, w) with the correlation (m,) and amplitude (m,) of their beats.

    NaN (too few beats) is never noise: where no beat is found, none can be called abnormal.
    """
    noise = correlation < CORRELATION_MIN
    # most windows need no closer look
    fair = np.flatnonzero(~noise & (correlation < CORRELATION_FAIR))
    doubtful = fair[snr_db(filtered[fair], fs_hz, amplitude[fair]) < SNR_MIN_DB]
    noise[doubtful] = baseline_quality(raw[doubtful], fs_hz) < BASELINE_MIN
    return noise


def beat_quality(signal_mv, filtered_mv, fs_hz, beats):
    """Peaks (k,), correlation with the most similar neighbour (k,), peak-to-peak QRS amplitude
    (k,).

    Peaks are the extremes of the QRS complexes near `beats`. Beats without a whole complex inside
    the signal, or with a missing sample, are left out; correlation is NaN without a neighbour.
    """
    near, before, after, half = (round(s * fs_hz) for s in (EXTREME_S, *BEAT_S, QRS_HALF_S))
    reach = near + max(before, after, half) + 1
    gaps = np.append(0, np.cumsum(~np.isfinite(signal_mv + filtered_mv)))

    beats = beats[(beats >= reach) & (beats + reach < len(signal_mv))]
    beats = beats[gaps[beats + reach] == gaps[beats - reach]]
    around = beats[:, None] + np.arange(-near, near + 1)
    peaks = np.unique(beats - near + np.abs(filtered_mv[around]).argmax(axis=1))

    # of unit length and mean 0: a product of two is their correlation
    shapes = filtered_mv[peaks[:, None] + np.arange(-before, after)]
    shapes -= shapes.mean(axis=1, keepdims=True)
    size = np.linalg.norm(shapes, axis=1, keepdims=True)
    shapes = (shapes / np.where(size > 0, size, 1)).astype(np.float32)

    best = np.full(len(peaks), -np.inf)
    for lag in range(1, min(ALIKE_WITHIN_BEATS + 1, len(peaks))):
        alike = np.einsum("ij,ij->i", shapes[lag:], shapes[:-lag])
        alike[peaks[lag:] - peaks[:-lag] > ALIKE_WITHIN_S * fs_hz] = -np.inf
        best[lag:] = np.maximum(best[lag:], alike)
        best[:-lag] = np.maximum(best[:-lag], alike)

    amplitude = np.ptp(filtered_mv[peaks[:, None] + np.arange(-half, half + 1)], axis=1)
    return peaks, np.where(np.isfinite(best), best, np.nan), amplitude


def match_by_window(peaks, correlation, amplitude, starts, window):
    """(2, m): lower quartile of the correlation and median amplitude of each window's beats; NaN if
    few.
    """
    result = np.full((2, len(starts)), np.nan)
    low, high = np.searchsorted(peaks, [starts, starts + window])
    for k, (first, last) in enumerate(zip(low, high)):
        known = correlation[first:last]
        known = np.sort(known[~np.isnan(known)])
        if len(known) >= MIN_BEATS:
            # as np.quantile and np.median do of a whole array; here it is one in each window
            size = np.sort(amplitude[first:last])
            result[:, k] = (known[int((len(known) - 1) * CORRELATION_QUANTILE)],
                            (size[(len(size) - 1) // 2] + size[len(size) // 2]) / 2)
    return result


def snr_db(filtered, fs_hz, amplitude):
    """(m,) signal-to-noise ratio in dB of windows (m, w): QRS power against the floor between the
    waves.
    """
    piece = max(round(FLOOR_PIECE_S * fs_hz), 2)
    n_pieces = filtered.shape[1] // piece
    if not n_pieces:
        return np.full(len(filtered), np.inf)

    power = filtered[:, :n_pieces * piece].reshape(len(filtered), n_pieces, piece).var(axis=2)
    floor = np.quantile(power, FLOOR_QUANTILE, axis=1, method="lower")
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(amplitude ** 2 / 8 / floor)


def baseline_quality(raw, fs_hz):
    """(m,) basSQI of windows (m, w): share of the power up to 40 Hz that is not below 1 Hz."""
    mean = np.ma.masked_invalid(raw).mean(axis=1, keepdims=True).filled(0)
    around = np.nan_to_num(raw - mean)
    power = np.abs(np.fft.rfft(around * np.hanning(raw.shape[1]), axis=1)) ** 2
    hz = np.fft.rfftfreq(raw.shape[1], 1 / fs_hz)
    low, whole = (power[:, hz <= limit].sum(axis=1) for limit in BASELINE_HZ)
    return 1 - low / np.maximum(whole, np.finfo(float).tiny)


# --- noise stress test ----------------------------------------------------------------------------

def mix_noise(signal_mv, noise_mv, beats, snr_db, fs_hz):
    """Signal with noise at a signal-to-noise ratio as `nst` of the WFDB software defines it.

    signal_mv (n,), noise_mv (any length, repeated as needed), beats (k,) R peaks of normal beats ->
    (n,). Moody, Muldrow & Mark 1984 (Comput Cardiol 11:381), nst.c and sigamp.c: SNR = 10 log10(S /
    N); S = p^2 / 8, p the trimmed mean (5 % off at each end) of the peak-to-peak amplitudes within
    50 ms of each of the first 300 beats; sqrt(N) the trimmed mean of the standard deviations of the
    first 300 s of noise, a second each. The offset of the noise's first sample is taken off, as nst
    avoids steps. Raises ValueError without beats inside the signal, less than a second of noise, or
    noise without power.
    """
    half = round(QRS_HALF_S * fs_hz)
    beats = np.asarray(beats, np.int64)
    beats = beats[(beats >= half) & (beats + half < len(signal_mv))][:300]

    second = round(fs_hz)
    chunks = noise_mv[:len(noise_mv) // second * second].reshape(-1, second)[:300]
    if not len(beats) or not len(chunks):
        raise ValueError(f"{len(beats)} beats inside the signal and {len(chunks)} s of noise: "
                         "expected at least one of each")
    heights = np.ptp(signal_mv[beats[:, None] + np.arange(-half, half + 1)], axis=1)
    size = scipy.stats.trim_mean(heights, 0.05)
    rms = scipy.stats.trim_mean(chunks.std(axis=1), 0.05)
    if not rms > 0:
        raise ValueError("the noise has no power")

    gain = size / np.sqrt(8) / rms * 10 ** (-snr_db / 20)
    return signal_mv + gain * (np.resize(noise_mv, len(signal_mv)) - noise_mv[0])
