"""Stretches that are abnormal as a whole: rules over beats, each with its source.

run             three and more abnormal beats in a row (AHA/ACC/HRS 2017: ventricular arrhythmias);
                a ventricular one below 100 beats/min is a slow one, a supraventricular one none
                (ACC/AHA/HRS 2015: a tachycardia is above 100/min)
bigeminy        every other beat abnormal, three times and more; trigeminy: every third
pause           2 s and more without a beat (ACC/AHA/HRS 2018: bradycardia)
asystole        5 s and more without a beat, or with a lead that hardly moves: QRS detectors find
                beats in whatever is left
bradycardia     below 50 beats/min for half a minute (the same)
tachycardia     above 100 beats/min for half a minute
atrial fibrillation, suspected: half a minute (ESC 2020) of intervals that are irregular at every
                distance, where those of bigeminy and trigeminy return after two and three beats,
                and no P wave
half a minute   of a shorter recording nearly all that can be read, as of an ECG of ten seconds
                (ESC 2020)
"""

import numpy as np
import scipy

RUN_BEATS = 3
CYCLES = 3
PAUSE_S = 2.0
ASYSTOLE_S = 5.0
STILL = 0.25              # of the usual swing of a second: in six asystoles of vfdb from 0.05 on,
                          # but for two in noise; no stretch of 5 s of DS1 and svdb, but for 116,
                          # whose amplifier is off
SLOW_PER_MIN = 50
FAST_PER_MIN = 100
LASTING_S = 30.0
NEARLY_ALL = 0.8          # of the longest stretch that can be read, where that is shorter; ...
SHORTEST_S = 7.0          # ... at least so much: from beat to beat of ten seconds
RATE_BEATS = 9            # a rate is of the median interval of so many beats
IRREGULAR_BEATS = 61      # irregular by the median over so many beats, about a minute: ...
IRREGULAR = 0.06          # ... of |log RR - log RR of 1, 2, 3 beats before|, the least of the
                          # three: 203, in fibrillation, has 0.17 to 0.29, 115 with its sinus
                          # arrhythmia 0.04 to 0.07. And the quarter of the intervals ...
MIDDLE = (37.5, 62.5)     # ... in the middle is apart by ...
APART = 0.04              # ... so much of log RR: one beat in five of 821 is premature, the others
                          # come like a clock
LEAST_INTERVALS = 8       # of a short recording all count, from so many on: of half a minute and of
                          # ten seconds of 201 and 203 all 14 strips in fibrillation are found, of
                          # DS1 and svdb 2 and 3 of 511 others (804 is left out)
VENTRICULAR = ("V", "F")
LASTING = ("bradycardia", "tachycardia")

NO_QRS = "fibrillation, flutter or a wide fast rhythm, suspected"

# WFDB rhythm annotations of those that have one
RHYTHMS = {"ventricular run": "(VT", "slow ventricular run": "(IVR",
           "supraventricular run": "(SVTA", "bigeminy": "(B", "trigeminy": "(T",
           "bradycardia": "(SBR", "atrial fibrillation, suspected": "(AFIB", "asystole": "(ASYS"}


