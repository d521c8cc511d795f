"""Windows without QRS complexes: fibrillation, flutter, and ventricular rhythms as wide and fast.

Four signs together, each a ratio or a rate, so that the recorder's gain does not matter. Slopes of
a normal ECG are few and steep, those of an oscillation are spread over all of it: their kurtosis
is low. And an oscillation is nearly its own negative half a period later: what a filter for that
leaves over is little (Kuo & Dillman 1978, Comput Cardiol 5:347). Its power lies about one
frequency, which that of noise does not (Nygards & Hulting 1977, Comput Cardiol 4:393). Where its
complexes resemble one another that frequency must be high: a slow rhythm may have wide ones only.
"""

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view

from recording.quality import BATCH_WINDOWS, VERDICT_S

SLOPE_S = 0.022           # the slope is the rise over twice this time
LEAST_S = 2.0             # a shorter window says nothing
# Of 11 records of vfdb, seconds in windows that are found: 89 % of fibrillation and flutter, 0.9 %
# of noise; of normal rhythm 19 % of 418, whose beats are all wide (97 % without the frequency), and
# 5 s elsewhere. Of 20 records of DS1 without flutter none has the first two (lowest thousandths 2.2
# and 0.68), nor has the noise of nstdb all.
KURTOSIS = 1.5
LEAKAGE = 0.7
CONCENTRATION = 0.3
SLOWEST_HZ = 2.4          # 144 a minute; 418's normal rhythm has 2.0, tachycardia of 611 has 2.2
PEAK_HZ = (1.0, 10.0)     # where the frequency is looked for; the share is of ...
AROUND_HZ = 0.75          # ... what lies so near to it ...
WHOLE_HZ = (0.5, 30.0)    # ... of this power
SPECTRUM_S = 4.0
BESIDE = -0.1             # margin of noise beside such a window that is one too: in the same 11
                          # records 91 % of fibrillation instead of 89, 7.0 % of it only unreadable
                          # instead of 9.5, 1.0 % of noise instead of 0.9
NORMAL_KURTOSIS = 3.0     # KURTOSIS counts from that of a normal distribution


def oscillation(filtered, fs_hz):
    """(margin (n_windows,), frequency_hz (n_windows,)) of a band-passed lead (n,): numbers for each
    window of VERDICT_S as quality.unreadable cuts them.

    margin: the least of the logarithms of how many times each of three signs is within its limit;
    above 0 the window oscillates. -inf of a flat line and of a window that is too short.
    """
    n = len(filtered)
    window = min(round(VERDICT_S * fs_hz), n)
    starts = np.minimum(np.arange(0, n, window), n - window)
    if window < LEAST_S * fs_hz:
        return np.full((2, len(starts)), [[-np.inf], [0]])

    lag = round(SLOPE_S * fs_hz)
    result = []
    for first in range(0, len(starts), BATCH_WINDOWS):
        part = sliding_window_view(filtered, window)[starts[first:first + BATCH_WINDOWS]]
        with np.errstate(invalid="ignore", divide="ignore"):
            peaked = kurtosis(part[:, 2 * lag:] - part[:, :-2 * lag])
            share, frequency_hz = concentration(part, fs_hz)
            within = np.log(np.min([
                (KURTOSIS + NORMAL_KURTOSIS) / peaked,
                LEAKAGE / leakage(part), share / CONCENTRATION], axis=0))
        # NaN where the line is flat
        result.append([np.where(np.isnan(within), -np.inf, within), frequency_hz])
    return np.concatenate(result, axis=1)


def without_qrs(margin, frequency_hz, noisy):
    """(n_windows,) bool of `oscillation`; noisy (n_windows,) bool: the beats that were detected do
    not resemble one another.

    Fibrillation lasts: of noise beside such a window less is asked.
    """
    found = (margin > 0) & ((frequency_hz >= SLOWEST_HZ) | noisy)
    beside = np.zeros(len(found), bool)
    beside[1:] |= found[:-1]
    beside[:-1] |= found[1:]
    return found | beside & noisy & (margin > BESIDE)


def score(margin, frequency_hz):
    """(n_windows,) the higher, the more like fibrillation: the margin, or half the logarithm of the
    frequency over SLOWEST_HZ where that is less.
    """
    return np.minimum(margin, 0.5 * np.log(np.maximum(frequency_hz, 1e-9) / SLOWEST_HZ))


def kurtosis(values):
    """(m,) of values (m, w): 3 of a normal distribution, 1 at the least. What scipy.stats gives, in
    a tenth of the time.
    """
    squares = np.square(values - values.mean(axis=1, keepdims=True))
    return np.square(squares).mean(axis=1) / np.square(squares.mean(axis=1))


def concentration(windows, fs_hz):
    """((m,) share of the power of windows (m, w) about the strongest frequency of PEAK_HZ, (m,)
    that frequency in Hz).
    """
    length = min(round(SPECTRUM_S * fs_hz), windows.shape[1])
    hz, power = scipy.signal.welch(windows, fs_hz, nperseg=length, axis=1)
    inside = (hz >= PEAK_HZ[0]) & (hz <= PEAK_HZ[1])
    strongest_hz = hz[np.where(inside, power, 0).argmax(axis=1)]
    around = np.abs(hz - strongest_hz[:, None]) <= AROUND_HZ
    whole = (hz >= WHOLE_HZ[0]) & (hz <= WHOLE_HZ[1])
    return (power * around).sum(axis=1) / power[:, whole].sum(axis=1), strongest_hz


def leakage(windows):
    """(m,) share of windows (m, w) that is left when each is added to itself half a period later; 0
    of a sine.
    """
    sizes = np.abs(windows)
    size = sizes[:, 1:].sum(axis=1)
    change = np.diff(windows, axis=1)
    change = np.abs(change, out=change).sum(axis=1)
    result = np.full(len(windows), np.nan)

    for row, values in enumerate(windows):
        if change[row] > 0:
            # the half period of a sine of this size and steepness, in samples
            half = max(1, round(np.pi * size[row] / change[row]))
            left = np.abs(values[half:] + values[:-half])
            result[row] = left.sum() / (sizes[row, half:] + sizes[row, :-half]).sum()
    return result
