"""How early a beat comes and how long the heart waits after it, against the record's own rhythm.

Pure functions over the beats of one record, in order of time. No label is read: only when beats are.
The sign matters: a premature beat and its compensatory pause are abnormal, a late beat is not. And the
usual interval is a high percentile of the neighbouring ones, not their median: where premature
beats are the majority, the median is theirs. It is better on ordinary records too (select_score.py).
"""

import numpy as np
from scipy.ndimage import percentile_filter

def filled(rr_s, causal):
    """RR intervals (n,) in s with missing ones (ends of a record) replaced by the median, or 1 s.

    causal: a missing first one by the next, which is the RR after that beat.
    """
    rr_s = np.asarray(rr_s, float)
    known = np.isfinite(rr_s) & (rr_s > 0)
    usual = rr_s[known][:1] if causal and not known[:1].all() else rr_s[known]
    return np.where(known, rr_s, np.median(usual) if known.any() else 1.0)


def local_percentile(values, beats, percentile, causal):
    """Percentile of `beats` neighbouring values (n,): around each, or the last ones up to it.

    Near the ends the window keeps its size and moves inward; the first causal ones have what there is.
    """
    n, beats = len(values), min(beats, len(values))
    half, centred = beats // 2, percentile_filter(values, percentile, beats)
    if not causal:
        return centred[np.clip(np.arange(n), half, n - beats + half)]
    rank = [min(int(m * percentile / 100), m - 1) for m in range(1, beats)]
    first = [np.partition(values[:m + 1], k)[k] for m, k in enumerate(rank)]
    return np.append(first, centred[half:n - beats + half + 1])


def timing(rr_before_s, rr_after_s, beats, percentile, causal=False):
    """(n, 2) float32: prematurity log(usual RR / RR before), pause log(RR after / RR before)."""
    before, after = filled(rr_before_s, causal), filled(rr_after_s, causal)
    usual = local_percentile(before, beats, percentile, causal)
    return np.stack([np.log(usual / before), np.log(after / before)], axis=1).astype(np.float32)


def irregularity(times, pause_weight, spread_floor, learning=slice(None)):
    """(n,) prematurity and weighted pause in units of the record's usual spread of prematurity.

    times (n, 2) from `timing`; `learning` selects the beats the spread (median absolute deviation)
    is taken from. In atrial fibrillation it is wide, and an early beat says little; the floor keeps
    a metronome's rhythm from making every beat irregular.
    """
    early = times[learning, 0]
    spread = np.median(np.abs(early - np.median(early))) if len(early) else 0.0
    return (times[:, 0] + pause_weight * times[:, 1]) / (spread_floor + spread)