def spells(mask):
    """(k, 2) first and last index, that one too, of the runs of True in mask (n,)."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    return edges - [0, 1]


def lasting(mask, time_s, joined):
    """(first, last) of the runs of True in mask (n,), beats, that last half a minute, or nearly all
    that can be read.
    """
    readable_s = max((time_s[last] - time_s[first] for first, last in
                      pieces(0, len(time_s) - 1, joined)), default=0)
    least_s = max(SHORTEST_S, min(LASTING_S, NEARLY_ALL * readable_s))
    return [(first, last) for first, last in spells(mask)
            if time_s[last] - time_s[first] >= least_s]


def episodes(time_s, kind, joined, without_p=True):
    """[{"kind", "start_s", "end_s", "beats", "rate_per_min", "why"}] in order of their start.

    time_s (n,) of the beats; kind (n,) N, or S, V, F, Q where flagged, "" where not scored; joined
    (n - 1,) bool: no unreadable stretch lies between a beat and the next; without_p (n,) bool: no P
    wave is seen around the beat, True where that is not known.
    """
    if len(time_s) < 2:
        return []
    rr_s = np.diff(time_s)
    found = [*runs(time_s, kind, joined), *cycles(kind, joined), *pauses(rr_s, joined)]

    irregular = in_atrial_fibrillation(time_s, kind, joined, without_p)
    for name, mask, why in (
            ("atrial fibrillation, suspected", irregular,
             "RR intervals are irregular at every distance, without P waves"),
            *rates(rr_s, joined)):
        found += [(name, first, last, why) for first, last in lasting(mask, time_s, joined)]

    # what comes in an irregular rhythm early is no run of its own
    rows = []
    for name, first, last, why in found:
        if name == "supraventricular run" and irregular[first:last + 1].all():
            continue
        # one long interval does not slow a rhythm
        usual_s = np.median(rr_s[first:last]) if name in LASTING else np.mean(rr_s[first:last])
        rows.append({"kind": name, "start_s": float(time_s[first]), "end_s": float(time_s[last]),
                     "beats": int(last - first + 1), "rate_per_min": float(60 / usual_s),
                     "why": why})
    return sorted(rows, key=lambda row: row["start_s"])


def without_qrs(windows, window_s, duration_s):
    """Rows like those of `episodes`, of windows (n,) bool of window_s without QRS complexes."""
    rows = []
    for first, last in spells(windows):
        rows.append({"kind": NO_QRS, "start_s": float(first * window_s),
                     "end_s": float(min((last + 1) * window_s, duration_s)), "beats": None,
                     "rate_per_min": None, "why": "an oscillation without QRS complexes"})
    return rows


def still(swing, unreadable, window_s, known):
    """Rows like those of `episodes`, of asystole that is told by the lead itself, but for what the
    rows `known` have already.

    swing (m,) of each second, from lowest to highest, NaN without a signal; unreadable (n_windows,)
    of window_s, 0 where it can be read.
    """
    window = (np.arange(len(swing)) // window_s).astype(int)
    readable = (unreadable[window] == 0) & np.isfinite(swing)
    if not readable.any():
        return []
    usual = np.median(swing[readable])

    rows = []
    for first, last in spells(swing < STILL * usual):
        length_s = last + 1 - first
        if length_s < ASYSTOLE_S:
            continue
        twice = any(row["kind"] == "asystole" and row["start_s"] < last + 1
                    and row["end_s"] > first for row in known)
        if not twice:
            rows.append({"kind": "asystole", "start_s": float(first), "end_s": float(last + 1),
                         "beats": None, "rate_per_min": None,
                         "why": f"{length_s} s with less than {100 * STILL:.0f} % of the usual "
                                "swing"})
    return rows


def runs(time_s, kind, joined):
    """(name, first, last, why) of three and more abnormal beats in a row."""
    # Q is abnormal, but of what kind is not known
    abnormal = np.isin(kind, ("S", *VENTRICULAR))

    for first, last in spells(abnormal):
        for low, high in pieces(first, last, joined):
            beats = high - low + 1
            if beats >= RUN_BEATS:
                ventricular = np.isin(kind[low:high + 1], VENTRICULAR).sum()
                fast = 60 * (beats - 1) >= FAST_PER_MIN * (time_s[high] - time_s[low])
                if 2 * ventricular >= beats:
                    name = "ventricular run" if fast else "slow ventricular run"
                elif fast:
                    name = "supraventricular run"
                else:
                    continue
                yield name, low, high, f"{beats} abnormal beats in a row, {ventricular} of a " \
                                       "foreign shape"


def pieces(first, last, joined):
    """(first, last) of the parts of a spell of beats between which all is readable."""
    broken = first + np.flatnonzero(~joined[first:last])
    return zip([first, *(broken + 1)], [*broken, last])


def cycles(kind, joined):
    """(name, first, last, why) where every other, or every third, beat is abnormal."""
    abnormal = np.isin(kind, ("S", *VENTRICULAR))

    for name, length in (("bigeminy", 2), ("trigeminy", 3)):
        if len(kind) <= length:
            continue

        # a cycle: an abnormal beat, then normal ones, then the next abnormal one
        cycle = abnormal[:-length] & abnormal[length:]
        for k in range(1, length):
            cycle &= kind[k:len(kind) - length + k] == "N"
        for k in range(length):
            cycle &= joined[k:len(joined) - length + 1 + k]

        # beats of cycles that follow each other
        covered = np.zeros(len(kind), bool)
        for k in range(length):
            covered[k:len(kind) - length + k] |= cycle
        for first, last in spells(covered):
            count = (last - first + 1) // length
            if count >= CYCLES:
                yield name, first, last, f"{count} times, one abnormal beat in {length}"


def pauses(rr_s, joined):
    """(name, first, last, why) of long intervals."""
    for k in np.flatnonzero(joined & (rr_s >= PAUSE_S)):
        name = "asystole" if rr_s[k] >= ASYSTOLE_S else "pause"
        yield name, k, k + 1, f"{rr_s[k]:.1f} s without a beat"


def rates(rr_s, joined):
    """(name, (n,) bool of the beats, why) of slow and of fast rhythms."""
    usual_s = scipy.ndimage.median_filter(rr_s, RATE_BEATS, mode="nearest")
    slow = joined & (usual_s > 60 / SLOW_PER_MIN)
    fast = joined & (usual_s < 60 / FAST_PER_MIN)
    return [("bradycardia", np.append(slow, False), f"below {SLOW_PER_MIN} beats/min"),
            ("tachycardia", np.append(fast, False), f"above {FAST_PER_MIN} beats/min")]


def in_atrial_fibrillation(time_s, kind, joined, without_p=True):
    """(n,) bool: beats where it is suspected; arguments as of `episodes`."""
    if len(time_s) < 2:
        return np.zeros(len(time_s), bool)
    irregular = irregular_beats(np.diff(time_s), kind, joined) & without_p
    result = np.zeros(len(time_s), bool)
    for first, last in lasting(irregular, time_s, joined):
        result[first:last + 1] = True
    return result


def irregular_beats(rr_s, kind, joined):
    """(n,) bool: beats in whose surroundings the intervals differ from those 1, 2 and 3 before."""
    # a ventricular beat is early and has a pause after it, whatever the rhythm
    foreign = np.isin(kind, VENTRICULAR)
    log_rr = np.log(rr_s)
    log_rr[~joined | foreign[:-1] | foreign[1:]] = np.nan
    known = np.flatnonzero(np.isfinite(log_rr))
    if len(known) < LEAST_INTERVALS:
        return np.zeros(len(kind), bool)

    values = log_rr[known]
    least = np.full(len(values), np.inf)
    for lag in (1, 2, 3):
        away = np.abs(values[lag:] - values[:-lag])
        away = np.append(np.full(lag, np.median(away)), away)
        least = np.minimum(least, percentile_around(away, 50))
    low, high = (percentile_around(values, share) for share in MIDDLE)

    # left-out intervals belong to what is around them, but not across an unreadable stretch
    nearest = np.clip(np.searchsorted(known, np.arange(len(rr_s))), 0, len(known) - 1)
    irregular = ((least > IRREGULAR) & (high - low > APART))[nearest] & joined
    return np.append(irregular, irregular[-1])


def percentile_around(values, share):
    """(n,) percentile of the IRREGULAR_BEATS around each of values (n,), of all where there are
    fewer.
    """
    if len(values) < IRREGULAR_BEATS:
        return np.full(len(values), np.percentile(values, share))
    return scipy.ndimage.percentile_filter(values, share, IRREGULAR_BEATS, mode="nearest")
