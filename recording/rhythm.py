"""Rate, pauses and burden of one recording: the figures a reader of Holters asks for first.

Rate            60 over the mean of the usual RR intervals; the lowest and the highest are those of
                RATE_INTERVALS in a row. A recorder takes 16 (LifeWatch ACT III, manual); half of
                that shows a run of ten beats, and is even, so that bigeminy's short and long
                intervals weigh alike.
longest pause   the longest interval between two beats, whatever its length
burden          flagged V, and flagged S, as a share of the scored beats
couplet         two flagged beats of kind V, or two of kind S, in a row, and no more: three are a
                run

An interval counts where nothing between its beats is unreadable. Runs are those of episodes.py.
"""

import numpy as np

from recording.episodes import RUN_BEATS, VENTRICULAR, pieces, spells
from recording.beats import joined

USUAL_RR_S = (0.2, 5)     # intervals that a heart rate is taken from: outside of these it is a
                          # missed beat or one too many
RATE_INTERVALS = 8
RUNS = ("ventricular run", "slow ventricular run", "supraventricular run")


def rhythm_of(scored):
    """{"rate_lowest_per_min", "rate_mean_per_min", "rate_highest_per_min", "longest_pause_s",
    "longest_pause_at_s", "v_burden", "s_burden", "runs", "longest_run_beats", "couplets"} of
    ScoredBeats.

    longest_pause_at_s is the time of the beat before it. None where it is not known.
    """
    linked = joined(scored.beats) if len(scored.beats.time_s) > 1 else np.zeros(0, bool)
    time_s = scored.beats.time_s
    result = rates(time_s, linked) | longest_pause(time_s, linked)

    n_scored = int(scored.beats.scored.sum())
    for letter in "VS":
        count = int((scored.kind == letter).sum())
        result[f"{letter.lower()}_burden"] = count / n_scored if n_scored else None

    runs = [episode["beats"] for episode in scored.episodes if episode["kind"] in RUNS]
    return result | {"runs": len(runs) if n_scored else None,
                     "longest_run_beats": max(runs, default=None),
                     "couplets": couplets(scored.kind, linked) if n_scored else None}


def rates(time_s, linked):
    """The three rates, from time_s (n,) of the beats and linked (n - 1,) bool: see beats.joined."""
    rr_s = np.diff(time_s)
    usual = linked & (rr_s > USUAL_RR_S[0]) & (rr_s < USUAL_RR_S[1])
    mean = float(60 / rr_s[usual].mean()) if usual.any() else None

    # RATE_INTERVALS in a row, all usual: from beat k to beat k + RATE_INTERVALS
    inside = np.append(0, np.cumsum(usual))
    whole = inside[RATE_INTERVALS:] - inside[:-RATE_INTERVALS] == RATE_INTERVALS
    length_s = (time_s[RATE_INTERVALS:] - time_s[:-RATE_INTERVALS])[whole]
    known = 60 * RATE_INTERVALS / length_s
    return {"rate_lowest_per_min": float(known.min()) if len(known) else None,
            "rate_mean_per_min": mean,
            "rate_highest_per_min": float(known.max()) if len(known) else None}


def longest_pause(time_s, linked):
    """{"longest_pause_s", "longest_pause_at_s"}, arguments as of `rates`."""
    if not linked.any():
        return {"longest_pause_s": None, "longest_pause_at_s": None}

    length_s = np.where(linked, np.diff(time_s), 0)
    at = int(length_s.argmax())
    return {"longest_pause_s": float(length_s[at]), "longest_pause_at_s": float(time_s[at])}


def couplets(kind, linked):
    """How many there are: kind (n,) as of ScoredBeats, linked (n - 1,) bool."""
    count = 0
    # S, V and F in a row are one spell: two V in a run of three are no couplet
    for first, last in spells(np.isin(kind, ("S", *VENTRICULAR))):
        for low, high in pieces(first, last, linked):
            if high - low + 1 == RUN_BEATS - 1 and kind[low] == kind[high] != "F":
                count += 1
    return count
