"""Groups of beats of like shape and timing: a recording has thousands of beats, but few kinds.

Beats are compared in the network's latents and in timing, without labels, by the mean distance
between groups (average linkage, Sokal & Michener 1958), which keeps a rare shape apart from a
frequent one. No number of groups is asked for, and the result is the same in every run.
"""

import numpy as np
import scipy

from pipeline.runtime import slices
from recording.kinds import FOREIGN, SLIGHT
from scoring.distances import for_blocks
from scoring.features import rows_by_record
from scoring.scores import SEARCH

# Recordings of DS1 and svdb have 12 and 10 groups (median) at 5, 11 and 8 at 5.5; at both 99.1 and
# 97.7 % of the beats are of their group's most frequent class. From 7 on the premature beats of 821
# fall in with its normal ones.
DISTANCE = 5.5            # mean, of two groups that stay apart: a record's latents spread by 1
TIMING_WEIGHT = 10.0      # of log RR beside them
LEAST_BEATS = 8           # a group of fewer is none: its beats stand alone
SAMPLE = 3000             # beats that are compared with each other, 36 MB of distances; the others
                          # go where the nearest of these is
HIGH = 0.9                # half of them are from the beats above this quantile of the excess: in a
                          # day a shape of fifty beats would else not be among them
EARLY = 0.08              # of the usual RR interval; what regular beats vary by goes unsaid


def groups(vectors, excess):
    """(k,) number of each beat's group, 1 the largest; 0 where it stands alone.

    vectors (k, d), indexed by row numbers: latents in units of their spread within a record, then
    weighted timing; excess (k,) of the same beats.
    """
    if len(vectors) < LEAST_BEATS:
        return np.zeros(len(vectors), int)

    sample = sample_of(excess)
    label = np.zeros(len(vectors), int)
    tree = scipy.cluster.hierarchy.linkage(scipy.spatial.distance.pdist(vectors[sample]), "average")
    label[sample] = scipy.cluster.hierarchy.fcluster(tree, DISTANCE, "distance")
    others = np.setdiff1d(np.arange(len(vectors)), sample)
    known = vectors[sample]
    for part in slices(len(others), SEARCH):
        rows = others[part]
        label[rows] = nearest_label(vectors[rows], known, label[sample])

    # by size; label 0 is far from all of the sample
    size = np.bincount(label)
    size[0] = 0
    order = np.argsort(-size, kind="stable")
    number = np.zeros(len(size), int)
    large = order[size[order] >= LEAST_BEATS]
    number[large] = 1 + np.arange(len(large))
    return number[label]


def sample_of(excess):
    """Rising row numbers of at most SAMPLE beats, half of them from those of high excess."""
    if len(excess) <= SAMPLE:
        return np.arange(len(excess))
    high = excess >= np.quantile(excess, HIGH)
    chosen = []
    for rows in (np.flatnonzero(high), np.flatnonzero(~high)):
        # evenly in time
        chosen.append(rows[::-(-len(rows) // (SAMPLE // 2))])
    return np.sort(np.concatenate(chosen))


def nearest_label(queries, known, label):
    """(m,) label of the nearest of known (r, d) to queries (m, d); 0 beyond DISTANCE of it."""
    result = np.zeros(len(queries), int)

    def of(part, away):
        nearest = away.argmin(axis=1)
        square = away[np.arange(len(away)), nearest] + (queries[part] ** 2).sum(axis=1)
        result[part] = np.where(square <= DISTANCE ** 2, label[nearest], 0)

    for_blocks(of, known, queries)
    return result


def of_group(values, group):
    """(n,) median of each beat's group; a beat's own value where it stands alone (0)."""
    result = np.array(values, float)
    for number, here in rows_by_record(group).items():
        if number > 0:
            result[here] = np.median(values[here])
    return result


# --- what is said of a group ----------------------------------------------------------------------

def rows(found, kind, flagged, time_s):
    """[{"group", "kind", "beats", "flagged", "excess", "early", "qrs_distance", "first_s", "why"}],
    a row a group, the largest first.

    found: beats.Evidence; kind, flagged, time_s (n,) as in ScoredBeats. Figures are medians.
    """
    result = []
    for number, here in rows_by_record(found.group).items():
        if number > 0:
            result.append({"group": number, "flagged": int(flagged[here].sum())}
                          | described(here, found, kind, time_s))
    return result


def described(here, found, kind, time_s):
    """{"kind", "beats", "excess", "early", "qrs_distance", "first_s", "why"} of the beats `here`,
    rising row numbers: their most frequent kind, medians, the time of the first, and words.
    """
    letters, counts = np.unique(kind[here], return_counts=True)
    early = float(np.median(found.early[here]))
    distance = float(np.median(found.distance[here]))
    return {"kind": str(letters[counts.argmax()]), "beats": len(here),
            "excess": float(np.median(found.excess[here])), "early": early,
            "qrs_distance": distance, "first_s": float(time_s[here[0]]),
            "why": in_words(early, distance)}


def in_words(early, distance):
    """"early by 31 %, QRS complex like the regular ones"."""
    if early >= EARLY:
        when = f"early by {100 * early:.0f} %"
    elif early <= -EARLY:
        when = f"late by {-100 * early:.0f} %"
    else:
        when = "in time"

    if distance >= FOREIGN:
        shape = "foreign to the regular ones"
    elif distance >= SLIGHT:
        shape = "somewhat unlike the regular ones"
    else:
        shape = "like the regular ones"
    return f"{when}, QRS complex {shape}"
