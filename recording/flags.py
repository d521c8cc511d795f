"""Which beats are flagged at the default line: what is abnormal of itself, alone or as a group."""

import numpy as np
import scipy

from recording import episodes
from recording.beats import joined
from recording.groups import of_group

# What noise adds to the excess. In DS1 with 12 dB of electrode motion 1.8 % of N are flagged
# instead of 5.5, 84 % of V instead of 89, with muscle artefact 1.3 % of N instead of 1.8; without
# noise 0.62 % instead of 0.68, and as many V. Twelve choices nearby: 1.6 to 2.2 %, 77 to 88 %
NOISE_BEATS = 11          # the beats around that ...
NOISE_EARLY = 0.1         # ... come in time, by this share of the usual RR interval, and stay below
                          # the line: a run between them says nothing
NOISE_PERCENTILE = 75     # of their excess; what it has ...
NOISE_EXCESS = 0.7        # ... beyond that without noise (in DS1 0.8 at most in 90 % of places) ...
NOISE_SHARE = 0.75        # ... counts so much: a foreign beat in noise deviates by both

# Beside two V beats in a row a third may lie so far below the line: of 35 runs in DS1 26 are found
# instead of 22, and 0.01 % more of N is flagged; the same at 0.2 and 0.5
RUN_BELOW = 0.3


def flags(beats, found, line, causal, by_group=True):
    """(n,) bool of DetectedBeats and their Evidence.

    A group has one answer, by the median of its excess: beats about the line do not fall on either
    side by chance. Neither early nor foreign (kind Q) is not flagged, and a foreign shape has to
    deviate by more than noise explains; in a run it may deviate less. Nor is a beat that is only
    early flagged while the rhythm is irregularly irregular: atrial fibrillation has no usual
    interval. From the past alone neither groups nor noise, runs and such a rhythm are known.
    """
    excess = of_group(found.excess, found.group) if by_group else found.excess
    if causal:
        return (excess >= line) & (found.kind != "Q")

    foreign = np.isin(found.kind, episodes.VENTRICULAR)
    noise = np.where(foreign, of_noise(found, excess, line), 0)
    excess = excess - (of_group(noise, found.group) if by_group else noise)
    flagged = (excess >= line) & (found.kind != "Q")

    linked = joined(beats)
    ventricular = found.kind == "V"
    alone = found.group == 0 if by_group else True
    near = ventricular & alone & (excess >= line - RUN_BELOW)
    flagged |= in_runs(flagged & ventricular, near, linked)

    kind = np.where(flagged, found.kind, "N")
    irregular = episodes.in_atrial_fibrillation(beats.time_s, kind, linked, found.without_p)
    return flagged & ~(irregular & (kind == "S"))


def of_noise(found, excess, line):
    """(n,) what noise adds to the excess of a beat, by the beats around it that come in time and
    stay below the line. excess (n,) as it is held against the line.
    """
    usual = np.flatnonzero((excess < line) & (found.early < NOISE_EARLY))
    if len(usual) < NOISE_BEATS:
        return np.zeros(len(excess))
    around = scipy.ndimage.percentile_filter(found.excess[usual], NOISE_PERCENTILE, NOISE_BEATS,
                                             mode="nearest")
    near = np.searchsorted(usual, np.arange(len(excess))).clip(max=len(usual) - 1)
    return NOISE_SHARE * np.maximum(around[near] - NOISE_EXCESS, 0)


def in_runs(known, possible, linked):
    """(n,) bool: known (n,) bool, and what is possible (n,) bool where it makes three in a row with
    two of them; linked (n - 1,) bool of beats.joined.
    """
    known = known.copy()
    while True:
        pair = known[:-1] & known[1:] & linked
        both = known[:-2] & known[2:] & linked[:-1] & linked[1:]
        more = np.zeros(len(known), bool)
        more[2:] |= pair[:-1] & linked[1:]
        more[:-2] |= pair[1:] & linked[:-1]
        more[1:-1] |= both
        more &= possible & ~known
        if not more.any():
            return known
        known |= more
