"""Is there a P wave? What stands before the QRS complexes of neighbouring beats, and is the same.

In atrial fibrillation there is none: what stands there differs from beat to beat and its mean is
flat (ESC 2020: no discernible, repeating P waves). An irregular rhythm with P waves is another one:
premature beats, sinus arrhythmia, block.
"""

import numpy as np

from pipeline.runtime import in_threads, slices
from recording.kinds import FOREIGN
from scoring.features import BATCH

BEFORE_R_S = (0.24, 0.08)   # where it is looked for: from, to, before the R peak
BEATS = 61                  # about a minute, as for the rhythm
# In the fibrillation of 201, 203, 804 and 615 the share is below 0.1 (90 % of the beats), in sinus
# rhythm above 0.3 in four of five records of DS1 and svdb
LEAST = 0.2                 # of what stands there is the same in all beats


def without_p(segments, distance, fs_hz):
    """(k,) bool: no P wave in the BEATS around each beat, those with a foreign QRS complex left
    out.

    segments (k, >= w): beats as the network sees them, R peak in the middle of w samples, then
    offset and scale; indexed by slices. distance (k,) of kinds.qrs_distance.
    """
    k = len(segments)
    half = BEATS // 2
    result = np.empty(k, bool)

    def of(part):
        first = max(0, part.start - half)
        last = min(k, part.stop + half)
        own = distance[first:last] < FOREIGN
        share = same_share(before_r(segments[first:last], fs_hz), own)
        result[part] = share[part.start - first:][:min(part.stop, k) - part.start] < LEAST

    in_threads(of, slices(k, 4 * BATCH))
    return result


def before_r(segments, fs_hz):
    """(k, m) signal before the R peak, without its line."""
    middle = (segments.shape[1] - 2) // 2
    first, last = (round(s * fs_hz) for s in BEFORE_R_S)
    x = segments[:, middle - first:middle - last] * segments[:, -1:]
    time = np.linspace(-1, 1, x.shape[1])
    x = x - x.mean(axis=1, keepdims=True)
    return x - np.outer(x @ time / (time @ time), time)


def same_share(x, own):
    """(k,) share of the power of x (k, m) that its mean over the BEATS around has, those that are
    `own` (k,); about 0 where they have nothing in common, though a mean of few is never flat.
    """
    x = np.where(own[:, None], x, 0)
    total = windows(x)                                  # (k, m)
    power = windows(np.square(x).sum(axis=1))
    count = np.maximum(windows(own.astype(float)), 2)

    # the mean of n beats without anything in common has an n-th of their power
    mean_power = np.square(total).sum(axis=1) / count
    return (mean_power - power / count) / (count - 1) / np.maximum(power / count, 1e-12)


def windows(values):
    """Sum of the BEATS around each of values (k, ...)."""
    half = BEATS // 2
    sums = np.cumsum(np.concatenate([np.zeros_like(values[:1], float), values]), axis=0)
    at = np.arange(len(values))
    return sums[np.minimum(at + half + 1, len(values))] - sums[np.maximum(at - half, 0)]
