"""Signal to segments: small pure functions over arrays. No files, no settings of their own.

Settings arrive as arguments; signals are one lead in mV, positions are in samples.
"""

from fractions import Fraction

import numpy as np
import scipy

# segments normalised at a time: 370 kB, which stay in a core's cache between operations
NORMALISED = 64
RATIO_LIMIT = 1000  # largest factor of the polyphase resampling: 1 ppm of half an hour at most


def bandpass(signal_mv, fs_hz, band_hz, order):
    """Zero-phase Butterworth band-pass.

    signal_mv (n,) -> (n,) float64. Run forwards and backwards, so the R peak stays where the
    annotation has it and the effective order doubles.
    """
    # second-order sections: as one polynomial the 0.5 Hz edge loses its digits at 360 Hz
    sos = scipy.signal.butter(order, band_hz, btype="bandpass", fs=fs_hz, output="sos")
    return scipy.signal.sosfiltfilt(sos, signal_mv)


def fill_gaps(signal):
    """(n,) with NaN replaced by straight lines, or by zeros where there is nothing else."""
    missing = ~np.isfinite(signal)
    if not missing.any():
        return signal
    if missing.all():
        return np.zeros(len(signal))

    at = np.arange(len(signal))
    return np.where(missing, np.interp(at, at[~missing], signal[~missing]), signal)


def resample(signal, from_hz, to_hz):
    """(n,) at another rate: polyphase filter, time 0 stays where it is."""
    ratio = Fraction(to_hz / from_hz).limit_denominator(RATIO_LIMIT)
    if ratio == 1:
        return signal
    return scipy.signal.resample_poly(signal, ratio.numerator, ratio.denominator)


def longest_flat_run(signal_mv):
    """(start, length) in samples of the longest run of one value; NaN is never flat."""
    # NaN differs from NaN: each missing sample is a run of its own
    edges = np.flatnonzero(np.diff(signal_mv) != 0) + 1
    bounds = np.concatenate(([0], edges, [len(signal_mv)]))
    k = int(np.argmax(np.diff(bounds)))
    return int(bounds[k]), int(bounds[k + 1] - bounds[k])


def inside(samples, n_samples, window_size):
    """(k,) bool: which R peaks lie far enough from both ends for a whole segment."""
    half = window_size // 2
    samples = np.asarray(samples)
    return (samples >= half) & (samples + half <= n_samples)


def cut_segments(signal, samples, window_size):
    """One window around each R peak, the peak at index window_size // 2.

    signal (n,), samples (k,) -> (k, window_size) copy.
    Raises ValueError where a window reaches over an end (select with `inside` first).
    """
    if not np.all(inside(samples, len(signal), window_size)):
        raise ValueError("a segment reaches over the end of the signal")

    # a view of every window, of which only those of beats are copied
    windows = np.lib.stride_tricks.sliding_window_view(signal, window_size)
    return windows[np.asarray(samples, int) - window_size // 2]


def normalise(segments_mv):
    """Each segment to mean 0 and standard deviation 1, so that neither electrode gain nor the size
    of a patient's heart decides; no segment's values depend on another's.

    segments_mv (k, w) -> (x (k, w) float32, offset_mv (k,), scale_mv (k,)), with
    segments_mv == x * scale_mv + offset_mv up to float32 rounding.
    """
    k, width = segments_mv.shape
    x = np.empty((k, width), np.float32)
    offset = np.empty(k, np.float32)
    scale = np.empty(k, np.float32)

    for start in range(0, k, NORMALISED):
        rows = slice(start, start + NORMALISED)
        part = segments_mv[rows]
        mean = part.mean(axis=1, keepdims=True)
        away = part - mean
        spread = np.sqrt(np.square(away).mean(axis=1, keepdims=True))
        np.maximum(spread, 1e-6, out=spread)  # 1 nV: a flat segment becomes zeros, not NaN
        np.divide(away, spread, out=x[rows], casting="same_kind")
        offset[rows] = mean[:, 0]
        scale[rows] = spread[:, 0]
    return x, offset, scale


def rr_intervals_s(samples, fs_hz):
    """Time to the beat before and after, in s: samples (k,) -> (k,), (k,); NaN at the ends."""
    gaps = np.diff(samples) / fs_hz
    return np.append(np.nan, gaps), np.append(gaps, np.nan)


def gaussian(window_size, sigma_samples):
    """(window_size,) Gaussian of height 1 on the R peak; all ones where sigma_samples is None.

    The error of a whole segment punishes a normal beat for its premature neighbour; looking
    at the beat itself does not.
    """
    t = np.arange(window_size) - window_size // 2
    return np.ones(window_size) if sigma_samples is None else np.exp(-0.5 * (t / sigma_samples)**2)
