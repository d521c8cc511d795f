"""Windows without QRS complexes: fibrillation, flutter, and ventricular rhythms as wide and fast.

Three signs together, each a ratio, so that the recorder's gain does not matter. Slopes
of a normal ECG are few and steep, those of an oscillation are spread over all of it: their kurtosis
is low. And an oscillation is nearly its own negative half a period later: what a filter for that
leaves over is little (Kuo & Dillman 1978, Comput Cardiol 5:347). Its power lies about one
frequency, which that of noise does not (Nygards & Hulting 1977, Comput Cardiol 4:393).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import welch
from scipy.stats import kurtosis

from recording.quality import BATCH_WINDOWS, VERDICT_S

SLOPE_S = 0.022           # the slope is the rise over twice this time
LEAST_S = 2.0             # a shorter window says nothing
# Of 11 records of vfdb, windows of one label: 92 % of VF, 100 % of VFIB, 79 % of VFL and 98 % of VT
# have all three, 1.2 % of noise, none of N but in 418, whose beats are all wide. Of 20 records of
# DS1 without flutter none has the first two (lowest thousandths 2.2 and 0.68), nor has the noise of
# nstdb all three.
KURTOSIS = 1.5
LEAKAGE = 0.7
CONCENTRATION = 0.25
PEAK_HZ = (2.0, 10.0)     # where the frequency is looked for; the share is of ...
AROUND_HZ = 0.75          # ... what lies so near to it ...
WHOLE_HZ = (0.5, 30.0)    # ... of this power
SPECTRUM_S = 4.0


def without_qrs(filtered, fs_hz):
    """(n_windows,) bool of a band-passed lead (n,): each window of VERDICT_S, as quality.unreadable
    cuts them.
    """
    n = len(filtered)
    window = min(round(VERDICT_S * fs_hz), n)
    starts = np.minimum(np.arange(0, n, window), n - window)
    if window < LEAST_S * fs_hz:
        return np.zeros(len(starts), bool)

    lag = round(SLOPE_S * fs_hz)
    result = []
    for first in range(0, len(starts), BATCH_WINDOWS):
        part = sliding_window_view(filtered, window)[starts[first:first + BATCH_WINDOWS]]
        with np.errstate(invalid="ignore", divide="ignore"):
            peaked = kurtosis(part[:, 2 * lag:] - part[:, :-2 * lag], axis=1)
            # NaN where the line is flat: no oscillation
            result.append((peaked < KURTOSIS) & (leakage(part) < LEAKAGE)
                          & (concentration(part, fs_hz) > CONCENTRATION))
    return np.concatenate(result)


def concentration(windows, fs_hz):
    """(m,) share of the power of windows (m, w) about the strongest frequency of PEAK_HZ."""
    length = min(round(SPECTRUM_S * fs_hz), windows.shape[1])
    hz, power = welch(windows, fs_hz, nperseg=length, axis=1)
    inside = (hz >= PEAK_HZ[0]) & (hz <= PEAK_HZ[1])
    strongest_hz = hz[np.where(inside, power, 0).argmax(axis=1)]
    around = np.abs(hz - strongest_hz[:, None]) <= AROUND_HZ
    whole = (hz >= WHOLE_HZ[0]) & (hz <= WHOLE_HZ[1])
    return (power * around).sum(axis=1) / power[:, whole].sum(axis=1)


def leakage(windows):
    """(m,) share of windows (m, w) that is left when each is added to itself half a period later; 0
    of a sine.
    """
    size = np.abs(windows[:, 1:]).sum(axis=1)
    change = np.abs(np.diff(windows, axis=1)).sum(axis=1)
    result = np.full(len(windows), np.nan)

    for row, values in enumerate(windows):
        if change[row] > 0:
            # the half period of a sine of this size and steepness, in samples
            half = max(1, round(np.pi * size[row] / change[row]))
            now, then = values[half:], values[:-half]
            result[row] = np.abs(now + then).sum() / (np.abs(now) + np.abs(then)).sum()
    return result
