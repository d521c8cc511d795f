"""How early a beat comes and how long the heart waits after it, against the record's own rhythm.

Pure functions over the beats of one record, in order of time. No label is read: only when beats are.
The sign matters: a premature beat and its compensatory pause are abnormal, a late beat is not, so
that a record in which premature beats are the majority (232) is not turned upside down.
"""

import numpy as np
from scipy.ndimage import median_filter

SPREAD_FLOOR = 0.05  # of log RR: a metronome's rhythm must not make every beat irregular
PAUSE_WEIGHT = 0.5   # the pause counts half: it also follows blocked beats and ends of runs


def filled(rr_s, causal):
    """RR intervals (n,) in s with missing ones (ends of a record) replaced by the median, or 1 s.

    causal: a missing first one by the next, which is the RR after that beat.
    """
    rr_s = np.asarray(rr_s, float)
    known = np.isfinite(rr_s) & (rr_s > 0)
    usual = rr_s[known][:1] if causal and not known[:1].all() else rr_s[known]
    return np.where(known, rr_s, np.median(usual) if known.any() else 1.0)


def local_median(values, beats, causal):
    """Median over `beats` neighbouring beats (n,): centred, or of the last ones only."""
    shift = (beats - 1) // 2 if causal else 0
    return median_filter(values, beats, mode="nearest", origin=shift)


def timing(rr_before_s, rr_after_s, beats, causal=False):
    """(n, 2) float32: prematurity log(local median RR / RR before), pause log(RR after / RR before)."""
    before, after = filled(rr_before_s, causal), filled(rr_after_s, causal)
    return np.stack([np.log(local_median(before, beats, causal) / before), np.log(after / before)],
                    axis=1).astype(np.float32)


def irregularity(times, learning=slice(None)):
    """(n,) prematurity and pause in units of the record's usual spread of prematurity.

    times (n, 2) from `timing`; `learning` selects the beats the spread is taken from. In atrial
    fibrillation the spread is wide, and an early beat says little.
    """
    spread = np.median(np.abs(times[learning, 0])) if len(times[learning]) else 0.0
    return (times[:, 0] + PAUSE_WEIGHT * times[:, 1]) / (SPREAD_FLOOR + spread)
