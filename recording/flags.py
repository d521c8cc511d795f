"""Which beats are flagged at the default line: what is abnormal of itself, alone or as a group."""

import numpy as np
from scipy.ndimage import percentile_filter

from recording import episodes, scan
from recording.groups import of_group

# What noise adds to the excess. Sixteen neighbouring choices of the four flag, of N beats of DS1
# with 12 dB of electrode motion, 1.7 to 2.3 % instead of 5.8
NOISE_BEATS = 11          # the beats around that ...
NOISE_EARLY = 0.1         # ... come in time, by this share of the usual RR interval, and stay below
                          # the line: VT between them says nothing
NOISE_PERCENTILE = 75     # of their excess; what it has ...
NOISE_EXCESS = 0.7        # ... beyond that of clean beats (DS1: below 0.7 in 95 % of the places) ...
NOISE_SHARE = 0.75        # ... counts so much: a foreign beat in noise deviates by both


def flags(beats, found, line, causal, by_group=True):
    """(n,) bool of DetectedBeats and their scan.Evidence.

    A group has one answer, by the median of its excess: beats about the line do not fall on either
    side by chance. Neither early nor foreign (kind Q) is not flagged, and a foreign shape has to
    deviate by more than noise explains. Nor is a beat that is only early flagged while the rhythm
    is irregularly irregular: atrial fibrillation has no usual interval. From the past alone neither
    groups nor noise nor such a rhythm are known.
    """
    excess = of_group(found.excess, found.group) if by_group else found.excess
    if causal:
        return (excess >= line) & (found.kind != "Q")

    foreign = np.isin(found.kind, episodes.VENTRICULAR)
    noise = np.where(foreign, of_noise(found, excess, line), 0)
    excess = excess - (of_group(noise, found.group) if by_group else noise)
    flagged = (excess >= line) & (found.kind != "Q")

    kind = np.where(flagged, found.kind, "N")
    irregular = episodes.in_atrial_fibrillation(beats.time_s, kind, scan.joined(beats),
                                                found.without_p)
    return flagged & ~(irregular & (kind == "S"))


def of_noise(found, excess, line):
    """(n,) what noise adds to the excess of a beat, by the beats around it that come in time and
    stay below the line. excess (n,) as it is held against the line.
    """
    usual = np.flatnonzero((excess < line) & (found.early < NOISE_EARLY))
    if not len(usual):
        return np.zeros(len(excess))
    around = percentile_filter(found.excess[usual], NOISE_PERCENTILE, NOISE_BEATS, mode="nearest")
    near = np.searchsorted(usual, np.arange(len(excess))).clip(max=len(usual) - 1)
    return NOISE_SHARE * np.maximum(around[near] - NOISE_EXCESS, 0)
